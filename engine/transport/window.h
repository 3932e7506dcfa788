/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_WINDOW_H
#define RL_TRANSPORT_WINDOW_H
/**
 * @file window.h
 * How many packets may be in flight on a lane: never more than the receiver's credit (its ring must
 * hold them even while it is descheduled), and less while the path loses far more than random loss
 * explains. For links of known rate (pacing by max-bandwidth): loss below RL_WINDOW_LOSS_PERCENT of a
 * round does not slow it down.
 *
 * Per round (one window acknowledged or lost): loss above the threshold -> window * 0.7, at least
 * RL_WINDOW_MIN; else, if the window was used, doubled until the first reduction, then + 1/8, up to the
 * credit. A round has at least RL_WINDOW_MIN packets; the one after a reduction is not judged.
 *
 * Threads: the lane's owner. Units: packets.
 */
#include <stdint.h>

#define RL_WINDOW_MIN          32u
#define RL_WINDOW_INITIAL      256u
#define RL_WINDOW_LOSS_PERCENT 15u

struct rl_window {
	uint32_t cwnd;
	uint32_t credit;
	uint64_t round_end; /* packet number that ends this round */
	uint32_t round_acked, round_lost;
	uint32_t reduced;    /* has there been a reduction? (then grow slowly) */
	uint32_t recovering; /* this round's packets left before the last reduction: not judged */
};

void rl_window_init(struct rl_window *w, uint32_t credit);
void rl_window_credit(struct rl_window *w, uint32_t credit);

/** @largest_acked and @next_pn mark the rounds. */
void rl_window_on_ack(struct rl_window *w, uint32_t acked, uint64_t largest_acked,
		      uint64_t next_pn);
void rl_window_on_loss(struct rl_window *w, uint32_t lost);

static inline uint32_t
rl_window_packets(const struct rl_window *w)
{
	return w->cwnd < w->credit ? w->cwnd : w->credit;
}

#endif /* RL_TRANSPORT_WINDOW_H */
