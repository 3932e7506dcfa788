/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiver: what is new, when an ACK is due, the floor; then both halves of a lane over a lossy link.
 * Time is virtual and moved by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"
#include "transport/receiver.h"
#include "transport/sender.h"

static uint64_t now_ns;

static int
setup(void **state)
{
	static struct rl_receiver r;

	now_ns = 1000000000;
	rl_receiver_init(&r);
	*state = &r;
	return 0;
}

static void
add(struct rl_receiver *r, uint64_t first, uint32_t n)
{
	for (uint64_t pn = first; pn < first + n; pn++) {
		assert_true(rl_receiver_is_new(r, pn));
		rl_receiver_add(r, pn, false, now_ns);
	}
}

static void
test_nothing_to_say(void **state)
{
	struct rl_receiver *r = *state;

	assert_false(rl_receiver_ack_due(r, now_ns));
	assert_true(rl_receiver_timer_ns(r) == UINT64_MAX);
}

static void
test_due_after_packets(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, RL_ACK_PACKETS - 1);
	assert_false(rl_receiver_ack_due(r, now_ns));
	add(r, RL_ACK_PACKETS - 1, 1);
	assert_true(rl_receiver_ack_due(r, now_ns));
	assert_int_equal(rl_receiver_acked(r, now_ns), 0);
	assert_false(rl_receiver_ack_due(r, now_ns + 10 * RL_ACK_DELAY_NS));
	assert_int_equal(r->st.packets, RL_ACK_PACKETS);
	assert_int_equal(r->st.acks, 1);
}

static void
test_due_after_delay(void **state)
{
	struct rl_receiver *r = *state;
	uint64_t first_ns = now_ns;

	add(r, 0, 1);
	now_ns += 100000;
	add(r, 1, 1); /* does not put it off */
	assert_true(rl_receiver_timer_ns(r) == first_ns + RL_ACK_DELAY_NS);
	assert_false(rl_receiver_ack_due(r, first_ns + RL_ACK_DELAY_NS - 1));
	assert_true(rl_receiver_ack_due(r, first_ns + RL_ACK_DELAY_NS));
	/* The delay counts from the largest. */
	assert_int_equal(rl_receiver_acked(r, first_ns + RL_ACK_DELAY_NS),
			 RL_ACK_DELAY_NS - 100000);
	assert_true(rl_receiver_timer_ns(r) == UINT64_MAX);
}

static void
test_due_when_asked(void **state)
{
	struct rl_receiver *r = *state;

	rl_receiver_add(r, 0, true, now_ns);
	assert_true(rl_receiver_ack_due(r, now_ns));
}

static void
test_due_when_hole_opens(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, 3);
	assert_false(rl_receiver_ack_due(r, now_ns));
	add(r, 4, 1);
	assert_true(rl_receiver_ack_due(r, now_ns));
	rl_receiver_acked(r, now_ns);
	add(r, 5, 5); /* the hole is known by now */
	assert_false(rl_receiver_ack_due(r, now_ns));
	add(r, 3, 1); /* late */
	assert_true(rl_receiver_ack_due(r, now_ns));
	assert_int_equal(r->got.n, 1);
	assert_int_equal(r->largest, 9);
}

static void
test_first_packet_missing(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 1, 1);
	assert_true(rl_receiver_ack_due(r, now_ns));
}

static void
test_duplicates_ask_again(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, 4);
	rl_receiver_acked(r, now_ns);
	assert_false(rl_receiver_is_new(r, 2));
	assert_int_equal(r->st.duplicates, 1);
	assert_int_equal(r->st.packets, 4);
	assert_true(rl_receiver_ack_due(r, now_ns));
}

static void
test_floor(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, 4);
	add(r, 6, 4);
	rl_receiver_acked(r, now_ns);
	rl_receiver_floor(r, 5);
	assert_int_equal(r->got.n, 1);
	assert_int_equal(r->got.r[0].start, 6);
	assert_false(rl_receiver_is_new(r, 2));
	assert_false(rl_receiver_is_new(r, 4)); /* never came, nobody waits for it */
	assert_int_equal(r->st.stale, 2);
	assert_true(rl_receiver_is_new(r, 5));
	assert_true(rl_receiver_ack_due(r, now_ns));

	rl_receiver_floor(r, 3); /* never down again */
	assert_int_equal(r->floor, 5);
}

static void
test_floor_above_everything(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, 4);
	rl_receiver_floor(r, 20);
	assert_int_equal(r->got.n, 0);
	assert_false(rl_receiver_is_new(r, 2)); /* asks, but there is nothing an ACK could say */
	assert_false(rl_receiver_ack_due(r, now_ns + RL_ACK_DELAY_NS));
	assert_true(rl_receiver_timer_ns(r) == UINT64_MAX);
	rl_receiver_acked(r, now_ns);

	add(r, 20, 1); /* the floor is where it goes on: no hole */
	assert_false(rl_receiver_ack_due(r, now_ns));
	assert_int_equal(r->largest, 20);
}

static void
test_floor_absurd(void **state)
{
	struct rl_receiver *r = *state;

	add(r, 0, 4);
	rl_receiver_floor(r, 3 + (1ull << 32) + 1);
	rl_receiver_floor(r, UINT64_MAX);
	assert_int_equal(r->floor, 0);
	rl_receiver_floor(r, 3 + (1ull << 32));
	assert_true(r->floor == 3 + (1ull << 32));
}

/* A full set forgets its lowest range; what was forgotten must not look new. */
static void
test_full_set(void **state)
{
	struct rl_receiver *r = *state;

	for (uint64_t i = 0; i <= RL_RANGES_MAX; i++)
		add(r, 10 + 2 * i, 1);
	assert_int_equal(r->got.n, RL_RANGES_MAX);
	assert_int_equal(r->floor, 12);
	assert_false(rl_receiver_is_new(r, 10));
	assert_true(rl_receiver_is_new(r, 13));
	rl_receiver_add(r, 13, false, now_ns);
	assert_int_equal(r->got.n, RL_RANGES_MAX - 1);
}

/* Whatever arrives in whatever order: nothing is new twice. */
static void
test_never_new_twice(void **state)
{
	enum { SPAN = 20000, WIDTH = 3000 };
	static uint8_t seen[SPAN + WIDTH];
	const uint64_t seed = 20240611;
	struct rl_rand rand = {.state = seed};
	struct rl_receiver *r = *state;
	uint64_t added = 0;

	for (uint64_t base = 0; base < SPAN; base++) {
		for (int i = 0; i < 3; i++) {
			uint64_t pn = base + rl_rand_below(&rand, WIDTH);

			if (!rl_receiver_is_new(r, pn))
				continue;
			if (seen[pn]++)
				fail_msg("seed %lu: %lu was new twice", seed, pn);
			rl_receiver_add(r, pn, false, now_ns);
			added++;
		}
		if (rl_rand_below(&rand, 100) == 0)
			rl_receiver_floor(r, base);
	}
	assert_int_equal(added, r->st.packets);
	assert_in_range(added, SPAN / 3, SPAN + WIDTH);
}

/*
 * Both halves of a lane over a link that delays, loses, reorders and duplicates, and a NIC that refuses. A page
 * is pending until a packet carries it and again when it is handed back; at the end every page must have
 * arrived, and each that was carried must have been settled exactly once.
 */
enum {
	LINK_PAGES = 100000,
	LINK_RUNS = 4,
	LINK_EVENTS = 65536,
	LINK_PACKETS = 1 << 16,
	LINK_ACK_RANGES = 64
};

struct link_opts {
	const char *name;
	uint64_t delay_ns;  /* one way */
	uint64_t jitter_ns; /* more for reordered packets */
	uint32_t loss_ppm, reorder_ppm, duplicate_ppm, refuse_ppm;
	uint64_t blackout_ns; /* from 2 ms on */
	uint64_t limit_ns;    /* done by then */
};

struct link_ack {
	struct rl_acked acked;
	struct rl_acked_range range[LINK_ACK_RANGES];
};

struct link_event {
	uint64_t at_ns;
	uint64_t pn, floor;   /* a packet */
	struct link_ack *ack; /* or an ACK, owned */
};

struct link {
	const struct link_opts *o;
	uint64_t seed;
	struct rl_rand rand;
	uint64_t now_ns;
	struct rl_sender tx;
	struct rl_receiver rx;

	struct link_event heap[LINK_EVENTS]; /* by at_ns */
	uint32_t n_events;

	uint32_t n_pending, cursor;
	bool pending[LINK_PAGES], arrived[LINK_PAGES];
	uint64_t carried, handed_back;              /* pages, over all packets */
	struct rl_run run[LINK_PACKETS][LINK_RUNS]; /* what each packet carried */
};

#define link_fail(l, ...)                                                                          \
	do {                                                                                       \
		print_error("%s, seed %lu: ", (l)->o->name, (l)->seed);                            \
		fail_msg(__VA_ARGS__);                                                             \
	} while (0)

static void
link_push(struct link *l, struct link_event e)
{
	uint32_t i = l->n_events++;

	if (i == LINK_EVENTS)
		link_fail(l, "too many packets on the link");
	for (; i > 0 && l->heap[(i - 1) / 2].at_ns > e.at_ns; i = (i - 1) / 2)
		l->heap[i] = l->heap[(i - 1) / 2];
	l->heap[i] = e;
}

static struct link_event
link_pop(struct link *l)
{
	struct link_event top = l->heap[0], e = l->heap[--l->n_events];
	uint32_t i = 0, kid;

	while ((kid = 2 * i + 1) < l->n_events) {
		if (kid + 1 < l->n_events && l->heap[kid + 1].at_ns < l->heap[kid].at_ns)
			kid++;
		if (l->heap[kid].at_ns >= e.at_ns)
			break;
		l->heap[i] = l->heap[kid];
		i = kid;
	}
	l->heap[i] = e;
	return top;
}

/* One datagram in either direction. */
static void
link_transmit(struct link *l, const struct link_event *e)
{
	uint32_t copies = 1 + rl_rand_ppm(&l->rand, l->o->duplicate_ppm);
	bool dark =
		l->now_ns >= 2 * RL_NS_PER_MS && l->now_ns < 2 * RL_NS_PER_MS + l->o->blackout_ns;

	for (uint32_t i = 0; i < copies; i++) {
		struct link_event copy = *e;

		if (dark || rl_rand_ppm(&l->rand, l->o->loss_ppm))
			continue;
		copy.at_ns = l->now_ns + l->o->delay_ns;
		if (rl_rand_ppm(&l->rand, l->o->reorder_ppm))
			copy.at_ns += rl_rand_below(&l->rand, l->o->jitter_ns);
		if (e->ack) {
			copy.ack = malloc(sizeof(*copy.ack));
			assert_non_null(copy.ack);
			*copy.ack = *e->ack;
			copy.ack->acked.range = copy.ack->range;
		}
		link_push(l, copy);
	}
}

static void
link_lost(void *ctx, const struct rl_run *run)
{
	struct link *l = ctx;

	for (uint64_t page = run->first; page < run->first + run->n; page++) {
		if (page >= LINK_PAGES || l->pending[page])
			link_fail(l, "page %lu handed back, but nothing carries it", page);
		l->pending[page] = true;
		l->n_pending++;
	}
	l->handed_back += run->n;
}

/* The next pending pages, at most 8 in a row; n = 0: none. */
static struct rl_run
link_take(struct link *l)
{
	struct rl_run run = {.n = 0};

	if (l->n_pending == 0)
		return run;
	while (!l->pending[l->cursor])
		l->cursor = (l->cursor + 1) % LINK_PAGES;
	run.first = l->cursor;
	while (l->cursor < LINK_PAGES && l->pending[l->cursor] && run.n < 8) {
		l->pending[l->cursor++] = false;
		run.n++;
	}
	l->cursor %= LINK_PAGES;
	l->n_pending -= run.n;
	l->carried += run.n;
	return run;
}

static void
link_send(struct link *l, bool is_probe)
{
	uint64_t pn = rl_sender_next_pn(&l->tx);
	uint64_t n = is_probe ? 0 : 1 + rl_rand_below(&l->rand, LINK_RUNS);

	if (pn >= LINK_PACKETS)
		link_fail(l, "no end of packets");
	rl_sender_begin(&l->tx);
	for (uint64_t i = 0; i < n; i++) {
		struct rl_run run = link_take(l);

		if (run.n > 0)
			rl_sender_carry(&l->tx, run.first, run.n);
		l->run[pn][i] = run;
	}
	rl_sender_commit(&l->tx, 1400, l->now_ns);
}

/* One turn of the source: timers, then a burst, of which the NIC may refuse the tail. */
static void
link_source_turn(struct link *l)
{
	struct link_event e = {.pn = rl_sender_next_pn(&l->tx)};
	uint32_t n = 0, refused = 0;

	if (rl_sender_on_time(&l->tx, l->now_ns)) {
		link_send(l, true);
		n++;
	}
	for (; n < 32 && l->n_pending > 0 && rl_sender_room(&l->tx) > 0; n++)
		link_send(l, false);
	if (n > 0 && rl_rand_ppm(&l->rand, l->o->refuse_ppm)) {
		refused = 1 + (uint32_t)rl_rand_below(&l->rand, n);
		rl_sender_refused(&l->tx, refused);
	}
	for (e.floor = rl_sender_floor(&l->tx); n > refused; n--, e.pn++)
		link_transmit(l, &e);
}

static void
link_sink_turn(struct link *l)
{
	struct link_ack ack = {.acked = {.credit = 4096}};
	struct link_event e = {.ack = &ack};
	struct rl_acked *a = &ack.acked;

	if (!rl_receiver_ack_due(&l->rx, l->now_ns))
		return;
	a->largest = l->rx.largest;
	a->floor = l->rx.floor;
	a->delay_ns = rl_receiver_acked(&l->rx, l->now_ns);
	for (uint32_t i = l->rx.got.n; i-- > 0 && a->n < LINK_ACK_RANGES;)
		ack.range[a->n++] =
			(struct rl_acked_range){l->rx.got.r[i].start, l->rx.got.r[i].end};
	link_transmit(l, &e);
}

static void
link_deliver(struct link *l, struct link_event *e)
{
	if (e->ack) {
		rl_sender_on_ack(&l->tx, &e->ack->acked, l->now_ns);
		free(e->ack);
		return;
	}
	if (!rl_receiver_is_new(&l->rx, e->pn))
		return;
	for (uint32_t i = 0; i < LINK_RUNS; i++) {
		const struct rl_run *run = &l->run[e->pn][i];

		if (run->n > 0)
			memset(&l->arrived[run->first], true, run->n);
	}
	rl_receiver_add(&l->rx, e->pn, false, l->now_ns);
	rl_receiver_floor(&l->rx, e->floor);
}

static void
link_check(struct link *l)
{
	const struct rl_sender_stats *st = &l->tx.st;

	if (st->packets != st->acked + st->lost + st->refused + st->in_flight)
		link_fail(l, "packets do not add up");
	if (st->bad_acks > 0)
		link_fail(l, "an honest ACK was refused");
	if (l->now_ns > l->o->limit_ns)
		link_fail(l, "not done after %lu ms: %u pending, %u in flight",
			  (uint64_t)(l->now_ns / RL_NS_PER_MS), l->n_pending,
			  rl_sender_in_flight(&l->tx));
}

static void
link_run(struct link *l, const struct link_opts *o, uint64_t seed)
{
	const struct rl_sender_opts opts = {
		.map_packets = 8192,
		.credit = 4096,
		.cc = &rl_cc_fixed,
		.lost = link_lost,
		.lost_ctx = l,
	};

	memset(l, 0, sizeof(*l));
	l->o = o;
	l->seed = seed;
	l->rand.state = seed;
	memset(l->pending, true, sizeof(l->pending));
	l->n_pending = LINK_PAGES;
	assert_int_equal(rl_sender_init(&l->tx, &opts), 0);
	rl_receiver_init(&l->rx);

	while (l->n_pending > 0 || rl_sender_in_flight(&l->tx) > 0) {
		uint64_t next_ns;

		link_source_turn(l);
		link_sink_turn(l);
		if (l->n_pending == 0 && rl_sender_in_flight(&l->tx) == 0)
			break; /* the last one lost was a probe */
		next_ns = rl_min64(rl_sender_timer_ns(&l->tx), rl_receiver_timer_ns(&l->rx));
		if (l->n_events > 0)
			next_ns = rl_min64(next_ns, l->heap[0].at_ns);
		if (l->n_pending > 0 && rl_sender_room(&l->tx) > 0)
			next_ns = l->now_ns;
		l->now_ns = rl_max64(next_ns, l->now_ns + 5 * RL_NS_PER_US);
		while (l->n_events > 0 && l->heap[0].at_ns <= l->now_ns) {
			struct link_event e = link_pop(l);

			link_deliver(l, &e);
		}
		link_check(l);
	}

	for (uint32_t page = 0; page < LINK_PAGES; page++) {
		if (!l->arrived[page])
			link_fail(l, "page %u never arrived", page);
	}
	if (l->carried - l->handed_back != LINK_PAGES)
		link_fail(l, "settled %lu pages", l->carried - l->handed_back);
	for (; l->n_events > 0; l->n_events--)
		free(l->heap[l->n_events - 1].ack);
	rl_sender_fini(&l->tx);
}

static void
test_lossy_links(void **state)
{
	static const struct link_opts links[] = {
		{"clean", .delay_ns = 50000, .limit_ns = 100 * RL_NS_PER_MS},
		{"refusing NIC", .delay_ns = 50000, .refuse_ppm = 300000, .limit_ns = RL_NS_PER_S},
		{"LAN, 5 %", .delay_ns = 50000, .loss_ppm = 50000, .limit_ns = RL_NS_PER_S},
		{"LAN, 30 %", .delay_ns = 50000, .loss_ppm = 300000, .limit_ns = 10 * RL_NS_PER_S},
		{"WAN, 1 %", .delay_ns = 25000000, .loss_ppm = 10000, .limit_ns = 5 * RL_NS_PER_S},
		{"WAN, 30 %", .delay_ns = 25000000, .loss_ppm = 300000,
		 .limit_ns = 60 * RL_NS_PER_S},
		{"reordered", .delay_ns = 50000, .reorder_ppm = 200000, .jitter_ns = 100000,
		 .limit_ns = 2 * RL_NS_PER_S},
		{"everything", .delay_ns = 500000, .loss_ppm = 50000, .reorder_ppm = 100000,
		 .jitter_ns = 3000000, .duplicate_ppm = 100000, .refuse_ppm = 100000,
		 .limit_ns = 10 * RL_NS_PER_S},
		/* The probe interval is at most 1 s by then, and the rest takes milliseconds. */
		{"blackout", .delay_ns = 500000, .loss_ppm = 10000, .blackout_ns = 3 * RL_NS_PER_S,
		 .limit_ns = 5 * RL_NS_PER_S},
	};
	struct link *l = malloc(sizeof(*l));

	(void)state;
	assert_non_null(l);
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
		uint64_t packets = 0, lost = 0, spurious = 0, ms = 0;

		for (uint64_t seed = 1; seed <= 20; seed++) {
			link_run(l, &links[i], seed);
			packets += l->tx.st.packets;
			lost += l->tx.st.lost;
			spurious += l->tx.st.spurious;
			ms += l->now_ns / RL_NS_PER_MS;
		}
		print_message("             %-12s %7lu packets, %6lu lost, %5lu of them late, %6lu "
			      "ms each\n",
			      links[i].name, packets, lost, spurious, ms / 20);
	}
	free(l);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_nothing_to_say, setup),
		cmocka_unit_test_setup(test_due_after_packets, setup),
		cmocka_unit_test_setup(test_due_after_delay, setup),
		cmocka_unit_test_setup(test_due_when_asked, setup),
		cmocka_unit_test_setup(test_due_when_hole_opens, setup),
		cmocka_unit_test_setup(test_first_packet_missing, setup),
		cmocka_unit_test_setup(test_duplicates_ask_again, setup),
		cmocka_unit_test_setup(test_floor, setup),
		cmocka_unit_test_setup(test_floor_above_everything, setup),
		cmocka_unit_test_setup(test_floor_absurd, setup),
		cmocka_unit_test_setup(test_full_set, setup),
		cmocka_unit_test_setup(test_never_new_twice, setup),
		cmocka_unit_test(test_lossy_links),
	};

	return cmocka_run_group_tests_name("receiver", tests, NULL, NULL);
}
