/* SPDX-License-Identifier: BSD-3-Clause */
/* KVM's dirty bitmaps, as the VMM's doorbell thread left them in the shared memory. */
#include "dirty_priv.h"

#include <errno.h>

#include "base/bytes.h"

#define PIECE_PAGES (1u << 18) /* of a slot in one turn */

/* The slot's bitmap lies whole in the shared memory, behind the table, on a word boundary? */
static bool
slot_fits(const struct rl_dirty *d, const struct rl_vmm_slot *s)
{
	uint64_t bytes;

	if (s->n_pages == 0 || s->n_pages > d->shared_size * 8)
		return false;
	bytes = RL_DIV_ROUND_UP(s->n_pages, 64) * sizeof(uint64_t);
	return s->bitmap % sizeof(uint64_t) == 0 && s->bitmap >= sizeof(struct rl_vmm_shared) &&
	       s->bitmap <= d->shared_size && bytes <= d->shared_size - s->bitmap;
}

/* Pages [first, first + n) of a slot that guest RAM has only in part. */
static void
merge_by_page(struct rl_dirty *d, const uint64_t *bits, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page;

		if (!(__atomic_load_n(&bits[i / 64], __ATOMIC_RELAXED) >> (i % 64) & 1))
			continue;
		rl_count(&d->st.entries, 1);
		if (rl_ram_page(d->ram, d->slot.gpn + first + i, &page))
			rl_count(&d->st.pages, rl_bitmap_set(d->pending, page));
		else
			rl_count(&d->st.out_of_slot, 1);
	}
}

static void
merge(struct rl_dirty *d, uint64_t first, uint64_t n)
{
	const uint64_t *bits =
		(const void *)((const uint8_t *)d->shared + d->slot.bitmap + first / 8);
	uint64_t gpn = d->slot.gpn + first, page, last, ones = 0;

	/* `page` counts guest RAM without holes: no hole between the ends, none in between. */
	if (!rl_ram_page(d->ram, gpn, &page) || !rl_ram_page(d->ram, gpn + n - 1, &last) ||
	    last - page != n - 1) {
		merge_by_page(d, bits, first, n);
		return;
	}
	for (uint64_t i = 0; i < n / 64; i++)
		ones += (uint64_t)__builtin_popcountll(bits[i]);
	if (n % 64 != 0)
		ones += (uint64_t)__builtin_popcountll(bits[n / 64] & ~(~0ull << n % 64));
	rl_count(&d->st.entries, ones);
	if (ones > 0)
		rl_count(&d->st.pages, rl_bitmap_merge(d->pending, page, bits, n));
}

int
dirty_bitmap_merge(struct rl_dirty *d)
{
	uint64_t n;

	if (d->at_run == 0) { /* a new slot */
		while (d->at < d->n_slots && !dirty_slot_get(d, d->at, &d->slot))
			d->at++;
		if (d->at == d->n_slots)
			return 1;
		if (!slot_fits(d, &d->slot))
			return -EPROTO;
	}
	n = rl_min64(d->slot.n_pages - d->at_run, PIECE_PAGES);
	merge(d, d->at_run, n);
	d->at_run += n;
	if (d->at_run == d->slot.n_pages) {
		d->at_run = 0;
		d->at++;
	}
	return 0;
}
