/* SPDX-License-Identifier: BSD-3-Clause */
/* The fixed controller: growth, reduction, rounds and the receiver's credit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "transport/cc.h"

#define MSS 1000u

/* A lane that always uses its whole window. */
struct lane {
	struct rl_cc cc;
	uint64_t sent, delivered; /* ever */
	bool limited;
};

static uint64_t
window(const struct lane *l)
{
	return rl_min64(l->cc.cwnd, l->cc.limit) / MSS;
}

static void
lane_init(struct lane *l, uint32_t credit)
{
	rl_cc_init(&l->cc, &rl_cc_fixed, MSS, 1);
	l->cc.limit = (uint64_t)credit * MSS;
	l->delivered = 0;
	l->limited = true;
}

static void
lane_ack(struct lane *l, uint64_t acked, uint64_t prior_delivered)
{
	l->delivered += acked;
	l->cc.ops->acked(&l->cc, &(struct rl_cc_ack){
					 .acked = acked,
					 .delivered = l->delivered,
					 .rate = {.prior_delivered = prior_delivered},
					 .window_limited = l->limited,
				 });
}

static void
lane_lose(struct lane *l, uint64_t bytes)
{
	if (bytes > 0)
		l->cc.ops->lost(&l->cc, &(struct rl_cc_loss){.bytes = bytes});
}

/* One window's worth of packets is lost and acknowledged, a hundred at a time. */
static void
lane_round(struct lane *l, uint32_t loss_percent)
{
	uint64_t left = window(l), prior = l->delivered;

	while (left > 0) {
		uint64_t n = rl_min64(100, left), lost = n * loss_percent / 100;

		left -= n;
		lane_lose(l, lost * MSS);
		lane_ack(l, (n - lost) * MSS, prior);
	}
}

static void
test_starts(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 100000);
	assert_int_equal(window(&l), RL_FIXED_INITIAL_PACKETS);
	assert_int_equal(l.cc.pacing_rate, 0); /* max-bandwidth is its rate */
	assert_string_equal(l.cc.ops->state(&l.cc), "open");
}

static void
test_doubles_to_credit(void **state)
{
	struct lane l;
	int rounds = 0;

	(void)state;
	lane_init(&l, 20000);
	while (window(&l) < 20000 && rounds < 20) {
		lane_round(&l, 0);
		rounds++;
	}
	assert_int_equal(window(&l), 20000);
	assert_in_range(rounds, 6, 9); /* 256 * 2^7 > 20000 */
	lane_round(&l, 0);
	assert_int_equal(l.cc.cwnd, 20000 * MSS);
}

static void
test_credit_rules(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 4096);
	for (int i = 0; i < 8; i++)
		lane_round(&l, 0);
	assert_int_equal(window(&l), 4096);
	l.cc.limit = 50 * MSS;
	lane_round(&l, 0);
	lane_round(&l, 0);
	l.cc.limit = 4096 * MSS; /* known to be good: no new start */
	assert_int_equal(window(&l), 4096);
}

static void
test_random_loss_does_not_slow(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 20; i++)
		lane_round(&l, RL_FIXED_LOSS_PERCENT);
	assert_int_equal(window(&l), 10000);
	assert_false(l.cc.fixed.reduced);
}

static void
test_heavy_loss_reduces_once_per_round_trip(void **state)
{
	struct lane l;
	uint64_t before;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 10; i++)
		lane_round(&l, 0);

	while (!l.cc.fixed.reduced)
		lane_round(&l, 30);
	assert_int_equal(window(&l), 7000);
	assert_string_equal(l.cc.ops->state(&l.cc), "recovery");
	/* What follows left before the reduction and says nothing about it. */
	before = window(&l);
	lane_lose(&l, 1000 * MSS);
	lane_ack(&l, 1000 * MSS, l.cc.fixed.round_end);
	assert_int_equal(window(&l), before);

	for (int i = 0; i < 60; i++)
		lane_round(&l, 30);
	assert_int_equal(window(&l), RL_FIXED_MIN_PACKETS);
}

static void
test_grows_slowly_after_reduction(void **state)
{
	struct lane l;
	uint64_t before;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 10; i++)
		lane_round(&l, 0);
	while (!l.cc.fixed.reduced)
		lane_round(&l, 30);
	while (l.cc.fixed.recovering)
		lane_round(&l, 0);
	before = window(&l);
	lane_round(&l, 0);
	lane_round(&l, 0);
	assert_in_range(window(&l), before + before / 8, before + before / 3);
	for (int i = 0; i < 20; i++)
		lane_round(&l, 0);
	assert_int_equal(window(&l), 10000);
}

static void
test_undo(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 10; i++)
		lane_round(&l, 0);
	while (!l.cc.fixed.reduced)
		lane_round(&l, 30);
	assert_int_equal(window(&l), 7000);
	l.cc.ops->undo(&l.cc);
	assert_int_equal(window(&l), 10000);
}

static void
test_few_packets_say_nothing(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 10000);
	/* A probe and the loss of its predecessor: 50 %, but of two. */
	lane_lose(&l, MSS);
	lane_ack(&l, MSS, 0);
	assert_int_equal(window(&l), RL_FIXED_INITIAL_PACKETS);
	assert_false(l.cc.fixed.reduced);
}

static void
test_unused_window_does_not_grow(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 10000);
	l.limited = false;
	for (int i = 0; i < 100; i++)
		lane_round(&l, 0);
	assert_int_equal(window(&l), RL_FIXED_INITIAL_PACKETS);
}

static void
test_found_by_name(void **state)
{
	(void)state;
	assert_ptr_equal(rl_cc_find("fixed"), &rl_cc_fixed);
	assert_ptr_equal(rl_cc_find("cubic"), &rl_cc_cubic);
	assert_ptr_equal(rl_cc_find("bbr"), &rl_cc_bbr);
	assert_ptr_equal(rl_cc_find(NULL), &rl_cc_bbr);
	assert_null(rl_cc_find("reno"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_starts),
		cmocka_unit_test(test_doubles_to_credit),
		cmocka_unit_test(test_credit_rules),
		cmocka_unit_test(test_random_loss_does_not_slow),
		cmocka_unit_test(test_heavy_loss_reduces_once_per_round_trip),
		cmocka_unit_test(test_grows_slowly_after_reduction),
		cmocka_unit_test(test_undo),
		cmocka_unit_test(test_few_packets_say_nothing),
		cmocka_unit_test(test_unused_window_does_not_grow),
		cmocka_unit_test(test_found_by_name),
	};

	return cmocka_run_group_tests_name("cc_fixed", tests, NULL, NULL);
}
