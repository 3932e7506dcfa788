/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sender: each rule by itself; time is moved by hand. Section numbers are those of RFC 9002. Both halves of
 * a lane over a lossy link: test_receiver.c.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "transport/receiver.h"
#include "transport/sender.h"

#define US     RL_NS_PER_US
#define MS     RL_NS_PER_MS
#define S      RL_NS_PER_S

#define PACKET 1000u /* bytes */

struct fix {
	struct rl_sender s;
	uint64_t now_ns;
	uint32_t n_lost;
	struct rl_run lost[4096]; /* runs handed back, in order */
};

static void
fix_lost(void *ctx, const struct rl_run *run)
{
	struct fix *f = ctx;

	assert_in_range(f->n_lost, 0, 4095);
	f->lost[f->n_lost++] = *run;
}

static void
fix_init(struct fix *f, uint32_t map_packets, uint32_t map_runs, uint32_t credit)
{
	const struct rl_sender_opts opts = {
		.map_packets = map_packets,
		.map_runs = map_runs,
		.credit = credit,
		.packet_bytes = PACKET,
		.cc = &rl_cc_fixed,
		.lost = fix_lost,
		.lost_ctx = f,
	};

	memset(f, 0, sizeof(*f));
	f->now_ns = 1000 * S;
	assert_int_equal(rl_sender_init(&f->s, &opts), 0);
}

static int
setup(void **state)
{
	static struct fix f;

	fix_init(&f, 0, 0, 10000);
	*state = &f;
	return 0;
}

static int
teardown(void **state)
{
	struct fix *f = *state;
	const struct rl_sender_stats *st = &f->s.st;

	assert_int_equal(st->packets, st->acked + st->lost + st->refused + st->in_flight);
	assert_int_equal(st->in_flight, rl_sender_in_flight(&f->s));
	rl_sender_fini(&f->s);
	return 0;
}

/* Packet number N carries page 10 * N. */
static void
send(struct fix *f, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		rl_sender_begin(&f->s);
		rl_sender_carry(&f->s, rl_sender_next_pn(&f->s) * 10, 1);
		rl_sender_commit(&f->s, PACKET, f->now_ns);
	}
}

static void
probe(struct fix *f)
{
	rl_sender_begin(&f->s);
	rl_sender_commit(&f->s, 40, f->now_ns);
}

/* Acknowledge [start, end). */
static uint32_t
ack_delayed(struct fix *f, uint64_t start, uint64_t end, uint64_t delay_ns)
{
	const struct rl_acked_range range = {start, end};
	const struct rl_acked ack = {
		.largest = end - 1, .delay_ns = delay_ns, .credit = 10000, .n = 1, .range = &range};

	return rl_sender_on_ack(&f->s, &ack, f->now_ns);
}

static uint32_t
ack(struct fix *f, uint64_t start, uint64_t end)
{
	return ack_delayed(f, start, end, 0);
}

static void
test_init_refuses(void **state)
{
	struct rl_sender s;
	struct rl_sender_opts opts = {.map_packets = 100, .credit = 10, .lost = fix_lost};

	(void)state;
	assert_int_equal(rl_sender_init(&s, &opts), -EINVAL);
	opts = (struct rl_sender_opts){.map_runs = 256, .credit = 10, .lost = fix_lost};
	assert_int_equal(rl_sender_init(&s, &opts), -EINVAL);
	opts = (struct rl_sender_opts){.credit = 10};
	assert_int_equal(rl_sender_init(&s, &opts), -EINVAL);
}

static void
test_runs_merge(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;

	rl_sender_begin(s);
	assert_int_equal(rl_sender_runs_left(s), RL_SENDER_MAX_RUNS);
	rl_sender_carry(s, 100, 2);
	rl_sender_carry(s, 102, 3);
	rl_sender_carry(s, 104, 1); /* another fragment of the last page */
	assert_int_equal(rl_sender_runs_left(s), RL_SENDER_MAX_RUNS - 1);
	rl_sender_carry(s, 99, 1);
	rl_sender_carry(s, 1ull << 39, UINT32_MAX);
	rl_sender_carry(s, (1ull << 39) + UINT32_MAX, 1); /* n has no room for it */
	assert_int_equal(rl_sender_runs_left(s), RL_SENDER_MAX_RUNS - 4);
	rl_sender_commit(s, PACKET, f->now_ns);
	rl_sender_refused(s, 1);
	assert_int_equal(f->n_lost, 4);
	assert_int_equal(f->lost[0].first, 100);
	assert_int_equal(f->lost[0].n, 5);
	assert_int_equal(f->lost[1].first, 99);
	assert_int_equal(f->lost[1].n, 1);
	assert_int_equal(f->lost[2].n, UINT32_MAX);
	assert_int_equal(f->lost[3].n, 1);
}

static void
test_begin_forgets_what_was_not_committed(void **state)
{
	struct fix *f = *state;

	rl_sender_begin(&f->s);
	rl_sender_carry(&f->s, 7, 1);
	send(f, 1);
	rl_sender_refused(&f->s, 1);
	assert_int_equal(f->n_lost, 1);
	assert_int_equal(f->lost[0].first, 0);
}

static void
test_room(void **state)
{
	struct fix f;

	(void)state;
	fix_init(&f, 1024, 0, 100); /* credit */
	assert_int_equal(rl_sender_room(&f.s), 100);
	send(&f, 100);
	assert_int_equal(rl_sender_room(&f.s), 0);
	assert_int_equal(ack(&f, 0, 40), 40);
	assert_int_equal(rl_sender_room(&f.s),
			 RL_FIXED_INITIAL_PACKETS - 60); /* its credit is 10000 */
	rl_sender_fini(&f.s);

	fix_init(&f, 64, 0, 1000); /* map; a peer's credit does not change that */
	send(&f, 64);
	assert_int_equal(rl_sender_room(&f.s), 0);
	assert_int_equal(ack(&f, 1, 3), 2); /* the hole keeps its place and the places after it */
	assert_int_equal(f.s.st.window, 64);
	assert_int_equal(rl_sender_room(&f.s), 0);
	assert_int_equal(ack(&f, 0, 1), 1);
	assert_int_equal(rl_sender_room(&f.s), 3);
	rl_sender_fini(&f.s);

	fix_init(&f, 1024, 4096, 1000); /* runs, each packet at its worst */
	assert_int_equal(rl_sender_room(&f.s), 8);
	for (int i = 0; i < 8; i++) {
		rl_sender_begin(&f.s);
		for (uint64_t page = 0; rl_sender_runs_left(&f.s) > 0; page += 2)
			rl_sender_carry(&f.s, page, 1);
		rl_sender_commit(&f.s, PACKET, f.now_ns);
		assert_int_equal(rl_sender_room(&f.s), 7 - i);
	}
	assert_int_equal(ack(&f, 1, 3), 2); /* runs are freed in order, too */
	assert_int_equal(rl_sender_room(&f.s), 0);
	assert_int_equal(ack(&f, 0, 1), 1);
	assert_int_equal(rl_sender_room(&f.s), 3);
	rl_sender_fini(&f.s);
}

static void
test_refused(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;
	uint32_t window = rl_sender_room(s);

	send(f, 10);
	rl_sender_refused(s, 4);
	assert_int_equal(f->n_lost, 4);
	assert_int_equal(f->lost[0].first, 60);
	assert_int_equal(f->lost[3].first, 90);
	assert_int_equal(rl_sender_in_flight(s), 6);
	assert_int_equal(rl_sender_next_pn(s), 10); /* a number is used once */
	assert_int_equal(rl_sender_room(s), window - 6);

	send(f, 5); /* 10..14 */
	f->now_ns += 50 * US;
	/* 0..5 are lost; the refused are neither lost again nor acknowledged by one who claims so. */
	assert_int_equal(ack(f, 6, 15), 5);
	assert_int_equal(f->n_lost, 10);
	assert_int_equal(f->lost[4].first, 0);
	assert_int_equal(f->lost[9].first, 50);
	assert_int_equal(rl_sender_floor(s), 15);
	assert_int_equal(s->st.lost, 6);
	assert_int_equal(s->st.refused, 4);

	send(f, 3); /* all of a burst, with nothing else in flight */
	rl_sender_refused(s, 3);
	assert_int_equal(rl_sender_in_flight(s), 0);
	assert_int_equal(rl_sender_floor(s), rl_sender_next_pn(s));
	assert_true(rl_sender_timer_ns(s) == UINT64_MAX);
	assert_false(s->cc.fixed.reduced);
}

static void
test_ack_counts_once(void **state)
{
	struct fix *f = *state;

	send(f, 10);
	assert_int_equal(ack(f, 0, 4), 4);
	assert_int_equal(ack(f, 0, 4), 0);
	assert_int_equal(ack(f, 0, 6), 2);
	assert_int_equal(f->s.st.acked_bytes, 6 * PACKET);
	assert_int_equal(rl_sender_in_flight(&f->s), 4);
	assert_int_equal(rl_sender_floor(&f->s), 6);
	assert_int_equal(ack(f, 6, 10), 4);
	assert_true(rl_sender_timer_ns(&f->s) == UINT64_MAX);
	assert_int_equal(f->n_lost, 0);
}

static void
test_packet_threshold(void **state) /* 6.1.1 */
{
	struct fix *f = *state;

	send(f, 5);
	f->now_ns += 50 * US;
	ack(f, 1, 3); /* 2 is not three above 0 */
	assert_int_equal(f->n_lost, 0);
	ack(f, 1, 4);
	assert_int_equal(f->n_lost, 1);
	assert_int_equal(f->lost[0].first, 0);
	assert_int_equal(rl_sender_floor(&f->s), 4);
	assert_int_equal(rl_sender_in_flight(&f->s), 1); /* 4 was sent later: not lost */
}

static void
test_time_threshold(void **state) /* 6.1.2 */
{
	struct fix *f = *state;
	uint64_t sent_ns = f->now_ns;

	send(f, 2);
	f->now_ns += 800 * US;
	ack(f, 1, 2);
	assert_true(rl_sender_timer_ns(&f->s) == sent_ns + 900 * US);
	assert_false(rl_sender_on_time(&f->s, sent_ns + 900 * US - 1));
	assert_int_equal(f->n_lost, 0);
	assert_false(rl_sender_on_time(&f->s, sent_ns + 900 * US));
	assert_int_equal(f->n_lost, 1);
	assert_int_equal(f->s.st.ptos, 0);
	assert_true(rl_sender_timer_ns(&f->s) == UINT64_MAX);
}

static void
test_granularity(void **state)
{
	struct fix *f = *state;
	uint64_t sent_ns = f->now_ns;

	send(f, 2);
	f->now_ns += 10 * US;
	ack(f, 1, 2);
	assert_true(rl_sender_timer_ns(&f->s) == sent_ns + 100 * US);
}

static void
test_rtt(void **state) /* 5.1 to 5.3 */
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;

	assert_int_equal(s->st.srtt_ns, 0);
	send(f, 1);
	f->now_ns += 1000 * US;
	ack_delayed(f, 0, 1, 200 * US); /* the first sample counts whole */
	assert_int_equal(s->srtt_ns, 1000 * US);
	assert_int_equal(s->rttvar_ns, 500 * US);
	assert_int_equal(s->st.srtt_ns, 1000 * US);

	send(f, 1);
	f->now_ns += 2000 * US;
	ack_delayed(f, 1, 2, 200 * US); /* 1800 us after the delay */
	assert_int_equal(s->latest_rtt_ns, 2000 * US);
	assert_int_equal(s->min_rtt_ns, 1000 * US);
	assert_int_equal(s->rttvar_ns, (3 * 500 * US + 800 * US) / 4);
	assert_int_equal(s->srtt_ns, (7 * 1000 * US + 1800 * US) / 8);

	send(f, 1);
	f->now_ns += 1000 * US;
	ack_delayed(f, 2, 3, 200 * US); /* would fall below min_rtt: not subtracted */
	assert_int_equal(s->srtt_ns, (7 * 1100 * US + 1000 * US) / 8);

	send(f, 1);
	uint64_t before = s->srtt_ns;

	f->now_ns += 3000 * US;
	ack_delayed(f, 3, 4, 1 * S); /* believed up to RL_ACK_DELAY_NS */
	assert_int_equal(s->srtt_ns, (7 * before + 3000 * US - RL_ACK_DELAY_NS) / 8);
}

static void
test_rtt_only_from_new_largest(void **state)
{
	struct fix *f = *state;

	send(f, 3);
	f->now_ns += 500 * US;
	ack(f, 2, 3);
	assert_int_equal(f->s.srtt_ns, 500 * US);
	f->now_ns += 20 * US;
	assert_int_equal(ack(f, 0, 3), 2); /* 2 was known: no sample */
	assert_int_equal(f->s.latest_rtt_ns, 500 * US);
}

static void
test_pto(void **state) /* 6.2 */
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;
	uint64_t pto_ns = 300 * MS + RL_ACK_DELAY_NS; /* no sample: 100 + 4 * 50 */

	assert_true(rl_sender_timer_ns(s) == UINT64_MAX); /* nothing in flight */
	assert_false(rl_sender_on_time(s, f->now_ns + 100 * S));
	send(f, 2);
	for (int i = 0; i < 5; i++) {
		uint64_t want_ns = f->now_ns + rl_min64(pto_ns << i, 1 * S);

		assert_true(rl_sender_timer_ns(s) == want_ns);
		assert_false(rl_sender_on_time(s, want_ns - 1));
		f->now_ns = want_ns;
		assert_true(rl_sender_on_time(s, want_ns));
		probe(f);
		assert_false(rl_sender_on_time(s, want_ns)); /* one probe each time */
	}
	assert_int_equal(f->n_lost, 0);
	assert_int_equal(s->st.ptos, 5);

	f->now_ns += 100 * US;
	ack(f, 0, 7);
	assert_int_equal(s->pto_count, 0);
	send(f, 1); /* 100 + 4 * 50 + 250 us: too short for a worker that sleeps */
	assert_true(rl_sender_timer_ns(s) == f->now_ns + 1 * MS);
}

static void
test_pto_of_a_slow_path(void **state)
{
	struct fix *f = *state;

	send(f, 1);
	f->now_ns += 2 * S;
	ack(f, 0, 1);
	send(f, 1);
	for (int i = 0; i < 3; i++) { /* 2 + 4 * 1: above the ceiling, so it stays */
		assert_true(rl_sender_timer_ns(&f->s) == f->now_ns + 6 * S + RL_ACK_DELAY_NS);
		f->now_ns = rl_sender_timer_ns(&f->s);
		assert_true(rl_sender_on_time(&f->s, f->now_ns));
		probe(f);
	}
}

static void
test_probe_that_was_not_sent(void **state)
{
	struct fix *f = *state;

	send(f, 1);
	f->now_ns = rl_sender_timer_ns(&f->s);
	assert_true(rl_sender_on_time(&f->s, f->now_ns)); /* and the NIC refuses */
	assert_false(rl_sender_on_time(&f->s, f->now_ns));
	assert_in_range(rl_sender_timer_ns(&f->s), f->now_ns + 1, f->now_ns + 1 * S);
}

static void
test_one_probe_recovers_a_lost_window(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;
	uint32_t window = rl_sender_room(s);

	send(f, window);
	assert_int_equal(rl_sender_room(s), 0);
	f->now_ns = rl_sender_timer_ns(s);
	assert_true(rl_sender_on_time(s, f->now_ns));
	probe(f);
	f->now_ns += 200 * US;
	assert_int_equal(ack(f, window, window + 1), 1);
	assert_int_equal(f->n_lost, window);
	for (uint32_t i = 0; i < window; i++)
		assert_int_equal(f->lost[i].first, i * 10);
	assert_int_equal(rl_sender_in_flight(s), 0);
	assert_true(rl_sender_room(s) > 0);
	assert_true(s->cc.fixed.reduced); /* a whole window is congestion */
}

static void
test_full_map_leaves_a_place_for_the_probe(void **state)
{
	struct fix f;

	(void)state;
	fix_init(&f, 64, 0, 64);
	send(&f, 64);
	for (uint64_t i = 0; i < 5; i++) {
		f.now_ns = rl_sender_timer_ns(&f.s);
		assert_true(rl_sender_on_time(&f.s, f.now_ns));
		assert_int_equal(f.n_lost, i + 1);
		assert_int_equal(f.lost[i].first, i * 10);
		probe(&f);
		assert_int_equal(rl_sender_in_flight(&f.s), 64);
	}
	assert_int_equal(ack(&f, 68, 69), 1);
	assert_int_equal(f.n_lost, 64);
	rl_sender_fini(&f.s);
}

/* The places that packets 0.. had in the map belong to newer ones: an old ACK must not touch those. */
static void
test_old_ack_after_a_lap(void **state)
{
	struct fix f;

	(void)state;
	fix_init(&f, 64, 0, 64);
	send(&f, 64);
	f.now_ns += 50 * US;
	assert_int_equal(ack(&f, 4, 64), 60); /* 0..3 are lost, so an ACK looks back */
	send(&f, 10);
	assert_int_equal(ack(&f, 0, 60), 0);
	assert_int_equal(rl_sender_in_flight(&f.s), 10);
	assert_int_equal(f.s.st.spurious, 0);
	rl_sender_fini(&f.s);
}

static void
test_spurious_loss_raises_threshold(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;

	send(f, 8);
	f->now_ns += 50 * US;
	ack(f, 3, 8);
	assert_int_equal(s->st.lost, 3);
	assert_int_equal(ack(f, 0, 8),
			 0); /* late, not lost; their pages were handed back already */
	assert_int_equal(s->st.spurious, 3);
	assert_int_equal(s->st.acked, 5);
	assert_int_equal(s->packet_threshold, 6);
	assert_int_equal(ack(f, 0, 8), 0);
	assert_int_equal(s->st.spurious, 3);

	send(f, 8); /* 8..15: five late ones are no loss any more */
	ack(f, 13, 14);
	assert_int_equal(s->st.lost, 3);
	ack(f, 13, 15);
	assert_int_equal(s->st.lost, 4);

	for (int i = 0; i < 20; i++) { /* beyond a bound time alone tells */
		uint64_t pn = rl_sender_next_pn(s);

		f->n_lost = 0;
		send(f, 1500);
		ack(f, pn + 1499, pn + 1500);
		ack(f, pn + 400, pn + 1500);
	}
	assert_int_equal(s->packet_threshold, s->map_packets);
}

/* RFC 8985 6.2: wait as long as it took, and a quarter more; never less again until it is forgotten. */
static void
test_spurious_loss_lengthens_delay(void **state)
{
	static const uint64_t late_us[] = {40, 400, 200}, wait_us[] = {100, 500, 500};
	struct fix *f = *state;
	struct rl_sender *s = &f->s;

	for (int i = 0; i < 3; i++) {
		uint64_t pn = rl_sender_next_pn(s), sent_ns;

		s->packet_threshold = 3;
		send(f, 100);
		f->now_ns += 800 * US;
		ack(f, pn + 99, pn + 100);
		f->now_ns += late_us[i] * US;
		ack(f, pn, pn + 100);
		send(f, 2);
		sent_ns = f->now_ns;
		f->now_ns += 800 * US;
		ack(f, pn + 101, pn + 102);
		assert_true(rl_sender_timer_ns(s) == sent_ns + 800 * US + wait_us[i] * US);
		ack(f, pn + 100, pn + 102);
	}
}

static void
test_reordering_is_forgotten(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;

	send(f, 100);
	f->now_ns += 800 * US;
	ack(f, 99, 100);
	f->now_ns += 400 * US;
	ack(f, 0, 100);
	assert_int_equal(s->packet_threshold, 6);
	for (int i = 0; i < 17; i++) { /* episodes of real loss */
		uint64_t pn = rl_sender_next_pn(s);

		assert_int_equal(s->packet_threshold, 6);
		assert_true(s->reorder_ns == 500 * US);
		send(f, 10);
		f->now_ns += 800 * US;
		ack(f, pn + 1, pn + 10);
	}
	assert_int_equal(s->packet_threshold, 3);
	assert_true(s->reorder_ns == 0);
}

static void
test_spurious_loss_undoes_the_reduction(void **state)
{
	struct fix *f = *state;
	struct rl_sender *s = &f->s;
	uint64_t cwnd = s->cc.cwnd;

	rl_sender_fini(s);
	fix_init(f, 0, 0, 10000);
	send(f, 200);
	f->now_ns += 100 * US;
	ack(f, 100, 200); /* half of it, so it seems */
	assert_true(s->cc.fixed.reduced);
	assert_true(s->cc.cwnd < cwnd);
	ack(f, 50, 200);
	assert_true(s->cc.cwnd < cwnd); /* the rest may be lost for good */
	ack(f, 0, 200);
	assert_true(s->cc.cwnd == cwnd);
	assert_int_equal(s->st.spurious, 100);
	assert_int_equal(s->rate.lost, 0);
	assert_int_equal(s->rate.delivered, 200 * PACKET);
}

static void
test_receivers_floor(void **state)
{
	struct fix *f = *state;
	const struct rl_acked_range range = {0, 4};
	const struct rl_acked a = {
		.largest = 3, .floor = 2, .credit = 100, .n = 1, .range = &range};

	send(f, 4);
	assert_int_equal(rl_sender_on_ack(&f->s, &a, f->now_ns), 2); /* below 2 it says nothing */
	assert_int_equal(f->lost[0].first, 0);
	assert_int_equal(f->n_lost, 1);
	assert_int_equal(rl_sender_floor(&f->s), 1);
}

static void
test_bad_acks(void **state)
{
	static const struct rl_acked_range bad[][2] = {
		{{5, 11}, {0, 1}}, /* never sent */
		{{5, 5}, {0, 1}},  /* empty */
		{{5, 4}, {0, 1}},  /* backwards */
		{{5, 8}, {4, 6}},  /* overlap */
		{{2, 3}, {5, 6}},  /* ascending */
	};
	struct fix *f = *state;
	struct rl_acked a = {.credit = 1, .n = 2};
	struct rl_acked_range good[2] = {{5, 8}, {4, 5}}; /* touching is odd, but fine */

	send(f, 10);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		a.range = bad[i];
		a.largest = bad[i][0].end - 1;
		assert_int_equal(rl_sender_on_ack(&f->s, &a, f->now_ns), 0);
		assert_int_equal(f->s.st.bad_acks, i + 1);
	}
	a.range = good;
	a.largest = 9;
	assert_int_equal(rl_sender_on_ack(&f->s, &a, f->now_ns), 0);
	assert_int_equal(f->s.st.bad_acks, 6);
	assert_int_equal(rl_sender_in_flight(&f->s), 10);
	assert_int_equal(f->s.st.window,
			 RL_FIXED_INITIAL_PACKETS); /* not even the credit counted */
	a.largest = 7;
	assert_int_equal(rl_sender_on_ack(&f->s, &a, f->now_ns), 4);
	assert_int_equal(f->s.st.window, 1);
}

static void
test_map_goes_round(void **state)
{
	struct fix f;

	(void)state;
	fix_init(&f, 64, 1024, 64);
	for (uint64_t lap = 0; lap < 1000; lap++) {
		uint64_t pn = rl_sender_next_pn(&f.s);

		f.n_lost = 0;
		send(&f, rl_sender_room(&f.s));
		f.now_ns += 10 * US;
		ack(&f, pn + 1, rl_sender_next_pn(&f.s));
		if (lap % 2) /* and then it was only late */
			ack(&f, pn, rl_sender_next_pn(&f.s));
		f.now_ns += 10 * MS;
		rl_sender_on_time(&f.s, f.now_ns);
		assert_int_equal(rl_sender_in_flight(&f.s), 0);
		assert_true(f.n_lost <= 1);
		if (f.n_lost)
			assert_int_equal(f.lost[0].first, pn * 10);
	}
	rl_sender_fini(&f.s);
}

/*
 * The work that an ACK costs must not grow with the window: 20000 packets in flight, 1 % lost, an ACK for
 * every 16, as the real receiver builds them. Timing is printed and decides nothing; what bounds the work
 * is that the oldest packet waited for stays close behind the largest acknowledged.
 */
enum { FLIGHT = 20000, BATCH = 16, BATCHES = 40000 };

static bool
is_dropped(uint64_t pn)
{
	return pn * 0x9e3779b97f4a7c15ull >> 32 < UINT32_MAX / 100;
}

static uint32_t
build_ack(const struct rl_receiver *rx, struct rl_acked *a, struct rl_acked_range *range)
{
	*a = (struct rl_acked){
		.largest = rx->largest, .floor = rx->floor, .credit = 2 * FLIGHT, .range = range};
	while (a->n < 64 && a->n < rx->got.n) {
		const struct rl_range *r = &rx->got.r[rx->got.n - 1 - a->n];

		range[a->n++] = (struct rl_acked_range){r->start, r->end};
	}
	return a->n;
}

static void
run_cost(struct fix *f, const char *what)
{
	static struct rl_receiver rx;
	struct rl_acked_range range[64];
	struct rl_acked a;
	uint64_t busy_ns = 0, pn = 0;

	rl_receiver_init(&rx);
	for (uint32_t i = 0; i < BATCHES; i++) {
		uint64_t start_ns = rl_now_ns();

		send(f, BATCH);
		busy_ns += rl_now_ns() - start_ns;
		f->now_ns += 4 * US;
		f->n_lost = 0;
		if (rl_sender_next_pn(&f->s) <= FLIGHT)
			continue;

		for (uint32_t k = 0; k < BATCH; k++, pn++) {
			if (!is_dropped(pn))
				rl_receiver_add(&rx, pn, false, f->now_ns);
		}
		/* The floor comes with the packet, half a round trip old. */
		rl_receiver_floor(&rx, pn > FLIGHT / 2 ? pn - FLIGHT / 2 : 0);
		if (!build_ack(&rx, &a, range))
			continue;
		start_ns = rl_now_ns();
		rl_sender_on_ack(&f->s, &a, f->now_ns);
		busy_ns += rl_now_ns() - start_ns;
		assert_true(f->s.largest_acked < f->s.oldest_pn + f->s.packet_threshold);
	}
	assert_in_range(rl_sender_in_flight(&f->s), FLIGHT - BATCH, FLIGHT + 1024);
	assert_in_range(f->s.st.lost, BATCHES * BATCH / 150, BATCHES * BATCH / 90);
	print_message("             %s: %.0f ns per packet sent and acknowledged\n", what,
		      (double)busy_ns / ((double)BATCHES * BATCH));
}

static void
test_cost_of_acks(void **state)
{
	struct fix *f = *state;

	run_cost(f, "packet threshold 3");
	teardown(state);
	fix_init(f, 0, 0, 10000);
	f->s.packet_threshold = 1024;
	run_cost(f, "packet threshold 1024");
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init_refuses),
		TEST(test_runs_merge),
		TEST(test_begin_forgets_what_was_not_committed),
		cmocka_unit_test(test_room),
		TEST(test_refused),
		TEST(test_ack_counts_once),
		TEST(test_packet_threshold),
		TEST(test_time_threshold),
		TEST(test_granularity),
		TEST(test_rtt),
		TEST(test_rtt_only_from_new_largest),
		TEST(test_pto),
		TEST(test_pto_of_a_slow_path),
		TEST(test_probe_that_was_not_sent),
		TEST(test_one_probe_recovers_a_lost_window),
		cmocka_unit_test(test_full_map_leaves_a_place_for_the_probe),
		cmocka_unit_test(test_old_ack_after_a_lap),
		TEST(test_spurious_loss_raises_threshold),
		TEST(test_spurious_loss_lengthens_delay),
		TEST(test_reordering_is_forgotten),
		TEST(test_spurious_loss_undoes_the_reduction),
		TEST(test_receivers_floor),
		TEST(test_bad_acks),
		cmocka_unit_test(test_map_goes_round),
		TEST(test_cost_of_acks),
	};

	return cmocka_run_group_tests_name("sender", tests, NULL, NULL);
}
