/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_CLOCK_H
#define RL_BASE_CLOCK_H
/**
 * @file clock.h
 * Monotonic time. Engine code takes `now_ns` as an argument; only workers, sessions and programs
 * read the clock, once per turn. clock_gettime reads the TSC through the vDSO.
 *
 * Threads: [any]. Units: nanoseconds.
 */
#include <stdint.h>
#include <time.h>

#define RL_NS_PER_US 1000ull
#define RL_NS_PER_MS 1000000ull
#define RL_NS_PER_S  1000000000ull

static inline uint64_t
rl_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * RL_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static inline void
rl_sleep_ns(uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / RL_NS_PER_S),
			      .tv_nsec = (long)(ns % RL_NS_PER_S)};

	nanosleep(&ts, NULL);
}

#endif /* RL_BASE_CLOCK_H */
