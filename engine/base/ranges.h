/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_RANGES_H
#define RL_BASE_RANGES_H
/**
 * @file ranges.h
 * A sorted, merged, bounded set of half-open ranges of 64-bit numbers: the shape of an ACK.
 *
 * Workload: nearly every add extends the highest range by one; that case costs O(1).
 *
 * Threads: the owner's. Memory: caller's array, fixed capacity.
 * Errors:  when full, the lowest range is forgotten (its packets count as lost at the sender and are
 *          sent again; nothing breaks). UINT64_MAX cannot be held and always counts as there already.
 */
#include <stdbool.h>
#include <stdint.h>

#define RL_RANGES_MAX 256u

struct rl_range {
	uint64_t start; /* inclusive */
	uint64_t end;   /* exclusive */
};

struct rl_ranges {
	uint32_t n;
	uint64_t dropped;                 /* ranges forgotten because the set was full */
	struct rl_range r[RL_RANGES_MAX]; /* ascending, disjoint, not touching */
};

void rl_ranges_init(struct rl_ranges *rs);

bool rl_ranges_contain(const struct rl_ranges *rs, uint64_t v);

/** Add one number. Returns false when it was there already. */
bool rl_ranges_add(struct rl_ranges *rs, uint64_t v);

/** Forget every number below @floor. */
void rl_ranges_trim(struct rl_ranges *rs, uint64_t floor);

#endif /* RL_BASE_RANGES_H */
