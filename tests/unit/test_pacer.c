/* SPDX-License-Identifier: BSD-3-Clause */
/* The pacer: rate, slack, changes of rate, several lanes at once. Time is moved by hand. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "transport/pacer.h"

#define GBIT        125000000ull /* bytes/s */
#define PACKET      3440u
#define SLACK_BYTES (GBIT * RL_PACER_SLACK_NS / RL_NS_PER_S)
#define BURST       ((uint32_t)(SLACK_BYTES / PACKET) + 1) /* from idle at 1 Gbit/s */
#define START_NS    (1000 * RL_NS_PER_S)

/* Take all that may leave at @now_ns. */
static uint64_t
drain(struct rl_pacer *p, uint32_t bytes, uint64_t now_ns)
{
	uint64_t sum = 0;
	uint32_t n;

	while ((n = rl_pacer_admit(p, 32, bytes, now_ns)) > 0) {
		assert_in_range(n, 1, 32);
		sum += n;
	}
	return sum;
}

static void
test_unlimited(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, 0);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(rl_pacer_admit(&p, 64, 9000, START_NS), 64);
	assert_int_equal(rl_pacer_timer_ns(&p, START_NS), 0);
	rl_pacer_return(&p, 9000);
	assert_int_equal(rl_pacer_admit(&p, 64, 9000, START_NS), 64);
}

static void
test_idle_earns_the_slack_only(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, GBIT);
	assert_int_equal(drain(&p, PACKET, START_NS), BURST);
	assert_int_equal(drain(&p, PACKET, START_NS), 0);
	assert_int_equal(drain(&p, PACKET, START_NS + 3600 * RL_NS_PER_S), BURST);
}

static void
test_timer_says_when(void **state)
{
	struct rl_pacer p;
	uint64_t now_ns = START_NS;

	(void)state;
	rl_pacer_init(&p, GBIT);
	assert_int_equal(rl_pacer_timer_ns(&p, now_ns), 0);
	for (int i = 0; i < 1000; i++) {
		drain(&p, PACKET, now_ns);
		uint64_t at_ns = rl_pacer_timer_ns(&p, now_ns);

		assert_true(at_ns > now_ns);
		assert_int_equal(rl_pacer_admit(&p, 1, PACKET, at_ns - 1), 0);
		assert_int_equal(rl_pacer_timer_ns(&p, at_ns), 0);
		now_ns = at_ns;
	}
}

/* Whoever comes back within the slack after the timer gets the whole rate, to a part in a thousand. */
static void
check_rate(uint64_t rate, uint32_t bytes, uint64_t step_ns)
{
	const uint64_t time_ns = 2 * RL_NS_PER_S;
	struct rl_pacer p;
	uint64_t sum = 0, want = rate * 2;

	rl_pacer_init(&p, rate);
	for (uint64_t t = 0; t < time_ns; t += step_ns)
		sum += drain(&p, bytes, START_NS + t) * bytes;
	assert_in_range(sum, want - want / 1000, want + want / 1000 + 2 * bytes);
}

static void
test_rate(void **state)
{
	(void)state;
	check_rate(GBIT, PACKET, 20000);
	check_rate(GBIT, PACKET, 80000);
	check_rate(GBIT / 100, 1440, 50000);
	check_rate(10 * GBIT, 9000, 10000);
	check_rate(3 * GBIT, 64, 97000);
}

static void
test_want_is_the_limit(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, GBIT);
	assert_int_equal(rl_pacer_admit(&p, 0, PACKET, START_NS), 0);
	assert_int_equal(rl_pacer_admit(&p, 2, PACKET, START_NS), 2);
	assert_int_equal(rl_pacer_admit(&p, 64, PACKET, START_NS), BURST - 2);
}

static void
test_return(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, GBIT);
	assert_int_equal(drain(&p, PACKET, START_NS), BURST);
	rl_pacer_return(&p, 2 * PACKET); /* not worth a burst yet */
	assert_int_equal(drain(&p, PACKET, START_NS), 0);
	rl_pacer_return(&p, BURST / 2 * PACKET);
	assert_int_equal(drain(&p, PACKET, START_NS), BURST / 2 + 2);
	rl_pacer_return(&p, 1000 * PACKET); /* more than was ever booked */
	assert_int_equal(drain(&p, PACKET, START_NS), BURST);

	rl_pacer_set_rate(&p, 1); /* the same bytes are worth more time than there ever was */
	rl_pacer_return(&p, PACKET);
	rl_pacer_set_rate(&p, GBIT);
	assert_int_equal(rl_pacer_timer_ns(&p, START_NS), 0);
	assert_int_equal(drain(&p, PACKET, START_NS), BURST);
}

static void
test_new_rate_takes_effect_at_once(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, 1); /* one packet books the next hour */
	assert_int_equal(drain(&p, PACKET, START_NS), 1);
	rl_pacer_set_rate(&p, GBIT);
	assert_int_equal(rl_pacer_timer_ns(&p, START_NS), 0);
	assert_int_equal(drain(&p, PACKET, START_NS), BURST);

	rl_pacer_set_rate(&p, GBIT / 1000); /* and down: a packet takes 27.5 ms */
	assert_int_equal(drain(&p, PACKET, START_NS + RL_NS_PER_MS), 1);
	assert_int_equal(drain(&p, PACKET, START_NS + 20 * RL_NS_PER_MS), 0);
	assert_int_equal(drain(&p, PACKET, START_NS + 30 * RL_NS_PER_MS), 1);

	rl_pacer_set_rate(&p, 0);
	assert_int_equal(rl_pacer_admit(&p, 64, PACKET, START_NS), 64);
}

/* A lane that read the clock and was then descheduled must not move the departure time back. */
static void
test_late_lane(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, 10 * GBIT);
	assert_true(drain(&p, PACKET, START_NS) > 0);
	assert_int_equal(drain(&p, PACKET, START_NS - 50 * RL_NS_PER_MS), 0);
	assert_int_equal(drain(&p, PACKET, START_NS), 0);
}

static void
test_extreme_values(void **state)
{
	struct rl_pacer p;

	(void)state;
	rl_pacer_init(&p, UINT64_MAX);
	assert_int_equal(rl_pacer_admit(&p, UINT32_MAX, 0, START_NS), UINT32_MAX);
	/* 8 Tbit/s and 64 KiB are the limits: 500 us hold 7629 whole packets, and one more leaves. */
	assert_int_equal(rl_pacer_admit(&p, UINT32_MAX, UINT32_MAX, START_NS), 7630);
	rl_pacer_init(&p, 1);
	assert_int_equal(rl_pacer_admit(&p, UINT32_MAX, UINT32_MAX, START_NS), 1);
	assert_int_equal(rl_pacer_admit(&p, UINT32_MAX, UINT32_MAX, START_NS), 0);
}

/* Lanes on threads of their own; a barrier moves their common time. */
#define LANES  4
#define STEPS  2000

#define ROUNDS 50
#define TINY   100u /* bytes; at 8 Tbit/s each takes its nanosecond */

struct lanes {
	struct rl_pacer p;
	pthread_barrier_t barrier;
	uint64_t admitted[LANES], returned[LANES];
};

struct lane {
	struct lanes *all;
	uint32_t id;
};

static void *
lane_main(void *arg)
{
	struct lane *l = arg;
	struct lanes *all = l->all;

	for (uint64_t step = 0; step < STEPS; step++) {
		uint64_t now_ns = START_NS + step * 50000;
		uint32_t n;

		pthread_barrier_wait(&all->barrier);
		while ((n = rl_pacer_admit(&all->p, 1 + l->id, PACKET, now_ns)) > 0) {
			all->admitted[l->id] += n;
			if (n > 1 && step % 8 == l->id) { /* the NIC refuses one */
				rl_pacer_return(&all->p, PACKET);
				all->returned[l->id]++;
			}
		}
	}
	return NULL;
}

/* All at once for one packet at a time: each nanosecond of half the slack goes to one lane. */
static void *
lane_scramble(void *arg)
{
	struct lane *l = arg;
	struct lanes *all = l->all;

	for (uint64_t round = 0; round < ROUNDS; round++) {
		pthread_barrier_wait(&all->barrier);
		while (rl_pacer_admit(&all->p, 1, TINY, START_NS + round * RL_NS_PER_S) > 0)
			all->admitted[l->id]++;
	}
	return NULL;
}

static uint64_t
run_lanes(struct lanes *all, uint64_t rate, void *(*lane_fn)(void *))
{
	struct lane lane[LANES];
	pthread_t thread[LANES];
	uint64_t sum = 0;

	*all = (struct lanes){.admitted = {0}};
	rl_pacer_init(&all->p, rate);
	assert_int_equal(pthread_barrier_init(&all->barrier, NULL, LANES), 0);
	for (uint32_t i = 0; i < LANES; i++) {
		lane[i] = (struct lane){.all = all, .id = i};
		assert_int_equal(pthread_create(&thread[i], NULL, lane_fn, &lane[i]), 0);
	}
	for (uint32_t i = 0; i < LANES; i++) {
		assert_int_equal(pthread_join(thread[i], NULL), 0);
		sum += all->admitted[i] - all->returned[i];
	}
	pthread_barrier_destroy(&all->barrier);
	return sum;
}

static void
test_lanes_share_the_rate(void **state)
{
	const uint64_t want =
		10 * GBIT * ((STEPS - 1) * 50000ull + RL_PACER_SLACK_NS) / RL_NS_PER_S;
	static struct lanes all;
	uint64_t bytes;

	(void)state;
	bytes = run_lanes(&all, 10 * GBIT, lane_main) * PACKET;
	/* At the end half of the slack may wait for the next burst. */
	assert_in_range(bytes, want - want / 1000 - 10 * GBIT / 2 * RL_PACER_SLACK_NS / RL_NS_PER_S,
			want + want / 1000);
}

static void
test_no_booking_is_lost(void **state)
{
	static struct lanes all;

	(void)state;
	assert_int_equal(run_lanes(&all, UINT64_MAX, lane_scramble),
			 ROUNDS * (RL_PACER_SLACK_NS / 2 + 1));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unlimited),
		cmocka_unit_test(test_idle_earns_the_slack_only),
		cmocka_unit_test(test_timer_says_when),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_want_is_the_limit),
		cmocka_unit_test(test_return),
		cmocka_unit_test(test_new_rate_takes_effect_at_once),
		cmocka_unit_test(test_late_lane),
		cmocka_unit_test(test_extreme_values),
		cmocka_unit_test(test_lanes_share_the_rate),
		cmocka_unit_test(test_no_booking_is_lost),
	};

	return cmocka_run_group_tests_name("pacer", tests, NULL, NULL);
}
