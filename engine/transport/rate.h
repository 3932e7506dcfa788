/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_RATE_H
#define RL_TRANSPORT_RATE_H
/**
 * @file rate.h
 * Delivery rate: each packet remembers how much had been delivered when it left; its ACK then tells how much was
 * delivered since, and in how long. A sample taken while the sender had less to send than it might have is
 * marked: it says nothing about the path.
 *
 * Source: draft-ietf-ccwg-bbr, "Delivery Rate Samples".
 *
 * Threads: the lane's owner. Units: bytes, ns, bytes/s.
 */
#include <stdbool.h>
#include <stdint.h>

struct rl_sent;

struct rl_rate {
	uint64_t delivered; /* ever, with those that had been taken for lost */
	uint64_t delivered_ns;
	uint64_t first_tx_ns; /* of the newest packet acknowledged */
	uint64_t lost;        /* ever, without those that arrived after all */
	uint64_t app_limited; /* until `delivered` is above this; 0: not limited */
};

struct rl_rate_sample {
	uint64_t bytes_per_s; /* 0: no sample, the interval was too short */
	uint64_t delivered;   /* since the packet left */
	uint64_t prior_delivered;
	uint64_t tx_in_flight; /* when it had left, with it */
	uint64_t lost;         /* since then */
	bool app_limited;
};

/** @p holds tx_ns and bytes; the rest is filled in. @in_flight: before it. */
void rl_rate_sent(struct rl_rate *r, struct rl_sent *p, uint64_t in_flight);

void rl_rate_acked(struct rl_rate *r, const struct rl_sent *p, uint64_t now_ns);
void rl_rate_lost(struct rl_rate *r, const struct rl_sent *p);

/** Lost it was not: the ACK came late. */
void rl_rate_spurious(struct rl_rate *r, const struct rl_sent *p, uint64_t now_ns);

/** Everything now in flight was sent by one who could have sent more. */
void rl_rate_app_limited(struct rl_rate *r, uint64_t in_flight);

/** After rl_rate_acked() for all packets of an ACK; @p is the one of them that was sent last. */
struct rl_rate_sample rl_rate_sample(struct rl_rate *r, const struct rl_sent *p,
				     uint64_t min_rtt_ns, uint64_t now_ns);

/** Bytes lost since @p left. */
uint64_t rl_rate_lost_since(const struct rl_rate *r, const struct rl_sent *p);

/** @v * @mul / @div without overflow on the way. */
static inline uint64_t
rl_scale(uint64_t v, uint64_t mul, uint64_t div)
{
	return (uint64_t)((unsigned __int128)v * mul / div);
}

#endif /* RL_TRANSPORT_RATE_H */
