/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sending half of a lane; see sender.h. Section numbers in comments are those of RFC 9002.
 *
 * The sent-map is a ring indexed by packet number; the run ring is a FIFO in the same order:
 *
 *   packets   settled: acked, lost, refused | oldest_pn .. in flight or acked .. | next_pn
 *   runs                             (free) | runs_tail ........................ | runs_head, being built
 *
 * A packet is declared lost only while it is the oldest, and refused only while it is among the newest, so
 * its runs always lie at that end of the FIFO and no packet has to remember where. Settled packets keep
 * their state until their place in the map is taken again: that is how an ACK for a lost one is recognised.
 */
#include "transport/sender.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/stats.h"
#include "transport/receiver.h"

#define DEFAULT_MAP_PACKETS 65536u
#define DEFAULT_MAP_RUNS    262144u

#define GRANULARITY_NS      (100 * RL_NS_PER_US) /* 6.1.2 kGranularity; workers poll, so not 1 ms */
#define INITIAL_RTT_NS      (100 * RL_NS_PER_MS) /* 6.2.2 */
/* A worker with nothing to do sleeps for hundreds of microseconds: an earlier probe finds it asleep. */
#define MIN_PTO_NS       (1 * RL_NS_PER_MS)
#define MAX_PTO_NS       (1 * RL_NS_PER_S) /* of a PTO grown by backing off */

#define PACKET_THRESHOLD 3u /* 6.1.1 kPacketThreshold */
#define MAX_REORDER                                                                                \
	1024u /* how far the threshold grows, and how far back a loss may prove spurious */

#define NO_PN UINT64_MAX

enum sent_state { SENT_IN_FLIGHT, SENT_ACKED, SENT_LOST, SENT_REFUSED };

struct rl_sent {
	uint64_t tx_ns;
	uint32_t bytes;
	uint16_t n_runs;
	uint8_t state; /* enum sent_state */
};
static_assert(sizeof(struct rl_sent) == 16, "one per packet in flight");
static_assert(RL_SENDER_MAX_RUNS <= UINT16_MAX, "n_runs");

static struct rl_sent *
sent_at(const struct rl_sender *s, uint64_t pn)
{
	return &s->map[pn & (s->map_packets - 1)];
}

static struct rl_run *
run_at(const struct rl_sender *s, uint64_t pos)
{
	return &s->runs[pos & (s->map_runs - 1)];
}

static uint32_t
map_free(const struct rl_sender *s)
{
	return s->map_packets - (uint32_t)(s->next_pn - s->oldest_pn);
}

static uint32_t
runs_free(const struct rl_sender *s)
{
	return s->map_runs - (uint32_t)(s->runs_head - s->runs_tail);
}

/* 5.1: is there a sample yet? */
static bool
has_rtt(const struct rl_sender *s)
{
	return s->min_rtt_ns != UINT64_MAX;
}

static void
publish(struct rl_sender *s)
{
	rl_count_set(&s->st.in_flight, s->in_flight);
	rl_count_set(&s->st.srtt_ns, has_rtt(s) ? s->srtt_ns : 0);
	rl_count_set(&s->st.window, rl_window_packets(&s->window));
}

int
rl_sender_init(struct rl_sender *s, const struct rl_sender_opts *opts)
{
	*s = (struct rl_sender){
		.map_packets = opts->map_packets ? opts->map_packets : DEFAULT_MAP_PACKETS,
		.map_runs = opts->map_runs ? opts->map_runs : DEFAULT_MAP_RUNS,
		.lost = opts->lost,
		.lost_ctx = opts->lost_ctx,
		.largest_acked = NO_PN,
		.srtt_ns = INITIAL_RTT_NS,
		.rttvar_ns = INITIAL_RTT_NS / 2,
		.min_rtt_ns = UINT64_MAX,
		.max_ack_delay_ns = RL_ACK_DELAY_NS,
		.packet_threshold = PACKET_THRESHOLD,
	};
	if (!opts->lost || !rl_is_pow2(s->map_packets) || !rl_is_pow2(s->map_runs) ||
	    s->map_runs < RL_SENDER_MAX_RUNS)
		return -EINVAL;

	rl_window_init(&s->window, rl_min32(opts->credit, s->map_packets));
	s->map = calloc(s->map_packets, sizeof(*s->map));
	s->runs = calloc(s->map_runs, sizeof(*s->runs));
	if (!s->map || !s->runs) {
		rl_sender_fini(s);
		return -ENOMEM;
	}
	publish(s);
	return 0;
}

void
rl_sender_fini(struct rl_sender *s)
{
	free(s->map);
	free(s->runs);
	s->map = NULL;
	s->runs = NULL;
}

uint32_t
rl_sender_room(const struct rl_sender *s)
{
	uint32_t window = rl_window_packets(&s->window);

	if (s->in_flight >= window)
		return 0;
	return rl_min32(window - s->in_flight,
			rl_min32(map_free(s), runs_free(s) / RL_SENDER_MAX_RUNS));
}

void
rl_sender_begin(struct rl_sender *s)
{
	s->building_runs = 0;
}

uint32_t
rl_sender_runs_left(const struct rl_sender *s)
{
	return rl_min32(RL_SENDER_MAX_RUNS, runs_free(s)) - s->building_runs;
}

void
rl_sender_carry(struct rl_sender *s, uint64_t first, uint32_t n)
{
	struct rl_run *last;

	assert(n > 0);
	if (s->building_runs > 0) {
		last = run_at(s, s->runs_head + s->building_runs - 1);
		if (first >= last->first && first - last->first <= last->n) {
			uint64_t pages = rl_max64(first - last->first + n, last->n);

			if (pages <= UINT32_MAX) {
				last->n = (uint32_t)pages;
				return;
			}
		}
	}
	assert(rl_sender_runs_left(s) > 0);
	*run_at(s, s->runs_head + s->building_runs++) = (struct rl_run){.first = first, .n = n};
}

void
rl_sender_commit(struct rl_sender *s, uint32_t bytes, uint64_t now_ns)
{
	assert(map_free(s) > 0);
	*sent_at(s, s->next_pn) = (struct rl_sent){
		.tx_ns = now_ns,
		.bytes = bytes,
		.n_runs = (uint16_t)s->building_runs,
		.state = SENT_IN_FLIGHT,
	};
	s->next_pn++;
	s->runs_head += s->building_runs;
	s->building_runs = 0;
	s->in_flight++;
	s->last_tx_ns = now_ns;
	rl_count(&s->st.packets, 1);
	rl_count(&s->st.bytes, bytes);
	rl_count_set(&s->st.in_flight, s->in_flight);
}

/* Nothing waits for the oldest packet any more. */
static void
retire_oldest(struct rl_sender *s)
{
	s->runs_tail += sent_at(s, s->oldest_pn)->n_runs;
	s->oldest_pn++;
}

static void
retire_settled(struct rl_sender *s)
{
	while (s->oldest_pn < s->next_pn && sent_at(s, s->oldest_pn)->state != SENT_IN_FLIGHT)
		retire_oldest(s);
}

void
rl_sender_refused(struct rl_sender *s, uint32_t n)
{
	uint64_t runs_end = s->runs_head;

	assert(n <= s->next_pn - s->oldest_pn && s->building_runs == 0);
	for (uint64_t pn = s->next_pn - n; pn < s->next_pn; pn++) {
		struct rl_sent *p = sent_at(s, pn);

		assert(p->state == SENT_IN_FLIGHT);
		s->runs_head -= p->n_runs;
		p->n_runs = 0;
		p->state = SENT_REFUSED;
	}
	for (uint64_t pos = s->runs_head; pos < runs_end; pos++)
		s->lost(s->lost_ctx, run_at(s, pos));

	retire_settled(s);
	s->in_flight -= n;
	rl_count(&s->st.refused, n);
	rl_count_set(&s->st.in_flight, s->in_flight);
}

/* Its pages are pending again; the caller retires it. */
static void
lose_oldest(struct rl_sender *s)
{
	struct rl_sent *p = sent_at(s, s->oldest_pn);

	p->state = SENT_LOST;
	s->lost_end = s->oldest_pn + 1;
	s->in_flight--;
	rl_count(&s->st.lost, 1);
	for (uint32_t i = 0; i < p->n_runs; i++)
		s->lost(s->lost_ctx, run_at(s, s->runs_tail + i));
}

/*
 * 6.1.2: 9/8 of a round trip. Where reordering passed for loss the eighth grows with the packet threshold,
 * to one round trip at most, as the reordering window of RFC 8985 6.2 does.
 */
static uint64_t
loss_delay_ns(const struct rl_sender *s)
{
	uint64_t rtt_ns = rl_max64(s->srtt_ns, s->latest_rtt_ns);
	uint32_t eighths = rl_min32(s->packet_threshold / PACKET_THRESHOLD, 8);

	return rl_max64(rtt_ns + rtt_ns * eighths / 8, GRANULARITY_NS);
}

/*
 * 6.1: a packet is lost when one sent `packet_threshold` later was acknowledged, or one sent any later and
 * the loss delay went by. Both turn true in the order of sending, so the first packet that is not lost ends
 * the search, and oldest_pn never falls behind largest_acked by more than the threshold.
 */
static void
detect_losses(struct rl_sender *s, uint64_t now_ns)
{
	uint64_t delay_ns = loss_delay_ns(s);
	uint32_t lost = 0;

	s->loss_time_ns = 0;
	for (; s->oldest_pn < s->next_pn; retire_oldest(s)) {
		const struct rl_sent *p = sent_at(s, s->oldest_pn);

		if (p->state != SENT_IN_FLIGHT)
			continue;
		if (s->largest_acked == NO_PN || s->oldest_pn > s->largest_acked)
			break;
		if (s->oldest_pn + s->packet_threshold > s->largest_acked &&
		    p->tx_ns + delay_ns > now_ns) {
			s->loss_time_ns = p->tx_ns + delay_ns;
			break;
		}
		lose_oldest(s);
		lost++;
	}
	rl_window_on_loss(&s->window, lost);
}

/* 5.2, 5.3. @ack_delay_ns comes from the peer: believed up to max_ack_delay, and never below min_rtt. */
static void
sample_rtt(struct rl_sender *s, uint64_t rtt_ns, uint64_t ack_delay_ns)
{
	uint64_t deviation_ns;

	s->latest_rtt_ns = rtt_ns;
	if (!has_rtt(s)) {
		s->min_rtt_ns = rtt_ns;
		s->srtt_ns = rtt_ns;
		s->rttvar_ns = rtt_ns / 2;
		return;
	}
	s->min_rtt_ns = rl_min64(s->min_rtt_ns, rtt_ns);
	ack_delay_ns = rl_min64(ack_delay_ns, s->max_ack_delay_ns);
	if (rtt_ns >= s->min_rtt_ns + ack_delay_ns)
		rtt_ns -= ack_delay_ns;
	deviation_ns = s->srtt_ns > rtt_ns ? s->srtt_ns - rtt_ns : rtt_ns - s->srtt_ns;
	s->rttvar_ns = (3 * s->rttvar_ns + deviation_ns) / 4;
	s->srtt_ns = (7 * s->srtt_ns + rtt_ns) / 8;
}

/* Only what was sent, highest first, disjoint. */
static bool
ack_is_valid(const struct rl_sender *s, const struct rl_acked *ack)
{
	uint64_t above = s->next_pn;

	for (uint32_t i = 0; i < ack->n; i++) {
		if (ack->range[i].start >= ack->range[i].end || ack->range[i].end > above)
			return false;
		above = ack->range[i].start;
	}
	return ack->n == 0 || ack->largest == ack->range[0].end - 1;
}

/* What one ACK brought. */
struct ack_news {
	uint32_t acked, spurious;
	uint64_t bytes;
	const struct rl_sent *newest; /* ack->largest, if this ACK is the first to name it */
};

/*
 * The lowest number worth looking at. Below oldest_pn only a lost packet can be news; looking back no further
 * than the threshold may grow keeps the cost of an ACK independent of the window.
 */
static uint64_t
ack_scan_start(const struct rl_sender *s, const struct rl_acked *ack)
{
	uint64_t start = s->oldest_pn;

	if (s->lost_end + MAX_REORDER > start) {
		start -= rl_min64(start, MAX_REORDER);
		/* Lower places of the map belong to newer packets already. */
		start = rl_max64(start, s->next_pn - rl_min64(s->next_pn, s->map_packets));
	}
	return rl_max64(start, ack->floor);
}

static void
take_ranges(struct rl_sender *s, const struct rl_acked *ack, struct ack_news *news)
{
	uint64_t start = ack_scan_start(s, ack);

	for (uint32_t i = 0; i < ack->n && ack->range[i].end > start; i++) {
		for (uint64_t pn = rl_max64(ack->range[i].start, start); pn < ack->range[i].end;
		     pn++) {
			struct rl_sent *p = sent_at(s, pn);

			if (p->state == SENT_LOST) {
				p->state = SENT_ACKED;
				news->spurious++;
			} else if (p->state == SENT_IN_FLIGHT) {
				p->state = SENT_ACKED;
				news->acked++;
				news->bytes += p->bytes;
				if (pn == ack->largest)
					news->newest = p;
			}
		}
	}
	s->in_flight -= news->acked;
	rl_count(&s->st.acked, news->acked);
	rl_count(&s->st.acked_bytes, news->bytes);
	rl_count(&s->st.spurious, news->spurious);
}

uint32_t
rl_sender_on_ack(struct rl_sender *s, const struct rl_acked *ack, uint64_t now_ns)
{
	struct ack_news news = {.newest = NULL};

	if (rl_unlikely(!ack_is_valid(s, ack))) {
		rl_count(&s->st.bad_acks, 1);
		return 0;
	}
	rl_window_credit(&s->window, rl_min32(ack->credit, s->map_packets));
	take_ranges(s, ack, &news);

	/* Reordering that passed for loss asks for more patience (6.1.1), once per ACK. */
	if (rl_unlikely(news.spurious > 0))
		s->packet_threshold = rl_min32(s->packet_threshold * 2, MAX_REORDER);
	if (news.acked > 0) {
		s->pto_count = 0; /* 6.2.1 */
		if (s->largest_acked == NO_PN || ack->largest > s->largest_acked)
			s->largest_acked = ack->largest;
		if (news.newest) /* 5.1: only the largest, and only once */
			sample_rtt(s, now_ns - rl_min64(now_ns, news.newest->tx_ns), ack->delay_ns);
		detect_losses(s, now_ns);
		rl_window_on_ack(&s->window, news.acked, s->largest_acked, s->next_pn);
	}
	publish(s);
	return news.acked;
}

/* 6.2.1, with a floor and a ceiling; a path slower than the ceiling does not back off. */
static uint64_t
pto_ns(const struct rl_sender *s)
{
	uint64_t base_ns =
		s->srtt_ns + rl_max64(4 * s->rttvar_ns, GRANULARITY_NS) + s->max_ack_delay_ns;

	base_ns = rl_max64(base_ns, MIN_PTO_NS);
	return rl_min64(base_ns << rl_min32(s->pto_count, 10), rl_max64(base_ns, MAX_PTO_NS));
}

uint64_t
rl_sender_timer_ns(const struct rl_sender *s)
{
	if (s->in_flight == 0)
		return UINT64_MAX;
	if (s->loss_time_ns > 0) /* 6.2.1: no PTO while a loss is about to be declared by time */
		return s->loss_time_ns;
	return s->last_tx_ns + pto_ns(s);
}

bool
rl_sender_on_time(struct rl_sender *s, uint64_t now_ns)
{
	if (now_ns < rl_sender_timer_ns(s))
		return false;

	if (s->loss_time_ns > 0) {
		detect_losses(s, now_ns);
		publish(s);
		return false;
	}

	/* 6.2.4: nothing is declared lost, a probe asks for an ACK that tells. */
	s->pto_count++;
	rl_count(&s->st.ptos, 1);
	/* A full map has no place for the probe: the oldest packet gives up its own. */
	if (map_free(s) == 0) {
		lose_oldest(s);
		retire_settled(s);
		rl_window_on_loss(&s->window, 1);
		publish(s);
	}
	return true;
}
