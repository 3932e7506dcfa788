/* SPDX-License-Identifier: BSD-3-Clause */
/* Delivery rate samples and pacing, with times by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "transport/rate.h"
#include "transport/sender.h"
#include "transport/sent.h"

#define S      RL_NS_PER_S
#define MS     RL_NS_PER_MS
#define US     RL_NS_PER_US
#define PACKET 1000u

static void
test_samples(void **state)
{
	struct rl_rate r = {.delivered = 0};
	struct rl_sent p[4] = {{.bytes = 1000}, {.bytes = 1000}, {.bytes = 1000}, {.bytes = 1000}};
	struct rl_rate_sample s;

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		p[i].tx_ns = 1000 + i * 10;
		rl_rate_sent(&r, &p[i], i * 1000);
		assert_int_equal(p[i].in_flight, (i + 1) * 1000);
	}
	rl_rate_acked(&r, &p[0], 2000);
	s = rl_rate_sample(&r, &p[0], 1000, 2000);
	assert_int_equal(s.bytes_per_s, 1000ull * S / 1000);
	/* A packet that leaves now remembers that; one is lost and one arrives 500 ns later. */
	p[2].tx_ns = 2000;
	rl_rate_sent(&r, &p[2], 1000);
	rl_rate_lost(&r, &p[1]);
	rl_rate_acked(&r, &p[2], 3000);
	s = rl_rate_sample(&r, &p[2], 1000, 3000);
	assert_int_equal(s.bytes_per_s, 1000ull * S / 1000);
	assert_int_equal(s.lost, 1000);
	assert_int_equal(s.tx_in_flight, 2000);
	assert_int_equal(s.prior_delivered, 1000);
	rl_rate_spurious(&r, &p[1], 3500);
	assert_int_equal(r.lost, 0);
	assert_int_equal(rl_rate_lost_since(&r, &p[2]), 0);
	assert_int_equal(r.delivered, 3000);
	s = rl_rate_sample(&r, &p[2], 2000, 3500);
	assert_int_equal(s.bytes_per_s, 0); /* in less than a round trip: no sample */

	rl_rate_app_limited(&r, 500);
	p[3].tx_ns = 4000;
	rl_rate_sent(&r, &p[3], 500);
	assert_true(p[3].app_limited);
	rl_rate_acked(&r, &p[3], 5000);
	s = rl_rate_sample(&r, &p[3], 1000, 5000);
	assert_true(s.app_limited);
	assert_int_equal(r.app_limited, 0); /* that bubble is through */
}

/* A burst that left at once, or ACKs that came at once, make the path no faster. */
static void
test_bursts(void **state)
{
	struct rl_rate r = {.delivered = 0};
	struct rl_sent p[10];
	struct rl_rate_sample s;

	(void)state;
	for (uint32_t i = 0; i < 10; i++) {
		p[i] = (struct rl_sent){.tx_ns = 1000 + i * 200, .bytes = 1000};
		rl_rate_sent(&r, &p[i], i * 1000);
	}
	for (uint32_t i = 0; i < 10; i++) /* one ACK for all, right after the last was sent */
		rl_rate_acked(&r, &p[i], 3000);
	s = rl_rate_sample(&r, &p[9], 100, 3000);
	assert_int_equal(s.delivered, 10000);
	assert_int_equal(s.bytes_per_s, 10000 * S / 2000);
	/* And with the clock in between: what is sent now counts from the last ACK. */
	p[0].tx_ns = 9000;
	rl_rate_sent(&r, &p[0], 1000);
	rl_rate_acked(&r, &p[0], 9500);
	s = rl_rate_sample(&r, &p[0], 100, 9500);
	assert_int_equal(s.bytes_per_s, 1000 * S / 6500);
}

static void
ignore_lost(void *ctx, const struct rl_run *run)
{
	(void)ctx;
	(void)run;
}

static int
setup(void **state)
{
	static struct rl_sender s;
	const struct rl_sender_opts opts = {
		.credit = 10000, .packet_bytes = PACKET, .cc = &rl_cc_fixed, .lost = ignore_lost};

	*state = &s;
	return rl_sender_init(&s, &opts);
}

static int
teardown(void **state)
{
	rl_sender_fini(*state);
	return 0;
}

static void
send(struct rl_sender *s, uint64_t now_ns, uint32_t n)
{
	for (; n > 0; n--) {
		rl_sender_begin(s);
		rl_sender_commit(s, PACKET, now_ns);
	}
}

/* A rate of 1000 packets/s, to see what pacing admits. */
static void
test_pacing(void **state)
{
	struct rl_sender *s = *state;
	uint64_t now_ns = 1000 * S;

	s->cc.pacing_rate = 1000 * PACKET;
	assert_int_equal(rl_sender_admit(s, 10, now_ns), 3); /* two packets ahead, at this rate */
	send(s, now_ns, 3);
	assert_int_equal(rl_sender_admit(s, 10, now_ns), 0);
	assert_true(rl_sender_pacing_ns(s, now_ns) == now_ns + 1 * MS);
	now_ns += 1 * MS;
	assert_true(rl_sender_pacing_ns(s, now_ns) == 0);
	assert_int_equal(rl_sender_admit(s, 10, now_ns), 1);
	now_ns += 100 * MS; /* unused time is gone */
	assert_int_equal(rl_sender_admit(s, 10, now_ns), 3);

	s->cc.pacing_rate = 1000000ull * PACKET; /* 64 KB ahead is less than a worker may be late */
	s->departure_ns = 0;
	assert_int_equal(rl_sender_admit(s, 200, now_ns), 101);
	s->cc.pacing_rate = 0;
	assert_int_equal(rl_sender_admit(s, 200, now_ns), 200);
	assert_true(rl_sender_pacing_ns(s, now_ns) == 0);
}

/* Who has nothing to send though window and pacing are open is marked, who waits for them is not. */
static void
test_app_limited(void **state)
{
	struct rl_sender *s = *state;
	uint64_t now_ns = 1000 * S;
	const struct rl_acked_range range = {0, 10};
	const struct rl_acked ack = {.largest = 9, .credit = 10000, .n = 1, .range = &range};

	send(s, now_ns, rl_sender_room(s));
	rl_sender_app_limited(s, now_ns);
	assert_int_equal(s->rate.app_limited, 0);
	now_ns += 100 * US;
	rl_sender_on_ack(s, &ack, now_ns);
	s->cc.pacing_rate = 1;
	s->departure_ns = now_ns + 10000 * S;
	rl_sender_app_limited(s, now_ns);
	assert_int_equal(s->rate.app_limited, 0);
	s->cc.pacing_rate = 0;
	rl_sender_app_limited(s, now_ns);
	assert_true(s->rate.app_limited == s->rate.delivered + s->in_flight_bytes);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_samples),
		cmocka_unit_test(test_bursts),
		cmocka_unit_test_setup_teardown(test_pacing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_app_limited, setup, teardown),
	};

	return cmocka_run_group_tests_name("rate", tests, NULL, NULL);
}
