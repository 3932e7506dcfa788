/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_STATS_H
#define RL_BASE_STATS_H
/**
 * @file stats.h
 * Counters with one writer and any number of readers.
 *
 * Threads: rl_count* by the owner of the counter, rl_count_read by [any]. No lock prefix: the owner
 *          is the only writer, relaxed atomics only keep a reader from seeing half a value.
 */
#include <stdint.h>

static inline uint64_t
rl_count_read(const uint64_t *c)
{
	return __atomic_load_n(c, __ATOMIC_RELAXED);
}

static inline void
rl_count_set(uint64_t *c, uint64_t v)
{
	__atomic_store_n(c, v, __ATOMIC_RELAXED);
}

static inline void
rl_count(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED);
}

#endif /* RL_BASE_STATS_H */
