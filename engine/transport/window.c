/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The window of a lane; see window.h. What it takes from RFC 9002: a reduction is not followed by another one for
 * packets sent before it (7.3.2), and a window that is not used does not grow (7.8).
 */
#include "transport/window.h"

#include "base/bytes.h"

void
rl_window_init(struct rl_window *w, uint32_t credit)
{
	*w = (struct rl_window){.cwnd = RL_WINDOW_INITIAL};
	rl_window_credit(w, credit);
}

void
rl_window_credit(struct rl_window *w, uint32_t credit)
{
	/* With no credit at all no packet would ask for the ACK that raises it again. */
	w->credit = credit > 0 ? credit : 1;
}

void
rl_window_on_loss(struct rl_window *w, uint32_t lost)
{
	w->round_lost += lost;
}

static void
window_reduce(struct rl_window *w)
{
	uint64_t cwnd = (uint64_t)rl_window_packets(w) * 7 / 10;

	w->cwnd = (uint32_t)rl_max64(cwnd, RL_WINDOW_MIN);
	w->reduced = 1;
	w->recovering = 1;
}

static void
window_grow(struct rl_window *w)
{
	uint64_t cwnd = w->reduced ? (uint64_t)w->cwnd + w->cwnd / 8 : (uint64_t)w->cwnd * 2;

	/* Credit that shrank holds the window by itself; cwnd stays for when it comes back. */
	cwnd = rl_min64(cwnd, w->credit);
	w->cwnd = (uint32_t)rl_max64(cwnd, w->cwnd);
}

void
rl_window_on_ack(struct rl_window *w, uint32_t acked, uint64_t largest_acked, uint64_t next_pn)
{
	uint64_t total;

	w->round_acked += acked;
	total = (uint64_t)w->round_acked + w->round_lost;
	/* A share of a few packets says nothing: a short round goes on until it has enough of them. */
	if (largest_acked < w->round_end || total < RL_WINDOW_MIN)
		return;

	if (w->recovering)
		w->recovering = 0;
	else if ((uint64_t)w->round_lost * 100 > total * RL_WINDOW_LOSS_PERCENT)
		window_reduce(w);
	else if (total >= rl_window_packets(w) / 2)
		window_grow(w);

	w->round_end = next_pn;
	w->round_acked = 0;
	w->round_lost = 0;
}
