/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_MEMORY_DIRTY_H
#define RL_MEMORY_DIRTY_H
/**
 * @file dirty.h
 * Where a guest's writes come from: the KVM dirty rings of its vCPUs (mapped here, reset by the VMM's
 * doorbell thread) or KVM's dirty bitmap (fetched by that thread).
 *
 * The rule this file exists for (DESIGN rule 1): harvest, reset, then read. A *collection* takes all entries
 * out of the rings, asks the VMM for KVM_RESET_DIRTY_RINGS, and only when that has returned sets the pages
 * in the pending bitmap. Nothing here waits: rl_dirty_turn() moves a collection along.
 *
 * Collections are expensive for the guest (each page it writes afterwards faults again) and cheap for us, so
 * the caller starts them rarely: when it has nothing left to send. In between entries stay in the rings;
 * rl_dirty_fill() counts them without harvesting. A ring that is half full starts a collection by itself.
 *
 * Overflow (DESIGN rule 2; Linux loses entries when a vCPU pushes past its ring, seen with emulated guests):
 * all N entries dirty at once. Then the ring is reset, and the place where KVM goes on is found again by its
 * next entry (the gap is filled with RESET entries). A page whose entry was lost stays writable, and KVM says
 * nothing of it any more. So from then on every collection sets all guest RAM that holds data pending, until
 * the log was stopped and started again, which protects all pages: rl_dirty_relogged().
 *
 * Slots may be deleted and re-added meanwhile: rl_dirty_turn() answers the drain handshake of
 * ramlift/vmm.h, harvesting with the old table first.
 *
 * Threads: open/close/relogged [control]; all else by the one worker that owns it. `st` is read by [any].
 * Units:   entries, pages, ns.
 * Errors:  open: -EINVAL, -EPROTO (the VMM's numbers don't fit), -ENOMEM. Later failures set `error` (an
 *          -errno from the VMM's reset, or -EPROTO for garbage in shared memory) and stop collecting.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "memory/ram.h"

struct rl_dirty_ring_opts {
	int fd;          /* borrowed */
	uint64_t offset; /* bytes */
	uint32_t
		entries; /* power of two, 2048..65536; a smaller one could overflow by all of itself */
};

struct rl_dirty_opts {
	bool bitmap;      /* KVM's bitmap instead of rings */
	uint32_t n_rings; /* 0 with the bitmap */
	const struct rl_dirty_ring_opts *ring;
	int shared_fd; /* borrowed; struct rl_vmm_shared */
	uint64_t shared_size;
	int doorbell_fd;           /* borrowed; eventfd */
	const struct rl_ram *ram;  /* outlives the dirty source */
	struct rl_bitmap *pending; /* likewise; by page */
};

struct rl_dirty_stats {
	uint64_t entries;     /* taken from rings, or bits from bitmaps */
	uint64_t pages;       /* of these, newly pending (the rest were pending already) */
	uint64_t collections; /* finished */
	uint64_t pressure;    /* of these, started by a ring: half full, or its place found again */
	uint64_t drains;      /* for deleted slots */
	uint64_t reset_ns;    /* waiting for the doorbell */
	uint64_t harvest_ns;  /* in rl_dirty_turn(), harvesting and publishing */
	uint64_t overflows;
	uint64_t unknown_slot; /* entries whose slot the table doesn't have */
	uint64_t out_of_slot;  /* entries outside their slot or guest RAM */
	uint64_t max_fill;     /* most entries taken from one ring in one collection */
};

struct rl_dirty; /* opaque */

int rl_dirty_open(const struct rl_dirty_opts *opts, struct rl_dirty **d, struct rl_err *err);
void rl_dirty_close(struct rl_dirty *d);

/** Begin a collection, unless one is under way. */
void rl_dirty_collect(struct rl_dirty *d, uint64_t now_ns);

/** Move along, a few thousand entries at a time; never blocks (one eventfd write per collection; after an
 * overflow, lseek). Returns true when a collection has just finished: its pages are pending. */
bool rl_dirty_turn(struct rl_dirty *d, uint64_t now_ns);

/**
 * The VMM has stopped and started the log again (LOG_STOP, LOG_START) after @overflows overflows had been seen
 * in the statistics. The next collection sets everything pending once more, further ones only what was
 * written. [control]
 */
void rl_dirty_relogged(struct rl_dirty *d, uint64_t overflows);

/** Is a collection under way? */
bool rl_dirty_busy(const struct rl_dirty *d);

/** Entries waiting in the rings: at least the number of pages a collection would find. Costs O(rings * log
 * entries). An estimate for a ring whose place is not known (less than 1/64 of it may be missed). Always 0 with
 * the bitmap backend. */
uint64_t rl_dirty_fill(const struct rl_dirty *d);

/** Can rl_dirty_fill() tell anything? */
bool rl_dirty_can_fill(const struct rl_dirty *d);

/** 0, or why collecting stopped. */
int rl_dirty_error(const struct rl_dirty *d);

const struct rl_dirty_stats *rl_dirty_stats(const struct rl_dirty *d);

#endif /* RL_MEMORY_DIRTY_H */
