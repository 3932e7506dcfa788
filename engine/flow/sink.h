/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_FLOW_SINK_H
#define RL_FLOW_SINK_H
/**
 * @file sink.h
 * The sink turn: packets -> records -> guest memory, then the ACK. A packet is acknowledged only when all its
 * records took effect, so "acknowledged" means "installed".
 *
 * Threads: create/destroy [control]; rl_sink_rx() and rl_sink_turn() of lane k by the worker that owns queue k;
 *          counters [any].
 * Units:   bytes of UDP payload, pages, ns.
 * Errors:  create returns -errno with @err. Bad input is dropped, counted, and never acknowledged.
 */
#include <stdint.h>

#include "base/err.h"
#include "crypto/keys.h"
#include "memory/ram.h"
#include "nic/nic.h"

struct rl_sink_opts {
	struct rl_nic *nic;
	const struct rl_nic_path *path; /* outlives the sink */
	const struct rl_keys *keys;     /* outlives it as well; NULL: the insecure lab */
	uint32_t n_lanes;
	uint32_t receiver; /* the peer's receiver index, for ACKs */
	uint32_t credit;   /* packets that may be in flight per lane: what the NIC ring holds */
	const struct rl_ram *ram; /* mapped writable, reads as zeros */
};

struct rl_sink_lane_stats {
	uint64_t packets, bytes;
	uint64_t raw_records, zero_records;
	uint64_t stale_records; /* an older version than what is there */
	uint64_t bad_packets;   /* header, tag, key epoch */
	uint64_t bad_records;   /* malformed, or outside guest RAM */
	uint64_t duplicates;    /* seen before, or too old to tell */
	uint64_t acks;
};

struct rl_sink; /* opaque */

int rl_sink_create(const struct rl_sink_opts *opts, struct rl_sink **sink, struct rl_err *err);
void rl_sink_destroy(struct rl_sink *sink);

void rl_sink_rx(struct rl_sink *sink, uint32_t lane, const uint8_t *data, uint32_t len,
		uint64_t now_ns);

/** Send the ACK if one is due. Returns packets sent; lowers *wake_ns as rl_source_turn() does. */
uint32_t rl_sink_turn(struct rl_sink *sink, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns);

/** Bit per page: was anything but zeros ever installed there? For rl_ram_digest(). Valid once all is still. */
const uint64_t *rl_sink_touched(const struct rl_sink *sink);

/** Sum over lanes. [any] */
void rl_sink_stats(const struct rl_sink *sink, struct rl_sink_lane_stats *st);

#endif /* RL_FLOW_SINK_H */
