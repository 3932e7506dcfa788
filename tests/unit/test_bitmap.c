/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pending set against a plain array, and under concurrency.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"

static void
test_init(void **state)
{
	struct rl_bitmap bm;

	(void)state;
	assert_int_equal(rl_bitmap_init(&bm, 0), -EINVAL);
	assert_int_equal(rl_bitmap_init(&bm, (1ull << 40) + 1), -EINVAL);
	assert_int_equal(rl_bitmap_init(&bm, 1), 0);
	assert_int_equal(rl_bitmap_count(&bm), 0);
	assert_true(rl_bitmap_set(&bm, 0));
	assert_false(rl_bitmap_set(&bm, 0));
	assert_true(rl_bitmap_test(&bm, 0));
	assert_int_equal(rl_bitmap_count(&bm), 1);
	rl_bitmap_fini(&bm);
}

/* A bitmap and what it must be equal to. */
struct model {
	struct rl_bitmap bm;
	struct rl_cursor cur[RL_MAX_LANES];
	uint32_t n_lanes;
	uint64_t n_pages, n_set;
	uint8_t *set; /* by page */
	struct rl_rand rand;
};

static void
model_init(struct model *m, uint64_t n_pages, uint32_t n_lanes, uint64_t seed)
{
	assert_int_equal(rl_bitmap_init(&m->bm, n_pages), 0);
	m->n_pages = n_pages;
	m->n_lanes = n_lanes;
	m->n_set = 0;
	m->set = calloc(n_pages, 1);
	assert_non_null(m->set);
	m->rand.state = seed;
	for (uint32_t i = 0; i < n_lanes; i++)
		rl_cursor_init(&m->cur[i], i, n_lanes);
}

static void
model_fini(struct model *m)
{
	free(m->set);
	rl_bitmap_fini(&m->bm);
}

static uint64_t
model_set(struct model *m, uint64_t page)
{
	uint64_t fresh = !m->set[page];

	m->set[page] = 1;
	m->n_set += fresh;
	return fresh;
}

static void
do_set(struct model *m)
{
	uint64_t page = rl_rand_below(&m->rand, m->n_pages);

	assert_int_equal(rl_bitmap_set(&m->bm, page), model_set(m, page));
}

static void
do_set_range(struct model *m)
{
	uint64_t first = rl_rand_below(&m->rand, m->n_pages), fresh = 0;
	uint64_t n = rl_rand_below(&m->rand, rl_min64(m->n_pages - first, 2000) + 1);

	for (uint64_t i = 0; i < n; i++)
		fresh += model_set(m, first + i);
	assert_int_equal(rl_bitmap_set_range(&m->bm, first, n), fresh);
}

/* Bits behind the last one are set as well: they must not get in. */
static void
do_merge(struct model *m)
{
	uint64_t bits[16], fresh = 0, first = rl_rand_below(&m->rand, m->n_pages);
	uint64_t n = rl_rand_below(&m->rand, rl_min64(m->n_pages - first, 64 * 16) + 1);

	for (int i = 0; i < 16; i++)
		bits[i] = rl_rand_next(&m->rand) & rl_rand_next(&m->rand) &
			  (rl_rand_below(&m->rand, 2) ? ~0ull : 0);
	if (n % 64)
		bits[n / 64] |= ~0ull << (n % 64);
	for (uint64_t i = 0; i < n; i++)
		if (bits[i / 64] >> (i % 64) & 1)
			fresh += model_set(m, first + i);
	assert_int_equal(rl_bitmap_merge(&m->bm, first, bits, n), fresh);
}

/* The lane's first set page in [from, to); to when there is none. */
static uint64_t
model_find(const struct model *m, uint32_t lane, uint64_t from, uint64_t to)
{
	while (from < to && !(m->set[from] && from / RL_STRIPE_PAGES % m->n_lanes == lane))
		from++;
	return from;
}

static bool
do_take(struct model *m, uint32_t lane, uint32_t max)
{
	uint64_t at = rl_min64(m->cur[lane].page, m->n_pages), first, n = 0;
	struct rl_run run;
	bool got = rl_bitmap_take_run(&m->bm, &m->cur[lane], max, &run);

	first = model_find(m, lane, at, m->n_pages);
	if (first == m->n_pages) {
		first = model_find(m, lane, 0, at);
		if (first == at) {
			assert_false(got);
			return false;
		}
	}
	while (n < max && first + n < m->n_pages && m->set[first + n] &&
	       (first + n) / RL_STRIPE_PAGES == first / RL_STRIPE_PAGES)
		n++;
	assert_true(got);
	assert_int_equal(run.first, first);
	assert_int_equal(run.n, n);
	memset(m->set + first, 0, n);
	m->n_set -= n;
	return true;
}

static void
model_run(uint64_t n_pages, uint32_t n_lanes, int steps, uint64_t seed)
{
	struct model m;

	model_init(&m, n_pages, n_lanes, seed);
	for (int i = 0; i < steps; i++) {
		switch (rl_rand_below(&m.rand, 16)) {
		case 0:
			do_set_range(&m);
			break;
		case 1:
			do_merge(&m);
			break;
		case 2:
		case 3:
			do_set(&m);
			break;
		default:
			do_take(&m, (uint32_t)rl_rand_below(&m.rand, n_lanes),
				1 + (uint32_t)rl_rand_below(&m.rand, 600));
		}
		assert_int_equal(rl_bitmap_count(&m.bm), m.n_set);
	}
	for (uint32_t lane = 0; lane < n_lanes; lane++)
		while (do_take(&m, lane, 512))
			;
	assert_int_equal(rl_bitmap_count(&m.bm), 0);
	for (uint64_t p = 0; p < n_pages; p++)
		assert_false(rl_bitmap_test(&m.bm, p));
	model_fini(&m);
}

static void
test_model(void **state)
{
	static const uint64_t sizes[] = {1, 63, 64, 511, 512, 513, 1025, 70000, 2 * 64 * 512 + 7};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (uint32_t n_lanes = 1; n_lanes <= RL_MAX_LANES; n_lanes *= 4)
			model_run(sizes[i], n_lanes, sizes[i] > 2000 ? 1000 : 4000,
				  7 * i + n_lanes);
}

/* Several words at every level, few pages: found by the summary levels, in order, each once. */
static void
test_sparse(void **state)
{
	const uint64_t n_pages = 1ull << 27, step = 9999991;
	struct rl_bitmap bm;
	struct rl_cursor cur;
	struct rl_run run;

	(void)state;
	assert_int_equal(rl_bitmap_init(&bm, n_pages), 0);
	assert_true(bm.n_top_words > 1);
	for (int round = 0; round < 3; round++) {
		rl_cursor_init(&cur, 0, 1);
		for (uint64_t p = round; p < n_pages; p += step)
			assert_true(rl_bitmap_set(&bm, p));
		for (uint64_t p = round; p < n_pages; p += step) {
			assert_true(rl_bitmap_take_run(&bm, &cur, 512, &run));
			assert_int_equal(run.first, p);
			assert_int_equal(run.n, 1);
		}
		assert_false(rl_bitmap_take_run(&bm, &cur, 512, &run));
	}
	rl_bitmap_fini(&bm);
}

/*
 * Setters write a page and then set its bit; takers take the bit and then read the page. When all is over, the
 * takers have seen the last write to every page. Few pages per stripe: summary bits go up and down all the time.
 */
#define RACE_PAGES   (96 * RL_STRIPE_PAGES)
#define RACE_LANES   2
#define RACE_SETTERS 2
#define RACE_WRITES  1000000

struct race {
	struct rl_bitmap bm;
	uint32_t written[RACE_PAGES], seen[RACE_PAGES]; /* atomic */
	bool over;                                      /* atomic: the setters are through */
};

struct racer {
	struct race *race;
	uint32_t id;
	uint64_t n_taken, n_wrong;
	pthread_t thread;
};

static void *
race_setter(void *arg)
{
	struct racer *me = arg;
	struct race *race = me->race;
	struct rl_rand rand = {.state = me->id};
	uint64_t bits[2] = {1, 1ull << 63};

	for (int i = 0; i < RACE_WRITES; i++) {
		uint64_t page = rl_rand_below(&rand, RACE_PAGES / 256) * 256;

		switch (rl_rand_below(&rand, 3)) {
		case 0:
			__atomic_fetch_add(&race->written[page], 1, __ATOMIC_RELAXED);
			rl_bitmap_set(&race->bm, page);
			break;
		case 1:
			for (uint32_t k = 0; k < 3; k++)
				__atomic_fetch_add(&race->written[page + k], 1, __ATOMIC_RELAXED);
			rl_bitmap_set_range(&race->bm, page, 3);
			break;
		default:
			__atomic_fetch_add(&race->written[page + 1], 1, __ATOMIC_RELAXED);
			__atomic_fetch_add(&race->written[page + 128], 1, __ATOMIC_RELAXED);
			rl_bitmap_merge(&race->bm, page + 1, bits, 128);
		}
	}
	return NULL;
}

static void *
race_taker(void *arg)
{
	struct racer *me = arg;
	struct race *race = me->race;
	struct rl_cursor cur;
	struct rl_run run;
	bool over;

	rl_cursor_init(&cur, me->id, RACE_LANES);
	do {
		over = __atomic_load_n(&race->over, __ATOMIC_ACQUIRE);
		while (rl_bitmap_take_run(&race->bm, &cur, 2, &run)) {
			me->n_taken += run.n;
			for (uint64_t p = run.first; p < run.first + run.n; p++) {
				uint32_t v = __atomic_load_n(&race->written[p], __ATOMIC_RELAXED);

				__atomic_store_n(&race->seen[p], v, __ATOMIC_RELAXED);
			}
		}
	} while (!over);
	return NULL;
}

static void
test_race(void **state)
{
	struct race *race = calloc(1, sizeof(*race));
	struct racer setter[RACE_SETTERS], taker[RACE_LANES];
	uint64_t n_taken = 0;

	(void)state;
	assert_non_null(race);
	assert_int_equal(rl_bitmap_init(&race->bm, RACE_PAGES), 0);
	for (uint32_t i = 0; i < RACE_LANES; i++) {
		taker[i] = (struct racer){.race = race, .id = i};
		assert_int_equal(pthread_create(&taker[i].thread, NULL, race_taker, &taker[i]), 0);
	}
	for (uint32_t i = 0; i < RACE_SETTERS; i++) {
		setter[i] = (struct racer){.race = race, .id = i};
		assert_int_equal(pthread_create(&setter[i].thread, NULL, race_setter, &setter[i]),
				 0);
	}
	for (uint32_t i = 0; i < RACE_SETTERS; i++)
		pthread_join(setter[i].thread, NULL);
	__atomic_store_n(&race->over, true, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < RACE_LANES; i++) {
		pthread_join(taker[i].thread, NULL);
		n_taken += taker[i].n_taken;
	}
	assert_true(n_taken > 0);
	for (uint64_t p = 0; p < RACE_PAGES; p++) {
		assert_int_equal(race->seen[p], race->written[p]);
		assert_false(rl_bitmap_test(&race->bm, p));
	}
	assert_int_equal(rl_bitmap_count(&race->bm), 0);
	rl_bitmap_fini(&race->bm);
	free(race);
}

/*
 * One page at a time goes from a setter to a taker that never rests, so that the set falls into the moment in
 * which the taker clears the summary bits. No later set covers up for a lost one: after the set returned, the
 * first whole call of take_run must find it.
 */
#define HANDOFF_ROUNDS 500000
#define HANDOFF_NS     (2 * RL_NS_PER_S)

struct handoff {
	struct rl_bitmap bm;
	uint64_t n_taken, n_calls; /* atomic; calls are counted after what they took */
	bool over;                 /* atomic */
};

static void *
handoff_taker(void *arg)
{
	struct handoff *h = arg;
	struct rl_cursor cur;
	struct rl_run run;

	rl_cursor_init(&cur, 0, 1);
	while (!__atomic_load_n(&h->over, __ATOMIC_ACQUIRE)) {
		if (rl_bitmap_take_run(&h->bm, &cur, 1, &run))
			__atomic_fetch_add(&h->n_taken, 1, __ATOMIC_RELEASE);
		__atomic_fetch_add(&h->n_calls, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void
test_handoff(void **state)
{
	struct handoff h = {0};
	struct rl_rand rand = {.state = 1};
	uint64_t n = 0, lost = 0, end_ns = rl_now_ns() + HANDOFF_NS;
	pthread_t thread;

	(void)state;
	assert_int_equal(rl_bitmap_init(&h.bm, 128 * RL_STRIPE_PAGES), 0);
	assert_int_equal(pthread_create(&thread, NULL, handoff_taker, &h), 0);
	while (n < HANDOFF_ROUNDS && lost == 0 && rl_now_ns() < end_ns) {
		uint64_t calls;

		for (uint64_t i = rl_rand_below(&rand, 32); i > 0; i--)
			__builtin_ia32_pause();
		rl_bitmap_set(&h.bm, 100 * RL_STRIPE_PAGES + n % 3);
		n++;
		calls = __atomic_load_n(&h.n_calls, __ATOMIC_ACQUIRE);
		for (uint64_t spin = 1; __atomic_load_n(&h.n_taken, __ATOMIC_ACQUIRE) < n; spin++) {
			/* The call under way and a whole one: neither found it? */
			if (__atomic_load_n(&h.n_calls, __ATOMIC_ACQUIRE) >= calls + 2 &&
			    __atomic_load_n(&h.n_taken, __ATOMIC_ACQUIRE) < n) {
				lost++;
				break;
			}
			if (spin % 1000 == 0)
				sched_yield();
		}
	}
	__atomic_store_n(&h.over, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	assert_int_equal(lost, 0);
	rl_bitmap_fini(&h.bm);
}

/*
 * Two lanes share a stripe word and so a top bit. Each owner sets a page of its own and must find it at once,
 * whatever the other one is clearing.
 */
#define SHARED_ROUNDS 5000000
#define SHARED_NS     (2 * RL_NS_PER_S)

static void *
shared_owner(void *arg)
{
	struct racer *me = arg;
	struct rl_rand rand = {.state = me->id};
	uint64_t page = (64 + me->id) * RL_STRIPE_PAGES, end_ns = rl_now_ns() + SHARED_NS;
	struct rl_cursor cur;
	struct rl_run run;

	rl_cursor_init(&cur, me->id, RACE_LANES);
	for (int i = 0; i < SHARED_ROUNDS && rl_now_ns() < end_ns; i++) {
		for (uint64_t k = rl_rand_below(&rand, 8); k > 0; k--)
			__builtin_ia32_pause();
		cur.page = 0; /* another word, so that the way to the page is by the top level */
		rl_bitmap_set(&me->race->bm, page);
		if (!rl_bitmap_take_run(&me->race->bm, &cur, 1, &run) || run.first != page ||
		    rl_bitmap_take_run(&me->race->bm, &cur, 1, &run)) {
			me->n_wrong++;
			break;
		}
	}
	return NULL;
}

static void
test_shared_top(void **state)
{
	struct race *race = calloc(1, sizeof(*race));
	struct racer owner[RACE_LANES];

	(void)state;
	assert_non_null(race);
	assert_int_equal(rl_bitmap_init(&race->bm, 128 * RL_STRIPE_PAGES), 0);
	for (uint32_t i = 0; i < RACE_LANES; i++) {
		owner[i] = (struct racer){.race = race, .id = i};
		assert_int_equal(pthread_create(&owner[i].thread, NULL, shared_owner, &owner[i]),
				 0);
	}
	for (uint32_t i = 0; i < RACE_LANES; i++)
		pthread_join(owner[i].thread, NULL);
	for (uint32_t i = 0; i < RACE_LANES; i++)
		assert_int_equal(owner[i].n_wrong, 0);
	rl_bitmap_fini(&race->bm);
	free(race);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init),    cmocka_unit_test(test_model),
		cmocka_unit_test(test_sparse),  cmocka_unit_test(test_race),
		cmocka_unit_test(test_handoff), cmocka_unit_test(test_shared_top),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
