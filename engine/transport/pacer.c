/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pacing by earliest departure time; see pacer.h.
 *
 * The departure time is the only state that lanes share, so relaxed atomics are enough. One that lies
 * further ahead than any booking under the present rate can put it stems from a lower rate and no longer
 * counts, which is how a new rate takes effect at once.
 */
#include "transport/pacer.h"

#include "base/bytes.h"
#include "base/clock.h"

#define MAX_RATE         1000000000000ull /* 8 Tbit/s; keeps the products here below 2^64 */
#define MAX_PACKET_BYTES 65536ull
#define SKEW_NS          (100 * RL_NS_PER_MS) /* a lane may be descheduled after it read the clock */

void
rl_pacer_init(struct rl_pacer *p, uint64_t rate_bytes_per_s)
{
	__atomic_store_n(&p->next_ns, 0, __ATOMIC_RELAXED);
	rl_pacer_set_rate(p, rate_bytes_per_s);
}

void
rl_pacer_set_rate(struct rl_pacer *p, uint64_t rate_bytes_per_s)
{
	__atomic_store_n(&p->rate, rl_min64(rate_bytes_per_s, MAX_RATE), __ATOMIC_RELAXED);
}

static uint64_t
pacer_rate(const struct rl_pacer *p)
{
	return __atomic_load_n(&p->rate, __ATOMIC_RELAXED);
}

/* The last packet of a burst takes the departure time at most its own length beyond the slack. @rate > 0. */
static uint64_t
departure_ns(uint64_t booked_ns, uint64_t rate, uint64_t now_ns)
{
	uint64_t ahead_ns = RL_PACER_SLACK_NS + MAX_PACKET_BYTES * RL_NS_PER_S / rate + SKEW_NS;

	return booked_ns > now_ns + ahead_ns ? now_ns : booked_ns;
}

uint32_t
rl_pacer_admit(struct rl_pacer *p, uint32_t want, uint32_t bytes, uint64_t now_ns)
{
	uint64_t rate = pacer_rate(p);
	uint64_t packet = rl_min64(bytes, MAX_PACKET_BYTES) * RL_NS_PER_S; /* ns = packet / rate */
	uint64_t booked_ns, next_ns, n;

	if (rate == 0 || packet == 0)
		return want;

	booked_ns = __atomic_load_n(&p->next_ns, __ATOMIC_RELAXED);
	do {
		/* Time that passed unused is gone: an idle lane earns no more than the slack. */
		next_ns = rl_max64(departure_ns(booked_ns, rate, now_ns), now_ns);
		if (want == 0 || next_ns > now_ns + RL_PACER_SLACK_NS / 2)
			return 0;
		n = rl_min64(want, (now_ns + RL_PACER_SLACK_NS - next_ns) * rate / packet + 1);
		next_ns += RL_DIV_ROUND_UP(n * packet, rate);
	} while (!__atomic_compare_exchange_n(&p->next_ns, &booked_ns, next_ns, true,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return (uint32_t)n;
}

void
rl_pacer_return(struct rl_pacer *p, uint64_t bytes)
{
	uint64_t rate = pacer_rate(p);

	if (rate == 0)
		return;
	/* Below zero, after a change of rate, is far ahead and counts as now. */
	__atomic_fetch_sub(&p->next_ns, bytes * RL_NS_PER_S / rate, __ATOMIC_RELAXED);
}

uint64_t
rl_pacer_timer_ns(const struct rl_pacer *p, uint64_t now_ns)
{
	uint64_t rate = pacer_rate(p);
	uint64_t next_ns;

	if (rate == 0)
		return 0;
	next_ns = departure_ns(__atomic_load_n(&p->next_ns, __ATOMIC_RELAXED), rate, now_ns);
	return next_ns > now_ns + RL_PACER_SLACK_NS / 2 ? next_ns - RL_PACER_SLACK_NS / 2 : 0;
}
