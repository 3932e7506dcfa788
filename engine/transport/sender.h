/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_SENDER_H
#define RL_TRANSPORT_SENDER_H
/**
 * @file sender.h
 * The sending half of one lane: packet numbers, the sent-map (which pages each packet carried, never
 * their bytes), round-trip times, loss detection, window and pacing. Sans-I/O: time is an argument.
 *
 * A packet number is used once. Loss, refusal by the NIC and a new write are one operation: the pages go
 * to the `lost` callback, which makes them pending again.
 *
 * Source: RFC 9002 (loss detection, RTT, PTO), with a granularity of 100 us instead of 1 ms, a PTO between
 * 1 ms and 1 s, and thresholds (packets and time) that grow when a loss proves spurious, as RFC 8985's
 * reordering window does. Window and pacing rate: transport/cc.h; the receiver's credit bounds the window.
 *
 * How to send: rl_sender_admit() says how many packets may go now. Per packet: rl_sender_begin();
 * rl_sender_carry() for each run of pages; then rl_sender_commit(). After the burst: rl_sender_refused(n) for
 * the tail that the NIC did not take. With less to send than admitted: rl_sender_app_limited().
 *
 * Threads: the lane's owner; counters in `st` are read by [any] with rl_count_read().
 * Units:   *_ns, *_bytes, packets.
 * Errors:  -ENOMEM, -EINVAL from init. The rest cannot fail.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "transport/cc.h"
#include "transport/rate.h"

#define RL_SENDER_MAX_RUNS 512u /* runs of pages that one packet may carry */

/* As transport/ knows no wire format, the caller hands an ACK over in this form. */
struct rl_acked_range {
	uint64_t start, end; /* half-open */
};

struct rl_acked {
	uint64_t largest;
	uint64_t floor; /* the receiver remembers nothing below: that is no evidence of loss */
	uint64_t delay_ns;
	uint32_t credit;
	uint32_t n;
	const struct rl_acked_range *range; /* descending order, disjoint */
};

struct rl_sender_stats {
	uint64_t packets;     /* committed */
	uint64_t bytes;       /* committed, whole datagrams as given to commit */
	uint64_t acked;       /* packets: packets = acked + lost + refused + in_flight */
	uint64_t lost;        /* packets declared lost */
	uint64_t spurious;    /* of these, acknowledged later */
	uint64_t refused;     /* packets the NIC did not take */
	uint64_t ptos;        /* probe timeouts */
	uint64_t bad_acks;    /* ACKs that name packets never sent */
	uint64_t in_flight;   /* packets now */
	uint64_t srtt_ns;     /* smoothed RTT now */
	uint64_t window;      /* packets now */
	uint64_t acked_bytes; /* of acknowledged packets */
	uint64_t pacing_rate; /* bytes/s now; 0: unlimited */
};

struct rl_sent; /* one packet in flight; sent.h */

struct rl_sender {
	/* set at init, then constant */
	uint32_t map_packets; /* capacity of the sent-map, a power of two */
	uint32_t map_runs;    /* capacity of the run ring, a power of two */
	struct rl_sent *map;  /* by pn % map_packets */
	uint8_t *state;       /* enum sent_state, the same */
	struct rl_run *runs;  /* ring; FIFO in packet-number order */
	void (*lost)(void *ctx, const struct rl_run *run);
	void *lost_ctx;

	/* owner's state */
	uint64_t next_pn;
	uint64_t oldest_pn; /* lowest number not yet acknowledged or lost */
	uint64_t runs_head, runs_tail;
	uint64_t largest_acked; /* UINT64_MAX: none yet */
	uint64_t lost_end;      /* one above the highest number declared lost; 0: none */
	uint64_t latest_rtt_ns, srtt_ns, rttvar_ns, min_rtt_ns;
	uint64_t max_ack_delay_ns;
	uint64_t loss_time_ns; /* when the next packet times out by the time threshold; 0: none */
	uint64_t last_tx_ns;   /* of the last ack-eliciting packet */
	uint32_t pto_count;
	uint32_t packet_threshold;
	uint64_t
		reorder_ns; /* how much later than a round trip what had been taken for lost arrived */
	uint32_t in_flight;
	uint32_t credit;
	uint64_t in_flight_bytes;
	uint64_t departure_ns; /* earliest, of the next packet */
	uint64_t
		window_full; /* until so many bytes were delivered, within the last round trip it was */
	uint32_t building_runs; /* runs carried by the packet being built */
	/* a loss episode: all that is lost of what was sent before the first of it was found */
	uint64_t episode_begin, episode_end; /* packet numbers */
	uint64_t episode_lost;               /* bytes; a spurious loss is taken back */
	uint32_t calm_episodes;              /* in a row without a spurious loss */
	struct rl_rate rate;
	struct rl_cc cc;
	struct rl_sender_stats st;
};

struct rl_sender_opts {
	uint32_t map_packets; /* 0: 65536 */
	uint32_t map_runs;    /* 0: 262144 */
	uint32_t credit; /* packets in flight before the first ACK tells the receiver's credit */
	uint32_t packet_bytes;      /* of a full packet; 0: 1400 */
	const struct rl_cc_ops *cc; /* NULL: the default */
	uint64_t seed;              /* of the congestion control's random waits */
	void (*lost)(void *ctx, const struct rl_run *run);
	void *lost_ctx;
};

int rl_sender_init(struct rl_sender *s, const struct rl_sender_opts *opts);
void rl_sender_fini(struct rl_sender *s);

/** Full packets that have a place: window, receiver credit, room in the sent-map (worst case). */
uint32_t rl_sender_room(const struct rl_sender *s);

/** How many of @want packets may be committed now: rl_sender_room() and pacing. */
uint32_t rl_sender_admit(struct rl_sender *s, uint32_t want, uint64_t now_ns);

/** When pacing lets the next packet go; 0: now. */
uint64_t rl_sender_pacing_ns(const struct rl_sender *s, uint64_t now_ns);

/** There is nothing to send, or something other than window and pacing holds it back: what is in flight says
 * nothing about how fast the path is. Without effect while window or pacing are closed. */
void rl_sender_app_limited(struct rl_sender *s, uint64_t now_ns);

/** From now on there is no time for probes that slow down (true), or there is again. */
static inline void
rl_sender_hurry(struct rl_sender *s, bool hurry)
{
	s->cc.hurry = hurry;
}

/** The packet number that the next commit uses. */
static inline uint64_t
rl_sender_next_pn(const struct rl_sender *s)
{
	return s->next_pn;
}

/** Nothing below it is waited for any more: what a FLOOR record says. */
static inline uint64_t
rl_sender_floor(const struct rl_sender *s)
{
	return s->oldest_pn;
}

static inline uint32_t
rl_sender_in_flight(const struct rl_sender *s)
{
	return s->in_flight;
}

void rl_sender_begin(struct rl_sender *s);

/** The packet being built carries (a part of) these pages; adjacent runs are merged. */
void rl_sender_carry(struct rl_sender *s, uint64_t first, uint32_t n);

/** Runs that the packet being built can still carry. */
uint32_t rl_sender_runs_left(const struct rl_sender *s);

/** The packet is on its way: @bytes of UDP payload, sent at @now_ns. Every packet is ack-eliciting. */
void rl_sender_commit(struct rl_sender *s, uint32_t bytes, uint64_t now_ns);

/** The NIC refused the last @n packets committed: their pages are pending again, no congestion. */
void rl_sender_refused(struct rl_sender *s, uint32_t n);

/**
 * An ACK arrived. Marks packets acknowledged, samples the RTT, finds losses (lost callback), moves the
 * window. Returns how many packets were newly acknowledged. A range that names packets never sent is
 * counted in bad_acks and the whole ACK ignored.
 */
uint32_t rl_sender_on_ack(struct rl_sender *s, const struct rl_acked *ack, uint64_t now_ns);

/**
 * Call once per turn: declares losses by time. Returns true when a probe is due (PTO expired): the caller
 * sends a PROBE packet at once, past the window.
 */
bool rl_sender_on_time(struct rl_sender *s, uint64_t now_ns);

/** When rl_sender_on_time() next has something to do; UINT64_MAX: not before the next event. */
uint64_t rl_sender_timer_ns(const struct rl_sender *s);

#endif /* RL_TRANSPORT_SENDER_H */
