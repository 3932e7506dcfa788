/* SPDX-License-Identifier: BSD-3-Clause */
/* CUBIC on a virtual clock; section numbers are those of RFC 9438. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "transport/cc.h"

#define MSS 1000u
#define MS  RL_NS_PER_MS
#define RTT (100 * MS)

struct path {
	struct rl_cc cc;
	uint64_t now_ns, delivered;
};

static void
path_init(struct path *p)
{
	rl_cc_init(&p->cc, &rl_cc_cubic, MSS, 1);
	p->now_ns = 1000 * RL_NS_PER_S;
	p->delivered = 0;
}

static uint64_t
window(const struct path *p)
{
	return p->cc.cwnd / MSS;
}

static void
acked(struct path *p, uint64_t bytes, bool limited, bool recovering)
{
	p->delivered += bytes;
	p->cc.ops->acked(&p->cc, &(struct rl_cc_ack){
					 .now_ns = p->now_ns,
					 .rtt_ns = RTT,
					 .srtt_ns = RTT,
					 .acked = bytes,
					 .delivered = p->delivered,
					 .window_limited = limited,
					 .recovering = recovering,
				 });
}

/* A window is acknowledged, in ten ACKs. */
static void
round_trip(struct path *p)
{
	uint64_t part = p->cc.cwnd / 10;

	for (int i = 0; i < 10; i++) {
		p->now_ns += RTT / 10;
		acked(p, part, true, false);
	}
}

static void
lose(struct path *p, bool new_episode)
{
	p->cc.ops->lost(&p->cc, &(struct rl_cc_loss){.now_ns = p->now_ns,
						     .bytes = MSS,
						     .new_episode = new_episode});
}

static void
test_slow_start(void **state)
{
	struct path p;

	(void)state;
	path_init(&p);
	assert_int_equal(window(&p), RL_CC_INITIAL_PACKETS);
	assert_string_equal(p.cc.ops->state(&p.cc), "slow-start");
	round_trip(&p);
	assert_in_range(window(&p), RL_CC_INITIAL_PACKETS * 2 - 1, RL_CC_INITIAL_PACKETS * 2);
	assert_int_equal(p.cc.pacing_rate, p.cc.cwnd * 2 * 10); /* 2 windows per 100 ms */
	acked(&p, 10 * MSS, false, false); /* a window that is not used does not grow */
	assert_in_range(window(&p), RL_CC_INITIAL_PACKETS * 2 - 1, RL_CC_INITIAL_PACKETS * 2);
}

static void
test_reduction(void **state) /* 4.6 */
{
	struct path p;
	uint64_t before;

	(void)state;
	path_init(&p);
	for (int i = 0; i < 5; i++)
		round_trip(&p);
	before = p.cc.cwnd;
	lose(&p, true);
	assert_int_equal(p.cc.cwnd, before * 7 / 10);
	assert_int_equal(p.cc.cubic.ssthresh, p.cc.cwnd);
	assert_int_equal(p.cc.cubic.w_max, before);
	assert_string_equal(p.cc.ops->state(&p.cc), "avoidance");
	lose(&p, false); /* once per episode */
	acked(&p, 100 * MSS, true, true);
	assert_int_equal(p.cc.cwnd, before * 7 / 10);
	for (int i = 0; i < 30; i++)
		lose(&p, true);
	assert_int_equal(window(&p), 2);
}

static void
test_fast_convergence(void **state) /* 4.7 */
{
	struct path p;

	(void)state;
	path_init(&p);
	p.cc.cwnd = 1000 * MSS;
	lose(&p, true);
	lose(&p, true); /* at 700, below the 1000 before */
	assert_int_equal(p.cc.cubic.w_max, 700 * MSS * 17 / 20);
}

/* K = cbrt(300 / 0.4) = 9.086 s; W(K) = W_max; W(2 K) = W_max + 300. */
static void
test_cubic_curve(void **state)
{
	struct path p;
	uint64_t at_half = 0, at_k = 0;

	(void)state;
	path_init(&p);
	p.cc.cwnd = 1000 * MSS;
	lose(&p, true);
	for (int i = 0; i < 182; i++) {
		round_trip(&p);
		if (i == 45)
			at_half = window(&p);
		if (i == 90)
			at_k = window(&p);
	}
	assert_in_range(p.cc.cubic.k_ms, 9070, 9100);
	assert_in_range(at_half, 955, 970); /* 1000 - 300 / 8 = 962 */
	assert_in_range(at_k, 995, 1002);
	assert_in_range(window(&p), 1280, 1320);
}

static void
test_reno_where_the_curve_is_flat(void **state) /* 4.3 */
{
	struct path p;

	(void)state;
	path_init(&p);
	p.cc.cwnd = 20 * MSS;
	lose(&p, true);
	assert_int_equal(window(&p), 14);
	for (int i = 0; i < 20; i++) /* 0.53 packets a round trip till 20, then one */
		round_trip(&p);
	assert_in_range(window(&p), 24, 30);
	assert_true(p.cc.cubic.w_est > p.cc.cubic.w_max);
}

static void
test_idle_is_no_time_to_grow(void **state) /* 5.8 */
{
	struct path p;
	uint64_t before;

	(void)state;
	path_init(&p);
	p.cc.cwnd = 1000 * MSS;
	lose(&p, true);
	round_trip(&p);
	before = window(&p);
	p.now_ns += 100 * RL_NS_PER_S;
	p.cc.ops->restart(&p.cc, p.now_ns);
	round_trip(&p);
	assert_in_range(window(&p), before, before + 20);
}

static void
test_undo(void **state) /* 4.9 */
{
	struct path p;

	(void)state;
	path_init(&p);
	p.cc.cwnd = 1000 * MSS;
	lose(&p, true);
	p.cc.ops->undo(&p.cc);
	assert_int_equal(window(&p), 1000);
	assert_string_equal(p.cc.ops->state(&p.cc), "slow-start");
	p.cc.cwnd = 2000 * MSS; /* what is larger by now stays */
	p.cc.ops->undo(&p.cc);
	assert_int_equal(window(&p), 2000);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_slow_start),
		cmocka_unit_test(test_reduction),
		cmocka_unit_test(test_fast_convergence),
		cmocka_unit_test(test_cubic_curve),
		cmocka_unit_test(test_reno_where_the_curve_is_flat),
		cmocka_unit_test(test_idle_is_no_time_to_grow),
		cmocka_unit_test(test_undo),
	};

	return cmocka_run_group_tests_name("cc_cubic", tests, NULL, NULL);
}
