/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_RAND_H
#define RL_BASE_RAND_H
/**
 * @file rand.h
 * A small seeded generator (splitmix64) for simulations, fault injection and tests. Not for keys.
 *
 * Threads: the owner's.
 */
#include <stdint.h>

struct rl_rand {
	uint64_t state;
};

static inline uint64_t
rl_rand_next(struct rl_rand *r)
{
	uint64_t z = (r->state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/** In [0, n); n > 0. */
static inline uint64_t
rl_rand_below(struct rl_rand *r, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)rl_rand_next(r) * n) >> 64);
}

/** True with probability @ppm / 1,000,000. */
static inline int
rl_rand_ppm(struct rl_rand *r, uint32_t ppm)
{
	return rl_rand_below(r, 1000000) < ppm;
}

#endif /* RL_BASE_RAND_H */
