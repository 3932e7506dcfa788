/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * BBRv3 as draft-ietf-ccwg-bbr has it, with its "precautionary probing"; names are the draft's. What differs:
 *
 *  - A worker that has nothing to do sleeps, and receivers acknowledge every 16 packets: OFFLOAD_NS worth of data
 *    is always allowed in flight. Where the round trip is shorter than that, nothing depends on min_rtt, and
 *    ProbeRTT costs nothing.
 *  - Outside of probing, loss below the threshold that probing tolerates lowers bw_shortterm only while there is
 *    a queue, and by no more than the rate fell beyond that threshold and the pacing margin. Without a queue it
 *    is what the path loses by itself: the draft would give up that share in every round trip, and end at 0.74
 *    of 1 Gbit/s at 50 ms and 1 % loss (scripts/bench wan-sim).
 *  - While the guest stands still (cc->hurry) there is no ProbeRTT.
 *  - No recovery of its own: packets are never sent again, their pages are (transport/sender.h).
 */
#include "transport/cc.h"

#include "base/bytes.h"
#include "base/clock.h"

#define INFINITE            UINT64_MAX

#define STARTUP_PACING_GAIN 277u /* percent */
#define DRAIN_PACING_GAIN   50u
#define DOWN_PACING_GAIN    90u
#define UP_PACING_GAIN      125u
#define CWND_GAIN           200u
#define UP_CWND_GAIN        225u
#define PROBE_RTT_CWND_GAIN 50u
#define PACING_MARGIN       1u
#define LOSS_THRESH         2u
#define BETA                70u
#define HEADROOM            15u
#define QUEUE_PERCENT       12u /* of min_rtt: less is jitter */
#define FULL_BW_GROWTH      125u
#define FULL_BW_ROUNDS      3u
#define FULL_LOSS_RANGES    6u
#define MIN_PIPE_PACKETS    4u
#define EXTRA_ACKED_ROUNDS  5u /* twice that are looked at */
#define RENO_ROUNDS         63u

#define MIN_RTT_FILTER_NS   (10 * RL_NS_PER_S)
#define PROBE_RTT_EVERY_NS  (5 * RL_NS_PER_S)
#define PROBE_RTT_NS        (200 * RL_NS_PER_MS)
#define PROBE_WAIT_NS       (2 * RL_NS_PER_S) /* and up to a second more */
#define NOMINAL_RTT_NS      (1 * RL_NS_PER_MS)
#define OFFLOAD_NS          (1 * RL_NS_PER_MS)

static uint64_t
percent(uint64_t v, uint32_t p)
{
	return v / 100 * p + v % 100 * p / 100;
}

static uint64_t
packets(const struct rl_cc *cc, uint64_t n)
{
	return n * cc->mss;
}

static bool
in_probe_bw(const struct rl_cc_bbr *b)
{
	return b->state >= RL_BBR_DOWN && b->state <= RL_BBR_UP;
}

static bool
probing_bw(const struct rl_cc_bbr *b)
{
	return b->state == RL_BBR_STARTUP || b->state == RL_BBR_REFILL || b->state == RL_BBR_UP;
}

static bool
too_high(uint64_t lost, uint64_t tx_in_flight)
{
	return lost > percent(tx_in_flight, LOSS_THRESH);
}

static void
set_state(struct rl_cc_bbr *b, enum rl_bbr_state state, uint32_t pacing_gain, uint32_t cwnd_gain)
{
	b->state = state;
	b->pacing_gain = pacing_gain;
	b->cwnd_gain = cwnd_gain;
}

/* ---- how much in flight ---- */

static uint64_t
bdp_multiple(const struct rl_cc *cc, uint64_t bw, uint32_t gain)
{
	const struct rl_cc_bbr *b = &cc->bbr;

	if (b->min_rtt_ns == INFINITE)
		return packets(cc, RL_CC_INITIAL_PACKETS);
	return percent(rl_scale(bw, b->min_rtt_ns, RL_NS_PER_S), gain);
}

static uint64_t
quantization_budget(const struct rl_cc *cc, uint64_t inflight)
{
	inflight = rl_max64(inflight, rl_scale(cc->bbr.bw, OFFLOAD_NS, RL_NS_PER_S));
	inflight = rl_max64(inflight, packets(cc, MIN_PIPE_PACKETS));
	if (cc->bbr.state == RL_BBR_UP)
		inflight += packets(cc, 2);
	return inflight;
}

static uint64_t
inflight(const struct rl_cc *cc, uint64_t bw, uint32_t gain)
{
	return quantization_budget(cc, bdp_multiple(cc, bw, gain));
}

static uint64_t
inflight_with_headroom(const struct rl_cc *cc)
{
	uint64_t longterm = cc->bbr.inflight_longterm, headroom;

	if (longterm == INFINITE)
		return INFINITE;
	headroom = rl_max64(percent(longterm, HEADROOM), cc->mss);
	return rl_max64(longterm - rl_min64(headroom, longterm), packets(cc, MIN_PIPE_PACKETS));
}

static uint64_t
target_inflight(const struct rl_cc *cc)
{
	return rl_min64(bdp_multiple(cc, cc->bbr.bw, 100), cc->cwnd);
}

/* ---- pieces of the model ---- */

static void
start_round(struct rl_cc_bbr *b)
{
	b->next_round = b->delivered;
}

static void
reset_full_bw(struct rl_cc_bbr *b)
{
	b->full_bw = 0;
	b->full_bw_count = 0;
	b->full_bw_now = false;
}

static void
reset_congestion_signals(struct rl_cc_bbr *b)
{
	b->loss_in_round = false;
	b->loss_bytes = 0;
	b->loss_ranges = 0;
	b->bw_latest = 0;
	b->inflight_latest = 0;
}

static void
reset_shortterm(struct rl_cc_bbr *b)
{
	b->bw_shortterm = INFINITE;
	b->inflight_shortterm = INFINITE;
}

static void
raise_longterm_slope(struct rl_cc *cc)
{
	struct rl_cc_bbr *b = &cc->bbr;
	uint64_t growth = 1ull << b->probe_up_rounds; /* packets in this round */

	b->probe_up_rounds = rl_min32(b->probe_up_rounds + 1, 30);
	b->probe_up_cnt = rl_max64(cc->cwnd / growth, 1);
}

/* ---- states ---- */

static void
enter_startup(struct rl_cc_bbr *b)
{
	set_state(b, RL_BBR_STARTUP, STARTUP_PACING_GAIN, CWND_GAIN);
}

static void
start_down(struct rl_cc *cc, uint64_t now_ns)
{
	struct rl_cc_bbr *b = &cc->bbr;

	reset_congestion_signals(b);
	b->probe_up_cnt = INFINITE; /* longterm does not grow */
	b->rounds_since_probe = (uint32_t)rl_rand_below(&cc->rand, 2);
	b->probe_wait_ns = PROBE_WAIT_NS + rl_rand_below(&cc->rand, RL_NS_PER_S);
	b->cycle_stamp_ns = now_ns;
	b->ack_phase = RL_BBR_ACKS_PROBE_STOPPING;
	start_round(b);
	set_state(b, RL_BBR_DOWN, DOWN_PACING_GAIN, CWND_GAIN);
}

static void
start_cruise(struct rl_cc_bbr *b)
{
	set_state(b, RL_BBR_CRUISE, 100, CWND_GAIN);
}

static void
start_refill(struct rl_cc_bbr *b)
{
	reset_shortterm(b);
	b->probe_up_rounds = 0;
	b->probe_up_acked = 0;
	b->prev_probe_precautionary = false;
	b->ack_phase = RL_BBR_ACKS_REFILLING;
	start_round(b);
	set_state(b, RL_BBR_REFILL, 100, CWND_GAIN);
}

static void
start_up(struct rl_cc *cc)
{
	struct rl_cc_bbr *b = &cc->bbr;

	b->ack_phase = RL_BBR_ACKS_PROBE_STARTING;
	start_round(b);
	reset_full_bw(b);
	b->full_bw = b->last_rate;
	set_state(b, RL_BBR_UP, UP_PACING_GAIN, UP_CWND_GAIN);
	raise_longterm_slope(cc);
}

/* ---- the model, on every ACK ---- */

static void
update_latest_signals(struct rl_cc_bbr *b, const struct rl_cc_ack *ack)
{
	b->loss_round_start = false;
	b->loss_round_rtt_ns = rl_min64(b->loss_round_rtt_ns, ack->rtt_ns);
	b->bw_latest = rl_max64(b->bw_latest, ack->rate.bytes_per_s);
	b->inflight_latest = rl_max64(b->inflight_latest, ack->rate.delivered);
	if (ack->rate.prior_delivered >= b->loss_round) {
		b->loss_round = ack->delivered;
		b->loss_round_start = true;
	}
}

static void
advance_latest_signals(struct rl_cc_bbr *b, const struct rl_cc_ack *ack)
{
	if (!b->loss_round_start)
		return;
	b->loss_round_rtt_ns = ack->rtt_ns;
	b->bw_latest = ack->rate.bytes_per_s;
	b->inflight_latest = ack->rate.delivered;
}

static void
update_round(struct rl_cc_bbr *b, const struct rl_cc_ack *ack)
{
	b->round_start = ack->rate.prior_delivered >= b->next_round;
	if (b->round_start) {
		start_round(b);
		b->rounds_since_probe++;
	}
}

static void
update_max_bw(struct rl_cc_bbr *b, const struct rl_rate_sample *rate)
{
	if (rate->bytes_per_s == 0 || (rate->bytes_per_s < b->max_bw && rate->app_limited))
		return;
	b->max_bw_filter[1] = rl_max64(b->max_bw_filter[1], rate->bytes_per_s);
	b->max_bw = rl_max64(b->max_bw_filter[0], b->max_bw_filter[1]);
}

static void
advance_max_bw_filter(struct rl_cc_bbr *b)
{
	if (b->max_bw_filter[1] == 0) /* nothing was measured in this cycle */
		return;
	b->max_bw_filter[0] = b->max_bw_filter[1];
	b->max_bw_filter[1] = 0;
}

/* Once per round trip in which something was lost, while not probing. */
static void
adapt_lower_bounds(struct rl_cc *cc)
{
	struct rl_cc_bbr *b = &cc->bbr;
	bool queue = b->loss_round_rtt_ns > percent(b->min_rtt_ns, 100 + QUEUE_PERCENT);
	uint64_t latest;

	if (too_high(b->loss_bytes, b->inflight_latest + b->loss_bytes)) {
		if (b->inflight_shortterm == INFINITE)
			b->inflight_shortterm = cc->cwnd;
		b->inflight_shortterm =
			rl_max64(b->inflight_latest, percent(b->inflight_shortterm, BETA));
	} else if (!in_probe_bw(b) || !queue) {
		return;
	}
	if (b->bw_shortterm == INFINITE)
		b->bw_shortterm = b->max_bw;
	latest = percent(b->bw_latest, 100 + LOSS_THRESH + PACING_MARGIN);
	latest = rl_min64(latest, b->max_bw);
	b->bw_shortterm = rl_max64(latest, percent(b->bw_shortterm, BETA));
}

static void
update_ack_aggregation(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;
	uint64_t expected = rl_scale(b->bw, ack->now_ns - b->extra_stamp_ns, RL_NS_PER_S), extra;

	if (b->round_start && ++b->extra_rounds >= (b->full_bw_reached ? EXTRA_ACKED_ROUNDS : 1)) {
		b->extra_rounds = 0;
		b->extra_acked[0] = b->full_bw_reached ? b->extra_acked[1] : 0;
		b->extra_acked[1] = 0;
	}
	/* ACKs come slower than the rate: what was aggregated is through. */
	if (b->extra_delivered <= expected) {
		b->extra_delivered = 0;
		b->extra_stamp_ns = ack->now_ns;
		expected = 0;
	}
	b->extra_delivered += ack->acked;
	extra = rl_min64(b->extra_delivered - rl_min64(expected, b->extra_delivered), cc->cwnd);
	b->extra_acked[1] = rl_max64(b->extra_acked[1], extra);
}

static void
check_full_bw(struct rl_cc_bbr *b, const struct rl_rate_sample *rate)
{
	if (b->full_bw_now || !b->round_start || rate->app_limited)
		return;
	if (rate->bytes_per_s >= percent(b->full_bw, FULL_BW_GROWTH)) {
		reset_full_bw(b);
		b->full_bw = rate->bytes_per_s;
		return;
	}
	b->full_bw_now = ++b->full_bw_count >= FULL_BW_ROUNDS;
	b->full_bw_reached |= b->full_bw_now;
}

static void
check_startup_done(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->state != RL_BBR_STARTUP)
		return;
	if (b->loss_round_start && b->loss_ranges >= FULL_LOSS_RANGES &&
	    too_high(ack->rate.lost, ack->rate.tx_in_flight)) {
		b->full_bw_reached = true;
		b->inflight_longterm =
			rl_max64(bdp_multiple(cc, b->max_bw, 100), b->inflight_latest);
	}
	if (b->full_bw_reached)
		set_state(b, RL_BBR_DRAIN, DRAIN_PACING_GAIN, CWND_GAIN);
}

static void
check_drain_done(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	if (cc->bbr.state == RL_BBR_DRAIN && ack->in_flight <= inflight(cc, cc->bbr.bw, 100))
		start_down(cc, ack->now_ns);
}

/* ---- the cycle ---- */

static void
probe_longterm_upward(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (!ack->window_limited || cc->cwnd < b->inflight_longterm)
		return; /* it is not the limit, so nothing is known about more */
	b->probe_up_acked += ack->acked;
	b->inflight_longterm += packets(cc, b->probe_up_acked / b->probe_up_cnt);
	b->probe_up_acked %= b->probe_up_cnt;
	if (b->round_start)
		raise_longterm_slope(cc);
}

/* Returns true when it has decided on a state. */
static bool
adapt_longterm(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->ack_phase == RL_BBR_ACKS_PROBE_STARTING && b->round_start)
		b->ack_phase = RL_BBR_ACKS_PROBE_FEEDBACK;
	if (b->ack_phase == RL_BBR_ACKS_PROBE_STOPPING && b->round_start) {
		b->probe_samples = false;
		b->ack_phase = RL_BBR_ACKS_INIT;
		if (in_probe_bw(b) && !ack->rate.app_limited)
			advance_max_bw_filter(b);
		/* It stopped only out of caution, and there was no loss: go on. */
		if (in_probe_bw(b) && b->prev_probe_precautionary && !b->prev_probe_too_high) {
			start_refill(b);
			return true;
		}
	}
	if (too_high(ack->rate.lost, ack->rate.tx_in_flight) || b->inflight_longterm == INFINITE)
		return false;
	b->inflight_longterm = rl_max64(b->inflight_longterm, ack->rate.tx_in_flight);
	if (b->state == RL_BBR_UP)
		probe_longterm_upward(cc, ack);
	return false;
}

static bool
time_to_probe(const struct rl_cc *cc, uint64_t now_ns)
{
	const struct rl_cc_bbr *b = &cc->bbr;
	uint64_t reno_rounds = rl_min64(target_inflight(cc) / cc->mss, RENO_ROUNDS);

	return now_ns > b->cycle_stamp_ns + b->probe_wait_ns ||
	       b->rounds_since_probe >= reno_rounds;
}

static bool
time_to_cruise(const struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	return ack->in_flight <= inflight_with_headroom(cc) &&
	       ack->in_flight <= inflight(cc, cc->bbr.max_bw, 100);
}

static bool
time_to_go_down(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	/* What was in flight before this ACK: the window keeps it just below the bound. */
	if (b->prev_probe_too_high &&
	    ack->in_flight + ack->acked + cc->mss > b->inflight_longterm) {
		b->prev_probe_precautionary = true;
		return true;
	}
	if (ack->window_limited && cc->cwnd >= b->inflight_longterm) {
		reset_full_bw(b);
		b->full_bw = ack->rate.bytes_per_s;
		return false;
	}
	return b->full_bw_now;
}

static void
update_cycle(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (!b->full_bw_reached || adapt_longterm(cc, ack))
		return;
	switch (b->state) {
	case RL_BBR_DOWN:
	case RL_BBR_CRUISE:
		if (time_to_probe(cc, ack->now_ns))
			start_refill(b);
		else if (b->state == RL_BBR_DOWN && time_to_cruise(cc, ack))
			start_cruise(b);
		break;
	case RL_BBR_REFILL:
		if (b->round_start) {
			b->probe_samples = true;
			start_up(cc);
		}
		break;
	case RL_BBR_UP:
		if (time_to_go_down(cc, ack)) {
			b->prev_probe_too_high = false; /* so far */
			start_down(cc, ack->now_ns);
		}
		break;
	default:
		break;
	}
}

/* ---- ProbeRTT ---- */

static void
update_min_rtt(struct rl_cc_bbr *b, const struct rl_cc_ack *ack)
{
	b->probe_rtt_expired = b->probe_rtt_min_ns != INFINITE &&
			       ack->now_ns > b->probe_rtt_min_stamp_ns + PROBE_RTT_EVERY_NS;
	if (ack->rtt_ns < b->probe_rtt_min_ns || b->probe_rtt_expired) {
		b->probe_rtt_min_ns = ack->rtt_ns;
		b->probe_rtt_min_stamp_ns = ack->now_ns;
	}
	if (b->probe_rtt_min_ns < b->min_rtt_ns ||
	    ack->now_ns > b->min_rtt_stamp_ns + MIN_RTT_FILTER_NS) {
		b->min_rtt_ns = b->probe_rtt_min_ns;
		b->min_rtt_stamp_ns = b->probe_rtt_min_stamp_ns;
	}
}

static void
check_probe_rtt_done(struct rl_cc *cc, uint64_t now_ns)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->probe_rtt_done_ns == 0 || now_ns <= b->probe_rtt_done_ns)
		return;
	b->probe_rtt_min_stamp_ns = now_ns;
	cc->cwnd = rl_max64(cc->cwnd, b->prior_cwnd);
	reset_shortterm(b);
	if (b->full_bw_reached) {
		start_down(cc, now_ns);
		start_cruise(b);
	} else {
		enter_startup(b);
	}
}

static void
handle_probe_rtt(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->probe_rtt_done_ns == 0) {
		if (ack->in_flight > inflight(cc, b->bw, PROBE_RTT_CWND_GAIN))
			return;
		b->probe_rtt_done_ns = ack->now_ns + PROBE_RTT_NS;
		b->probe_rtt_round_done = false;
		start_round(b);
	} else {
		b->probe_rtt_round_done |= b->round_start;
		if (b->probe_rtt_round_done)
			check_probe_rtt_done(cc, ack->now_ns);
	}
}

static void
check_probe_rtt(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->state != RL_BBR_PROBE_RTT && b->probe_rtt_expired && !b->idle_restart &&
	    !cc->hurry) {
		set_state(b, RL_BBR_PROBE_RTT, 100, PROBE_RTT_CWND_GAIN);
		b->prior_cwnd = cc->cwnd;
		b->probe_rtt_done_ns = 0;
		b->ack_phase = RL_BBR_ACKS_PROBE_STOPPING;
		start_round(b);
	}
	if (b->state == RL_BBR_PROBE_RTT)
		handle_probe_rtt(cc, ack);
	b->idle_restart = false;
}

/* ---- what comes of it ---- */

static void
set_pacing_rate(struct rl_cc *cc, uint32_t gain)
{
	uint64_t rate = percent(percent(cc->bbr.bw, gain), 100 - PACING_MARGIN);

	/* Before the pipe was full, a low sample tells of a sender that had little to send. */
	if (cc->bbr.full_bw_reached || rate > cc->pacing_rate)
		cc->pacing_rate = rl_max64(rate, cc->mss);
}

static void
set_cwnd(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;
	uint64_t extra = rl_max64(b->extra_acked[0], b->extra_acked[1]), cap = INFINITE, max;

	max = quantization_budget(cc, bdp_multiple(cc, b->bw, b->cwnd_gain) + extra);
	if (b->full_bw_reached)
		cc->cwnd = rl_min64(cc->cwnd + ack->acked, max);
	else if (cc->cwnd < max || b->delivered < packets(cc, RL_CC_INITIAL_PACKETS))
		cc->cwnd += ack->acked;

	if (b->state == RL_BBR_PROBE_RTT)
		cc->cwnd = rl_min64(cc->cwnd, inflight(cc, b->bw, PROBE_RTT_CWND_GAIN));
	if (b->state == RL_BBR_PROBE_RTT || b->state == RL_BBR_CRUISE)
		cap = inflight_with_headroom(cc);
	else if (in_probe_bw(b))
		cap = b->inflight_longterm;
	cap = rl_min64(cap, b->inflight_shortterm);
	cc->cwnd = rl_max64(rl_min64(cc->cwnd, cap), packets(cc, MIN_PIPE_PACKETS));
}

static void
bbr_acked(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_bbr *b = &cc->bbr;

	if (b->min_rtt_ns == INFINITE) /* what init knew nothing of */
		cc->pacing_rate = percent(rl_scale(cc->cwnd, RL_NS_PER_S, rl_max64(ack->rtt_ns, 1)),
					  STARTUP_PACING_GAIN);
	b->delivered = ack->delivered;
	b->last_rate = ack->rate.bytes_per_s;
	update_latest_signals(b, ack);
	update_round(b, ack);
	update_max_bw(b, &ack->rate);
	if (b->loss_round_start && b->loss_in_round && !probing_bw(b))
		adapt_lower_bounds(cc);
	update_ack_aggregation(cc, ack);
	check_full_bw(b, &ack->rate);
	check_startup_done(cc, ack);
	if (b->loss_round_start) {
		b->loss_in_round = false;
		b->loss_bytes = 0;
		b->loss_ranges = 0;
	}
	check_drain_done(cc, ack);
	update_cycle(cc, ack);
	update_min_rtt(b, ack);
	check_probe_rtt(cc, ack);
	advance_latest_signals(b, ack);
	b->bw = rl_min64(b->max_bw, b->bw_shortterm);

	set_pacing_rate(cc, b->pacing_gain);
	set_cwnd(cc, ack);
	cc->ignore_samples = b->state == RL_BBR_PROBE_RTT;
}

/* Which part of the packets in flight could have been sent before the loss became too high? */
static uint64_t
inflight_at_loss(const struct rl_cc_loss *loss)
{
	uint64_t before = loss->tx_in_flight - rl_min64(loss->bytes, loss->tx_in_flight);
	uint64_t lost_before = loss->lost - rl_min64(loss->bytes, loss->lost);
	uint64_t allowed = percent(before, LOSS_THRESH);

	if (allowed <= lost_before)
		return before;
	return before + (allowed - lost_before) * 100 / (100 - LOSS_THRESH);
}

static void
bbr_lost(struct rl_cc *cc, const struct rl_cc_loss *loss)
{
	struct rl_cc_bbr *b = &cc->bbr;

	b->delivered = loss->delivered;
	if (!b->loss_in_round) {
		b->loss_round = loss->delivered;
		b->loss_in_round = true;
		b->undo_state = b->state;
		b->undo_bw_shortterm = b->bw_shortterm;
		b->undo_inflight_shortterm = b->inflight_shortterm;
		b->undo_inflight_longterm = b->inflight_longterm;
	}
	b->loss_bytes += loss->bytes;
	b->loss_ranges += loss->new_range;

	if (!b->probe_samples || !too_high(loss->lost, loss->tx_in_flight))
		return;
	b->prev_probe_too_high = true;
	b->probe_samples = false; /* one answer to each probe */
	if (!loss->app_limited)
		b->inflight_longterm =
			rl_max64(inflight_at_loss(loss), percent(target_inflight(cc), BETA));
	if (b->state == RL_BBR_UP)
		start_down(cc, loss->now_ns);
}

static void
bbr_undo(struct rl_cc *cc)
{
	struct rl_cc_bbr *b = &cc->bbr;

	b->loss_in_round = false;
	reset_full_bw(b);
	b->bw_shortterm = rl_max64(b->bw_shortterm, b->undo_bw_shortterm);
	b->inflight_shortterm = rl_max64(b->inflight_shortterm, b->undo_inflight_shortterm);
	b->inflight_longterm = rl_max64(b->inflight_longterm, b->undo_inflight_longterm);
	if (b->state == RL_BBR_PROBE_RTT || b->state == b->undo_state)
		return;
	if (b->undo_state == RL_BBR_STARTUP) {
		b->full_bw_reached = false;
		enter_startup(b);
	} else if (b->undo_state == RL_BBR_UP) {
		start_up(cc);
	}
}

static void
bbr_restart(struct rl_cc *cc, uint64_t now_ns)
{
	struct rl_cc_bbr *b = &cc->bbr;

	b->idle_restart = true;
	b->extra_stamp_ns = now_ns;
	if (in_probe_bw(b))
		set_pacing_rate(cc, 100);
	else if (b->state == RL_BBR_PROBE_RTT)
		check_probe_rtt_done(cc, now_ns);
}

static void
bbr_init(struct rl_cc *cc)
{
	struct rl_cc_bbr *b = &cc->bbr;

	b->min_rtt_ns = INFINITE;
	b->probe_rtt_min_ns = INFINITE;
	b->inflight_longterm = INFINITE;
	b->undo_inflight_longterm = INFINITE;
	reset_shortterm(b);
	enter_startup(b);
	cc->cwnd = packets(cc, RL_CC_INITIAL_PACKETS);
	cc->pacing_rate =
		percent(rl_scale(cc->cwnd, RL_NS_PER_S, NOMINAL_RTT_NS), STARTUP_PACING_GAIN);
}

static const char *
bbr_state(const struct rl_cc *cc)
{
	static const char *const name[] = {"startup",         "drain",           "probe-bw-down",
					   "probe-bw-cruise", "probe-bw-refill", "probe-bw-up",
					   "probe-rtt"};

	return name[cc->bbr.state];
}

const struct rl_cc_ops rl_cc_bbr = {
	.name = "bbr",
	.init = bbr_init,
	.restart = bbr_restart,
	.acked = bbr_acked,
	.lost = bbr_lost,
	.undo = bbr_undo,
	.state = bbr_state,
};
