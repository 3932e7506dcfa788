/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_VMM_BOARD_H
#define RL_VMM_BOARD_H
/**
 * @file board.h
 * What the VMM and the engine share: struct rl_vmm_shared in a memfd, and the doorbell's eventfd.
 *
 * The engine can write all of it, so nothing is read back from there but its own fields (door_cmd, door_req,
 * drain_ack), each once; the true slot table is kept here.
 *
 * Threads: slot_add/slot_delete: the thread that changes memslots; answer: the doorbell thread; ring_full: any;
 *          init/open/fini exclusive.
 * Units:   pages of 4096 bytes, bytes.
 * Errors:  0 or -errno.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "ramlift-vmm.h"

struct rl_vmm_board {
	/* set by open, then constant */
	int fd; /* -1 before */
	int doorbell;
	uint64_t size;
	bool bitmap;
	struct rl_vmm_shared *_Atomic page; /* NULL before open */

	pthread_mutex_t lock; /* the table; held while bitmaps are synchronised */
	struct rl_vmm_slot slot[RL_VMM_MAX_SLOTS];
	bool deleted[RL_VMM_MAX_SLOTS]; /* KVM has it no more, the engine still may */

	uint64_t drain_req;         /* slot thread */
	uint64_t door_done;         /* doorbell thread */
	atomic_uint_least64_t full; /* ring-full exits */
};

void rl_vmm_board_init(struct rl_vmm_board *b);

/** Make the memfd and publish the slots known so far. With @bitmap, it has room for the dirty bitmaps of slots
 * that cover @n_pages of guest RAM twice (system management mode has slots of its own). */
int rl_vmm_board_open(struct rl_vmm_board *b, bool bitmap, uint64_t n_pages);
void rl_vmm_board_fini(struct rl_vmm_board *b);

/** -EEXIST, -EINVAL, -ENOSPC (table or bitmaps full). */
int rl_vmm_board_slot_add(struct rl_vmm_board *b, uint32_t slot, uint64_t gpn, uint64_t n_pages);

/** Waits while *@logging, at most a second, for the engine's drain_ack. False: it did not come. */
bool rl_vmm_board_slot_delete(struct rl_vmm_board *b, uint32_t slot, const atomic_bool *logging);

/** Somebody rang: do what door_cmd says, as often as door_req has moved. */
void rl_vmm_board_answer(struct rl_vmm_board *b, const struct rl_vmm_ops *ops, void *ctx);

void rl_vmm_board_ring_full(struct rl_vmm_board *b);

#endif /* RL_VMM_BOARD_H */
