/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bare DPDK between two processes: what tx_burst and rx_burst give on a virtual device with frames of a given size,
 * no payload copied, no protocol. The reference for `scripts/bench link`.
 *
 * usage: bare_dpdk tx|rx VDEV FRAME_BYTES SECONDS [DESTINATION_MAC]
 * prints {"packets":N,"gbps":X,"cycles":cycles of CPU time per packet}
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_udp.h>

#define POOL_PACKETS 8192u
#define OBJECT_BYTES 4096u
#define BURST        32u
#define UDP_PORT     7410

static double
seconds(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* One page per packet: the AF_XDP driver of DPDK 22.11 loses objects that lie outside its UMEM otherwise. */
static struct rte_mempool *
make_pool(void)
{
	struct rte_pktmbuf_pool_private priv = {0};
	size_t bytes = (size_t)POOL_PACKETS * OBJECT_BYTES;
	uint32_t element = OBJECT_BYTES - RTE_CACHE_LINE_SIZE;
	struct rte_mempool *mp = rte_mempool_create_empty("pool", POOL_PACKETS, element, 256,
							  sizeof(priv), 0, RTE_MEMPOOL_F_NO_SPREAD);
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (mp == NULL || area == MAP_FAILED)
		return NULL;
	priv.mbuf_data_room_size = (uint16_t)(element - sizeof(struct rte_mbuf));
	rte_mempool_set_ops_byname(mp, rte_mbuf_best_mempool_ops(), NULL);
	rte_pktmbuf_pool_init(mp, &priv);
	if (rte_mempool_populate_iova(mp, area, RTE_BAD_IOVA, bytes, NULL, NULL) < 0)
		return NULL;
	rte_mempool_obj_iter(mp, rte_pktmbuf_init, NULL);
	return mp;
}

static int
start_port(struct rte_mempool *mp)
{
	struct rte_eth_conf conf = {0};

	if (rte_eth_dev_count_avail() != 1 || rte_eth_dev_configure(0, 1, 1, &conf) != 0 ||
	    rte_eth_rx_queue_setup(0, 0, 2048, 0, NULL, mp) != 0 ||
	    rte_eth_tx_queue_setup(0, 0, 2048, 0, NULL) != 0 || rte_eth_dev_start(0) != 0)
		return -1;
	return 0;
}

/* A memif is up when its peer is. */
static void
wait_link(double limit)
{
	struct rte_eth_link link;
	double end = seconds(CLOCK_MONOTONIC) + limit;

	do {
		rte_eth_link_get_nowait(0, &link);
	} while (link.link_status != RTE_ETH_LINK_UP && seconds(CLOCK_MONOTONIC) < end);
}

static void
fill_header(struct rte_mbuf *m, uint32_t frame, const struct rte_ether_addr *to)
{
	struct rte_ether_hdr *eth = rte_pktmbuf_mtod(m, struct rte_ether_hdr *);
	struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(eth + 1);
	struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(ip + 1);

	eth->dst_addr = *to;
	rte_eth_macaddr_get(0, &eth->src_addr);
	eth->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	*ip = (struct rte_ipv4_hdr){
		.version_ihl = 0x45,
		.total_length = rte_cpu_to_be_16((uint16_t)(frame - sizeof(*eth))),
		.time_to_live = 64,
		.next_proto_id = IPPROTO_UDP,
		.src_addr = rte_cpu_to_be_32(0xc6120001),
		.dst_addr = rte_cpu_to_be_32(0xc6120002),
	};
	ip->hdr_checksum = rte_ipv4_cksum(ip);
	udp->src_port = udp->dst_port = rte_cpu_to_be_16(UDP_PORT);
	udp->dgram_len = rte_cpu_to_be_16((uint16_t)(frame - sizeof(*eth) - sizeof(*ip)));
	udp->dgram_cksum = 0;
	m->data_len = (uint16_t)frame;
	m->pkt_len = frame;
}

static uint64_t
transmit(struct rte_mempool *mp, uint32_t frame, const struct rte_ether_addr *to, double end)
{
	struct rte_mbuf *m[BURST];
	uint64_t packets = 0;

	while (seconds(CLOCK_MONOTONIC) < end) {
		uint16_t sent;

		if (rte_pktmbuf_alloc_bulk(mp, m, BURST) != 0) {
			rte_eth_tx_burst(0, 0, m, 0); /* lets the driver take back what was sent */
			continue;
		}
		for (uint32_t i = 0; i < BURST; i++)
			fill_header(m[i], frame, to);
		sent = rte_eth_tx_burst(0, 0, m, BURST);
		rte_pktmbuf_free_bulk(m + sent, BURST - sent);
		packets += sent;
	}
	return packets;
}

static uint64_t
receive(uint32_t frame, double end, double *first, double *last)
{
	struct rte_mbuf *m[BURST];
	uint64_t packets = 0;
	double now;

	while ((now = seconds(CLOCK_MONOTONIC)) < end) {
		uint16_t n = rte_eth_rx_burst(0, 0, m, BURST);

		if (n == 0)
			continue;
		for (uint16_t i = 0; i < n; i++)
			packets += m[i]->pkt_len == frame;
		rte_pktmbuf_free_bulk(m, n);
		*first = *first == 0 ? now : *first;
		*last = now;
	}
	return packets;
}

int
main(int argc, char **argv)
{
	char vdev[256];
	/* DPDK's signature takes strings that it may change; it doesn't. */
	const char *eal[] = {"bare_dpdk",      "--no-pci", "--no-huge", "--no-shconf",
			     "--no-telemetry", "-m",       "64",        "--iova-mode=va",
			     "--log-level=1",  vdev};
	struct rte_ether_addr to = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
	double first = 0, last = 0, cpu, end;
	struct rte_mempool *mp;
	uint64_t packets;
	uint32_t frame;

	if (argc < 5 || (argc > 5 && rte_ether_unformat_addr(argv[5], &to) != 0)) {
		fprintf(stderr, "usage: bare_dpdk tx|rx VDEV FRAME_BYTES SECONDS [MAC]\n");
		return 2;
	}
	snprintf(vdev, sizeof(vdev), "--vdev=%s", argv[2]);
	frame = (uint32_t)strtoul(argv[3], NULL, 10);
	if (rte_eal_init((int)(sizeof(eal) / sizeof(eal[0])), (char **)(uintptr_t)eal) < 0 ||
	    (mp = make_pool()) == NULL || start_port(mp) != 0) {
		fprintf(stderr, "bare_dpdk: %s does not start\n", argv[2]);
		return 1;
	}
	wait_link(10);
	cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
	first = strcmp(argv[1], "tx") == 0 ? seconds(CLOCK_MONOTONIC) : 0;
	end = seconds(CLOCK_MONOTONIC) + strtod(argv[4], NULL);
	if (strcmp(argv[1], "tx") == 0) {
		packets = transmit(mp, frame, &to, end);
		last = seconds(CLOCK_MONOTONIC);
	} else {
		packets = receive(frame, end, &first, &last);
	}
	cpu = seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	printf("{\"packets\":%llu,\"gbps\":%.3f,\"cycles\":%.0f}\n", (unsigned long long)packets,
	       last > first ? (double)packets * frame * 8 / (last - first) / 1e9 : 0,
	       packets > 0 ? cpu * (double)rte_get_tsc_hz() / (double)packets : 0);
	rte_eth_dev_stop(0);
	return 0;
}
