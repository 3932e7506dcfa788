/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Congestion control for links of known rate; see cc.h. Per round (one window acknowledged or lost): loss above the
 * threshold reduces the window to 0.7; else, if the window was used, it doubles until the first reduction and
 * then grows by 1/8. What it takes from RFC 9002: a reduction is not followed by another one for packets sent before
 * it (7.3.2), and a window that is not used does not grow (7.8).
 */
#include "transport/cc.h"

#include "base/bytes.h"

static void
fixed_init(struct rl_cc *cc)
{
	cc->cwnd = (uint64_t)RL_FIXED_INITIAL_PACKETS * cc->mss;
}

static void
fixed_restart(struct rl_cc *cc, uint64_t now_ns)
{
	(void)cc;
	(void)now_ns;
}

static void
fixed_lost(struct rl_cc *cc, const struct rl_cc_loss *loss)
{
	cc->fixed.round_lost += loss->bytes;
}

static void
fixed_reduce(struct rl_cc *cc)
{
	uint64_t used = rl_min64(cc->cwnd, cc->limit);

	cc->fixed.undo_cwnd = cc->cwnd;
	cc->cwnd = rl_max64(used * 7 / 10, (uint64_t)RL_FIXED_MIN_PACKETS * cc->mss);
	cc->fixed.reduced = true;
	cc->fixed.recovering = true;
}

static void
fixed_grow(struct rl_cc *cc)
{
	uint64_t cwnd = cc->cwnd + (cc->fixed.reduced ? cc->cwnd / 8 : cc->cwnd);

	/* Credit that shrank holds the window by itself; cwnd stays for when it comes back. */
	cc->cwnd = rl_max64(cc->cwnd, rl_min64(cwnd, cc->limit));
}

static void
fixed_acked(struct rl_cc *cc, const struct rl_cc_ack *ack)
{
	struct rl_cc_fixed *f = &cc->fixed;
	uint64_t total;

	f->round_acked += ack->acked;
	total = f->round_acked + f->round_lost;
	/* A share of a few packets says nothing: a short round goes on until it has enough of them. */
	if (ack->rate.prior_delivered < f->round_end ||
	    total < (uint64_t)RL_FIXED_MIN_PACKETS * cc->mss)
		return;

	if (f->recovering)
		f->recovering = false;
	else if (f->round_lost * 100 > total * RL_FIXED_LOSS_PERCENT)
		fixed_reduce(cc);
	else if (ack->window_limited)
		fixed_grow(cc);

	f->round_end = ack->delivered;
	f->round_acked = 0;
	f->round_lost = 0;
}

static void
fixed_undo(struct rl_cc *cc)
{
	cc->cwnd = rl_max64(cc->cwnd, cc->fixed.undo_cwnd);
	cc->fixed.round_lost = 0;
}

static const char *
fixed_state(const struct rl_cc *cc)
{
	return cc->fixed.recovering ? "recovery" : "open";
}

const struct rl_cc_ops rl_cc_fixed = {
	.name = "fixed",
	.init = fixed_init,
	.restart = fixed_restart,
	.acked = fixed_acked,
	.lost = fixed_lost,
	.undo = fixed_undo,
	.state = fixed_state,
};
