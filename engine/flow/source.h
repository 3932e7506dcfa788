/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_FLOW_SOURCE_H
#define RL_FLOW_SOURCE_H
/**
 * @file source.h
 * The source turn: pending pages -> records -> packets, ACKs -> pages settled or pending again.
 *
 * One rl_source per migration, one lane per worker. Lane k owns the stripes with stripe % n_lanes == k and
 * queue k of the NIC. Lane 0's owner also drives the dirty source and judges convergence:
 *
 *   RL_SOURCE_PRECOPY  all pages are pending at first. Once everything was sent, pending + in flight + what
 *                      waits in the rings (fill) is compared with `threshold_pages` now and then: at most that,
 *                      and the source is *converged* and starts no further collection until the phase or the
 *                      threshold changes. When nothing is pending, a round is over; if fill is above the
 *                      threshold it collects and goes on (dirty_sync_count + 1). With the bitmap backend
 *                      (no fill) it collects first and then looks.
 *   RL_SOURCE_FINAL    the guest is paused: collect until the rings are empty, send all, *drained* when
 *                      every lane has nothing pending and nothing in flight. Each lane decides for itself
 *                      (only its own losses can make its pages pending again), so this cannot race.
 *
 * The session learns of converged, drained and failed through rl_source_events() and event_fd.
 *
 * Threads: create/destroy/set_*() [control]; rl_source_rx() and rl_source_turn() of lane k by the worker that
 *          owns queue k; events and counters [any].
 * Units:   pages, bytes of UDP payload, ns.
 * Errors:  create returns -errno with @err. A turn never fails: RL_SOURCE_FAILED is raised and
 *          rl_source_error() says why (the dirty source stopped).
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "crypto/keys.h"
#include "memory/dirty.h"
#include "memory/ram.h"
#include "nic/nic.h"
#include "transport/sender.h"

enum rl_source_phase { RL_SOURCE_PRECOPY = 0, RL_SOURCE_FINAL = 1 };

#define RL_SOURCE_CONVERGED 1u
#define RL_SOURCE_DRAINED   2u
#define RL_SOURCE_FAILED    4u

struct rl_source_opts {
	struct rl_nic *nic;
	const struct rl_nic_path *path; /* outlives the source */
	const struct rl_keys *keys;     /* outlives it as well; NULL: the insecure lab */
	uint32_t n_lanes;               /* power of two, <= RL_MAX_LANES */
	uint32_t receiver;              /* the peer's receiver index */
	uint32_t max_payload;           /* UDP payload per packet: the smaller of both ends' */
	uint32_t credit;                /* packets in flight per lane until the first ACK */
	const struct rl_ram *ram;       /* mapped */
	uint64_t max_bandwidth;         /* bytes/s; 0: unlimited */
	uint64_t threshold_pages;
	const char *cc; /* congestion control: bbr, cubic, fixed (transport/cc.h); NULL: bbr */
};

/* Counters of one lane; written by its owner, read with rl_count_read(). */
struct rl_source_lane_stats {
	uint64_t normal_pages;    /* page sends with content */
	uint64_t duplicate_pages; /* zero pages sent (as runs) */
	uint64_t bytes;           /* UDP payload handed to the NIC */
	uint64_t bad_packets;     /* tag, header or records wrong */
	uint64_t turns, busy_turns;
};

struct rl_source; /* opaque */

/** Allocates everything; the pending bitmap is there for rl_dirty_open(). -ENOMEM, -EINVAL. */
int rl_source_create(const struct rl_source_opts *opts, struct rl_source **src, struct rl_err *err);
void rl_source_destroy(struct rl_source *src); /* after no worker runs its lanes any more */

struct rl_bitmap *rl_source_pending(struct rl_source *src);

/**
 * Arm: @dirty (may be NULL: a guest that does not run) is driven by lane 0 from now on and outlives
 * the source; logging is on. Marks every page that may hold data pending; holes count as duplicate pages.
 * Before any turn.
 */
void rl_source_start(struct rl_source *src, struct rl_dirty *dirty);

/** A packet for this source on @lane: @data..@len as it came from the NIC. */
void rl_source_rx(struct rl_source *src, uint32_t lane, const uint8_t *data, uint32_t len,
		  uint64_t now_ns);

/**
 * One turn of one lane: timers, dirty source (lane 0), one bounded burst, one doorbell. Returns packets sent
 * (0: nothing to do now); *wake_ns is lowered to the time at which this lane wants its next turn at the
 * latest.
 */
uint32_t rl_source_turn(struct rl_source *src, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns);

void rl_source_set_phase(struct rl_source *src, enum rl_source_phase phase);
void rl_source_set_threshold(struct rl_source *src, uint64_t pages);
void rl_source_set_max_bandwidth(struct rl_source *src, uint64_t bytes_per_s);

/** Events raised so far in this phase (RL_SOURCE_*). CONVERGED falls again when the threshold changes. */
uint32_t rl_source_events(const struct rl_source *src);

/** An eventfd that becomes readable when an event is raised; the session reads it. */
int rl_source_event_fd(const struct rl_source *src);

int rl_source_error(const struct rl_source *src);

struct rl_source_progress {
	uint64_t normal_pages, duplicate_pages, bytes;
	uint64_t pending_pages; /* known to be dirty, not sent */
	uint64_t in_flight_packets;
	uint64_t fill;             /* entries waiting in the rings, as last looked at */
	uint64_t dirty_sync_count; /* rounds: 1 is the first full pass */
	uint64_t bad_packets;
	struct rl_sender_stats link; /* summed over lanes; srtt_ns: the largest */
};

/** Sum over lanes. [any] */
void rl_source_progress(const struct rl_source *src, struct rl_source_progress *p);

#endif /* RL_FLOW_SOURCE_H */
