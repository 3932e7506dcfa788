/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One KVM dirty ring.
 *
 * KVM puts entries at its dirty index and makes them DIRTY; we make them RESET in the same order; KVM's reset
 * goes on from its reset index while entries are RESET and frees them. Neither index can be seen.
 *
 * A vCPU that pushes past a full ring (Linux stops it only before it enters the guest) overwrites the oldest
 * entries, so its dirty index runs ahead of what we can see: the ring is *lost*. Once all of it was reset,
 * KVM's reset stands at our index and the next entry turns up k entries later. These k are made RESET, so
 * that the reset can cross them, and the ring is found again.
 *
 * KVM reads only two bits of an entry's flags and clears all when it frees it; a bit of our own keeps the place
 * of the reset for the next engine. Without it a ring's place is unknown until its first entry turns up.
 */
#include "dirty_priv.h"

#include <errno.h>

#include "base/bytes.h"

#define ANCHOR       0x80000000u /* KVM's reset stands here, its dirty index elsewhere */

#define TURN_SAMPLES 8u
#define FILL_SAMPLES 64u

static struct rl_vmm_dirty_gfn *
gfn_at(const struct dirty_ring *r, uint32_t i)
{
	return &r->gfn[i & (r->entries - 1)];
}

static uint32_t
flags_at(const struct dirty_ring *r, uint32_t i)
{
	return __atomic_load_n(&gfn_at(r, i)->flags, __ATOMIC_ACQUIRE);
}

static bool
is_dirty(const struct dirty_ring *r, uint32_t i)
{
	return flags_at(r, i) == RL_VMM_GFN_DIRTY;
}

static bool
is_reset(const struct dirty_ring *r, uint32_t i)
{
	return flags_at(r, i) & RL_VMM_GFN_RESET;
}

static void
mark_reset(const struct dirty_ring *r, uint32_t i)
{
	__atomic_store_n(&gfn_at(r, i)->flags, RL_VMM_GFN_RESET, __ATOMIC_RELEASE);
}

/* Entries harvested but not reset lie in one run, and KVM goes on where it ends. */
void
dirty_ring_attach(struct dirty_ring *r)
{
	r->lost = true; /* nothing there: anywhere */
	for (uint32_t i = 0; i < r->entries; i++) {
		if (flags_at(r, i) & ANCHOR) {
			r->index = i;
			r->anchored = true;
			r->lost = true;
			r->marked = 0;
			return;
		}
		if (!is_reset(r, i))
			continue;
		r->marked++;
		if (!is_reset(r, i + 1)) {
			r->index = i + 1;
			r->anchored = true;
			r->lost = false;
		}
	}
}

static uint32_t
sample(const struct dirty_ring *r, uint32_t n)
{
	uint32_t hits = 0;

	for (uint32_t i = 0; i < n; i++)
		hits += is_dirty(r, r->probe + i * (r->entries / n));
	return hits;
}

bool
dirty_ring_urges(struct dirty_ring *r)
{
	if (rl_likely(!r->lost))
		return is_dirty(r, r->index + r->entries / 2);
	r->probe++;
	return sample(r, TURN_SAMPLES) > 0;
}

/* DIRTY entries lie in one run from index on: gallop past its end, then halve. */
uint64_t
dirty_ring_fill(const struct dirty_ring *r)
{
	uint32_t low = 0, high = 1;

	if (r->lost)
		return (uint64_t)sample(r, FILL_SAMPLES) * (r->entries / FILL_SAMPLES);
	if (!is_dirty(r, r->index))
		return 0;
	while (high < r->entries && is_dirty(r, r->index + high)) {
		low = high;
		high *= 2;
	}
	while (high - low > 1) { /* low is DIRTY, high is not */
		uint32_t mid = low + (high - low) / 2;

		if (is_dirty(r, r->index + mid))
			low = mid;
		else
			high = mid;
	}
	return high;
}

static void
overflow(struct rl_dirty *d, struct dirty_ring *r)
{
	r->index -= r->marked;
	r->marked = r->entries;
	r->lost = true;
	r->anchored = true; /* a ring that was never seen before began at 0 */
	rl_count(&d->st.overflows, 1);
}

/*
 * Find a lost ring again by the run of DIRTY entries. Entries are pushed in order: one that was passed while
 * it was free may be DIRTY by now, but none before the run is, so the run begins where going back ends.
 */
static bool
locate(struct rl_dirty *d, struct dirty_ring *r)
{
	uint32_t found = 0, back = 0, gap;
	const struct rl_vmm_dirty_gfn *first;
	struct rl_vmm_dirty_gfn *fill;

	while (found < r->entries && !is_dirty(r, r->index + found))
		found++;
	if (found == r->entries)
		return false;
	while (back < r->entries && is_dirty(r, r->index + found - back - 1))
		back++;

	if (back == r->entries || (r->anchored && back > found)) {
		/* It went round past the reset: overflowed again. */
		for (uint32_t i = 0; i < r->entries; i++)
			mark_reset(r, r->index + i);
		overflow(d, r);
		return false;
	}
	gap = found - back;
	first = gfn_at(r, r->index + gap);
	for (uint32_t i = 0; r->anchored && i < gap; i++) {
		fill = gfn_at(r, r->index + i); /* all the same page: cheap to reset */
		fill->slot = first->slot;
		fill->offset = first->offset;
		mark_reset(r, r->index + i);
	}
	r->marked = r->anchored ? gap : 0;
	r->index += gap;
	r->anchored = true;
	r->lost = false;
	return true;
}

/* The table only grows while a ring is harvested (drain handshake), so it is searched where it is. */
static bool
find_slot(struct rl_dirty *d, uint32_t slot)
{
	for (uint32_t i = 0; i < d->n_slots; i++)
		if (dirty_slot_get(d, i, &d->slot) && d->slot.slot == slot)
			return true;
	d->slot.valid = 0;
	return false;
}

static void
take(struct rl_dirty *d, uint32_t slot, uint64_t offset)
{
	struct rl_run *last = &d->batch[d->n_batch];
	uint64_t page;

	if (rl_unlikely(d->slot.slot != slot || d->slot.valid == 0) && !find_slot(d, slot)) {
		rl_count(&d->st.unknown_slot, 1);
		return;
	}
	if (rl_unlikely(offset >= d->slot.n_pages ||
			!rl_ram_page(d->ram, d->slot.gpn + offset, &page))) {
		rl_count(&d->st.out_of_slot, 1);
		return;
	}
	if (d->n_batch > 0) {
		last--;
		if (page - last->first < last->n)
			return;
		if (page - last->first == last->n) {
			last->n++;
			return;
		}
		last++;
	}
	*last = (struct rl_run){.first = page, .n = 1};
	d->n_batch++;
}

int
dirty_ring_harvest(struct rl_dirty *d, struct dirty_ring *r, uint32_t max)
{
	uint32_t n = 0, flags = RL_VMM_GFN_DIRTY;

	if (r->lost && (r->marked > 0 || !locate(d, r)))
		return 0;
	while (n < max && r->marked < r->entries) {
		const struct rl_vmm_dirty_gfn *gfn = gfn_at(r, r->index);
		uint64_t offset;
		uint32_t slot;

		flags = __atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE);
		if (flags != RL_VMM_GFN_DIRTY)
			break;
		slot = __atomic_load_n(&gfn->slot, __ATOMIC_RELAXED);
		offset = __atomic_load_n(&gfn->offset, __ATOMIC_RELAXED);
		mark_reset(r, r->index);
		r->index++;
		r->marked++;
		n++;
		take(d, slot, offset);
	}
	rl_count(&d->st.entries, n);
	if (r->marked > d->st.max_fill)
		rl_count_set(&d->st.max_fill, r->marked);
	if (flags != RL_VMM_GFN_DIRTY && (flags & ~ANCHOR) != 0)
		return -EPROTO;
	/* Nothing free is left: entries may have been overwritten. */
	if (rl_unlikely(r->marked == r->entries && !r->lost))
		overflow(d, r);
	return (int)n;
}

void
dirty_ring_advance(struct dirty_ring *r)
{
	while (!r->lost && r->marked > 0 &&
	       !(flags_at(r, r->index - r->marked) & (RL_VMM_GFN_DIRTY | RL_VMM_GFN_RESET)))
		r->marked--;
}

/*
 * KVM is stuck at a DIRTY entry among ours: it was pushed over one of them, an overflow that went on while we
 * harvested. The vCPU that did it stands still, its ring is full, so every DIRTY entry is of that kind.
 */
uint64_t
dirty_ring_repair(struct rl_dirty *d, struct dirty_ring *r)
{
	uint64_t unreset = 0, overwritten = 0;

	for (uint32_t i = r->index - r->marked; i != r->index; i++) {
		unreset += is_reset(r, i);
		overwritten += is_dirty(r, i);
	}
	if (overwritten == 0 || (unreset == 0 && overwritten < r->marked))
		return unreset; /* reset by someone else, or KVM was interrupted */
	if (!r->lost)
		overflow(d, r);
	unreset = 0;
	for (uint32_t i = 0; i < r->entries; i++) {
		if (is_dirty(r, i))
			mark_reset(r, i);
		unreset += is_reset(r, i);
	}
	return unreset;
}

void
dirty_ring_settle(struct dirty_ring *r)
{
	uint32_t free = 0;

	r->marked = 0;
	if (r->anchored)
		__atomic_compare_exchange_n(&gfn_at(r, r->index)->flags, &free, ANCHOR, false,
					    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
