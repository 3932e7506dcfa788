/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_CC_H
#define RL_TRANSPORT_CC_H
/**
 * @file cc.h
 * Congestion control of a lane behind one small table of functions. The sender tells what happened, the algorithm
 * answers with a window and a pacing rate. The receiver's credit is not its business: the sender holds it besides.
 *
 *   bbr    BBRv3 (draft-ietf-ccwg-bbr): paths of unknown rate, with loss that is not congestion. The default.
 *   cubic  RFC 9438: to share a bottleneck with TCP on equal terms.
 *   fixed  provisioned links, together with max-bandwidth: as much as the credit allows, and less only while
 *          the path loses more than RL_FIXED_LOSS_PERCENT.
 *
 * Threads: the lane's owner; names from [any].
 * Units:   bytes, bytes/s, ns. A window is in bytes, a path that counts packets sees `mss` per packet.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/rand.h"
#include "transport/rate.h"

#define RL_CC_INITIAL_PACKETS 32u

struct rl_cc;

/* Packets were acknowledged. */
struct rl_cc_ack {
	uint64_t now_ns;
	uint64_t rtt_ns; /* of the newest packet that was acknowledged */
	uint64_t srtt_ns;
	uint64_t acked;     /* by this ACK */
	uint64_t in_flight; /* after it */
	uint64_t delivered; /* ever */
	struct rl_rate_sample rate;
	bool window_limited; /* within the last round trip the window was full */
	bool recovering;     /* the newest left before the last loss was found */
};

/* A packet was lost. */
struct rl_cc_loss {
	uint64_t now_ns;
	uint64_t bytes;
	uint64_t tx_in_flight; /* when it had left, with it */
	uint64_t lost;         /* since it left, with it */
	uint64_t delivered;    /* ever */
	bool app_limited;      /* when it left */
	bool new_range;        /* the packet before it was not lost */
	bool new_episode;      /* it left after the loss before was found */
};

struct rl_cc_ops {
	const char *name;
	void (*init)(struct rl_cc *cc);
	/* Something is sent after nothing was in flight and there had been nothing to send. */
	void (*restart)(struct rl_cc *cc, uint64_t now_ns);
	void (*acked)(struct rl_cc *cc, const struct rl_cc_ack *ack);
	void (*lost)(struct rl_cc *cc, const struct rl_cc_loss *loss);
	/* All that was lost in the last episode has arrived after all. */
	void (*undo)(struct rl_cc *cc);
	/* Where it is, for people; a constant string. */
	const char *(*state)(const struct rl_cc *cc);
};

enum rl_bbr_state {
	RL_BBR_STARTUP,
	RL_BBR_DRAIN,
	RL_BBR_DOWN, /* ProbeBW_ */
	RL_BBR_CRUISE,
	RL_BBR_REFILL,
	RL_BBR_UP,
	RL_BBR_PROBE_RTT
};

enum rl_bbr_ack_phase { /* what the ACKs now coming tell about */
			RL_BBR_ACKS_INIT,
			RL_BBR_ACKS_REFILLING,
			RL_BBR_ACKS_PROBE_STARTING,
			RL_BBR_ACKS_PROBE_FEEDBACK,
			RL_BBR_ACKS_PROBE_STOPPING
};

/* Names as in the draft; UINT64_MAX is its Infinity. */
struct rl_cc_bbr {
	enum rl_bbr_state state;
	enum rl_bbr_ack_phase ack_phase;
	uint32_t pacing_gain, cwnd_gain; /* percent */

	uint64_t bw, max_bw, bw_latest, bw_shortterm;
	uint64_t max_bw_filter[2]; /* of the cycle before and of this one */
	uint64_t inflight_latest, inflight_shortterm, inflight_longterm;
	uint64_t min_rtt_ns, min_rtt_stamp_ns;
	uint64_t probe_rtt_min_ns, probe_rtt_min_stamp_ns, probe_rtt_done_ns;
	uint64_t cycle_stamp_ns, probe_wait_ns;
	uint64_t last_rate; /* of the last sample */

	uint64_t delivered;         /* ever, as of the last event */
	uint64_t next_round;        /* `delivered` at which the round ends */
	uint64_t loss_round;        /* the same for the round that began with a loss */
	uint64_t loss_bytes;        /* lost in it */
	uint64_t loss_round_rtt_ns; /* least in it */
	uint32_t loss_ranges;
	uint32_t rounds_since_probe;

	uint64_t full_bw;
	uint32_t full_bw_count;

	uint64_t extra_stamp_ns, extra_delivered;
	uint64_t extra_acked[2]; /* maximum of the rounds before and of these */
	uint32_t extra_rounds;

	uint64_t probe_up_cnt,
		probe_up_acked; /* bytes acknowledged per packet that longterm grows */
	uint32_t probe_up_rounds;
	uint64_t prior_cwnd;

	uint64_t undo_bw_shortterm, undo_inflight_shortterm, undo_inflight_longterm;
	enum rl_bbr_state undo_state;

	bool round_start, loss_round_start, loss_in_round;
	bool full_bw_now, full_bw_reached;
	bool probe_samples; /* ACKs now coming are for packets that probed for bandwidth */
	bool idle_restart, probe_rtt_expired, probe_rtt_round_done;
	bool prev_probe_too_high, prev_probe_precautionary;
};

struct rl_cc_cubic {
	uint64_t ssthresh; /* UINT64_MAX: none yet */
	uint64_t w_max, w_est, epoch_cwnd;
	uint64_t epoch_ns; /* 0: no epoch */
	uint64_t k_ms;
	uint64_t last_ack_ns;
	struct {
		uint64_t cwnd, ssthresh, w_max;
	} undo;
};

#define RL_FIXED_MIN_PACKETS     32u
#define RL_FIXED_INITIAL_PACKETS 256u
#define RL_FIXED_LOSS_PERCENT    15u

struct rl_cc_fixed {
	uint64_t round_end; /* `delivered` that ends this round */
	uint64_t round_acked, round_lost;
	uint64_t undo_cwnd;
	bool reduced;    /* has there been a reduction? (then grow slowly) */
	bool recovering; /* this round's packets left before the last reduction: not judged */
};

struct rl_cc {
	const struct rl_cc_ops *ops;
	uint32_t mss;
	struct rl_rand rand;
	bool hurry;     /* the guest stands still: nothing that slows down only to learn */
	uint64_t limit; /* the receiver's credit: more than that is never in flight */

	/* what the sender holds itself to */
	uint64_t cwnd;
	uint64_t pacing_rate; /* 0: unlimited */
	bool ignore_samples;  /* slow on purpose: mark what is sent as app-limited */

	union {
		struct rl_cc_bbr bbr;
		struct rl_cc_cubic cubic;
		struct rl_cc_fixed fixed;
	};
};

extern const struct rl_cc_ops rl_cc_bbr, rl_cc_cubic, rl_cc_fixed;

/** By name; NULL: the default. Returns NULL when there is none of that name. */
const struct rl_cc_ops *rl_cc_find(const char *name);

/** @mss: bytes of a full packet. @seed: of the random waits, so that flows do not probe together. */
void rl_cc_init(struct rl_cc *cc, const struct rl_cc_ops *ops, uint32_t mss, uint64_t seed);

#endif /* RL_TRANSPORT_CC_H */
