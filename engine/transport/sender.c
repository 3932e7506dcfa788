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
#include "transport/sent.h"

#define DEFAULT_MAP_PACKETS 65536u
#define DEFAULT_MAP_RUNS    262144u
#define DEFAULT_PACKET      1400u

#define GRANULARITY_NS      (100 * RL_NS_PER_US) /* 6.1.2 kGranularity; workers poll, so not 1 ms */
#define INITIAL_RTT_NS      (100 * RL_NS_PER_MS) /* 6.2.2 */
/* A worker with nothing to do sleeps for hundreds of microseconds: an earlier probe finds it asleep. */
#define MIN_PTO_NS       (1 * RL_NS_PER_MS)
#define MAX_PTO_NS       (1 * RL_NS_PER_S) /* of a PTO grown by backing off */

#define PACKET_THRESHOLD 3u /* 6.1.1 kPacketThreshold */
#define MAX_PACKET_THRESHOLD                                                                       \
	1024u /* beyond it time alone tells, as in RFC 8985 once there was reordering */
#define MAX_REORDER_NS (1 * RL_NS_PER_S)
#define CALM_EPISODES  16u   /* RFC 8985 6.2: then reordering is a thing of the past */
#define LOOK_BACK      4096u /* how far behind the oldest a loss may prove spurious */

#define QUANTUM_NS     (1 * RL_NS_PER_MS) /* as the BBR draft's send quantum, */
#define QUANTUM_BYTES  65536u
#define MIN_SLACK_NS   (100 * RL_NS_PER_US) /* and never less than workers are late */

#define NO_PN          UINT64_MAX

enum sent_state { SENT_IN_FLIGHT, SENT_ACKED, SENT_LOST, SENT_REFUSED };
#define EIGHT_ACKED 0x0101010101010101ull

static_assert(RL_SENDER_MAX_RUNS <= UINT16_MAX, "n_runs");

static struct rl_sent *
sent_at(const struct rl_sender *s, uint64_t pn)
{
	return &s->map[pn & (s->map_packets - 1)];
}

static uint8_t *
state_at(const struct rl_sender *s, uint64_t pn)
{
	return &s->state[pn & (s->map_packets - 1)];
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
	rl_count_set(&s->st.window, rl_min64(s->cc.cwnd / s->cc.mss, s->credit));
	rl_count_set(&s->st.pacing_rate, s->cc.pacing_rate);
}

static void
set_credit(struct rl_sender *s, uint32_t credit)
{
	/* With no credit at all no packet would ask for the ACK that raises it again. */
	s->credit = rl_min32(credit > 0 ? credit : 1, s->map_packets);
	s->cc.limit = (uint64_t)s->credit * s->cc.mss;
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
	if (!opts->lost || !rl_is_pow2(s->map_packets) || s->map_packets < 64 ||
	    !rl_is_pow2(s->map_runs) || s->map_runs < RL_SENDER_MAX_RUNS)
		return -EINVAL;

	rl_cc_init(&s->cc, opts->cc ? opts->cc : rl_cc_find(NULL),
		   opts->packet_bytes ? opts->packet_bytes : DEFAULT_PACKET, opts->seed);
	set_credit(s, opts->credit);
	s->map = calloc(s->map_packets, sizeof(*s->map));
	s->state = calloc(s->map_packets, sizeof(*s->state));
	s->runs = calloc(s->map_runs, sizeof(*s->runs));
	if (!s->map || !s->state || !s->runs) {
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
	free(s->state);
	free(s->runs);
	s->map = NULL;
	s->state = NULL;
	s->runs = NULL;
}

uint32_t
rl_sender_room(const struct rl_sender *s)
{
	uint64_t window;

	if (s->in_flight >= s->credit || s->in_flight_bytes >= s->cc.cwnd)
		return 0;
	window = (s->cc.cwnd - s->in_flight_bytes) / s->cc.mss;
	window = rl_min64(window, s->credit - s->in_flight);
	return rl_min32((uint32_t)window, rl_min32(map_free(s), runs_free(s) / RL_SENDER_MAX_RUNS));
}

/* Was the window full within the last round trip? */
static bool
window_limited(const struct rl_sender *s)
{
	return s->rate.delivered < s->window_full;
}

/* How far ahead of its time a packet may leave: a burst's worth. */
static uint64_t
slack_ns(const struct rl_sender *s)
{
	uint64_t bytes =
		rl_min64(rl_scale(s->cc.pacing_rate, QUANTUM_NS, RL_NS_PER_S), QUANTUM_BYTES);

	bytes = rl_max64(bytes, 2 * s->cc.mss);
	return rl_max64(rl_scale(bytes, RL_NS_PER_S, s->cc.pacing_rate), MIN_SLACK_NS);
}

uint32_t
rl_sender_admit(struct rl_sender *s, uint32_t want, uint64_t now_ns)
{
	uint32_t n = rl_min32(want, rl_sender_room(s));
	uint64_t ahead_ns;

	if (n == 0 || s->cc.pacing_rate == 0)
		return n;
	/* Time to send went by unused though the window was open: the sender could not keep up. */
	if (s->departure_ns < now_ns && s->in_flight > 0 && !window_limited(s))
		rl_rate_app_limited(&s->rate, s->in_flight_bytes);
	ahead_ns = rl_max64(s->departure_ns, now_ns) - now_ns;
	if (ahead_ns > slack_ns(s))
		return 0;
	ahead_ns = slack_ns(s) - ahead_ns;
	return (uint32_t)rl_min64(
		n, rl_scale(s->cc.pacing_rate, ahead_ns, RL_NS_PER_S) / s->cc.mss + 1);
}

uint64_t
rl_sender_pacing_ns(const struct rl_sender *s, uint64_t now_ns)
{
	if (s->cc.pacing_rate == 0 || s->departure_ns <= now_ns + slack_ns(s))
		return 0;
	return s->departure_ns - slack_ns(s);
}

void
rl_sender_app_limited(struct rl_sender *s, uint64_t now_ns)
{
	if (rl_sender_room(s) > 0 && rl_sender_pacing_ns(s, now_ns) == 0)
		rl_rate_app_limited(&s->rate, s->in_flight_bytes);
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
	struct rl_sent *p = sent_at(s, s->next_pn);

	assert(map_free(s) > 0 && bytes <= UINT16_MAX);
	if (s->in_flight == 0 && s->rate.app_limited != 0)
		s->cc.ops->restart(&s->cc, now_ns);
	if (s->cc.ignore_samples)
		rl_rate_app_limited(&s->rate, s->in_flight_bytes);
	p->tx_ns = now_ns;
	p->bytes = (uint16_t)bytes;
	p->n_runs = (uint16_t)s->building_runs;
	rl_rate_sent(&s->rate, p, s->in_flight_bytes);
	*state_at(s, s->next_pn) = SENT_IN_FLIGHT;
	s->next_pn++;
	s->runs_head += s->building_runs;
	s->building_runs = 0;
	s->in_flight++;
	s->in_flight_bytes += bytes;
	s->last_tx_ns = now_ns;
	if (s->cc.pacing_rate > 0)
		s->departure_ns = rl_max64(s->departure_ns, now_ns) +
				  RL_DIV_ROUND_UP(bytes * RL_NS_PER_S, s->cc.pacing_rate);
	if (s->in_flight >= s->credit || s->in_flight_bytes + s->cc.mss > s->cc.cwnd)
		s->window_full = s->rate.delivered + s->in_flight_bytes;
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
	while (s->oldest_pn < s->next_pn && *state_at(s, s->oldest_pn) != SENT_IN_FLIGHT)
		retire_oldest(s);
}

void
rl_sender_refused(struct rl_sender *s, uint32_t n)
{
	uint64_t runs_end = s->runs_head, bytes = 0;

	assert(n <= s->next_pn - s->oldest_pn && s->building_runs == 0);
	for (uint64_t pn = s->next_pn - n; pn < s->next_pn; pn++) {
		struct rl_sent *p = sent_at(s, pn);

		assert(*state_at(s, pn) == SENT_IN_FLIGHT);
		s->runs_head -= p->n_runs;
		p->n_runs = 0;
		bytes += p->bytes;
		*state_at(s, pn) = SENT_REFUSED;
	}
	for (uint64_t pos = s->runs_head; pos < runs_end; pos++)
		s->lost(s->lost_ctx, run_at(s, pos));

	retire_settled(s);
	s->in_flight -= n;
	s->in_flight_bytes -= bytes;
	/* The NIC is what holds it back. */
	rl_rate_app_limited(&s->rate, s->in_flight_bytes);
	rl_count(&s->st.refused, n);
	rl_count_set(&s->st.in_flight, s->in_flight);
}

/* A new loss episode (RFC 9002 7.3.2, RFC 8985 6.2). */
static void
begin_episode(struct rl_sender *s)
{
	s->episode_begin = s->oldest_pn;
	s->episode_end = s->next_pn;
	s->episode_lost = 0;
	if (s->packet_threshold > PACKET_THRESHOLD && ++s->calm_episodes > CALM_EPISODES) {
		s->packet_threshold = PACKET_THRESHOLD;
		s->reorder_ns = 0;
	}
}

/* Its pages are pending again; the caller retires it. */
static void
lose_oldest(struct rl_sender *s, uint64_t now_ns)
{
	const struct rl_sent *p = sent_at(s, s->oldest_pn);
	struct rl_cc_loss loss = {
		.now_ns = now_ns,
		.bytes = p->bytes,
		.tx_in_flight = p->in_flight,
		.delivered = s->rate.delivered,
		.app_limited = p->app_limited,
		.new_range = s->lost_end != s->oldest_pn,
		.new_episode = s->oldest_pn >= s->episode_end,
	};

	if (loss.new_episode)
		begin_episode(s);
	s->episode_lost += p->bytes;
	rl_rate_lost(&s->rate, p);
	loss.lost = rl_rate_lost_since(&s->rate, p);
	s->cc.ops->lost(&s->cc, &loss);

	*state_at(s, s->oldest_pn) = SENT_LOST;
	s->lost_end = s->oldest_pn + 1;
	s->in_flight--;
	s->in_flight_bytes -= p->bytes;
	rl_count(&s->st.lost, 1);
	for (uint32_t i = 0; i < p->n_runs; i++)
		s->lost(s->lost_ctx, run_at(s, s->runs_tail + i));
}

/* 6.1.2: 9/8 of a round trip. Where reordering passed for loss, a round trip and as long as it took. */
static uint64_t
loss_delay_ns(const struct rl_sender *s)
{
	uint64_t rtt_ns = rl_max64(s->srtt_ns, s->latest_rtt_ns);

	return rl_max64(rtt_ns + rl_max64(rtt_ns / 8, s->reorder_ns), GRANULARITY_NS);
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

	s->loss_time_ns = 0;
	for (; s->oldest_pn < s->next_pn; retire_oldest(s)) {
		const struct rl_sent *p = sent_at(s, s->oldest_pn);

		if (*state_at(s, s->oldest_pn) != SENT_IN_FLIGHT)
			continue;
		if (s->largest_acked == NO_PN || s->oldest_pn > s->largest_acked)
			break;
		if (s->oldest_pn + s->packet_threshold > s->largest_acked &&
		    p->tx_ns + delay_ns > now_ns) {
			s->loss_time_ns = p->tx_ns + delay_ns;
			break;
		}
		lose_oldest(s, now_ns);
	}
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
	uint64_t newest;  /* packet number of the last sent of those acknowledged */
	uint64_t late_ns; /* the oldest of the spurious losses took this long */
};

/*
 * The lowest number worth looking at. Below oldest_pn only a lost packet can be news; looking back no further
 * than this keeps the cost of an ACK independent of the window.
 */
static uint64_t
ack_scan_start(const struct rl_sender *s, const struct rl_acked *ack)
{
	uint64_t start = s->oldest_pn;

	if (s->lost_end + LOOK_BACK > start) {
		start -= rl_min64(start, LOOK_BACK);
		/* Lower places of the map belong to newer packets already. */
		start = rl_max64(start, s->next_pn - rl_min64(s->next_pn, s->map_packets));
	}
	return rl_max64(start, ack->floor);
}

static void
take_spurious(struct rl_sender *s, uint64_t pn, uint64_t now_ns, struct ack_news *news)
{
	const struct rl_sent *p = sent_at(s, pn);

	rl_rate_spurious(&s->rate, p, now_ns);
	if (s->episode_lost > 0 && pn >= s->episode_begin) {
		s->episode_lost -= rl_min64(s->episode_lost, p->bytes);
		if (s->episode_lost == 0)
			s->cc.ops->undo(&s->cc);
	}
	news->late_ns = rl_max64(news->late_ns, now_ns - rl_min64(now_ns, p->tx_ns));
	news->spurious++;
}

static void
take_range(struct rl_sender *s, uint64_t pn, uint64_t end, uint64_t now_ns, struct ack_news *news)
{
	for (; pn < end; pn++) {
		uint8_t *state = state_at(s, pn);
		const struct rl_sent *p;

		/* Most was acknowledged before. */
		while ((pn & 7) == 0 && pn + 8 <= end && rl_load64(state) == EIGHT_ACKED) {
			pn += 8;
			state = state_at(s, pn);
		}
		if (pn == end)
			break;
		p = sent_at(s, pn);
		if (*state == SENT_LOST) {
			take_spurious(s, pn, now_ns, news);
		} else if (*state == SENT_IN_FLIGHT) {
			rl_rate_acked(&s->rate, p, now_ns);
			news->newest = news->acked > 0 ? rl_max64(news->newest, pn) : pn;
			news->acked++;
			news->bytes += p->bytes;
		} else {
			continue;
		}
		*state = SENT_ACKED;
	}
}

static void
take_ranges(struct rl_sender *s, const struct rl_acked *ack, uint64_t now_ns, struct ack_news *news)
{
	uint64_t start = ack_scan_start(s, ack);

	for (uint32_t i = 0; i < ack->n && ack->range[i].end > start; i++)
		take_range(s, rl_max64(ack->range[i].start, start), ack->range[i].end, now_ns,
			   news);
	s->in_flight -= news->acked;
	s->in_flight_bytes -= news->bytes;
	rl_count(&s->st.acked, news->acked);
	rl_count(&s->st.acked_bytes, news->bytes);
	rl_count(&s->st.spurious, news->spurious);
}

/*
 * Reordering that passed for loss asks for more patience (6.1.1), in packets and in time: next time as long
 * as it took, and a quarter more.
 */
static void
learn_reordering(struct rl_sender *s, uint64_t late_ns)
{
	uint64_t rtt_ns = rl_max64(s->srtt_ns, s->latest_rtt_ns);

	s->calm_episodes = 0;
	s->packet_threshold *= 2;
	if (s->packet_threshold > MAX_PACKET_THRESHOLD)
		s->packet_threshold = s->map_packets;
	late_ns -= rl_min64(late_ns, rtt_ns);
	s->reorder_ns = rl_max64(s->reorder_ns, rl_min64(late_ns * 5 / 4, MAX_REORDER_NS));
}

static void
tell_cc(struct rl_sender *s, const struct ack_news *news, bool was_limited, uint64_t now_ns)
{
	const struct rl_sent *newest = sent_at(s, news->newest);
	const struct rl_cc_ack ack = {
		.now_ns = now_ns,
		.rtt_ns = now_ns - rl_min64(now_ns, newest->tx_ns),
		.srtt_ns = s->srtt_ns,
		.acked = news->bytes,
		.in_flight = s->in_flight_bytes,
		.delivered = s->rate.delivered,
		.rate = rl_rate_sample(&s->rate, newest, s->min_rtt_ns, now_ns),
		.window_limited = was_limited,
		.recovering = news->newest < s->episode_end,
	};

	s->cc.ops->acked(&s->cc, &ack);
}

uint32_t
rl_sender_on_ack(struct rl_sender *s, const struct rl_acked *ack, uint64_t now_ns)
{
	struct ack_news news = {.acked = 0};
	bool was_limited = window_limited(s) && s->cc.cwnd <= s->cc.limit;

	if (rl_unlikely(!ack_is_valid(s, ack))) {
		rl_count(&s->st.bad_acks, 1);
		return 0;
	}
	set_credit(s, ack->credit);
	take_ranges(s, ack, now_ns, &news);

	if (news.acked > 0) {
		s->pto_count = 0; /* 6.2.1 */
		if (s->largest_acked == NO_PN || ack->largest > s->largest_acked)
			s->largest_acked = ack->largest;
		if (news.newest == ack->largest) /* 5.1: only the largest, and only once */
			sample_rtt(s, now_ns - rl_min64(now_ns, sent_at(s, ack->largest)->tx_ns),
				   ack->delay_ns);
	}
	if (rl_unlikely(news.spurious > 0)) /* once per ACK */
		learn_reordering(s, news.late_ns);
	if (news.acked > 0) {
		detect_losses(s, now_ns);
		tell_cc(s, &news, was_limited, now_ns);
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
		lose_oldest(s, now_ns);
		retire_settled(s);
		publish(s);
	}
	return true;
}
