/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_SYNTH_DIRTYLOG_H
#define RL_SYNTH_DIRTYLOG_H
/**
 * @file dirtylog.h
 * KVM's dirty rings without KVM: a page has a writable bit; the first store after a reset finds it
 * cleared, pushes an entry into the ring of the vCPU that stores, and sets it. A reset takes the entries that
 * the engine marked RESET, in order, and makes their pages unwritable again.
 *
 * What KVM gets from page tables and TLB flushes, this gets from one lock per stripe of pages, held over check,
 * push and store. So a store either was complete before the reset of its page returned, and whoever reads
 * the page afterwards sees it, or it comes after and is in the ring again.
 *
 * The rings are in a memfd, sealed against shrinking, that the engine maps and may write: an entry of nonsense
 * is skipped.
 *
 * Threads: full/begin/end: the vCPU that owns the ring; reset: one (the doorbell's); start/stop: one;
 *          init/fini exclusive.
 * Units:   pages of 4096 bytes, entries.
 * Errors:  init: -errno; the rest cannot fail.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <ramlift/vmm.h>

#define RL_SYNTH_STRIPES 1024u

/* As KVM: a vCPU does not run with fewer free entries, and pushes no more than that before it looks again. */
#define RL_SYNTH_RING_RESERVE 64u

struct rl_synth_ring {
	struct rl_vmm_dirty_gfn *gfn;
	uint64_t dirty_index;              /* owner vCPU */
	atomic_uint_least64_t reset_index; /* resetting thread */
};

struct rl_synth_log {
	/* set by init, then constant */
	uint64_t n_pages;
	uint32_t n_rings;
	uint32_t entries; /* of a ring; a power of two */
	int fd;           /* ring i is at i * entries * 16 */
	struct rl_synth_ring *ring;

	atomic_bool on;
	uint8_t *writable; /* by page, under its stripe's lock */
	pthread_mutex_t stripe[RL_SYNTH_STRIPES];
};

int rl_synth_log_init(struct rl_synth_log *log, uint64_t n_pages, uint32_t n_rings,
		      uint32_t entries);
void rl_synth_log_fini(struct rl_synth_log *log);

/** Log from now on: no page is writable. When it returns, every later store is logged. */
void rl_synth_log_start(struct rl_synth_log *log);
void rl_synth_log_stop(struct rl_synth_log *log);

/** Must the vCPU stay out of its guest, since its ring is full? */
bool rl_synth_log_full(const struct rl_synth_log *log, uint32_t vcpu);

/** Around the store to a page of guest memory; a handful of stores between two looks at _full(). */
void rl_synth_log_begin(struct rl_synth_log *log, uint32_t vcpu, uint64_t page);
void rl_synth_log_end(struct rl_synth_log *log, uint64_t page);

/** KVM_RESET_DIRTY_RINGS: returns how many entries it reset. */
int64_t rl_synth_log_reset(struct rl_synth_log *log);

#endif /* RL_SYNTH_DIRTYLOG_H */
