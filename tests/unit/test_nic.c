/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Ports: URIs and options, kernel sockets over loopback and over a veth pair in namespaces of our own, routes
 * and neighbours.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "nic/port.h"

#define WAIT_NS (5 * RL_NS_PER_S)

static struct rl_ip
ip(const char *text)
{
	struct rl_ip a = {.family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET};

	assert_int_equal(inet_pton(a.family, text, a.addr), 1);
	return a;
}

/* Open on free UDP ports: somebody else may hold a few. */
static struct rl_nic *
open_udp(const char *address, uint32_t n_queues, const struct rl_nic_opts *base)
{
	static uint32_t next;
	struct rl_nic_opts opts = base != NULL ? *base : (struct rl_nic_opts){0};
	struct rl_nic *nic = NULL;
	struct rl_err err = {0};
	int ret = -EADDRINUSE;

	opts.n_queues = n_queues;
	if (address != NULL)
		opts.address = ip(address);
	for (int tries = 0; tries < 100 && ret == -EADDRINUSE; tries++) {
		opts.udp_port = (uint16_t)(20000 + ((uint32_t)getpid() * 64 + next) % 12000);
		next += n_queues;
		ret = rl_nic_open("udp:", &opts, &nic, &err);
	}
	if (ret != 0)
		fail_msg("udp: on %s: %s", address != NULL ? address : "any", err.text);
	return nic;
}

static struct rl_nic_path *
open_path(struct rl_nic *from, struct rl_nic *to, const char *address)
{
	struct rl_nic_peer peer = {.udp_port = rl_nic_info(to)->udp_port};
	struct rl_nic_path *path;
	struct rl_err err = {0};

	peer.address = address != NULL ? ip(address) : rl_nic_info(to)->address;
	if (rl_nic_path_open(from, &peer, &path, &err) != 0)
		fail_msg("path: %s", err.text);
	assert_int_equal(rl_nic_path_refresh(path, &err), 0);
	return path;
}

static void
fill(struct rl_pkt *pkt, uint32_t number, uint32_t len)
{
	assert_true(len <= pkt->cap);
	pkt->len = len;
	for (uint32_t i = 0; i < len; i++)
		pkt->data[i] = (uint8_t)(number * 131 + i * 7 + (i >> 8));
}

static void
check_fill(const struct rl_pkt *pkt, uint32_t number, uint32_t len)
{
	assert_int_equal(pkt->len, len);
	assert_true(pkt->cap >= len);
	for (uint32_t i = 0; i < len; i++) {
		if (pkt->data[i] != (uint8_t)(number * 131 + i * 7 + (i >> 8)))
			fail_msg("packet %u of %u bytes differs at %u", number, len, i);
	}
}

static void
send_lens(struct rl_nic *nic, uint32_t queue, struct rl_nic_path *path, const uint32_t *lens,
	  uint32_t n)
{
	struct rl_pkt pkts[RL_NIC_BURST];

	assert_int_equal(rl_nic_alloc(nic, queue, pkts, n), n);
	for (uint32_t i = 0; i < n; i++)
		fill(&pkts[i], i, lens[i]);
	assert_int_equal(rl_nic_tx_burst(nic, queue, path, pkts, n), n);
}

/* Receive in odd bursts, so that a merged piece is lent out over several calls. */
static void
expect_lens(struct rl_nic *nic, uint32_t queue, const uint32_t *lens, uint32_t n)
{
	uint64_t end = rl_now_ns() + WAIT_NS;
	struct rl_pkt pkts[5];
	uint32_t got = 0;

	while (got < n && rl_now_ns() < end) {
		uint32_t k = rl_nic_rx_burst(nic, queue, pkts, rl_min32(5, n - got));

		for (uint32_t i = 0; i < k; i++)
			check_fill(&pkts[i], got + i, lens[got + i]);
		rl_nic_free(nic, queue, pkts, k);
		got += k;
	}
	assert_int_equal(got, n);
	assert_int_equal(rl_nic_rx_burst(nic, queue, pkts, 1), 0);
}

static void
exchange(struct rl_nic *from, struct rl_nic *to, struct rl_nic_path *path, uint32_t queue)
{
	uint32_t max = rl_min32(rl_nic_info(from)->max_payload, rl_nic_info(to)->max_payload);
	struct rl_rand rand = {.state = 7 + queue};
	uint32_t lens[RL_NIC_BURST];

	/* equal; equal and a shorter last; runs of changing size; growing; random; one alone */
	for (uint32_t shape = 0; shape < 6; shape++) {
		uint32_t n = shape == 5 ? 1 : RL_NIC_BURST;

		for (uint32_t i = 0; i < n; i++) {
			lens[i] = shape == 2   ? (i / 5 % 2 ? 700 : max)
				  : shape == 3 ? 1 + i * (max - 1) / (RL_NIC_BURST - 1)
				  : shape == 4 ? 1 + (uint32_t)rl_rand_below(&rand, max)
					       : max;
		}
		if (shape == 1)
			lens[n - 1] = 1;
		send_lens(from, queue, path, lens, n);
		expect_lens(to, queue, lens, n);
	}
	for (uint32_t len = 1; len <= max;
	     len += len < 64 ? 1 : 61) { /* every size, equal bursts of 3 */
		for (uint32_t i = 0; i < 3; i++)
			lens[i] = len;
		send_lens(from, queue, path, lens, 3);
		expect_lens(to, queue, lens, 3);
	}
}

static void
check_counters(struct rl_nic *from, struct rl_nic *to, uint32_t queue)
{
	struct rl_nic_stats tx, rx;

	rl_nic_stats(from, queue, &tx);
	rl_nic_stats(to, queue, &rx);
	assert_true(tx.tx_packets > 5 * RL_NIC_BURST);
	assert_int_equal(tx.tx_packets, rx.rx_packets);
	assert_int_equal(tx.tx_bytes, rx.rx_bytes);
	assert_int_equal(tx.tx_refused + tx.alloc_failed + rx.alloc_failed, 0);
	assert_int_equal(rx.rx_foreign + rx.rx_injected_drops, 0);
}

static void
udp_pair(const char *bind_a, const char *bind_b, const char *a_addr, const char *b_addr)
{
	struct rl_nic *a = open_udp(bind_a, 4, NULL), *b = open_udp(bind_b, 4, NULL);
	struct rl_nic_path *ab = open_path(a, b, b_addr), *ba = open_path(b, a, a_addr);
	struct rl_err err;

	assert_int_equal(rl_nic_thread_init(a), 0);
	assert_int_equal(rl_nic_check(a, &err), 0);
	assert_true(rl_nic_info(a)->segments_in_kernel);
	for (uint32_t k = 0; k < 4; k++) {
		exchange(a, b, ab, k);
		exchange(b, a, ba, 3 - k);
		check_counters(a, b, k);
	}
	rl_nic_thread_fini(a);
	rl_nic_path_close(ab);
	rl_nic_path_close(ba);
	rl_nic_close(a);
	rl_nic_close(b);
}

static void
test_udp_ipv4(void **state)
{
	(void)state;
	udp_pair("127.0.0.1", "127.0.0.1", NULL, NULL);
}

static void
test_udp_ipv6(void **state)
{
	(void)state;
	udp_pair("::1", "::1", NULL, NULL);
}

static void
test_udp_wildcard(void **state)
{
	struct rl_nic *any = open_udp(NULL, 1, NULL);

	(void)state;
	assert_int_equal(rl_nic_info(any)->address.family, 0);
	assert_true(rl_nic_info(any)->max_payload <= 1452);
	rl_nic_close(any);
	udp_pair(NULL, "127.0.0.1", "127.0.0.1", "127.0.0.1");
	udp_pair(NULL, "::", "::1", "127.0.0.1");
	udp_pair(NULL, "::1", "::1", "::1");
}

static void
test_udp_foreign(void **state)
{
	struct rl_nic_opts opts = {.mtu = 1500};
	struct rl_nic *nic = open_udp("127.0.0.1", 1, &opts);
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(rl_nic_info(nic)->udp_port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	static const size_t sizes[] = {0, 60000, 1453, 1452, 100, 0};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	uint64_t end = rl_now_ns() + WAIT_NS;
	struct rl_nic_stats st = {0};
	struct rl_pkt pkts[8];
	static uint8_t junk[60000];
	uint32_t got = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		assert_int_equal(
			sendto(fd, junk, sizes[i], 0, (const struct sockaddr *)&to, sizeof(to)),
			sizes[i]);
	while (st.rx_foreign < 4 && rl_now_ns() < end) {
		got += rl_nic_rx_burst(nic, 0, pkts + got, 4);
		rl_nic_stats(nic, 0, &st);
	}
	assert_int_equal(st.rx_foreign, 4); /* two empty, two larger than the port's packets */
	assert_int_equal(got, 2);
	assert_int_equal(pkts[0].len, 1452);
	assert_int_equal(pkts[1].len, 100);
	rl_nic_free(nic, 0, pkts, got);
	close(fd);
	rl_nic_close(nic);
}

static void
test_udp_refusals(void **state)
{
	struct rl_nic *nic = open_udp("127.0.0.1", 2, NULL), *other;
	struct rl_nic_opts opts = {.n_queues = 1,
				   .udp_port = (uint16_t)(rl_nic_info(nic)->udp_port + 1),
				   .address = ip("127.0.0.1")};
	struct rl_nic_peer peer = {.udp_port = 9};
	struct rl_nic_path *path;
	struct rl_err err;

	(void)state;
	assert_int_equal(rl_nic_open("udp:", &opts, &other, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "another udp-port"));
	opts.address = ip("198.18.255.1");
	assert_int_equal(rl_nic_open("udp:", &opts, &other, &err), -EADDRNOTAVAIL);
	assert_non_null(strstr(err.text, "198.18.255.1"));

	assert_int_equal(rl_nic_path_open(nic, &peer, &path, &err), -EINVAL); /* no address */
	peer.address = ip("::1");
	assert_int_equal(rl_nic_path_open(nic, &peer, &path, &err), -EAFNOSUPPORT);
	peer.address = ip("224.0.0.1");
	assert_int_equal(rl_nic_path_open(nic, &peer, &path, &err), -ENETUNREACH);
	peer.address = ip("127.0.0.1");
	peer.udp_port = 65535; /* and there are two queues */
	assert_int_equal(rl_nic_path_open(nic, &peer, &path, &err), -EINVAL);
	rl_nic_close(nic);
}

/* A route whose kernel path cannot segment: the packets go one by one instead. */
static void
test_udp_no_segmentation(void **state)
{
	struct rl_nic *a = open_udp("127.0.0.1", 1, NULL), *b = open_udp("127.0.0.1", 1, NULL);
	struct rl_nic_path *path = open_path(a, b, NULL);
	int found = 0, one = 1;

	(void)state;
	for (int fd = 3; fd < 1024; fd++) {
		struct sockaddr_in sin = {0};
		socklen_t len = sizeof(sin);

		if (getsockname(fd, (struct sockaddr *)&sin, &len) == 0 &&
		    sin.sin_family == AF_INET && ntohs(sin.sin_port) == rl_nic_info(a)->udp_port) {
			/* without checksums the kernel refuses UDP_SEGMENT (EINVAL) */
			assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &one, sizeof(one)),
					 0);
			found++;
		}
	}
	assert_int_equal(found, 1);
	exchange(a, b, path, 0);
	check_counters(a, b, 0);
	rl_nic_path_close(path);
	rl_nic_close(a);
	rl_nic_close(b);
}

/* info.rx_ring is a promise: that many packets wait for a worker that is away. */
static void
check_rx_ring(uint32_t mtu)
{
	struct rl_nic_opts opts = {.mtu = mtu};
	struct rl_nic *a = open_udp("127.0.0.1", 1, &opts), *b = open_udp("127.0.0.1", 1, &opts);
	struct rl_nic_path *path = open_path(a, b, NULL);
	uint32_t ring = rl_nic_info(b)->rx_ring, got = 0, k;
	struct rl_pkt pkts[RL_NIC_BURST];
	uint64_t end;

	assert_in_range(ring, 64, 4096);
	for (uint32_t i = 0; i < ring; i++) {
		assert_int_equal(rl_nic_alloc(a, 0, pkts, 1), 1);
		fill(&pkts[0], i, pkts[0].cap);
		assert_int_equal(rl_nic_tx_burst(a, 0, path, pkts, 1), 1);
	}
	for (end = rl_now_ns() + WAIT_NS; got < ring && rl_now_ns() < end; got += k) {
		k = rl_nic_rx_burst(b, 0, pkts, RL_NIC_BURST);
		for (uint32_t i = 0; i < k; i++)
			check_fill(&pkts[i], got + i, mtu - 48);
		rl_nic_free(b, 0, pkts, k);
	}
	assert_int_equal(got, ring);
	rl_nic_path_close(path);
	rl_nic_close(a);
	rl_nic_close(b);
}

static void
test_udp_rx_ring(void **state)
{
	(void)state;
	check_rx_ring(1500);
	check_rx_ring(9000);
}

/* Received packets change hands through here: another worker frees them. */
struct handover {
	struct rl_nic *nic;
	struct rl_pkt slot[64];
	uint32_t head, tail; /* atomic */
	uint32_t n;
};

static void *
free_elsewhere(void *arg)
{
	struct handover *h = arg;

	for (uint32_t i = 0; i < h->n; i++) {
		while (__atomic_load_n(&h->head, __ATOMIC_ACQUIRE) == i)
			sched_yield();
		rl_nic_free(h->nic, 0, &h->slot[i % 64], 1);
		__atomic_store_n(&h->tail, i + 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void
test_udp_free_by_other_worker(void **state)
{
	struct rl_nic *a = open_udp("127.0.0.1", 1, NULL), *b = open_udp("127.0.0.1", 1, NULL);
	struct handover h = {.nic = b, .n = 20000};
	struct rl_nic_path *path = open_path(a, b, NULL);
	struct rl_pkt pkts[RL_NIC_BURST];
	struct rl_nic_stats st;
	uint64_t end = rl_now_ns() + 6 * WAIT_NS;
	pthread_t thread;
	uint32_t head = 0;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, free_elsewhere, &h), 0);
	while (head < h.n) {
		uint32_t n = rl_nic_alloc(a, 0, pkts, rl_min32(8, h.n - head));

		for (uint32_t i = 0; i < n; i++)
			fill(&pkts[i], head + i, 300);
		n = rl_nic_tx_burst(a, 0, path, pkts, n);
		for (uint32_t got = 0, k; got < n; got += k) {
			k = rl_nic_rx_burst(b, 0, pkts, n - got);
			assert_true(rl_now_ns() < end);
			for (uint32_t i = 0; i < k; i++, head++) {
				check_fill(&pkts[i], head, 300);
				while (head - __atomic_load_n(&h.tail, __ATOMIC_ACQUIRE) == 64)
					sched_yield();
				h.slot[head % 64] = pkts[i];
				__atomic_store_n(&h.head, head + 1, __ATOMIC_RELEASE);
			}
		}
	}
	pthread_join(thread, NULL);
	rl_nic_stats(b, 0, &st);
	assert_int_equal(st.rx_packets, h.n);
	assert_int_equal(st.alloc_failed, 0);
	rl_nic_path_close(path);
	rl_nic_close(a);
	rl_nic_close(b);
}

static void
test_udp_buffers_run_out(void **state)
{
	struct rl_nic *nic = open_udp("127.0.0.1", 1, NULL);
	static struct rl_pkt pkts[512];
	struct rl_nic_stats st;

	(void)state;
	for (int round = 0; round < 3; round++) {
		uint32_t n = rl_nic_alloc(nic, 0, pkts, 512);

		assert_int_equal(n, 256);
		for (uint32_t i = 0; i < n; i++)
			fill(&pkts[i], i, pkts[i].cap); /* no two share bytes */
		for (uint32_t i = 0; i < n; i++)
			check_fill(&pkts[i], i, pkts[i].cap);
		rl_nic_free(nic, 0, pkts, n);
	}
	rl_nic_stats(nic, 0, &st);
	assert_int_equal(st.alloc_failed, 3 * 256);
	rl_nic_close(nic);
}

static void
test_uri_and_options(void **state)
{
	static const char *const bad_uri[] = {"eth0",    "",          ":",        "udp",
					      "dpd:x",   "xdp:eth0",  "udp:eth0", "sim:x",
					      "sim:x/c", "sim:none/a"};
	const struct rl_nic_opts good = {
		.n_queues = 1, .udp_port = 4700, .address = ip("127.0.0.1")};
	struct rl_nic_opts bad[] = {good, good, good, good, good, good};
	struct rl_nic *nic;
	struct rl_err err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad_uri) / sizeof(bad_uri[0]); i++) {
		assert_true(rl_nic_open(bad_uri[i], &good, &nic, &err) < 0);
		assert_true(strlen(err.text) > 20);
	}
	assert_int_equal(rl_nic_open("eth0", &good, &nic, &err), -EINVAL);
	assert_non_null(strstr(err.text, "dpdk:net_af_xdp,iface="));
	assert_non_null(strstr(err.text, "udp:"));
	assert_non_null(strstr(err.text, "sim:"));

	bad[0].n_queues = 0;
	bad[1].n_queues = RL_NIC_MAX_QUEUES + 1;
	bad[2].udp_port = 0;
	bad[3].udp_port = 65535;
	bad[3].n_queues = 2;
	bad[4].mtu = 1279;
	bad[5].drop_ppm = 1000001;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rl_nic_open("udp:", &bad[i], &nic, &err), -EINVAL);
}

/* --- routes and neighbours --- */

static void
test_neigh_loopback(void **state)
{
	static const char *const hosts[] = {"127.0.0.1", "::1"};
	static const uint8_t zero[6];
	struct rl_route route;
	struct rl_ip address;
	struct rl_err err;
	uint8_t mac[6];
	uint32_t mtu;
	bool up;

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct rl_ip dst = ip(hosts[i]);

		assert_int_equal(rl_neigh_route(&dst, &route, &err), 0);
		assert_string_equal(route.ifname, "lo");
		assert_int_equal(route.ifindex, if_nametoindex("lo"));
		assert_true(route.mtu >= 1280);
		assert_memory_equal(&route.next_hop, &dst, sizeof(dst));
		assert_memory_equal(&route.source, &dst, sizeof(dst));
		assert_int_equal(rl_neigh_resolve(&route, 0, &err), 0);
		assert_true(route.resolved);
		assert_memory_equal(route.mac, zero, sizeof(zero));
	}
	address = ip("fe80::1");
	assert_int_equal(rl_neigh_route(&address, &route, &err), -ENETUNREACH);
	address = ip("255.255.255.255");
	assert_int_equal(rl_neigh_route(&address, &route, &err), -ENETUNREACH);
	assert_int_equal(rl_neigh_interface("lo", &address, mac, &mtu, &up, &err), 0);
	assert_memory_equal(mac, zero, sizeof(zero));
	assert_true(up);
	assert_int_equal(address.family, AF_INET);
	assert_int_equal(rl_neigh_interface("no-such-if", &address, mac, &mtu, &up, &err), -ENODEV);
	assert_non_null(strstr(err.text, "no-such-if"));
}

static void
sh(const char *command)
{
	if (system(command) != 0)
		fail_msg("failed: %s", command);
}

/* By the veth pair rlt0 (near) -- rlt1 (far, in another namespace): on-link, by a gateway, unreachable. */
static void
veth_routes(const uint8_t far_mac[6])
{
	static const char *const dst[] = {"198.18.7.2", "fd00:18:7::2", "198.18.9.1",
					  "fd00:18:9::1"};
	struct rl_route route;
	struct rl_ip ip4 = ip("198.18.7.1"), ip6 = ip("fd00:18:7::1"), hop4 = ip(dst[0]),
		     hop6 = ip(dst[1]);
	struct rl_err err = {0};
	struct rl_ip address;
	uint64_t before;

	for (int i = 0; i < 4; i++) {
		address = ip(dst[i]);
		if (rl_neigh_route(&address, &route, &err) != 0 ||
		    rl_neigh_resolve(&route, 3000, &err) != 0)
			fail_msg("%s: %s", dst[i], err.text);
		assert_string_equal(route.ifname, "rlt0");
		assert_int_equal(route.mtu, i < 2 ? 1400 : 1300);
		assert_memory_equal(&route.source, i % 2 ? &ip6 : &ip4, sizeof(ip4));
		assert_memory_equal(&route.next_hop, i % 2 ? &hop6 : &hop4, sizeof(hop4));
		assert_memory_equal(route.mac, far_mac, 6);
	}
	address = ip("203.0.113.1");
	assert_int_equal(rl_neigh_route(&address, &route, &err), -ENETUNREACH);
	address = ip("198.18.10.1"); /* blackholed */
	assert_int_equal(rl_neigh_route(&address, &route, &err), -ENETUNREACH);
	address = ip("198.18.7.99"); /* nobody */
	assert_int_equal(rl_neigh_route(&address, &route, &err), 0);
	before = rl_now_ns();
	assert_int_equal(rl_neigh_resolve(&route, 200, &err), -EHOSTUNREACH);
	assert_true(rl_now_ns() - before >= 200 * RL_NS_PER_MS);
	assert_non_null(strstr(err.text, "198.18.7.99"));
}

static struct rl_nic *
open_on(const char *address, uint16_t udp_port)
{
	struct rl_nic_opts opts = {.n_queues = 1, .udp_port = udp_port, .address = ip(address)};
	struct rl_err err = {0};
	struct rl_nic *nic;

	if (rl_nic_open("udp:", &opts, &nic, &err) != 0)
		fail_msg("%s", err.text);
	return nic;
}

static void
veth_udp(const char *near, const char *far, const char *narrow)
{
	struct rl_nic *nic = open_on(near, 4700);
	struct rl_nic_peer peer = {.address = ip(far), .udp_port = 4800};
	struct rl_nic_path *path;
	uint32_t lens[RL_NIC_BURST];
	struct rl_err err = {0};

	assert_string_equal(rl_nic_info(nic)->ifname, "rlt0");
	assert_int_equal(rl_nic_info(nic)->max_payload, 1400 - 48);
	if (rl_nic_path_open(nic, &peer, &path, &err) != 0)
		fail_msg("%s", err.text);
	for (uint32_t i = 0; i < RL_NIC_BURST; i++)
		lens[i] = i < 20 ? 1352 : 1352 - i;
	for (int round = 0; round < 20; round++) {
		send_lens(nic, 0, path, lens, RL_NIC_BURST);
		expect_lens(nic, 0, lens, RL_NIC_BURST);
	}
	rl_nic_path_close(path);
	peer.address = ip(narrow);
	assert_int_equal(rl_nic_path_open(nic, &peer, &path, &err), -EMSGSIZE);
	assert_non_null(strstr(err.text, "1300"));
	rl_nic_close(nic);
}

/* The far namespace: set up rlt1 once it is here, say its MAC, mirror until killed. */
static void
veth_far(int from_near, int to_near)
{
	static const char *const near[] = {"198.18.7.1", "fd00:18:7::1"};
	struct rl_pkt in[RL_NIC_BURST], out[RL_NIC_BURST];
	struct rl_nic *nic[2];
	struct rl_nic_path *path[2];
	struct rl_err err = {0};
	struct rl_ip address;
	uint8_t mac[6], byte = 0;
	uint32_t mtu, n;
	bool up;

	assert_int_equal(unshare(CLONE_NEWNET), 0);
	assert_int_equal(write(to_near, &byte, 1), 1);
	assert_int_equal(read(from_near, &byte, 1), 1);
	sh("ip address add 198.18.7.2/24 dev rlt1 && ip address add fd00:18:7::2/64 dev rlt1 nodad "
	   "&&"
	   "ip link set rlt1 mtu 1400 up");
	assert_int_equal(rl_neigh_interface("rlt1", &address, mac, &mtu, &up, &err), 0);
	assert_int_equal(mtu, 1400);
	for (int i = 0; i < 2; i++) {
		struct rl_nic_peer peer = {.address = ip(near[i]), .udp_port = 4700};

		nic[i] = open_on(i == 0 ? "198.18.7.2" : "fd00:18:7::2", 4800);
		if (rl_nic_path_open(nic[i], &peer, &path[i], &err) != 0)
			fail_msg("%s", err.text);
	}
	assert_int_equal(write(to_near, mac, 6), 6);
	for (uint32_t i = 0;; i ^= 1) {
		n = rl_nic_rx_burst(nic[i], 0, in, RL_NIC_BURST);
		assert_int_equal(rl_nic_alloc(nic[i], 0, out, n), n);
		for (uint32_t k = 0; k < n; k++)
			memcpy(out[k].data, in[k].data, out[k].len = in[k].len);
		rl_nic_free(nic[i], 0, in, n);
		rl_nic_tx_burst(nic[i], 0, path[i], out, n);
	}
}

static void
veth_near(int from_far, int to_far, pid_t far)
{
	struct rl_err err = {0};
	struct rl_nic *nic;
	char command[128];
	uint8_t mac[6];

	assert_int_equal(read(from_far, mac, 1), 1);
	snprintf(command, sizeof(command),
		 "ip link set lo up && ip link add rlt0 mtu 1400 type veth peer name rlt1 netns %d",
		 far);
	sh(command);
	sh("ip address add 198.18.7.1/24 dev rlt0 && ip address add fd00:18:7::1/64 dev rlt0 nodad "
	   "&&"
	   "ip link set rlt0 up && ip route add 198.18.9.0/24 via 198.18.7.2 mtu 1300 &&"
	   "ip route add fd00:18:9::/64 via fd00:18:7::2 mtu 1300 && ip route add blackhole "
	   "198.18.10.0/24");
	assert_int_equal(write(to_far, mac, 1), 1);
	assert_int_equal(read(from_far, mac, 6), 6);
	veth_routes(mac);
	veth_udp("198.18.7.1", "198.18.7.2", "198.18.9.1");
	veth_udp("fd00:18:7::1", "fd00:18:7::2", "fd00:18:9::1");

	nic = open_on("198.18.7.1", 4700);
	assert_int_equal(rl_nic_check(nic, &err), 0);
	sh("ip link set rlt0 down");
	assert_int_equal(rl_nic_check(nic, &err), -ENETDOWN);
	sh("ip link del rlt0");
	assert_int_equal(rl_nic_check(nic, &err), -ENETDOWN);
	assert_non_null(strstr(err.text, "gone"));
	rl_nic_close(nic);
}

/* Runs in a process and a namespace of its own. */
static void
veth_both(void **state)
{
	int up[2], down[2];
	pid_t far;

	(void)state;
	assert_int_equal(pipe(up), 0);
	assert_int_equal(pipe(down), 0);
	far = fork();
	assert_true(far >= 0);
	if (far == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(up[0]);
		close(down[1]);
		veth_far(down[0], up[1]);
	}
	close(up[1]);
	close(down[0]);
	veth_near(up[0], down[1], far);
	kill(far, SIGKILL);
	waitpid(far, NULL, 0);
}

static void
test_veth_namespaces(void **state)
{
	static const struct CMUnitTest inside[] = {cmocka_unit_test(veth_both)};
	int status = 0;
	pid_t pid;

	(void)state;
	if (system("ip -V >/dev/null 2>&1") != 0) {
		print_message("skipped: `ip` (iproute2) is missing\n");
		skip();
	}
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(60);
		if (unshare(CLONE_NEWNET) != 0)
			_exit(77);
		if (system("ip link add rlt0 type veth peer name rlt1 && ip link del rlt0") != 0)
			_exit(78);
		_exit(cmocka_run_group_tests_name("veth", inside, NULL, NULL) != 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) >= 77) {
		print_message("skipped: %s missing\n", WEXITSTATUS(status) == 77
							       ? "root (CAP_SYS_ADMIN) is"
							       : "veth devices are");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_uri_and_options),
		cmocka_unit_test(test_udp_ipv4),
		cmocka_unit_test(test_udp_ipv6),
		cmocka_unit_test(test_udp_wildcard),
		cmocka_unit_test(test_udp_foreign),
		cmocka_unit_test(test_udp_refusals),
		cmocka_unit_test(test_udp_no_segmentation),
		cmocka_unit_test(test_udp_rx_ring),
		cmocka_unit_test(test_udp_free_by_other_worker),
		cmocka_unit_test(test_udp_buffers_run_out),
		cmocka_unit_test(test_neigh_loopback),
		cmocka_unit_test(test_veth_namespaces),
	};

	return cmocka_run_group_tests_name("nic", tests, NULL, NULL);
}
