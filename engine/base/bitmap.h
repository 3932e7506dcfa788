/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_BITMAP_H
#define RL_BASE_BITMAP_H
/**
 * @file bitmap.h
 * The pending set: a hierarchical bitmap over page numbers [0, n_pages).
 *
 * Workload: set is called once per guest write seen, take_run once per run of pages sent. Finding the
 * next page costs by the pages set, not by the size of the guest: three levels, 1 bit per page, 1 bit
 * per stripe of 512 pages (2 MiB), 1 bit per 64 stripes.
 *
 * A stripe belongs to lane (stripe % n_lanes), n_lanes a power of two up to 64; only the owner of a
 * lane takes from it. Setters and takers may run at once: a setter sets the lowest level first, a taker
 * clears the higher level first and then looks at the lower one again (Dekker), so no bit is lost.
 * A taken bit is cleared before the function returns, so a page read afterwards and written meanwhile
 * is set again and stays set.
 *
 * Threads: set/set_range/merge/test/count [any]; take_run, the lane's owner; init/fini exclusive.
 * Units:   pages. Ranges are half-open.
 * Errors:  -ENOMEM, -EINVAL from init; the rest cannot fail. A page outside [0, n_pages) is a
 *          programming error (assert): callers check what comes from outside.
 */
#include <stdbool.h>
#include <stdint.h>

#define RL_STRIPE_PAGES 512u
#define RL_MAX_LANES    64u

struct rl_run {
	uint64_t first; /* page */
	uint32_t n;     /* pages, > 0 */
};

struct rl_bitmap {
	uint64_t n_pages;
	uint64_t *page;   /* level 0, atomic */
	uint64_t *stripe; /* level 1, atomic */
	uint64_t *top;    /* level 2, atomic */
	uint64_t n_page_words, n_stripe_words, n_top_words;
	uint8_t pad[64]; /* every core reads what is above and writes what is below */
	uint64_t count;  /* atomic: never less than the bits set in level 0 */
};

/* A lane's place in the bitmap; the scan goes round so that no page waits for ever. */
struct rl_cursor {
	uint64_t lane_mask; /* bits s with s % n_lanes == lane, for a word of 64 stripes */
	uint64_t page;      /* where the next search begins */
};

int rl_bitmap_init(struct rl_bitmap *bm, uint64_t n_pages);
void rl_bitmap_fini(struct rl_bitmap *bm);

/** Set one page. Returns true when it was clear before. [any] */
bool rl_bitmap_set(struct rl_bitmap *bm, uint64_t page);

/** Set [first, first + n). Returns how many were clear before. [any] */
uint64_t rl_bitmap_set_range(struct rl_bitmap *bm, uint64_t first, uint64_t n);

/**
 * OR @n_bits bits of @bits (bit 0 of bits[0] is page @first; @first any page) into the map, as
 * KVM_GET_DIRTY_LOG returns them. Returns how many were clear before. [any]
 */
uint64_t rl_bitmap_merge(struct rl_bitmap *bm, uint64_t first, const uint64_t *bits,
			 uint64_t n_bits);

bool rl_bitmap_test(const struct rl_bitmap *bm, uint64_t page);

/** Bits set now; never too few, and exact when nobody sets or takes meanwhile. [any] */
uint64_t rl_bitmap_count(const struct rl_bitmap *bm);

void rl_cursor_init(struct rl_cursor *cur, uint32_t lane, uint32_t n_lanes);

/**
 * Take (find and clear) the next run of at most @max consecutive set pages of the cursor's lane, from
 * the cursor on and round once. A run never leaves its stripe. Returns false when the lane has none;
 * that is exact: every set that returned before this call began has been seen. [owner]
 */
bool rl_bitmap_take_run(struct rl_bitmap *bm, struct rl_cursor *cur, uint32_t max,
			struct rl_run *run);

#endif /* RL_BASE_BITMAP_H */
