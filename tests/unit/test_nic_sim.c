/* SPDX-License-Identifier: BSD-3-Clause */
/* The simulated network: seeded faults, the bottleneck, queues and rings; and the drops every port can inject. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "nic/port.h"
#include "nic/sim.h"

struct net {
	struct rl_sim *sim;
	struct rl_nic *a, *b;
	struct rl_nic_path *ab, *ba;
};

static void
net_open(struct net *net, uint64_t seed, const struct rl_sim_link *link, uint32_t drop_ppm)
{
	struct rl_nic_opts opts = {
		.n_queues = 2, .udp_port = 4700, .drop_ppm = drop_ppm, .drop_seed = seed};
	struct rl_nic_peer peer = {.address.family = AF_INET};
	struct rl_err err = {0};

	assert_int_equal(rl_sim_create("net", seed, link, link, &net->sim), 0);
	assert_int_equal(rl_nic_open("sim:net/a", &opts, &net->a, &err), 0);
	opts.udp_port = 5800;
	assert_int_equal(rl_nic_open("sim:net/b", &opts, &net->b, &err), 0);
	peer.udp_port = 5800;
	assert_int_equal(rl_nic_path_open(net->a, &peer, &net->ab, &err), 0);
	peer.udp_port = 4700;
	assert_int_equal(rl_nic_path_open(net->b, &peer, &net->ba, &err), 0);
}

static void
net_close(struct net *net)
{
	rl_nic_path_close(net->ab);
	rl_nic_path_close(net->ba);
	rl_nic_close(net->a);
	rl_nic_close(net->b);
	rl_sim_destroy(net->sim);
}

static void
net_send(struct net *net, uint32_t number, uint32_t len)
{
	struct rl_pkt pkt;

	assert_int_equal(rl_nic_alloc(net->a, 0, &pkt, 1), 1);
	memset(pkt.data, (int)number, pkt.len = len);
	rl_store32(pkt.data, number);
	assert_int_equal(rl_nic_tx_burst(net->a, 0, net->ab, &pkt, 1), 1);
}

struct trace {
	uint64_t digest; /* of arrival times and bytes */
	uint32_t last, out_of_order;
};

/* Receive all that arrives until @end_ns. */
static void
net_drain(struct net *net, struct trace *trace, uint64_t end_ns)
{
	uint64_t t;

	while ((t = rl_sim_next_arrival(net->sim)) <= end_ns && t != UINT64_MAX) {
		struct rl_pkt pkt;

		rl_sim_set_now(net->sim, t);
		while (rl_nic_rx_burst(net->b, 0, &pkt, 1) == 1) {
			uint32_t number = rl_load32(pkt.data);

			trace->out_of_order += number < trace->last;
			trace->last = number;
			trace->digest = (trace->digest ^ t) * 0x100000001b3ull;
			for (uint32_t i = 0; i < pkt.len; i++)
				trace->digest = (trace->digest ^ pkt.data[i]) * 0x100000001b3ull;
			rl_nic_free(net->b, 0, &pkt, 1);
		}
	}
	if (end_ns != UINT64_MAX)
		rl_sim_set_now(net->sim, end_ns);
}

static uint64_t
sim_trace(uint64_t seed, struct rl_sim_stats *st, uint32_t *out_of_order)
{
	const struct rl_sim_link link = {.delay_ns = 5 * RL_NS_PER_MS,
					 .jitter_ns = RL_NS_PER_MS,
					 .loss_ppm = 100000,
					 .duplicate_ppm = 50000,
					 .corrupt_ppm = 20000};
	struct trace trace = {0};
	struct net net;

	net_open(&net, seed, &link, 0);
	for (uint32_t i = 0; i < 10000; i++) {
		net_drain(&net, &trace, i * 10000ull);
		net_send(&net, i, 40 + i % 1000);
	}
	net_drain(&net, &trace, UINT64_MAX);
	rl_sim_stats(net.sim, 1, st);
	net_close(&net);
	*out_of_order = trace.out_of_order;
	return trace.digest;
}

static void
test_sim_seeded_faults(void **state)
{
	struct rl_sim_stats st, st2;
	uint32_t ooo, ooo2;
	uint64_t one = sim_trace(1, &st, &ooo);

	(void)state;
	assert_true(one == sim_trace(1, &st2, &ooo2));
	assert_memory_equal(&st, &st2, sizeof(st));
	assert_true(one != sim_trace(2, &st2, &ooo2));

	/* The seed is fixed, so the bounds (six sigma) decide nothing by chance. */
	assert_int_equal(st.sent, 10000);
	assert_in_range(st.lost, 820, 1180);
	assert_in_range(st.duplicated, 330, 570);
	assert_in_range(st.corrupted, 100, 260);
	assert_int_equal(st.queue_drops, 0);
	assert_int_equal(st.delivered, st.sent - st.lost + st.duplicated);
	assert_true(ooo > 1000);
}

/* On a clean link, so what is missing is what was injected. */
static uint64_t
drop_trace(uint64_t seed)
{
	const struct rl_sim_link link = {0};
	struct rl_pkt pkts[RL_NIC_BURST];
	struct rl_nic_stats st;
	uint64_t digest = 0, bytes = 0;
	uint32_t next = 0, n_received = 0;
	struct net net;

	net_open(&net, seed, &link, 200000);
	for (uint32_t i = 1; i <= 10000; i++) {
		net_send(&net, i, 40 + i % 1000);
		if (i % 10 != 0)
			continue;
		uint32_t n = rl_nic_rx_burst(net.b, 0, pkts, RL_NIC_BURST);

		for (uint32_t k = 0; k < n; k++, n_received++) {
			uint32_t number = rl_load32(pkts[k].data);

			assert_true(number > next); /* in order, none twice */
			assert_int_equal(pkts[k].len, 40 + number % 1000);
			assert_int_equal(pkts[k].data[pkts[k].len - 1], (uint8_t)number);
			next = number;
			digest = (digest ^ number) * 0x100000001b3ull;
			bytes += pkts[k].len;
		}
		rl_nic_free(net.b, 0, pkts, n);
	}
	rl_nic_stats(net.b, 0, &st);
	assert_int_equal(st.rx_packets, n_received);
	assert_int_equal(st.rx_bytes, bytes);
	assert_int_equal(st.rx_packets + st.rx_injected_drops, 10000);
	assert_in_range(st.rx_injected_drops, 1760, 2240); /* six sigma */
	net_close(&net);
	return digest;
}

static void
test_injected_drops(void **state)
{
	uint64_t one = drop_trace(1);

	(void)state;
	assert_true(one == drop_trace(1));
	assert_true(one != drop_trace(2));
}

static void
test_sim_corrupts_one_bit(void **state)
{
	const struct rl_sim_link link = {.corrupt_ppm = 1000000};
	struct net net;

	(void)state;
	net_open(&net, 3, &link, 0);
	for (uint32_t i = 0; i < 100; i++) {
		struct rl_pkt pkt;
		uint32_t bits = 0;

		assert_int_equal(rl_nic_alloc(net.a, 0, &pkt, 1), 1);
		memset(pkt.data, 0, pkt.len = 500);
		assert_int_equal(rl_nic_tx_burst(net.a, 0, net.ab, &pkt, 1), 1);
		assert_int_equal(rl_nic_rx_burst(net.b, 0, &pkt, 1), 1);
		for (uint32_t k = 0; k < pkt.len; k++)
			bits += (uint32_t)__builtin_popcount(pkt.data[k]);
		assert_int_equal(bits, 1);
		rl_nic_free(net.b, 0, &pkt, 1);
	}
	net_close(&net);
}

static void
test_sim_rate_and_delay(void **state)
{
	/* 1,000,000 bytes/s: 1000 bytes take 1 ms; the queue holds ten of them */
	struct rl_sim_link link = {
		.delay_ns = 20 * RL_NS_PER_MS, .rate_bytes_per_s = 1000000, .queue_bytes = 10000};
	struct rl_sim_stats st;
	struct rl_pkt pkt;
	struct net net;

	(void)state;
	net_open(&net, 4, &link, 0);
	rl_sim_set_now(net.sim, RL_NS_PER_S);
	for (uint32_t i = 0; i < 15; i++)
		net_send(&net, i, 1000);
	rl_sim_stats(net.sim, 1, &st);
	assert_int_equal(st.queue_drops, 5);
	for (uint32_t i = 0; i < 10; i++) {
		uint64_t t = RL_NS_PER_S + (21 + i) * RL_NS_PER_MS;

		assert_int_equal(rl_sim_next_arrival(net.sim), t);
		rl_sim_set_now(net.sim, t - 1);
		assert_int_equal(rl_nic_rx_burst(net.b, 0, &pkt, 1), 0);
		rl_sim_set_now(net.sim, t);
		assert_int_equal(rl_nic_rx_burst(net.b, 0, &pkt, 1), 1);
		assert_int_equal(rl_load32(pkt.data), i);
		rl_nic_free(net.b, 0, &pkt, 1);
	}
	assert_true(rl_sim_next_arrival(net.sim) == UINT64_MAX);

	link = (struct rl_sim_link){.delay_ns = 7};
	rl_sim_set_link(net.sim, 1, &link);
	rl_sim_set_now(net.sim, 5); /* never back */
	assert_int_equal(rl_sim_now(net.sim), RL_NS_PER_S + 30 * RL_NS_PER_MS);
	net_send(&net, 0, 1000);
	assert_int_equal(rl_sim_next_arrival(net.sim), rl_sim_now(net.sim) + 7);
	rl_sim_stats(net.sim, 0, &st); /* nothing went the other way */
	assert_int_equal(st.sent, 0);
	net_close(&net); /* with a packet under way */
}

static void
test_sim_queues_and_rings(void **state)
{
	const struct rl_sim_link link = {0};
	struct rl_nic_peer strange = {.address.family = AF_INET, .udp_port = 5801};
	struct rl_nic_path *path;
	struct rl_nic_stats nst;
	struct rl_sim_stats st;
	struct rl_sim *twin;
	struct rl_pkt pkt;
	struct net net;
	struct rl_err err;

	(void)state;
	net_open(&net, 5, &link, 0);
	assert_int_equal(rl_sim_create("net", 1, &link, &link, &twin), -EEXIST);
	assert_int_equal(rl_nic_path_open(net.a, &strange, &path, &err), 0);
	for (uint32_t k = 0; k < 2;
	     k++) { /* to 5801, which is b's queue 1, and 5802, which is nobody's */
		assert_int_equal(rl_nic_alloc(net.a, k, &pkt, 1), 1);
		rl_store32(pkt.data, 77 + k);
		pkt.len = 10;
		assert_int_equal(rl_nic_tx_burst(net.a, k, path, &pkt, 1), 1);
	}
	assert_int_equal(rl_nic_rx_burst(net.b, 0, &pkt, 1), 0);
	assert_int_equal(rl_nic_rx_burst(net.b, 1, &pkt, 1), 1);
	assert_int_equal(pkt.len, 10);
	assert_int_equal(rl_load32(pkt.data), 77);
	rl_nic_free(net.b, 1, &pkt, 1);
	rl_nic_stats(net.b, 0, &nst);
	assert_int_equal(nst.rx_foreign, 1);

	for (uint32_t i = 0; i < rl_nic_info(net.b)->rx_ring + 3; i++)
		net_send(&net, i, 10);
	rl_sim_set_now(net.sim, 1);
	rl_sim_stats(net.sim, 1, &st);
	assert_int_equal(st.queue_drops, 3); /* the ring is full */
	rl_nic_path_close(path);
	net_close(&net);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sim_seeded_faults),
		cmocka_unit_test(test_injected_drops),
		cmocka_unit_test(test_sim_corrupts_one_bit),
		cmocka_unit_test(test_sim_rate_and_delay),
		cmocka_unit_test(test_sim_queues_and_rings),
	};

	return cmocka_run_group_tests_name("nic_sim", tests, NULL, NULL);
}
