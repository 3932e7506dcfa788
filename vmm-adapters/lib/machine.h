/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_VMM_MACHINE_H
#define RL_VMM_MACHINE_H
/**
 * @file machine.h
 * The phases of a guest (enum rl_vmm_phase) and what each request of the engine does to them.
 *
 * A request that is not for the present phase, or does not have its size, its descriptors or sane values,
 * is answered with an error and changes nothing. docs/vmm-socket.md draws the picture.
 *
 * Threads: the socket thread; `phase` and `logging` are read by [any].
 * Units:   bytes, pages of 4096 bytes.
 * Errors:  an answer's status; 0 or -errno.
 */
#include <stdatomic.h>

#include "msg.h"
#include "ramlift-vmm.h"

struct rl_vmm_machine {
	/* set before start, then constant */
	const struct rl_vmm_ops *ops;
	void *ctx;
	uint32_t n_regions;
	struct rl_vmm_region region[RL_VMM_MAX_REGIONS];
	int region_fd[RL_VMM_MAX_REGIONS]; /* owned */
	uint64_t *guest_runs;              /* in the shared page */
	uint32_t n_rings;
	const struct rl_vmm_vcpu *ring; /* the library's, as are the descriptors */
	const int *ring_fd;

	/* written by the socket thread */
	atomic_int phase;
	atomic_bool logging;
	struct rl_vmm_session last;
	uint32_t last_outcome;
};

struct rl_vmm_answer {
	struct rl_vmm_status status;
	int fd; /* device state, the caller's now; -1: none */
	uint64_t state_size;
	bool moved; /* send the answer, then tell the VMM that its guest has moved */
};

/** Do what @req asks, if it may be asked now. Descriptors stay @req's. */
void rl_vmm_machine_request(struct rl_vmm_machine *m, struct rl_vmm_msg *req,
			    struct rl_vmm_answer *ans);

/**
 * There is no engine. Ends an uncommitted migration: a source runs on, a target is emptied. Fails when the
 * VMM cannot (-errno, why in @text, RL_VMM_TEXT_BYTES); to be called again then.
 */
int rl_vmm_machine_lost(struct rl_vmm_machine *m, char *text);

#endif /* RL_VMM_MACHINE_H */
