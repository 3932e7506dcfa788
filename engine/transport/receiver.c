/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiving half of a lane; see receiver.h. When to acknowledge follows RFC 9000 13.2.1 and 13.2.2, with
 * fewer ACKs: a lane carries many packets per round trip.
 */
#include "transport/receiver.h"

#include "base/bytes.h"
#include "base/stats.h"

#define MAX_FLOOR_JUMP (1ull << 32)

void
rl_receiver_init(struct rl_receiver *r)
{
	*r = (struct rl_receiver){.floor = 0};
	rl_ranges_init(&r->got);
}

bool
rl_receiver_is_new(struct rl_receiver *r, uint64_t pn)
{
	if (pn < r->floor) {
		rl_count(&r->st.stale, 1);
	} else if (rl_ranges_contain(&r->got, pn)) {
		rl_count(&r->st.duplicates, 1);
	} else {
		return true;
	}
	r->ack_now = true;
	return false;
}

void
rl_receiver_add(struct rl_receiver *r, uint64_t pn, bool ack_now, uint64_t now_ns)
{
	uint64_t expected = r->got.n > 0 ? r->largest + 1 : r->floor;
	uint64_t dropped = r->got.dropped;

	/* Opens a hole, or falls into one (RFC 9000 13.2.1); packets above an open hole are ordinary. */
	if (ack_now || pn != expected)
		r->ack_now = true;
	if (r->unacked++ == 0)
		r->first_unacked_ns = now_ns;
	if (pn >= expected) {
		r->largest = pn;
		r->largest_ns = now_ns;
	}
	rl_count(&r->st.packets, 1);

	rl_ranges_add(&r->got, pn);
	/* What the full set forgot must not look new when it comes again. */
	if (rl_unlikely(r->got.dropped != dropped))
		r->floor = r->got.r[0].start;
}

void
rl_receiver_floor(struct rl_receiver *r, uint64_t pn)
{
	uint64_t seen = rl_max64(r->floor, r->largest);

	if (pn <= r->floor || (pn > seen && pn - seen > MAX_FLOOR_JUMP))
		return;
	r->floor = pn;
	rl_ranges_trim(&r->got, pn);
}

/* With no range left the sender waits for nothing that arrived, and an ACK could not say anything. */
bool
rl_receiver_ack_due(const struct rl_receiver *r, uint64_t now_ns)
{
	return rl_receiver_timer_ns(r) <= now_ns;
}

uint64_t
rl_receiver_timer_ns(const struct rl_receiver *r)
{
	if (r->got.n == 0)
		return UINT64_MAX;
	if (r->ack_now || r->unacked >= RL_ACK_PACKETS)
		return 0;
	return r->unacked > 0 ? r->first_unacked_ns + RL_ACK_DELAY_NS : UINT64_MAX;
}

uint64_t
rl_receiver_acked(struct rl_receiver *r, uint64_t now_ns)
{
	r->unacked = 0;
	r->ack_now = false;
	rl_count(&r->st.acks, 1);
	return now_ns - rl_min64(now_ns, r->largest_ns);
}
