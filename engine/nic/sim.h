/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_NIC_SIM_H
#define RL_NIC_SIM_H
/**
 * @file sim.h
 * An in-process network of two ports on a virtual clock: seeded loss, delay, rate, reorder, duplication,
 * corruption. The ports are opened as `sim:NAME/a` and `sim:NAME/b` and behave like any other.
 *
 * Threads: all functions and both ports from one thread (a test's).
 * Units:   ns, bytes/s, parts per million.
 */
#include <stdint.h>

struct rl_sim_link { /* one direction */
	uint64_t delay_ns;
	uint64_t jitter_ns;        /* uniform, reorders */
	uint64_t rate_bytes_per_s; /* 0: unlimited */
	uint64_t queue_bytes;      /* tail drop; 0: unlimited */
	uint32_t loss_ppm;
	uint32_t duplicate_ppm;
	uint32_t corrupt_ppm; /* one bit of the payload flips */
};

struct rl_sim_stats { /* one direction */
	uint64_t sent, delivered, lost, queue_drops, duplicated, corrupted;
};

struct rl_sim;

/** Make the network; ports find it by @name. -EEXIST, -ENOMEM. */
int rl_sim_create(const char *name, uint64_t seed, const struct rl_sim_link *a_to_b,
		  const struct rl_sim_link *b_to_a, struct rl_sim **sim);
void rl_sim_destroy(struct rl_sim *sim);

/** Change a direction while it runs; @to_b: a -> b. */
void rl_sim_set_link(struct rl_sim *sim, int to_b, const struct rl_sim_link *link);

/** The virtual clock: what rx_burst may deliver, and when tx_burst happened. Never goes back. */
void rl_sim_set_now(struct rl_sim *sim, uint64_t now_ns);
uint64_t rl_sim_now(const struct rl_sim *sim);

/** When the next packet arrives anywhere; UINT64_MAX: none under way. */
uint64_t rl_sim_next_arrival(const struct rl_sim *sim);

void rl_sim_stats(const struct rl_sim *sim, int to_b, struct rl_sim_stats *st);

#endif /* RL_NIC_SIM_H */
