/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pending set: three levels of atomic words, see bitmap.h.
 *
 * A set bit must be reachable from above. Between a setter and a taker that is Dekker's argument, once per
 * level, and it needs sequential consistency:
 *
 *	setter: S1 set the bit below		taker:	T1 clear the bit above
 *		S2 look at the bit above,		T2 look below; if something is there,
 *		   set it if it is clear		   set the bit above again
 *
 * If T2 does not see S1, then T1 < T2 < S1 < S2 in the one order of all these operations, so S2 sees the
 * cleared bit and sets it. If T2 sees S1, the taker sets it. Either way it ends up set.
 *
 * A stripe's bit has one taker, so between T1 and T2 nobody else is misled by it. A top bit is shared by all
 * lanes: between T1 and T2 another lane's owner may see it clear although its own stripe below is set. So
 * the top level only serves to skip; "this lane has none" is said after looking at every word below it.
 */
#include "base/bitmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

#define STRIPE_WORDS (RL_STRIPE_PAGES / 64u)
#define PAGES_MAX    (1ull << 40)

static uint64_t
load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* n low bits, n in 1..64 */
static uint64_t
low_bits(uint64_t n)
{
	return ~0ull >> (64 - n);
}

int
rl_bitmap_init(struct rl_bitmap *bm, uint64_t n_pages)
{
	uint64_t n_stripes, n_words;

	memset(bm, 0, sizeof(*bm));
	if (n_pages == 0 || n_pages > PAGES_MAX)
		return -EINVAL;
	n_stripes = RL_DIV_ROUND_UP(n_pages, RL_STRIPE_PAGES);
	bm->n_pages = n_pages;
	bm->n_page_words = n_stripes * STRIPE_WORDS;
	bm->n_stripe_words = RL_DIV_ROUND_UP(n_stripes, 64);
	bm->n_top_words = RL_DIV_ROUND_UP(bm->n_stripe_words, 64);

	/* A stripe is one cache line, so that lanes do not share any at level 0. */
	n_words = RL_DIV_ROUND_UP(bm->n_page_words + bm->n_stripe_words + bm->n_top_words, 8) * 8;
	bm->page = aligned_alloc(64, n_words * sizeof(uint64_t));
	if (!bm->page)
		return -ENOMEM;
	memset(bm->page, 0, n_words * sizeof(uint64_t));
	bm->stripe = bm->page + bm->n_page_words;
	bm->top = bm->stripe + bm->n_stripe_words;
	return 0;
}

void
rl_bitmap_fini(struct rl_bitmap *bm)
{
	free(bm->page);
	memset(bm, 0, sizeof(*bm));
}

/* S2 on both levels. */
static void
publish(struct rl_bitmap *bm, uint64_t stripe)
{
	uint64_t w = stripe / 64, bit = 1ull << (stripe % 64), top = 1ull << (w % 64);

	if (!(load(&bm->stripe[w]) & bit))
		__atomic_fetch_or(&bm->stripe[w], bit, __ATOMIC_SEQ_CST);
	if (!(load(&bm->top[w / 64]) & top))
		__atomic_fetch_or(&bm->top[w / 64], top, __ATOMIC_SEQ_CST);
}

/* Set @mask in page word @w; returns how many were clear. The caller counts. */
static uint64_t
set_word(struct rl_bitmap *bm, uint64_t w, uint64_t mask)
{
	/* A bit that is set already is written too: a taker clearing it later is then ordered after us. */
	uint64_t old = __atomic_fetch_or(&bm->page[w], mask, __ATOMIC_SEQ_CST);

	publish(bm, w / STRIPE_WORDS);
	return (uint64_t)__builtin_popcountll(mask & ~old);
}

/* Setters count before they set and takers after they cleared: 0 means that there is nothing. */
static void
count_add(struct rl_bitmap *bm, uint64_t n)
{
	__atomic_fetch_add(&bm->count, n, __ATOMIC_SEQ_CST);
}

static void
count_sub(struct rl_bitmap *bm, uint64_t n)
{
	if (n > 0)
		__atomic_fetch_sub(&bm->count, n, __ATOMIC_SEQ_CST);
}

bool
rl_bitmap_set(struct rl_bitmap *bm, uint64_t page)
{
	uint64_t fresh;

	assert(page < bm->n_pages);
	count_add(bm, 1);
	fresh = set_word(bm, page / 64, 1ull << (page % 64));
	count_sub(bm, 1 - fresh);
	return fresh;
}

uint64_t
rl_bitmap_set_range(struct rl_bitmap *bm, uint64_t first, uint64_t n)
{
	uint64_t fresh = 0, page = first, end = first + n;

	assert(first <= bm->n_pages && n <= bm->n_pages - first);
	count_add(bm, n);
	while (page < end) {
		uint64_t shift = page % 64, k = rl_min64(64 - shift, end - page);

		fresh += set_word(bm, page / 64, low_bits(k) << shift);
		page += k;
	}
	count_sub(bm, n - fresh);
	return fresh;
}

uint64_t
rl_bitmap_merge(struct rl_bitmap *bm, uint64_t first, const uint64_t *bits, uint64_t n_bits)
{
	uint64_t shift = first % 64, total = 0;

	assert(first <= bm->n_pages && n_bits <= bm->n_pages - first);
	for (uint64_t i = 0; i < n_bits; i += 64) {
		uint64_t v = bits[i / 64] & low_bits(rl_min64(64, n_bits - i));
		uint64_t w = (first + i) / 64, n = (uint64_t)__builtin_popcountll(v), fresh = 0;

		if (v == 0)
			continue;
		count_add(bm, n);
		if (v << shift)
			fresh += set_word(bm, w, v << shift);
		if (shift > 0 && v >> (64 - shift))
			fresh += set_word(bm, w + 1, v >> (64 - shift));
		count_sub(bm, n - fresh);
		total += fresh;
	}
	return total;
}

bool
rl_bitmap_test(const struct rl_bitmap *bm, uint64_t page)
{
	assert(page < bm->n_pages);
	return load(&bm->page[page / 64]) >> (page % 64) & 1;
}

uint64_t
rl_bitmap_count(const struct rl_bitmap *bm)
{
	return load(&bm->count);
}

void
rl_cursor_init(struct rl_cursor *cur, uint32_t lane, uint32_t n_lanes)
{
	assert(rl_is_pow2(n_lanes) && n_lanes <= RL_MAX_LANES && lane < n_lanes);
	cur->lane_mask = 0;
	cur->page = 0;
	for (uint32_t s = lane; s < 64; s += n_lanes)
		cur->lane_mask |= 1ull << s;
}

/* The first stripe word from @w on whose top bit is set; n_stripe_words when there is none. */
static uint64_t
next_stripe_word(const struct rl_bitmap *bm, uint64_t w)
{
	uint64_t i = w / 64, v;

	if (w >= bm->n_stripe_words)
		return bm->n_stripe_words;
	v = load(&bm->top[i]) & ~0ull << (w % 64);
	while (v == 0) {
		if (++i == bm->n_top_words)
			return bm->n_stripe_words;
		v = load(&bm->top[i]);
	}
	return i * 64 + (uint64_t)__builtin_ctzll(v);
}

/* Move *stripe on to the lane's first one that may have pages. @exact: do not rely on the top level. */
static bool
next_stripe(const struct rl_bitmap *bm, uint64_t lane_mask, bool exact, uint64_t *stripe)
{
	uint64_t w = *stripe / 64, v;

	if (w >= bm->n_stripe_words)
		return false;
	v = load(&bm->stripe[w]) & lane_mask & ~0ull << (*stripe % 64);
	while (v == 0) {
		w = exact ? w + 1 : next_stripe_word(bm, w + 1);
		if (w >= bm->n_stripe_words)
			return false;
		v = load(&bm->stripe[w]) & lane_mask;
	}
	*stripe = w * 64 + (uint64_t)__builtin_ctzll(v);
	return true;
}

/* The first set page in [page, end of its stripe), or that end. */
static uint64_t
next_page(const struct rl_bitmap *bm, uint64_t page)
{
	uint64_t w = page / 64, end = w / STRIPE_WORDS * STRIPE_WORDS + STRIPE_WORDS;
	uint64_t v = load(&bm->page[w]) & ~0ull << (page % 64);

	while (v == 0) {
		if (++w == end)
			return end * 64;
		v = load(&bm->page[w]);
	}
	return w * 64 + (uint64_t)__builtin_ctzll(v);
}

/* Clear the set pages from @first on, at most @max and only in its stripe; returns how many. */
static uint32_t
clear_run(struct rl_bitmap *bm, uint64_t first, uint32_t max)
{
	uint64_t stripe_end = (first / RL_STRIPE_PAGES + 1) * RL_STRIPE_PAGES;
	uint64_t page = first, end = rl_min64(first + max, stripe_end);

	while (page < end) {
		uint64_t *word = &bm->page[page / 64], shift = page % 64;
		uint64_t v = ~(load(word) >> shift), ones = v ? (uint64_t)__builtin_ctzll(v) : 64;
		uint64_t n = rl_min64(ones, rl_min64(64 - shift, end - page));

		if (n == 0)
			break;
		/* Only the owner clears, so these bits are still set. */
		__atomic_fetch_and(word, ~(low_bits(n) << shift), __ATOMIC_SEQ_CST);
		page += n;
	}
	count_sub(bm, page - first);
	return (uint32_t)(page - first);
}

/* The stripe looked empty: clear its bit, and the one above, unless a setter comes in between. */
static void
retire_stripe(struct rl_bitmap *bm, uint64_t stripe)
{
	uint64_t w = stripe / 64, bit = 1ull << (stripe % 64), top = 1ull << (w % 64);
	uint64_t first = stripe * RL_STRIPE_PAGES;
	uint64_t old = __atomic_fetch_and(&bm->stripe[w], ~bit, __ATOMIC_SEQ_CST); /* T1 */

	if (next_page(bm, first) < first + RL_STRIPE_PAGES) { /* T2 */
		publish(bm, stripe);
		return;
	}
	if (old & ~bit)
		return;
	__atomic_fetch_and(&bm->top[w / 64], ~top, __ATOMIC_SEQ_CST); /* T1, one level up */
	if (load(&bm->stripe[w]) != 0)                                /* T2 */
		__atomic_fetch_or(&bm->top[w / 64], top, __ATOMIC_SEQ_CST);
}

/* Take from the stripe of @page, from @page on. */
static bool
take_from(struct rl_bitmap *bm, uint64_t page, uint32_t max, struct rl_run *run)
{
	uint64_t first = page / RL_STRIPE_PAGES * RL_STRIPE_PAGES, end = first + RL_STRIPE_PAGES;
	uint64_t found = next_page(bm, page);

	if (found == end) {
		if (next_page(bm, first) == end)
			retire_stripe(bm, first / RL_STRIPE_PAGES);
		return false;
	}
	run->first = found;
	run->n = clear_run(bm, found, max);
	return true;
}

bool
rl_bitmap_take_run(struct rl_bitmap *bm, struct rl_cursor *cur, uint32_t max, struct rl_run *run)
{
	uint64_t page = cur->page;

	assert(max > 0);
	if (load(&bm->count) == 0)
		return false;
	/* From the cursor to the end; then all of it; then all of it without trusting the top level. */
	for (int pass = 0; pass < 3; pass++) {
		uint64_t stripe = page / RL_STRIPE_PAGES;

		while (next_stripe(bm, cur->lane_mask, pass == 2, &stripe)) {
			page = rl_max64(page, stripe * RL_STRIPE_PAGES);
			if (take_from(bm, page, max, run)) {
				cur->page = run->first + run->n;
				return true;
			}
			stripe++;
		}
		page = 0;
	}
	return false;
}
