/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One KVM dirty ring.
 *
 * KVM puts entries at its dirty index and makes them DIRTY; we make them RESET in the same order; KVM's reset
 * goes on from its reset index while entries are RESET and frees them. Neither index can be seen.
 *
 * A vCPU that pushes past a full ring (Linux stops it only before it enters the guest) overwrites the oldest
 * entries. It shows: no entry is free, or the reset stops at one that is DIRTY again. The ring is then
 * *broken*: as the reset frees entries that were pushed twice, KVM's dirty index gets ahead of what can be seen
 * by a gap of free entries, by several when the vCPU goes on meanwhile. But KVM has pushed as far as any entry
 * that is not free, so all up to the last such one is made RESET for the reset to cross. When it crosses
 * them without a stop, nothing was pushed over them since: the ring is merely *lost*, there is one gap, and the
 * next entry shows its end. A gap as long as the ring leaves the vCPU no room for that entry; then its ring-full
 * exits tell that a quarter of the ring may be crossed. Nothing is known of the pages of a broken ring: all are
 * set pending.
 *
 * KVM reads only two bits of an entry's flags and clears all when it frees it; a bit of our own keeps the place
 * of the reset for the next engine. Without it a ring's place is unknown until its first entry turns up.
 */
#include "dirty_priv.h"

#include <errno.h>

#include "base/bytes.h"

#define ANCHOR_FOUND 0x40000000u /* KVM's reset stands here, and the next entry comes here */
#define ANCHOR_LOST  0x80000000u /* KVM's reset stands here, the next entry comes behind a gap */
#define ANCHOR       (ANCHOR_FOUND | ANCHOR_LOST)

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

static bool
is_free(const struct dirty_ring *r, uint32_t i)
{
	return !(flags_at(r, i) & (RL_VMM_GFN_DIRTY | RL_VMM_GFN_RESET));
}

static uint32_t
next_entry(const struct dirty_ring *r)
{
	return r->reset + r->marked;
}

static void
mark_reset(const struct dirty_ring *r, uint32_t i)
{
	__atomic_store_n(&gfn_at(r, i)->flags, RL_VMM_GFN_RESET, __ATOMIC_RELEASE);
}

/* Entries up to the last one that is not free. */
static uint32_t
count_seen(const struct dirty_ring *r)
{
	uint32_t n = r->entries;

	while (n > 0 && is_free(r, r->reset + n - 1))
		n--;
	return n;
}

static bool
attach_anchor(struct dirty_ring *r)
{
	for (uint32_t i = 0; i < r->entries; i++) {
		uint32_t flags = flags_at(r, i);

		if (!(flags & ANCHOR))
			continue;
		r->reset = i;
		r->anchored = true;
		r->lost = flags & ANCHOR_LOST;
		r->gapped = r->lost;
		r->broken = r->lost && count_seen(r) > 0;
		return true;
	}
	return false;
}

void
dirty_ring_attach(struct dirty_ring *r)
{
	r->lost = true;
	if (attach_anchor(r))
		return;
	/* Entries that were harvested but not reset lie in one run. */
	for (uint32_t i = 0; i < r->entries; i++) {
		if (!is_reset(r, i))
			continue;
		r->marked++;
		if (!is_reset(r, i - 1)) {
			r->reset = i;
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
		return is_dirty(r, next_entry(r) + r->entries / 2);
	r->probe++;
	return sample(r, TURN_SAMPLES) > 0;
}

/* DIRTY entries lie in one run: gallop past its end, then halve. */
uint64_t
dirty_ring_fill(const struct dirty_ring *r)
{
	uint32_t low = 0, high = 1, first = next_entry(r);

	if (r->lost)
		return (uint64_t)sample(r, FILL_SAMPLES) * (r->entries / FILL_SAMPLES);
	if (!is_dirty(r, first))
		return 0;
	while (high < r->entries && is_dirty(r, first + high)) {
		low = high;
		high *= 2;
	}
	while (high - low > 1) { /* low is DIRTY, high is not */
		uint32_t mid = low + (high - low) / 2;

		if (is_dirty(r, first + mid))
			low = mid;
		else
			high = mid;
	}
	return high;
}

/* The ring takes no further part in the collection until it is mended, alone. */
static void
overflow(struct rl_dirty *d, struct dirty_ring *r)
{
	for (uint32_t i = 0; i < r->marked; i++)
		if (is_reset(r, r->reset + i))
			__atomic_store_n(&gfn_at(r, r->reset + i)->flags, RL_VMM_GFN_DIRTY,
					 __ATOMIC_RELEASE);
	r->marked = 0;
	r->anchored = true; /* a ring that was never seen before began at 0 */
	r->lost = true;
	r->gapped = true;
	r->broken = true;
	rl_count(&d->st.overflows, 1);
}

/* Make the first @n entries RESET, free ones as the page of the last: cheap to reset. Returns how many were not. */
static uint32_t
mark_all(struct dirty_ring *r, uint32_t n)
{
	const struct rl_vmm_dirty_gfn *last = gfn_at(r, r->reset + n - 1);
	uint32_t fresh = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct rl_vmm_dirty_gfn *gfn = gfn_at(r, r->reset + i);

		if (is_reset(r, r->reset + i))
			continue;
		if (is_free(r, r->reset + i)) {
			gfn->slot = last->slot;
			gfn->offset = last->offset;
		}
		mark_reset(r, r->reset + i);
		fresh++;
	}
	r->marked = n;
	return fresh;
}

/*
 * Find a lost ring again by the run of DIRTY entries. Entries are pushed in order: one that was passed while
 * it was free may be DIRTY by now, but none before the run is, so the run begins where going back ends.
 */
static bool
locate(struct rl_dirty *d, struct dirty_ring *r)
{
	uint32_t found = 0, back = 0;

	while (found < r->entries && !is_dirty(r, r->reset + found))
		found++;
	if (found == r->entries)
		return false;
	while (back < r->entries && is_dirty(r, r->reset + found - back - 1))
		back++;

	if (back == r->entries || (r->anchored && back > found)) {
		overflow(d, r); /* it goes round past the reset */
		return false;
	}
	if (r->anchored)
		mark_all(r, found - back);
	else
		r->reset += found - back;
	r->anchored = true;
	r->lost = false;
	r->gapped = false;
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

	if (r->broken || (r->lost && !locate(d, r)))
		return 0;
	while (n < max && r->marked < r->entries) {
		const struct rl_vmm_dirty_gfn *gfn = gfn_at(r, next_entry(r));
		uint64_t offset;
		uint32_t slot;

		flags = __atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE);
		if (flags != RL_VMM_GFN_DIRTY)
			break;
		slot = __atomic_load_n(&gfn->slot, __ATOMIC_RELAXED);
		offset = __atomic_load_n(&gfn->offset, __ATOMIC_RELAXED);
		mark_reset(r, next_entry(r));
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
	if (rl_unlikely(r->marked == r->entries))
		overflow(d, r);
	return (int)n;
}

/* KVM frees in order: before an entry that is free, all were, even if some are DIRTY again. */
uint64_t
dirty_ring_advance(struct dirty_ring *r)
{
	uint32_t n = r->marked;

	while (n > 0 && !is_free(r, r->reset + n - 1))
		n--;
	dirty_ring_credit(r, n);
	return n;
}

void
dirty_ring_credit(struct dirty_ring *r, uint32_t n)
{
	r->reset += n;
	r->marked -= n;
}

/* KVM stops at an entry that is DIRTY again: pushed over ours, by an overflow that went on while we harvested. */
uint32_t
dirty_ring_unstick(struct rl_dirty *d, struct dirty_ring *r)
{
	dirty_ring_advance(r);
	if (r->marked == 0 || is_reset(r, r->reset))
		return r->marked; /* reset by someone else; KVM was interrupted */
	overflow(d, r);
	return 0;
}

bool
dirty_ring_mend(struct dirty_ring *r)
{
	uint32_t least = r->stuck ? r->entries / 4 : 0, n, fresh = 0;

	do { /* until none was pushed behind the last before all were marked */
		n = rl_max64(count_seen(r), least);
		fresh += mark_all(r, n);
	} while (count_seen(r) > n);
	return fresh > 0;
}

void
dirty_ring_settle(struct dirty_ring *r)
{
	uint32_t free = 0;

	dirty_ring_credit(r, r->marked);
	if (r->anchored)
		__atomic_compare_exchange_n(&gfn_at(r, r->reset)->flags, &free,
					    r->lost ? ANCHOR_LOST : ANCHOR_FOUND, false,
					    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
