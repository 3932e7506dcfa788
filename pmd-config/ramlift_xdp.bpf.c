/* SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0 */
/*
 * XDP filter of a dpdk:net_af_xdp port: UDP datagrams to the engine's ports go to the AF_XDP socket of the
 * queue they came in on, everything else (ARP, ping, TCP, other ports) to the kernel as if we were not there.
 *
 * The names are an interface: libxdp, inside DPDK's driver, uses an attached program that is called
 * xsk_def_prog, has a map xsks_map and says its version in the BTF section xdp_metadata. So the engine attaches
 * this one by a bpf_link, which the kernel drops when the engine dies, and the driver attaches nothing.
 */
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_QUEUES   64 /* RL_NIC_MAX_QUEUES */
#define IP_DF        0x4000
#define VLAN_TAG_LEN 4

/* UDP ports [first, first + n), host byte order; the engine fills it in before loading (nic/xdp.c). */
const volatile struct {
	__u32 first, n;
} rl_ports = {0};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

/* A version in the type of a variable: libxdp reads it from BTF. */
__uint(xsk_prog_version, 1) SEC("xdp_metadata");

/* The UDP header behind @p if it is in the first and only fragment and nothing stands between; or NULL. */
static __always_inline struct udphdr *
udp_header(void *p, void *end, __u16 type)
{
	struct iphdr *ip = p;
	struct ipv6hdr *ip6 = p;

	if (type == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
		    (ip->frag_off & ~bpf_htons(IP_DF)) != 0)
			return NULL;
		return (struct udphdr *)(ip + 1);
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return NULL;
		return (struct udphdr *)(ip6 + 1);
	}
	return NULL;
}

SEC("xdp")
int
xsk_def_prog(struct xdp_md *ctx)
{
	void *p = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = p;
	struct udphdr *udp;
	__u16 type;

	p = eth + 1;
	if (p > end)
		return XDP_PASS;
	type = eth->h_proto;
	if (type == bpf_htons(ETH_P_8021Q)) {
		if (p + VLAN_TAG_LEN > end)
			return XDP_PASS;
		type = *(__u16 *)(p + VLAN_TAG_LEN - sizeof(type));
		p += VLAN_TAG_LEN;
	}
	udp = udp_header(p, end, type);
	if (udp == NULL || (void *)(udp + 1) > end ||
	    (__u32)bpf_ntohs(udp->dest) - rl_ports.first >= rl_ports.n)
		return XDP_PASS;
	/* The last argument is what happens while no socket is bound to the queue. */
	return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
