/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TESTS_VMM_ENGINE_H
#define RL_TESTS_VMM_ENGINE_H
/**
 * @file vmm_engine.h
 * Both ends around libramlift-vmm: a VMM that counts what it is asked, and an engine played by the test, which
 * frames its messages by itself. A failed expectation fails the test.
 *
 * Threads: the test's; the VMM's counters are atomic.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ramlift-vmm.h>

#define RAM_BYTES  (1u << 20)
#define N_VCPUS    2u
#define RING_SLOTS 1024u
#define WAIT_MS    10000

enum op { LOG_START, LOG_STOP, PAUSE, RESUME, STATE_GET, STATE_PUT, RUN, RESET, MOVED, N_OPS };

struct guest {
	atomic_int calls[N_OPS];
	atomic_int fail[N_OPS]; /* -errno, for as long as it is set */
	atomic_int rings_reset;
	atomic_uint state_bytes;
	atomic_int synced[4]; /* by slot id */
	char loaded[16];
	atomic_int undrained; /* warnings of a drain that nobody acknowledged */
	int ram, ring;
};

struct engine {
	char dir[32], path[64];
	int listener, conn;
	struct guest guest;
	struct rl_vmm *vmm;
	bool incoming, bitmap;

	/* from the last registration */
	struct rl_vmm_hello hello;
	struct rl_vmm_region region;
	int region_fd, shared_fd, door_fd, ring_fd[N_VCPUS];
	struct rl_vmm_shared *shared;
	uint64_t shared_size;
};

struct message {
	struct rl_vmm_hdr hdr;
	uint8_t payload[RL_VMM_MAX_PAYLOAD];
	int fd[RL_VMM_MAX_FDS];
	uint32_t n_fds;
};

extern const struct rl_vmm_ops guest_ops;

int count_fds(void);
void wait_readable(int fd);
void send_raw(int sock, const void *data, size_t bytes, const int *fds, uint32_t n_fds);
void send_msg(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
	      const int *fds, uint32_t n_fds);
void recv_msg(int sock, struct message *m);
void engine_expect(struct engine *e, uint32_t request, uint32_t size, uint32_t n_fds,
		   struct message *m);
void engine_reply(struct engine *e, uint32_t request, int code);
void engine_accept(struct engine *e);
void engine_register(struct engine *e);
void engine_hang_up(struct engine *e);
void engine_open(struct engine *e, bool incoming, bool bitmap);
void engine_start(struct engine *e, bool incoming, bool bitmap);
void engine_finish(struct engine *e);
int engine_call_fds(struct engine *e, uint32_t request, const void *payload, uint32_t size,
		    const int *fds, uint32_t n_fds, struct message *m);
int engine_call(struct engine *e, uint32_t request, uint32_t outcome);
void engine_drive(struct engine *e, int phase);
bool ram_is_zero(const struct guest *g);

#endif /* RL_TESTS_VMM_ENGINE_H */
