/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sets of ranges against a plain array.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "base/rand.h"
#include "base/ranges.h"

static void
check_shape(const struct rl_ranges *rs)
{
	assert_true(rs->n <= RL_RANGES_MAX);
	for (uint32_t i = 0; i < rs->n; i++) {
		assert_true(rs->r[i].start < rs->r[i].end);
		if (i > 0)
			assert_true(rs->r[i - 1].end < rs->r[i].start);
	}
}

static void
test_merge(void **state)
{
	struct rl_ranges rs;

	(void)state;
	rl_ranges_init(&rs);
	assert_false(rl_ranges_contain(&rs, 0));
	assert_true(rl_ranges_add(&rs, 5));
	assert_true(rl_ranges_add(&rs, 6)); /* extends upwards */
	assert_true(rl_ranges_add(&rs, 9)); /* a new highest */
	assert_true(rl_ranges_add(&rs, 8)); /* extends downwards */
	assert_true(rl_ranges_add(&rs, 2)); /* a new lowest */
	assert_int_equal(rs.n, 3);
	assert_true(rl_ranges_add(&rs, 7)); /* joins two */
	assert_int_equal(rs.n, 2);
	assert_int_equal(rs.r[1].start, 5);
	assert_int_equal(rs.r[1].end, 10);
	for (uint64_t v = 5; v < 10; v++)
		assert_false(rl_ranges_add(&rs, v));
	check_shape(&rs);
}

static void
test_full(void **state)
{
	struct rl_ranges rs;

	(void)state;
	rl_ranges_init(&rs);
	for (uint64_t i = 0; i < RL_RANGES_MAX; i++)
		assert_true(rl_ranges_add(&rs, 100 + 2 * i));
	assert_int_equal(rs.dropped, 0);

	assert_true(rl_ranges_add(&rs, 10)); /* the lowest itself: forgotten at once */
	assert_false(rl_ranges_contain(&rs, 10));
	assert_int_equal(rs.dropped, 1);

	assert_true(rl_ranges_add(&rs, 10000));
	assert_int_equal(rs.n, RL_RANGES_MAX);
	assert_int_equal(rs.dropped, 2);
	assert_false(rl_ranges_contain(&rs, 100));
	assert_true(rl_ranges_contain(&rs, 102));
	assert_true(rl_ranges_contain(&rs, 10000));

	assert_true(rl_ranges_add(&rs, 5000)); /* in between */
	assert_false(rl_ranges_contain(&rs, 102));
	assert_true(rl_ranges_contain(&rs, 5000));
	check_shape(&rs);
}

static void
test_largest(void **state)
{
	struct rl_ranges rs;

	(void)state;
	rl_ranges_init(&rs);
	assert_true(rl_ranges_contain(&rs, UINT64_MAX));
	assert_false(rl_ranges_add(&rs, UINT64_MAX));
	assert_int_equal(rs.n, 0);
	assert_false(rl_ranges_contain(&rs, UINT64_MAX - 1));
	assert_true(rl_ranges_add(&rs, UINT64_MAX - 1));
	assert_true(rl_ranges_contain(&rs, UINT64_MAX - 1));
	assert_false(rl_ranges_add(&rs, UINT64_MAX));
	assert_true(rl_ranges_add(&rs, UINT64_MAX - 3));
	assert_true(rl_ranges_add(&rs, UINT64_MAX - 2));
	assert_int_equal(rs.n, 1);
	check_shape(&rs);
}

static void
test_trim(void **state)
{
	struct rl_ranges rs;

	(void)state;
	rl_ranges_init(&rs);
	rl_ranges_trim(&rs, 7);
	for (uint64_t v = 10; v < 20; v++)
		rl_ranges_add(&rs, v);
	for (uint64_t v = 30; v < 40; v++)
		rl_ranges_add(&rs, v);
	rl_ranges_trim(&rs, 10);
	assert_int_equal(rs.n, 2);
	rl_ranges_trim(&rs, 15);
	assert_int_equal(rs.r[0].start, 15);
	rl_ranges_trim(&rs, 20);
	assert_int_equal(rs.n, 1);
	assert_int_equal(rs.r[0].start, 30);
	rl_ranges_trim(&rs, UINT64_MAX);
	assert_int_equal(rs.n, 0);
}

#define MODEL_N 300

/* Fewer numbers than could ever fill the set, so that the array tells everything. */
static void
test_model(void **state)
{
	struct rl_rand rand = {.state = 1};

	(void)state;
	for (int round = 0; round < 200; round++) {
		bool in[MODEL_N] = {false};
		struct rl_ranges rs;

		rl_ranges_init(&rs);
		for (int i = 0; i < 400; i++) {
			uint64_t v = rl_rand_below(&rand, MODEL_N);

			if (rl_rand_below(&rand, 100) == 0) {
				v = rl_rand_below(&rand, MODEL_N / 4);
				rl_ranges_trim(&rs, v);
				memset(in, 0, v);
			} else {
				assert_int_equal(rl_ranges_add(&rs, v), !in[v]);
				in[v] = true;
			}
			check_shape(&rs);
			for (v = 0; v < MODEL_N; v++)
				assert_int_equal(rl_ranges_contain(&rs, v), in[v]);
		}
		assert_int_equal(rs.dropped, 0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_merge),   cmocka_unit_test(test_full),
		cmocka_unit_test(test_largest), cmocka_unit_test(test_trim),
		cmocka_unit_test(test_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
