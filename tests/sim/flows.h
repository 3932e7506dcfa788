/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef SIM_FLOWS_H
#define SIM_FLOWS_H
/**
 * @file flows.h
 * Migrations that share one simulated link: each a real rl_source and rl_sink with a lane of its own, told apart by
 * their receiver index on the same two ports. The guests never run out of pages to send, until told so.
 *
 * Threads: one. Units: virtual ns, bytes of UDP payload. Errors: what cannot be set up ends the program.
 */
#include <stdbool.h>
#include <stdint.h>

#include "flow/sink.h"
#include "flow/source.h"
#include "nic/sim.h"

#define FLOWS_MAX 2u

struct flows_opts {
	uint64_t seed;
	uint32_t mtu;
	struct rl_sim_link data, acks; /* the two directions */
	uint32_t credit;
	uint32_t n;
	const char *cc[FLOWS_MAX];
	uint64_t start_ns[FLOWS_MAX];
	uint32_t pages; /* of each guest */
};

struct flows;

struct flows *flows_open(const struct flows_opts *opts);
void flows_close(struct flows *f);

/** Everything that happens before @until_ns. */
void flows_run(struct flows *f, uint64_t until_ns);

void flows_set_rate(struct flows *f, uint64_t bytes_per_s);

/** Bytes that arrived at sink @i, each packet once. */
uint64_t flows_arrived(const struct flows *f, uint32_t i);

void flows_progress(const struct flows *f, uint32_t i, struct rl_source_progress *p);

/**
 * The stop round of flow @i: what is pending is sent, then the guest stands still with @pages pages more to send.
 * Returns how long these took, until all were acknowledged; 0: more than a minute, or the memories differ.
 */
uint64_t flows_stop_round(struct flows *f, uint32_t i, uint32_t pages);

#endif /* SIM_FLOWS_H */
