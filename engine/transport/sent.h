/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TRANSPORT_SENT_H
#define RL_TRANSPORT_SENT_H
/**
 * @file sent.h
 * What the sender remembers of a packet: its size and runs, and how things stood when it left. Between
 * sender.c and rate.c.
 */
#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

struct rl_sent {
	uint64_t tx_ns;
	uint64_t first_tx_ns;  /* struct rl_rate at that time */
	uint64_t delivered;    /* " */
	uint64_t delivered_ns; /* " */
	uint32_t lost;         /* ", the low 32 bits */
	uint32_t in_flight;    /* bytes, with this packet */
	uint16_t bytes;
	uint16_t n_runs;
	bool app_limited;
};
static_assert(sizeof(struct rl_sent) == 48, "one per packet in flight");

#endif /* RL_TRANSPORT_SENT_H */
