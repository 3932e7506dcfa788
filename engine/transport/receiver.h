/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_RECEIVER_H
#define RL_TRANSPORT_RECEIVER_H
/**
 * @file receiver.h
 * The receiving half of one lane: which packet numbers arrived, duplicates, when an ACK is due.
 * Sans-I/O. A packet is added only after its records took effect: an ACK means "installed".
 *
 * An ACK is due: every RL_ACK_PACKETS packets; at once for a packet that carries ack-now or opens a
 * hole; RL_ACK_DELAY_NS after the first unacknowledged packet.
 *
 * Threads: the lane's owner. Units: ns, packets.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/ranges.h"

#define RL_ACK_PACKETS  16u
#define RL_ACK_DELAY_NS 250000ull

struct rl_receiver_stats {
	uint64_t packets; /* new ones */
	uint64_t duplicates;
	uint64_t stale; /* below the floor */
	uint64_t acks;  /* ACKs built */
};

struct rl_receiver {
	struct rl_ranges got;
	uint64_t floor;      /* everything below was forgotten */
	uint64_t largest;    /* valid when got.n > 0 */
	uint64_t largest_ns; /* when `largest` arrived */
	uint64_t first_unacked_ns;
	uint32_t unacked; /* packets added since the last ACK */
	bool ack_now;
	struct rl_receiver_stats st;
};

void rl_receiver_init(struct rl_receiver *r);

/** Is @pn new? False for a duplicate or one below the floor; such a packet is not to take effect, but
 * asks for an ACK (the sender may have missed the last one). */
bool rl_receiver_is_new(struct rl_receiver *r, uint64_t pn);

/** The packet's records took effect. @ack_now: the packet asks for an ACK at once. */
void rl_receiver_add(struct rl_receiver *r, uint64_t pn, bool ack_now, uint64_t now_ns);

/** The sender waits for nothing below @pn. A floor above everything seen + 2^32 is ignored. */
void rl_receiver_floor(struct rl_receiver *r, uint64_t pn);

bool rl_receiver_ack_due(const struct rl_receiver *r, uint64_t now_ns);

/** When rl_receiver_ack_due() turns true by itself; UINT64_MAX: never. */
uint64_t rl_receiver_timer_ns(const struct rl_receiver *r);

/**
 * An ACK is being sent now: the caller writes r->got (highest ranges first), r->largest, r->floor and the
 * delay returned (ns since the largest arrived).
 */
uint64_t rl_receiver_acked(struct rl_receiver *r, uint64_t now_ns);

#endif /* RL_TRANSPORT_RECEIVER_H */
