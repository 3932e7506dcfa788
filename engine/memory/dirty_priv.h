/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_MEMORY_DIRTY_PRIV_H
#define RL_MEMORY_DIRTY_PRIV_H
/**
 * @file dirty_priv.h
 * Between dirty.c (collections, doorbell, drain), dirty_ring.c (one KVM dirty ring) and dirty_bitmap.c.
 *
 * Threads: the owner of the struct rl_dirty.
 * Units:   entries, pages; an entry's number in a ring wraps at 2^32, a multiple of every ring's size.
 * Errors:  what comes from shared memory is read once and checked; counts say what was thrown away.
 */
#include <ramlift/vmm.h>

#include "base/stats.h"
#include "memory/dirty.h"

struct dirty_ring {
	/* set at open, then constant */
	struct rl_vmm_dirty_gfn *gfn;
	uint32_t entries;

	uint32_t reset;  /* the entry at which KVM's reset stands */
	uint32_t marked; /* entries from there on that we made RESET */
	uint32_t probe;
	bool anchored; /* `reset` is known */
	bool lost;     /* where KVM puts the next entry is not: behind a gap of free entries */
	bool gapped;   /* lost by an overflow: the gap may be as long as the ring */
	bool stuck;    /* it is, and leaves the vCPU no room for an entry that would show its end */
	bool broken;   /* lost, and there may be several gaps */
};

enum dirty_state { DIRTY_IDLE, DIRTY_HARVEST, DIRTY_WAIT, DIRTY_QUIET, DIRTY_PUBLISH };

struct rl_dirty {
	/* set at open, then constant */
	const struct rl_ram *ram;
	struct rl_bitmap *pending;
	struct rl_vmm_shared *shared;
	uint64_t shared_size;
	int doorbell_fd;
	uint32_t n_slots;
	uint32_t n_rings; /* 0: bitmap */
	struct dirty_ring *ring;
	uint64_t max_batch; /* entries of all rings */

	enum dirty_state state;
	bool wanted;
	int error;
	uint64_t door_req;
	uint64_t door_ns;           /* when it was rung */
	uint64_t unreset;           /* entries that KVM has still to reset */
	uint32_t futile;            /* doorbells in a row that reset nothing */
	struct dirty_ring *mending; /* the only ring with marked entries; or NULL */
	uint64_t looked_ns;         /* at that ring */
	uint64_t quiet_ns;          /* it has not changed since */
	uint64_t drained;           /* the drain_req that was answered last */
	uint64_t drain_target;      /* and the one that this collection answers */

	uint64_t full_exits; /* ring-full exits of all vCPUs when the last collection ended */

	/* counts of st.overflows */
	uint64_t relogged; /* [control], atomic: KVM has protected all pages again since this one */
	uint64_t relog_target; /* the same when the collection began */
	uint64_t mended;       /* and all pages were set pending after that */

	/* the collection's pages, not pending before the reset */
	struct rl_run *batch;
	uint64_t n_batch;

	uint32_t at;             /* ring or slot that harvest or publish has come to */
	uint64_t at_run;         /* run of the batch, or page of the slot */
	struct rl_vmm_slot slot; /* private copy of the last slot found */

	struct rl_dirty_stats st;
};

/* One entry of the shared table, each value read once. False: free. */
static inline bool
dirty_slot_get(const struct rl_dirty *d, uint32_t i, struct rl_vmm_slot *out)
{
	const struct rl_vmm_slot *s = &d->shared->slot[i];

	out->valid = __atomic_load_n(&s->valid, __ATOMIC_ACQUIRE);
	if (out->valid == 0)
		return false;
	out->slot = __atomic_load_n(&s->slot, __ATOMIC_RELAXED);
	out->gpn = __atomic_load_n(&s->gpn, __ATOMIC_RELAXED);
	out->n_pages = __atomic_load_n(&s->n_pages, __ATOMIC_RELAXED);
	out->bitmap = __atomic_load_n(&s->bitmap, __ATOMIC_RELAXED);
	return true;
}

/* ---- dirty_ring.c ---- */

/** Find out what the engine before us left in the ring. Reads all of it. */
void dirty_ring_attach(struct dirty_ring *r);

/** Does the ring ask for a collection? */
bool dirty_ring_urges(struct dirty_ring *r);

/** Entries waiting; of a lost ring an estimate. */
uint64_t dirty_ring_fill(const struct dirty_ring *r);

/** Take at most @max entries into d->batch. Returns how many; fewer than @max: the ring is done.
 * -EPROTO: garbage in the ring. */
int dirty_ring_harvest(struct rl_dirty *d, struct dirty_ring *r, uint32_t max);

/** Some of all rings' marked entries are reset: skip those that surely are. Returns how many. */
uint64_t dirty_ring_advance(struct dirty_ring *r);

/** KVM has reset @n of the marked entries. */
void dirty_ring_credit(struct dirty_ring *r, uint32_t n);

/** KVM resets nothing. Returns the marked entries that it may still be asked for. */
uint32_t dirty_ring_unstick(struct rl_dirty *d, struct dirty_ring *r);

/** Mark whatever a broken ring has. False: it was marked already, nothing has come since. */
bool dirty_ring_mend(struct dirty_ring *r);

/** All marked entries are reset. */
void dirty_ring_settle(struct dirty_ring *r);

/* ---- dirty_bitmap.c ---- */

/** Merge the next piece of the slots' bitmaps into the pending set. 1: all done; 0: there is more; -EPROTO: a
 * slot's bitmap is not in the shared memory. */
int dirty_bitmap_merge(struct rl_dirty *d);

#endif /* RL_MEMORY_DIRTY_PRIV_H */
