/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The replay window against a set that forgets nothing: nothing is ever new twice, and whatever is inside
 * the window and was not seen is new.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rand.h"
#include "crypto/replay.h"

static struct rl_replay r;

static void
see(uint64_t pn)
{
	assert_true(rl_replay_is_new(&r, pn));
	rl_replay_note(&r, pn);
	assert_false(rl_replay_is_new(&r, pn));
}

static void
test_edges(void **state)
{
	const uint64_t w = RL_REPLAY_WINDOW;

	(void)state;
	memset(&r, 0, sizeof(r));
	see(0);
	see(w); /* 0 has just left the window, 1 has not */
	assert_false(rl_replay_is_new(&r, 0));
	see(1);
	see(w - 1);
	see(w + 1);
	assert_false(rl_replay_is_new(&r, 1));
	see(2);

	/* A jump of laps: everything before is gone, everything after is new. */
	see(10 * w + 5);
	assert_false(rl_replay_is_new(&r, 9 * w + 5));
	for (uint64_t pn = 9 * w + 6; pn < 10 * w + 5; pn++)
		see(pn);
	for (uint64_t pn = 9 * w; pn <= 10 * w + 5; pn++)
		assert_false(rl_replay_is_new(&r, pn));

	/* The end of the numbers. */
	assert_false(rl_replay_is_new(&r, UINT64_MAX));
	see(UINT64_MAX - 1);
	assert_false(rl_replay_is_new(&r, UINT64_MAX));
	see(UINT64_MAX - w);
	assert_false(rl_replay_is_new(&r, UINT64_MAX - w - 1));
}

/* Jumps of every length around words, laps and their multiples. */
static void
test_jumps(void **state)
{
	static const uint64_t jumps[] = {1,     2,     63,    64,     65,     127,   128,   129,
					 4095,  65407, 65408, 65471,  65472,  65473, 65535, 65536,
					 65537, 65600, 70000, 131071, 131072, 131073};
	const size_t n = sizeof(jumps) / sizeof(jumps[0]);

	(void)state;
	for (uint64_t start = 0; start < 200; start += 7)
		for (size_t i = 0; i < n * n; i++) {
			uint64_t a = start + jumps[i / n], b = a + jumps[i % n];

			memset(&r, 0, sizeof(r));
			see(start);
			see(a);
			see(b);
			assert_false(rl_replay_is_new(&r, start));
			assert_false(rl_replay_is_new(&r, a));
			if (b - a > 1)
				see(b - 1);
			assert_int_equal(rl_replay_is_new(&r, a + 1),
					 b - a > 2 && b - a <= RL_REPLAY_WINDOW);
		}
}

/* A random walk of more than 20 laps with reordering, replays and holes. */
static void
test_model(void **state)
{
	const uint64_t n = 24 * RL_REPLAY_BITS;
	uint8_t *seen = calloc(n, 1);
	struct rl_rand rnd = {11};
	uint64_t top = 0, fresh = 0, refused = 0;

	(void)state;
	assert_non_null(seen);
	memset(&r, 0, sizeof(r));
	while (top < n - 2 * RL_REPLAY_BITS) {
		uint64_t kind = rl_rand_next(&rnd) % 100000, pn, back;

		if (kind == 0)
			pn = top + rl_rand_next(&rnd) % (2 * RL_REPLAY_BITS);
		else if (kind < 60000)
			pn = top + rl_rand_next(&rnd) % 4;
		else {
			back = rl_rand_next(&rnd) % (kind < 90000 ? 200 : RL_REPLAY_BITS + 500);
			pn = top > back ? top - back : 0;
		}
		if (!rl_replay_is_new(&r, pn)) {
			assert_true(seen[pn] || top - pn > RL_REPLAY_WINDOW);
			refused++;
			continue;
		}
		assert_false(seen[pn]);
		rl_replay_note(&r, pn);
		seen[pn] = 1;
		fresh++;
		if (pn >= top)
			top = pn + 1;
	}
	assert_true(fresh > 100000 && refused > 100000);
	free(seen);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_jumps),
		cmocka_unit_test(test_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
