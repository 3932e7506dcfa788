/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H
/**
 * @file world.h
 * One simulated migration: a guest, a real rl_source, two sim: ports, a real rl_sink, and a virtual clock that
 * jumps to whatever happens next. Plays the session's part: waits for convergence (or loses patience), pauses,
 * asks for the rest, and at the end holds both memories against each other.
 *
 * What it checks, whatever the scenario: memory equal byte for byte; an older version never overwrites a newer
 * one and a newer one always takes effect; nothing sent after "drained"; every packet buffer came back;
 * packets = acked + lost + refused; no record the sink finds malformed.
 *
 * Threads: one. Units: virtual ns. Errors: a line of text in `why`.
 */
#include <stdbool.h>
#include <stdint.h>

#include "flow/sink.h"
#include "flow/source.h"
#include "guest.h"
#include "nic/sim.h"

struct world_opts {
	uint64_t seed;
	uint32_t n_lanes, mtu;
	struct rl_sim_link data, acks; /* the two directions */
	uint64_t max_bandwidth, threshold_pages;
	uint32_t credit;
	const char *cc; /* NULL: the default */
	struct guest_opts guest;
	uint64_t patience_ns;    /* pause although it does not converge */
	uint64_t blackout_ns;    /* nothing gets through, for this long, from 10 ms on */
	uint64_t stall_ns;       /* now and then the sink does not run for this long */
	uint32_t refuse_ppm;     /* bursts of which the NIC takes only a part */
	uint32_t alloc_fail_ppm; /* times that it has no buffers */
	bool abort_once;         /* the first switch-over is called off */
};

struct world_result {
	struct rl_source_progress source;
	struct rl_sink_lane_stats sink;
	struct rl_dirty_stats dirty;
	struct rl_sim_stats net;
	uint64_t converged_ns, drained_ns; /* 0: never */
	uint64_t downtime_ns;
	uint64_t first_pass_rate; /* bytes/s while pages were pending in the first pass */
	uint64_t guest_writes, guest_drains;
	uint64_t steps;
};

/** Run it. Returns true when all held; else @why says what did not. */
bool world_run(const struct world_opts *opts, struct world_result *res, char *why,
	       uint32_t why_bytes);

#endif /* SIM_WORLD_H */
