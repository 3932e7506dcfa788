/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * BBR on a virtual clock: a real sender over a path of one queue, 10,000 packets/s and a round trip of 50 ms, so
 * 500 packets fill it. Names are those of draft-ietf-ccwg-bbr.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"
#include "transport/sender.h"

#define MSS     1000u
#define US      RL_NS_PER_US
#define MS      RL_NS_PER_MS
#define S       RL_NS_PER_S
#define RTT     (50 * MS)
#define RATE    10000000ull /* bytes/s */
#define BDP     500u        /* packets */
#define FLIGHTS 16384u
#define STEPS   256u

struct path {
	struct rl_sender s;
	struct rl_rand rand;
	uint64_t now_ns, busy_ns; /* until when the bottleneck is */
	uint64_t rate;
	uint32_t queue; /* packets; more are dropped */
	uint32_t loss_ppm;
	uint64_t trickle_ns; /* a packet this often; 0: always more to send */
	uint64_t next_ns;
	bool unmarked; /* planted: nobody says that there is nothing to send */
	struct {
		uint64_t pn, ack_ns;
	} flight[FLIGHTS];
	uint64_t head, tail;
	struct {
		enum rl_bbr_state state;
		uint64_t at_ns;
	} step[STEPS]; /* states, in order */
	uint32_t n_steps;
	uint64_t least_in_flight, most_in_flight; /* packets, since reset */
};

static void
path_lost(void *ctx, const struct rl_run *run)
{
	(void)ctx;
	(void)run;
}

static const struct rl_cc_bbr *
bbr(const struct path *p)
{
	return &p->s.cc.bbr;
}

static int
setup(void **state)
{
	static struct path p;
	const struct rl_sender_opts opts = {.credit = 60000,
					    .packet_bytes = MSS,
					    .cc = &rl_cc_bbr,
					    .seed = 7,
					    .lost = path_lost};

	memset(&p, 0, sizeof(p));
	p.now_ns = 1000 * S;
	p.rate = RATE;
	p.queue = 2 * BDP;
	p.least_in_flight = UINT64_MAX;
	assert_int_equal(rl_sender_init(&p.s, &opts), 0);
	*state = &p;
	return 0;
}

static int
teardown(void **state)
{
	struct path *p = *state;

	rl_sender_fini(&p->s);
	return 0;
}

static void
path_send(struct path *p)
{
	uint64_t pn = rl_sender_next_pn(&p->s), packet_ns = MSS * S / p->rate;

	rl_sender_begin(&p->s);
	rl_sender_commit(&p->s, MSS, p->now_ns);
	p->busy_ns = rl_max64(p->busy_ns, p->now_ns);
	if (rl_rand_ppm(&p->rand, p->loss_ppm) || p->busy_ns - p->now_ns > p->queue * packet_ns)
		return;
	p->busy_ns += packet_ns;
	assert_in_range(p->head - p->tail, 0, FLIGHTS - 1);
	p->flight[p->head % FLIGHTS].pn = pn;
	p->flight[p->head++ % FLIGHTS].ack_ns = p->busy_ns + RTT;
}

/* Send what may go; returns when to try again. */
static uint64_t
path_turn(struct path *p)
{
	if (p->trickle_ns > 0) {
		if (!p->unmarked)
			rl_sender_app_limited(&p->s, p->now_ns);
		if (p->now_ns < p->next_ns)
			return p->next_ns;
		p->next_ns = p->now_ns + p->trickle_ns;
		if (rl_sender_admit(&p->s, 1, p->now_ns) > 0)
			path_send(p);
		return p->next_ns;
	}
	for (uint32_t n = rl_sender_admit(&p->s, 64, p->now_ns); n > 0; n--)
		path_send(p);
	return rl_sender_room(&p->s) > 0 ? rl_sender_pacing_ns(&p->s, p->now_ns) : UINT64_MAX;
}

static void
path_ack(struct path *p)
{
	uint64_t pn = p->flight[p->tail++ % FLIGHTS].pn;
	const struct rl_acked_range range = {pn, pn + 1};

	rl_sender_on_ack(
		&p->s, &(struct rl_acked){.largest = pn, .credit = 60000, .n = 1, .range = &range},
		p->now_ns);
}

static void
path_note(struct path *p)
{
	enum rl_bbr_state state = bbr(p)->state;

	p->least_in_flight = rl_min64(p->least_in_flight, rl_sender_in_flight(&p->s));
	p->most_in_flight = rl_max64(p->most_in_flight, rl_sender_in_flight(&p->s));
	if (p->n_steps > 0 && p->step[p->n_steps - 1].state == state)
		return;
	assert_in_range(p->n_steps, 0, STEPS - 1);
	p->step[p->n_steps].state = state;
	p->step[p->n_steps++].at_ns = p->now_ns;
}

/* Until @state is entered, or @ns went by. Returns whether it was. */
static bool
path_run_to(struct path *p, int state, uint64_t ns)
{
	uint64_t end_ns = p->now_ns + ns;

	while (p->now_ns < end_ns) {
		uint64_t next_ns;

		if (rl_sender_on_time(&p->s, p->now_ns))
			path_send(p);
		next_ns = rl_min64(path_turn(p), rl_sender_timer_ns(&p->s));
		if (p->tail < p->head)
			next_ns = rl_min64(next_ns, p->flight[p->tail % FLIGHTS].ack_ns);
		p->now_ns = rl_min64(rl_max64(next_ns, p->now_ns + 1 * US), end_ns);
		while (p->tail < p->head && p->flight[p->tail % FLIGHTS].ack_ns <= p->now_ns)
			path_ack(p);
		path_note(p);
		if ((int)bbr(p)->state == state && p->step[p->n_steps - 1].at_ns == p->now_ns)
			return true;
	}
	return false;
}

static void
path_run(struct path *p, uint64_t ns)
{
	path_run_to(p, -1, ns);
}

static uint64_t
percent_of_rate(uint64_t bw)
{
	return bw * 100 / RATE;
}

static void
test_startup_drain_probe(void **state)
{
	struct path *p = *state;
	uint64_t start_ns = p->now_ns;

	assert_string_equal(p->s.cc.ops->state(&p->s.cc), "startup");
	assert_int_equal(p->s.cc.cwnd, RL_CC_INITIAL_PACKETS * MSS);
	assert_int_equal(bbr(p)->pacing_gain, 277);

	assert_true(path_run_to(p, RL_BBR_DRAIN, 2 * S));
	/* 32 packets double to 500 in four round trips and a bit, then three without growth. */
	assert_in_range(p->now_ns - start_ns, 7 * RTT, 16 * RTT);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 99, 101);
	assert_true(bbr(p)->full_bw_reached);
	assert_int_equal(bbr(p)->pacing_gain, 50);
	assert_in_range(bbr(p)->min_rtt_ns, RTT, RTT + MS);

	/* Nothing is queued any more, so there is nothing to go DOWN for. */
	assert_true(path_run_to(p, RL_BBR_CRUISE, 4 * RTT));
	assert_in_range(rl_sender_in_flight(&p->s), BDP - 30, BDP + 10);
	p->most_in_flight = 0;
	path_run(p, 1 * S);
	assert_in_range(p->most_in_flight, BDP - 30, BDP + 30); /* no queue */
	assert_in_range(percent_of_rate(p->s.cc.pacing_rate), 98, 100);
	assert_int_equal(p->s.st.lost, 0);
}

/* No more than 2 round trips' worth queued in Startup, whatever the queue would take. */
static void
test_startup_is_bounded(void **state)
{
	struct path *p = *state;

	p->queue = 100000;
	assert_true(path_run_to(p, RL_BBR_DRAIN, 3 * S));
	assert_in_range(p->most_in_flight, 2 * BDP - 50, 2 * BDP + 150);
}

static void
test_startup_ends_by_loss(void **state)
{
	struct path *p = *state;

	p->queue = 20;
	assert_true(path_run_to(p, RL_BBR_DRAIN, 2 * S));
	assert_true(bbr(p)->full_bw_count < 3);
	assert_true(bbr(p)->inflight_longterm != UINT64_MAX);
	assert_in_range(bbr(p)->inflight_longterm / MSS, BDP * 9 / 10, 2 * BDP);
}

static void
test_probe_cycle(void **state)
{
	static const enum rl_bbr_state cycle[] = {RL_BBR_DOWN, RL_BBR_CRUISE, RL_BBR_REFILL,
						  RL_BBR_UP};
	struct path *p = *state;
	uint32_t ups = 0;
	uint64_t up_ns = 0;

	p->s.cc.hurry = true; /* no ProbeRTT in between */
	assert_true(path_run_to(p, RL_BBR_UP, 6 * S));
	assert_true(path_run_to(p, RL_BBR_DOWN, 1 * S));
	p->n_steps = 0;
	path_note(p);
	p->step[0].at_ns = p->now_ns;
	path_run(p, 30 * S);
	for (uint32_t i = 0; i < p->n_steps; i++) {
		assert_int_equal(p->step[i].state, cycle[i % 4]);
		if (p->step[i].state != RL_BBR_UP)
			continue;
		if (ups++ > 0)
			assert_in_range(p->step[i].at_ns - up_ns, 2 * S, 4 * S);
		up_ns = p->step[i].at_ns;
	}
	assert_in_range(ups, 8, 15);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 99, 101);
	assert_int_equal(p->s.st.lost, 0);
}

static void
test_gains(void **state)
{
	static const struct {
		enum rl_bbr_state state;
		uint32_t pacing, cwnd;
		const char *name;
	} want[] = {
		{RL_BBR_DRAIN, 50, 200, "drain"},
		{RL_BBR_DOWN, 90, 200, "probe-bw-down"},
		{RL_BBR_CRUISE, 100, 200, "probe-bw-cruise"},
		{RL_BBR_REFILL, 100, 200, "probe-bw-refill"},
		{RL_BBR_UP, 125, 225, "probe-bw-up"},
		{RL_BBR_PROBE_RTT, 100, 50, "probe-rtt"},
	};
	struct path *p = *state;

	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		assert_true(path_run_to(p, (int)want[i].state, 10 * S));
		assert_int_equal(bbr(p)->pacing_gain, want[i].pacing);
		assert_int_equal(bbr(p)->cwnd_gain, want[i].cwnd);
		assert_string_equal(p->s.cc.ops->state(&p->s.cc), want[i].name);
	}
}

static void
test_probe_rtt(void **state)
{
	struct path *p = *state;
	uint64_t start_ns = p->now_ns, in_ns;

	assert_true(path_run_to(p, RL_BBR_PROBE_RTT, 10 * S));
	in_ns = p->now_ns;
	assert_in_range(in_ns - start_ns, 5 * S, 8 * S);
	p->least_in_flight = UINT64_MAX;
	assert_true(path_run_to(p, RL_BBR_CRUISE, 2 * S));
	assert_in_range(p->least_in_flight, BDP / 2 - 20, BDP / 2 + 20);
	assert_in_range(p->now_ns - in_ns, 200 * MS, 200 * MS + 3 * RTT);
	/* What was slow on purpose did not count. */
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 99, 101);
	assert_true(p->s.cc.cwnd > BDP * MSS * 3 / 2);
	in_ns = p->now_ns;
	assert_true(path_run_to(p, RL_BBR_PROBE_RTT, 10 * S));
	assert_in_range(p->now_ns - in_ns, 4 * S, 6 * S);
}

static void
test_no_probe_rtt_in_a_hurry(void **state)
{
	struct path *p = *state;

	rl_sender_hurry(&p->s, true);
	assert_false(path_run_to(p, RL_BBR_PROBE_RTT, 12 * S));
	rl_sender_hurry(&p->s, false);
	assert_true(path_run_to(p, RL_BBR_PROBE_RTT, 6 * S));
}

/* Where a round trip is shorter than what a worker sleeps, ProbeRTT must not cost anything. */
static void
test_short_path_keeps_its_window(void **state)
{
	struct path *p = *state;

	assert_true(path_run_to(p, RL_BBR_CRUISE, 3 * S));
	p->s.cc.bbr.min_rtt_ns = p->s.cc.bbr.probe_rtt_min_ns = 20 * US;
	path_run(p, 100 * MS);
	assert_in_range(p->s.cc.cwnd, RATE / 1000, RATE / 1000 + 100 * MSS); /* 1 ms of it */
}

static void
test_little_loss_is_not_congestion(void **state)
{
	struct path *p = *state;
	uint64_t before;

	p->loss_ppm = 10000;
	path_run(p, 4 * S);
	before = p->s.st.acked;
	path_run(p, 20 * S);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 96, 101);
	assert_in_range(p->s.st.acked - before, 88 * 2000, 100 * 2000);
}

static void
test_much_loss_slows_down(void **state)
{
	struct path *p = *state;

	assert_true(path_run_to(p, RL_BBR_CRUISE, 3 * S));
	p->loss_ppm = 100000;
	path_run(p, 6 * RTT);
	assert_int_equal(bbr(p)->state, RL_BBR_CRUISE);
	assert_true(bbr(p)->bw_shortterm < RATE * 95 / 100);
	assert_true(bbr(p)->inflight_shortterm < 2 * BDP * MSS);
	assert_in_range(percent_of_rate(p->s.cc.pacing_rate), 20, 95);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 98, 101); /* not forgotten */
	p->loss_ppm = 0;
	assert_true(path_run_to(p, RL_BBR_UP, 4 * S)); /* tries again */
	assert_true(bbr(p)->bw_shortterm == UINT64_MAX);
	path_run(p, 4 * S);
	assert_in_range(percent_of_rate(bbr(p)->bw), 98, 101);
}

static void
test_loss_in_up_bounds_inflight(void **state)
{
	struct path *p = *state;

	p->queue = 60; /* UP overflows it */
	assert_true(path_run_to(p, RL_BBR_UP, 8 * S));
	p->s.cc.bbr.inflight_longterm = UINT64_MAX;
	assert_true(path_run_to(p, RL_BBR_DOWN, 1 * S));
	assert_true(bbr(p)->prev_probe_too_high);
	assert_in_range(bbr(p)->inflight_longterm / MSS, BDP * 7 / 10, BDP + 150);
	/* The next probe stops before it hurts; nothing was lost, so one more follows at once. */
	assert_true(path_run_to(p, RL_BBR_CRUISE, 1 * S));
	assert_true(p->s.cc.cwnd <= bbr(p)->inflight_longterm * 86 / 100);
	assert_true(path_run_to(p, RL_BBR_UP, 8 * S));
	assert_true(path_run_to(p, RL_BBR_DOWN, 2 * S));
	assert_true(bbr(p)->prev_probe_precautionary);
	assert_true(path_run_to(p, RL_BBR_REFILL, 4 * RTT));
}

static void
test_app_limited_does_not_lower_the_estimate(void **state)
{
	struct path *p = *state;

	assert_true(path_run_to(p, RL_BBR_CRUISE, 3 * S));
	p->trickle_ns = 1 * MS; /* a tenth of the rate */
	path_run(p, 30 * S);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 99, 101);

	/* Not even when older samples are forgotten. */
	p->s.cc.bbr.max_bw_filter[0] = p->s.cc.bbr.max_bw_filter[1] = 0;
	path_run(p, 1 * S);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 99, 101);

	p->unmarked = true; /* so that is what kept it */
	p->s.rate.app_limited = 0;
	p->s.window_full = UINT64_MAX; /* and not what the sender sees by itself */
	path_run(p, 30 * S);
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 5, 50);
}

static void
test_rate_falls_and_rises(void **state)
{
	struct path *p = *state;

	path_run(p, 4 * S);
	p->rate = RATE / 4;
	path_run(p, 12 * S);
	assert_in_range(percent_of_rate(bbr(p)->bw), 20, 30);
	p->rate = RATE;
	path_run(p, 15 * S);
	assert_in_range(percent_of_rate(bbr(p)->bw), 95, 101);
}

static void
test_undo(void **state)
{
	struct path *p = *state;
	struct rl_cc *cc = &p->s.cc;

	assert_true(path_run_to(p, RL_BBR_CRUISE, 3 * S));
	p->loss_ppm = 300000;
	path_run(p, 3 * RTT);
	assert_true(bbr(p)->bw_shortterm != UINT64_MAX);
	cc->bbr.undo_bw_shortterm = cc->bbr.undo_inflight_shortterm = UINT64_MAX;
	cc->bbr.undo_state = RL_BBR_UP;
	cc->ops->undo(cc);
	assert_true(bbr(p)->bw_shortterm == UINT64_MAX);
	assert_true(bbr(p)->inflight_shortterm == UINT64_MAX);
	assert_int_equal(bbr(p)->state, RL_BBR_UP);
}

/* What follows silence goes out at the known rate, without a new start. */
static void
test_restart_from_idle(void **state)
{
	struct path *p = *state;

	assert_true(path_run_to(p, RL_BBR_CRUISE, 3 * S));
	p->trickle_ns = 60 * S;
	p->next_ns = p->now_ns + 60 * S;
	path_run(p, 20 * S);
	assert_int_equal(rl_sender_in_flight(&p->s), 0);
	p->trickle_ns = 0;
	path_run(p, 1 * MS);
	assert_in_range(percent_of_rate(p->s.cc.pacing_rate), 98, 100);
	assert_false(path_run_to(p, RL_BBR_PROBE_RTT, 2 * S)); /* the silence was one */
	assert_in_range(percent_of_rate(bbr(p)->max_bw), 98, 101);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_startup_drain_probe),
		TEST(test_startup_is_bounded),
		TEST(test_startup_ends_by_loss),
		TEST(test_probe_cycle),
		TEST(test_gains),
		TEST(test_probe_rtt),
		TEST(test_no_probe_rtt_in_a_hurry),
		TEST(test_short_path_keeps_its_window),
		TEST(test_little_loss_is_not_congestion),
		TEST(test_much_loss_slows_down),
		TEST(test_loss_in_up_bounds_inflight),
		TEST(test_app_limited_does_not_lower_the_estimate),
		TEST(test_rate_falls_and_rises),
		TEST(test_undo),
		TEST(test_restart_from_idle),
	};

	return cmocka_run_group_tests_name("cc_bbr", tests, NULL, NULL);
}
