/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A bounded set of ranges in one sorted array, see ranges.h.
 */
#include "base/ranges.h"

#include <string.h>

void
rl_ranges_init(struct rl_ranges *rs)
{
	rs->n = 0;
	rs->dropped = 0;
}

/* The first range that ends at or above @v; n when there is none. */
static uint32_t
find(const struct rl_ranges *rs, uint64_t v)
{
	uint32_t lo = 0, hi = rs->n;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (rs->r[mid].end >= v)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static void
erase(struct rl_ranges *rs, uint32_t first, uint32_t n)
{
	rs->n -= n;
	memmove(&rs->r[first], &rs->r[first + n], (rs->n - first) * sizeof(rs->r[0]));
}

/* Put [v, v + 1) before range @i. */
static void
insert(struct rl_ranges *rs, uint32_t i, uint64_t v)
{
	if (rs->n == RL_RANGES_MAX) {
		rs->dropped++;
		if (i == 0)
			return; /* it would be the lowest itself */
		erase(rs, 0, 1);
		i--;
	}
	memmove(&rs->r[i + 1], &rs->r[i], (rs->n - i) * sizeof(rs->r[0]));
	rs->r[i] = (struct rl_range){v, v + 1};
	rs->n++;
}

bool
rl_ranges_contain(const struct rl_ranges *rs, uint64_t v)
{
	uint32_t i;

	if (v == UINT64_MAX)
		return true;
	i = find(rs, v + 1);
	return i < rs->n && rs->r[i].start <= v;
}

bool
rl_ranges_add(struct rl_ranges *rs, uint64_t v)
{
	struct rl_range *r;
	uint32_t i;

	if (v == UINT64_MAX)
		return false;
	if (rs->n > 0 && rs->r[rs->n - 1].end == v) {
		rs->r[rs->n - 1].end++;
		return true;
	}
	i = find(rs, v);
	r = &rs->r[i];
	if (i == rs->n || v + 1 < r->start) {
		insert(rs, i, v);
	} else if (v + 1 == r->start) {
		r->start--;
	} else if (v < r->end) {
		return false;
	} else { /* v == r->end, and not in the last range */
		r->end++;
		if (r[1].start == r->end) {
			r->end = r[1].end;
			erase(rs, i + 1, 1);
		}
	}
	return true;
}

void
rl_ranges_trim(struct rl_ranges *rs, uint64_t floor)
{
	uint32_t i = find(rs, floor);

	if (i < rs->n && rs->r[i].end == floor)
		i++;
	erase(rs, 0, i);
	if (rs->n > 0 && rs->r[0].start < floor)
		rs->r[0].start = floor;
}
