/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_VMM_H
#define RL_CONTROL_VMM_H
/**
 * @file vmm.h
 * The engine's side of the VMM socket (ramlift/vmm.h, docs/vmm-socket.md): registration of a VM and the
 * requests that a migration makes of it.
 *
 * Threads: a struct rl_vm is used by one thread at a time: the greeter while it registers, then whoever has
 *          taken it from the daemon's registry. `hello` is constant after registration but for `phase` and
 *          `last`, which follow the requests made.
 * Errors:  0 or -errno with cause: -ECONNRESET (the VMM closed), -ESRCH (its process is gone), -ETIMEDOUT, or
 *          the VMM's own -errno and text.
 */
#include <stdbool.h>
#include <stdint.h>

#include <ramlift/vmm.h>

#include "base/err.h"
#include "memory/dirty.h"
#include "memory/ram.h"

struct rl_vm {
	int fd;    /* the socket */
	int pidfd; /* of the VMM's process: the only sure sign of its death */
	int32_t pid;
	struct rl_vmm_hello hello;
	struct rl_ram ram; /* not mapped between migrations */
	bool zeroed;       /* target memory has never been written */
	int shared_fd, doorbell_fd;
	uint64_t shared_size;
	int vcpu_fd[RL_VMM_MAX_VCPUS];
	struct rl_dirty_ring_opts ring[RL_VMM_MAX_VCPUS];
	const struct rl_vmm_shared *shared; /* mapped read-only, for statistics */
	uint64_t deadline_ns;               /* while registering */

	/* the daemon's registry */
	bool busy; /* taken by a session */
	struct rl_vm *next;
};

/**
 * Read the registration from @fd (taken in any case) up to RL_VMM_ONLINE, replying as we go; @timeout_ns for all
 * of it. @check is asked once the hello is there: may this VM register (its name may be taken)? The last
 * reply is sent by rl_vm_online(), so that a VMM which saw it can be migrated.
 */
int rl_vm_register(int fd, uint64_t timeout_ns,
		   int (*check)(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err),
		   void *ctx, struct rl_vm **vm, struct rl_err *err);
/** Answer RL_VMM_ONLINE. */
int rl_vm_online(struct rl_vm *vm, struct rl_err *err);
void rl_vm_destroy(struct rl_vm *vm);

/** A request without descriptors or results. */
int rl_vm_call(struct rl_vm *vm, uint32_t request, const void *payload, uint32_t size,
	       uint64_t timeout_ns, struct rl_err *err);
int rl_vm_session_begin(struct rl_vm *vm, const uint8_t session[16], bool is_target,
			const char *peer, struct rl_err *err);
int rl_vm_session_end(struct rl_vm *vm, enum rl_vmm_outcome outcome, struct rl_err *err);
/** Device state: a malloc'd copy of what the VMM put into its memfd. */
int rl_vm_state_get(struct rl_vm *vm, uint8_t **state, uint64_t *size, struct rl_err *err);
int rl_vm_state_put(struct rl_vm *vm, const uint8_t *state, uint64_t size, struct rl_err *err);

/** The dirty source of this VM, for rl_dirty_open(). */
void rl_vm_dirty_opts(const struct rl_vm *vm, struct rl_dirty_opts *opts);

/** `hello.phase` as a session follows it. Atomic: the registry is listed meanwhile. */
static inline uint32_t
rl_vm_phase(const struct rl_vm *vm)
{
	return __atomic_load_n(&vm->hello.phase, __ATOMIC_RELAXED);
}

static inline void
rl_vm_set_phase(struct rl_vm *vm, enum rl_vmm_phase phase)
{
	__atomic_store_n(&vm->hello.phase, (uint32_t)phase, __ATOMIC_RELAXED);
}

/** Did the VMM, when it last said, run its guest or was about to? Also of a VMM that has died. */
bool rl_vm_guest_runs(const struct rl_vm *vm);

/** Has the VMM closed its socket, or we ours because it is out of step? */
bool rl_vm_gone(const struct rl_vm *vm);
/** Has its process ended? Waits up to @timeout_ms. */
bool rl_vm_dead(const struct rl_vm *vm, int timeout_ms);

const char *rl_vm_phase_name(uint32_t phase);

#endif /* RL_CONTROL_VMM_H */
