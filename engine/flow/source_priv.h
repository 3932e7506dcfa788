/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_FLOW_SOURCE_PRIV_H
#define RL_FLOW_SOURCE_PRIV_H
/**
 * @file source_priv.h
 * Between source.c (phases, rounds, ACKs, control) and burst.c (pages -> records -> packets).
 *
 * Threads, units, errors: as flow/source.h.
 */
#include "crypto/packet.h"
#include "flow/source.h"
#include "transport/pacer.h"

struct source_lane {
	/* owner */
	struct rl_cursor cursor;
	uint64_t page; /* in progress: read up to `offset`, the rest goes into the next packets */
	uint32_t offset;
	uint16_t version;
	bool sending;   /* is there a page in progress? */
	bool idle;      /* the last search found nothing pending */
	uint64_t floor; /* the last FLOOR record said */
	struct rl_crypto *crypto;
	struct rl_source_lane_stats st;
	struct rl_sender sender;

	/* atomic: sequence number for which nothing is pending or in flight any more */
	uint64_t done;
} __attribute__((aligned(64)));

/* What only lane 0's owner touches. */
struct source_rounds {
	uint64_t begun; /* sequence number for which a final collection was begun */
	uint64_t judged_ns;
	uint64_t collect_ns;  /* when the last one was begun */
	uint64_t syncs, fill; /* read by [any] */
};

struct rl_source {
	/* set at create or start, then constant */
	struct rl_source_opts opts;
	struct rl_dirty *dirty;
	uint16_t *version; /* by page; only the stripe's owner touches it */
	int event_fd;

	struct source_rounds rounds __attribute__((aligned(64)));

	/* any core, atomic */
	uint64_t state __attribute__((aligned(64)));
	uint64_t collected; /* sequence number for which the final collection is complete */
	uint64_t threshold;
	int error;
	struct rl_pacer pacer __attribute__((aligned(64)));
	struct rl_bitmap pending __attribute__((aligned(64)));

	struct source_lane lane[] __attribute__((aligned(64)));
};

/** One bounded burst of @lane_index's pending pages, one doorbell. @probe: send at least a PROBE; @final: ask for an
 * ACK at once. Returns packets that the NIC took; lowers *wake_ns to when the next burst may go. */
uint32_t rl_source_burst(struct rl_source *src, uint32_t lane_index, bool probe, bool final,
			 uint64_t now_ns, uint64_t *wake_ns);

#endif /* RL_FLOW_SOURCE_PRIV_H */
