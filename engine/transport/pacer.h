/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_PACER_H
#define RL_TRANSPORT_PACER_H
/**
 * @file pacer.h
 * Pacing by earliest departure time (as draft-ietf-ccwg-bbr writes it): each packet moves the departure
 * time of the next one by bytes / rate. A burst may leave when the departure time is at most half of
 * RL_PACER_SLACK_NS ahead, and takes it up to the whole: packets leave in bursts, so that a lane may sleep in
 * between. One pacer per migration, shared by its lanes, so the rate holds however
 * unevenly the lanes are filled: one compare-and-swap per burst.
 *
 * Threads: rl_pacer_admit() by every lane's owner at once; rl_pacer_set_rate() [any].
 * Units:   bytes per second, counting UDP payload; 0 = unlimited.
 */
#include <stdint.h>

#define RL_PACER_SLACK_NS 500000ull

struct rl_pacer {
	uint64_t rate;    /* atomic, bytes/s */
	uint64_t next_ns; /* atomic, earliest departure of the next packet */
};

void rl_pacer_init(struct rl_pacer *p, uint64_t rate_bytes_per_s);
void rl_pacer_set_rate(struct rl_pacer *p, uint64_t rate_bytes_per_s);

/** How many of @want packets of @bytes each may leave at @now_ns; books them. 0: not yet. */
uint32_t rl_pacer_admit(struct rl_pacer *p, uint32_t want, uint32_t bytes, uint64_t now_ns);

/** Give back packets (or bytes of them) that were admitted but not sent. */
void rl_pacer_return(struct rl_pacer *p, uint64_t bytes);

/** When the next packet may leave; 0: now. */
uint64_t rl_pacer_timer_ns(const struct rl_pacer *p, uint64_t now_ns);

#endif /* RL_TRANSPORT_PACER_H */
