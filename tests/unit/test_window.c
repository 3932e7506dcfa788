/* SPDX-License-Identifier: BSD-3-Clause */
/* The window: growth, reduction, rounds and the receiver's credit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "transport/window.h"

/* A lane that always uses its whole window: one round sends, acknowledges and loses that much. */
struct lane {
	struct rl_window w;
	uint64_t next_pn;
};

static void
lane_init(struct lane *l, uint32_t credit)
{
	rl_window_init(&l->w, credit);
	l->next_pn = rl_window_packets(&l->w);
}

/* Acknowledge what is in flight, sixteen at a time, and send as much as the window allows. */
static void
lane_round(struct lane *l, uint32_t loss_percent)
{
	uint64_t end = l->next_pn;
	uint64_t pn = end - rl_window_packets(&l->w);

	while (pn < end) {
		uint32_t n = (uint32_t)rl_min64(100, end - pn);
		uint32_t lost = n * loss_percent / 100;

		pn += n;
		rl_window_on_loss(&l->w, lost);
		rl_window_on_ack(&l->w, n - lost, pn - 1, l->next_pn);
		l->next_pn = pn + rl_window_packets(&l->w);
	}
}

static void
test_starts(void **state)
{
	struct rl_window w;

	(void)state;
	rl_window_init(&w, 100000);
	assert_int_equal(rl_window_packets(&w), RL_WINDOW_INITIAL);
	rl_window_init(&w, 10);
	assert_int_equal(rl_window_packets(&w), 10);
	rl_window_init(&w, 0); /* or nothing could ever be sent */
	assert_int_equal(rl_window_packets(&w), 1);
}

static void
test_doubles_to_credit(void **state)
{
	struct lane l;
	int rounds = 0;

	(void)state;
	lane_init(&l, 20000);
	while (rl_window_packets(&l.w) < 20000 && rounds < 20) {
		lane_round(&l, 0);
		rounds++;
	}
	assert_int_equal(rl_window_packets(&l.w), 20000);
	assert_in_range(rounds, 7, 9); /* 256 * 2^7 > 20000, and a round to start */
	lane_round(&l, 0);
	assert_int_equal(rl_window_packets(&l.w), 20000);
}

static void
test_credit_rules(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 4096);
	for (int i = 0; i < 8; i++)
		lane_round(&l, 0);
	assert_int_equal(rl_window_packets(&l.w), 4096);
	rl_window_credit(&l.w, 50);
	assert_int_equal(rl_window_packets(&l.w), 50);
	lane_round(&l, 0);
	lane_round(&l, 0);
	rl_window_credit(&l.w, 4096); /* known to be good: no new start */
	assert_int_equal(rl_window_packets(&l.w), 4096);
}

static void
test_random_loss_does_not_slow(void **state)
{
	struct lane l;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 20; i++)
		lane_round(&l, RL_WINDOW_LOSS_PERCENT);
	assert_int_equal(rl_window_packets(&l.w), 10000);
	assert_int_equal(l.w.reduced, 0);
}

static void
test_heavy_loss_reduces_once_per_round_trip(void **state)
{
	struct lane l;
	uint32_t before;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 10; i++)
		lane_round(&l, 0);

	while (!l.w.reduced)
		lane_round(&l, 30);
	assert_int_equal(rl_window_packets(&l.w), 7000);
	/* What follows left before the reduction and says nothing about it. */
	before = rl_window_packets(&l.w);
	rl_window_on_loss(&l.w, 1000);
	rl_window_on_ack(&l.w, 1000, l.w.round_end, l.next_pn);
	assert_int_equal(rl_window_packets(&l.w), before);

	for (int i = 0; i < 60; i++)
		lane_round(&l, 30);
	assert_int_equal(rl_window_packets(&l.w), RL_WINDOW_MIN);
}

static void
test_grows_slowly_after_reduction(void **state)
{
	struct lane l;
	uint32_t before;

	(void)state;
	lane_init(&l, 10000);
	for (int i = 0; i < 10; i++)
		lane_round(&l, 0);
	while (!l.w.reduced)
		lane_round(&l, 30);
	while (l.w.recovering)
		lane_round(&l, 0);
	before = rl_window_packets(&l.w);
	lane_round(&l, 0);
	lane_round(&l, 0);
	assert_in_range(rl_window_packets(&l.w), before + before / 8, before + before / 3);
	for (int i = 0; i < 20; i++)
		lane_round(&l, 0);
	assert_int_equal(rl_window_packets(&l.w), 10000);
}

static void
test_few_packets_say_nothing(void **state)
{
	struct rl_window w;

	(void)state;
	rl_window_init(&w, 10000);
	/* A probe and the loss of its predecessor: 50 %, but of two. */
	rl_window_on_loss(&w, 1);
	rl_window_on_ack(&w, 1, 1, 2);
	assert_int_equal(rl_window_packets(&w), RL_WINDOW_INITIAL);
	assert_int_equal(w.reduced, 0);
}

static void
test_unused_window_does_not_grow(void **state)
{
	struct rl_window w;
	uint64_t pn = 0;

	(void)state;
	rl_window_init(&w, 10000);
	for (int i = 0; i < 1000; i++) { /* 40 in flight at a time */
		pn += 40;
		rl_window_on_ack(&w, 40, pn - 1, pn);
	}
	assert_int_equal(rl_window_packets(&w), RL_WINDOW_INITIAL);
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
		cmocka_unit_test(test_few_packets_say_nothing),
		cmocka_unit_test(test_unused_window_does_not_grow),
	};

	return cmocka_run_group_tests_name("window", tests, NULL, NULL);
}
