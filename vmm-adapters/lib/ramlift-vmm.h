/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RAMLIFT_VMM_LIB_H
#define RAMLIFT_VMM_LIB_H
/**
 * @file ramlift-vmm.h
 * libramlift-vmm: the VMM's side of the VMM socket. Connects to ramliftd (and again when it comes back),
 * registers the VM, answers its requests by calling the VMM, rings KVM's reset.
 *
 * It starts two threads: one for the socket, one for the doorbell. The phase of the guest (enum
 * rl_vmm_phase) lives here, so that a ramliftd that was killed and started again learns where it was:
 *   - ramliftd lost while MIGRATING or PAUSED: logging stops, the guest runs on here;
 *   - lost while COMMITTED or READY: stay as is, tell the next ramliftd;
 *   - lost while RECEIVING: memory is discarded, back to INCOMING.
 *
 * Threads: rl_vmm_create/start/stop/destroy by one thread; rl_vmm_slot_* by the thread that changes memslots;
 *          rl_vmm_ring_full by vCPU threads. Callbacks come from the socket thread (reset_rings and
 *          sync_bitmap from the doorbell thread) and must not call back into the library.
 * Units:   pages of 4096 bytes.
 * Errors:  0 or -errno; callbacks return 0 or -errno, and their text goes to the engine's user.
 */
#include <stdbool.h>
#include <stdint.h>

#include <ramlift/vmm.h>

struct rl_vmm; /* opaque */

struct rl_vmm_ops {
	/** Log dirty pages in every slot from now on / no more. */
	int (*log_start)(void *ctx, char *text);
	int (*log_stop)(void *ctx, char *text);
	/** Stop every vCPU (out of KVM_RUN) and the VMM's own writes to guest RAM; return when still. */
	int (*pause)(void *ctx, char *text);
	int (*resume)(void *ctx, char *text);
	/** All vCPU and device state, into a new memfd (ownership passes to the library). */
	int (*state_get)(void *ctx, int *memfd, uint64_t *size, char *text);
	/** Check and load it; guest RAM is complete. The guest does not run yet. The memfd stays the library's,
	 * and whoever sent it can still cut it short: pread() it, do not map it. */
	int (*state_put)(void *ctx, int memfd, uint64_t size, char *text);
	/** Target: run the guest. */
	int (*run)(void *ctx, char *text);
	/** Target: an attempt was given up; guest RAM goes back to zeros (the library does that), devices to
	 * their initial state. */
	int (*reset)(void *ctx, char *text);
	/** The guest has moved away for good: the VMM may exit. */
	void (*moved)(void *ctx);
	/** KVM_RESET_DIRTY_RINGS; returns entries reset or -errno. NULL without FEAT_DIRTY_RING. */
	int64_t (*reset_rings)(void *ctx);
	/** GET and CLEAR_DIRTY_LOG of one slot into @bitmap. NULL without FEAT_DIRTY_BITMAP. Takes no lock under
	 * which rl_vmm_slot_add/delete are called. */
	int (*sync_bitmap)(void *ctx, const struct rl_vmm_slot *slot, uint64_t *bitmap);
	/** "INFO connected …": for the VMM's log; may be NULL. From any of the library's callers and threads. */
	void (*log)(void *ctx, const char *line);
};
/* `text`: RL_VMM_TEXT_BYTES for the reason when a callback fails; the library sets it to "" before. */

struct rl_vmm_opts {
	const char *engine_socket; /* ramliftd's vmm-socket */
	const char *name;
	uint8_t uuid[16];
	bool incoming;     /* starts empty, as a target */
	uint64_t features; /* RL_VMM_FEAT_*: exactly one of ring and bitmap */
	uint32_t n_vcpus;
	const struct rl_vmm_ops *ops;
	void *ctx;
};

/** Allocates; connects to nothing yet. Strings are copied. */
int rl_vmm_create(const struct rl_vmm_opts *opts, struct rl_vmm **vmm);

/** Guest RAM; the fd is duplicated. Before start only. */
int rl_vmm_add_region(struct rl_vmm *vmm, const struct rl_vmm_region *region, int fd);

/** A vCPU's dirty ring; the fd is duplicated. Before start only. */
int rl_vmm_add_vcpu(struct rl_vmm *vmm, const struct rl_vmm_vcpu *vcpu, int fd);

/**
 * Publish a memslot. Call *before* the KVM_SET_USER_MEMORY_REGION that adds it. @gpn: which page of guest RAM
 * its first page is (as in the regions), not where the guest sees it.
 */
int rl_vmm_slot_add(struct rl_vmm *vmm, uint32_t slot, uint64_t gpn, uint64_t n_pages);

/**
 * Withdraw a memslot. Call *after* the KVM_SET_USER_MEMORY_REGION that deleted it has returned, before
 * anything is added in its place. Waits (at most a second) until the engine has drained the rings, if it
 * is logging.
 */
void rl_vmm_slot_delete(struct rl_vmm *vmm, uint32_t slot);

/** A vCPU left KVM_RUN with KVM_EXIT_DIRTY_RING_FULL; counts it. The VMM then sleeps ~100 us and enters
 * again. */
void rl_vmm_ring_full(struct rl_vmm *vmm);

/** Start the threads; returns at once, connected or not. */
int rl_vmm_start(struct rl_vmm *vmm);

/** Leave: close the connection, stop the threads. */
void rl_vmm_stop(struct rl_vmm *vmm);
void rl_vmm_destroy(struct rl_vmm *vmm);

/** For the VMM's own decisions (may the user resume it? may it run at all?). [any] */
enum rl_vmm_phase rl_vmm_phase(const struct rl_vmm *vmm);

/** "running", "incoming", …: for reports. "?" for none. [any] */
const char *rl_vmm_phase_name(int phase);

#endif /* RAMLIFT_VMM_LIB_H */
