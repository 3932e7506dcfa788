/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * CUBIC; section numbers are those of RFC 9438. Paced at 2 windows per round trip in slow start and at 1.25 after,
 * so that a window does not leave as one burst.
 */
#include "transport/cc.h"

#include "base/bytes.h"
#include "base/clock.h"

#define BETA_PERCENT 70u              /* 4.6 */
#define MIN_PACKETS  2u               /* RFC 9002 7.2 */
#define MAX_EPOCH_MS (1000ull * 1000) /* keeps a cube below 2^63 */
#define MAX_CWND     (1ull << 40)

static void
cubic_init(struct rl_cc *cc)
{
	cc->cwnd = (uint64_t)RL_CC_INITIAL_PACKETS * cc->mss;
	cc->cubic.ssthresh = UINT64_MAX;
}

static void
cubic_restart(struct rl_cc *cc, uint64_t now_ns)
{
	/* 5.8: time without anything to send is no time to grow in. */
	if (cc->cubic.epoch_ns > 0 && cc->cubic.last_ack_ns > 0)
		cc->cubic.epoch_ns += now_ns - rl_min64(now_ns, cc->cubic.last_ack_ns);
}

static uint64_t
cube_root(uint64_t v)
{
	uint64_t root = 0;

	for (int bit = 20; bit >= 0; bit--) {
		uint64_t r = root | 1ull << bit;

		if (r * r * r <= v)
			root = r;
	}
	return root;
}

/* 4.2: K = cbrt((W_max - cwnd_epoch) / C), C = 0.4 packets/s^3, in ms: 1 / C = 2.5e9 ms^3. */
static void
epoch_begin(struct rl_cc *cc, uint64_t now_ns)
{
	struct rl_cc_cubic *c = &cc->cubic;
	uint64_t below = c->w_max > cc->cwnd ? (c->w_max - cc->cwnd) / cc->mss : 0;

	c->epoch_ns = now_ns;
	c->epoch_cwnd = c->w_est = cc->cwnd;
	c->w_max = rl_max64(c->w_max, cc->cwnd);
	c->k_ms = cube_root(rl_min64(below, 1000000000) * 2500000000ull);
}

/* 4.2: W_cubic(t) = C * (t - K)^3 + W_max. */
static uint64_t
w_cubic(const struct rl_cc *cc, uint64_t t_ms)
{
	const struct rl_cc_cubic *c = &cc->cubic;
	uint64_t d_ms = t_ms > c->k_ms ? t_ms - c->k_ms : c->k_ms - t_ms, bytes;

	d_ms = rl_min64(d_ms, MAX_EPOCH_MS);
	bytes = rl_scale(d_ms * d_ms * d_ms, cc->mss, 2500000000ull);
	if (t_ms > c->k_ms)
		return c->w_max + bytes;
	return c->w_max > bytes ? c->w_max - bytes : 0;
}

/* 4.3 to 4.5: the cubic curve a round trip from now, or what Reno would have, whichever is more. */
static void
cubic_avoid(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_cubic *c = &cc->cubic;
	/* 4.3: as Reno on average, though reductions are smaller; like Reno once W_max is reached. */
	uint32_t alpha_percent = c->w_est < c->w_max ? 53 : 100;
	uint64_t t_ms, target;

	if (c->epoch_ns == 0)
		epoch_begin(cc, ack->now_ns);
	t_ms = (ack->now_ns - rl_min64(ack->now_ns, c->epoch_ns)) / RL_NS_PER_MS;
	c->w_est += rl_scale(ack->acked, (uint64_t)cc->mss * alpha_percent, cc->cwnd * 100);
	if (w_cubic(cc, t_ms) < c->w_est) {
		cc->cwnd = rl_max64(cc->cwnd, c->w_est);
		return;
	}
	target = w_cubic(cc, t_ms + ack->srtt_ns / RL_NS_PER_MS);
	target = rl_min64(rl_max64(target, cc->cwnd), cc->cwnd + cc->cwnd / 2);
	cc->cwnd += rl_scale(target - cc->cwnd, ack->acked, cc->cwnd);
}

static void
cubic_pace(struct rl_cc *cc, uint64_t srtt_ns)
{
	uint64_t percent = cc->cwnd < cc->cubic.ssthresh ? 200 : 125;

	if (srtt_ns > 0)
		cc->pacing_rate = rl_scale(cc->cwnd, percent * RL_NS_PER_S / 100, srtt_ns);
}

static void
cubic_acked(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_cubic *c = &cc->cubic;

	if (ack->recovering) {
		/* RFC 9002 7.3.2 */
	} else if (!ack->window_limited) {
		cubic_restart(cc, ack->now_ns);
	} else if (cc->cwnd < c->ssthresh) {
		cc->cwnd += ack->acked;
	} else {
		cubic_avoid(cc, ack);
	}
	cc->cwnd = rl_min64(cc->cwnd, MAX_CWND);
	c->last_ack_ns = ack->now_ns;
	cubic_pace(cc, ack->srtt_ns);
}

static void
cubic_lost(struct rl_cc *cc, const struct rl_cc_loss *loss)
{
	struct rl_cc_cubic *c = &cc->cubic;

	if (!loss->new_episode)
		return;
	c->undo.cwnd = cc->cwnd;
	c->undo.ssthresh = c->ssthresh;
	c->undo.w_max = c->w_max;
	/* 4.7: fast convergence makes room for others. */
	if (cc->cwnd < c->w_max)
		c->w_max = cc->cwnd * (100 + BETA_PERCENT) / 200;
	else
		c->w_max = cc->cwnd;
	cc->cwnd = rl_max64(cc->cwnd * BETA_PERCENT / 100, (uint64_t)MIN_PACKETS * cc->mss);
	c->ssthresh = cc->cwnd;
	c->epoch_ns = 0;
}

static void
cubic_undo(struct rl_cc *cc) /* 4.9 */
{
	struct rl_cc_cubic *c = &cc->cubic;

	if (c->undo.cwnd <= cc->cwnd)
		return;
	cc->cwnd = c->undo.cwnd;
	c->ssthresh = c->undo.ssthresh;
	c->w_max = c->undo.w_max;
	c->epoch_ns = 0;
}

static const char *
cubic_state(const struct rl_cc *cc)
{
	return cc->cwnd < cc->cubic.ssthresh ? "slow-start" : "avoidance";
}

const struct rl_cc_ops rl_cc_cubic = {
	.name = "cubic",
	.init = cubic_init,
	.restart = cubic_restart,
	.acked = cubic_acked,
	.lost = cubic_lost,
	.undo = cubic_undo,
	.state = cubic_state,
};
