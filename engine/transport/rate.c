/* SPDX-License-Identifier: BSD-3-Clause */
/* Delivery rate samples; see rate.h. */
#include "transport/rate.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "transport/sent.h"

void
rl_rate_sent(struct rl_rate *r, struct rl_sent *p, uint64_t in_flight)
{
	/* With nothing on the way, what arrives from here on took only the time from here on. */
	if (in_flight == 0)
		r->first_tx_ns = r->delivered_ns = p->tx_ns;
	p->first_tx_ns = r->first_tx_ns;
	p->delivered = r->delivered;
	p->delivered_ns = r->delivered_ns;
	p->lost = (uint32_t)r->lost;
	p->in_flight = (uint32_t)rl_min64(in_flight + p->bytes, UINT32_MAX);
	p->app_limited = r->app_limited != 0;
}

void
rl_rate_acked(struct rl_rate *r, const struct rl_sent *p, uint64_t now_ns)
{
	r->delivered += p->bytes;
	r->delivered_ns = now_ns;
}

void
rl_rate_lost(struct rl_rate *r, const struct rl_sent *p)
{
	r->lost += p->bytes;
}

void
rl_rate_spurious(struct rl_rate *r, const struct rl_sent *p, uint64_t now_ns)
{
	rl_rate_acked(r, p, now_ns);
	r->lost -= p->bytes;
}

void
rl_rate_app_limited(struct rl_rate *r, uint64_t in_flight)
{
	r->app_limited = rl_max64(r->delivered + in_flight, 1);
}

uint64_t
rl_rate_lost_since(const struct rl_rate *r, const struct rl_sent *p)
{
	int32_t lost = (int32_t)((uint32_t)r->lost - p->lost);

	return lost > 0 ? (uint64_t)lost : 0; /* a spurious loss may have been taken back since */
}

struct rl_rate_sample
rl_rate_sample(struct rl_rate *r, const struct rl_sent *p, uint64_t min_rtt_ns, uint64_t now_ns)
{
	/* The slower of sending and receiving: neither bursts nor late ACKs make a path look faster. */
	uint64_t interval_ns = rl_max64(p->tx_ns - p->first_tx_ns, now_ns - p->delivered_ns);
	struct rl_rate_sample s = {
		.delivered = r->delivered - p->delivered,
		.prior_delivered = p->delivered,
		.tx_in_flight = p->in_flight,
		.lost = rl_rate_lost_since(r, p),
		.app_limited = p->app_limited,
	};

	if (r->app_limited != 0 && r->delivered > r->app_limited)
		r->app_limited = 0;
	r->first_tx_ns = rl_max64(r->first_tx_ns, p->tx_ns);
	if (interval_ns >= min_rtt_ns && interval_ns > 0)
		s.bytes_per_s = rl_scale(s.delivered, RL_NS_PER_S, interval_ns);
	return s;
}
