/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Headers below UDP: written from a template per path, read with bounds. Ports without a kernel interface also
 * answer ARP (RFC 826) and neighbour solicitation (RFC 4861) here, or nobody could reach them.
 */
#include <assert.h>
#include <string.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <rte_arp.h>
#include <rte_byteorder.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>

#include "base/bytes.h"
#include "nic/dpdk_frame.h"

#define FRAME_TTL      64
#define FRAME_VLAN_TAG 4u
#define ND_HOP_LIMIT   255 /* RFC 4861 §7.1.1: proves that no router forwarded it */

typedef uint64_t lanes_t __attribute__((vector_size(64)));

static_assert(sizeof(struct rte_ether_hdr) + sizeof(struct rte_ipv6_hdr) +
			      sizeof(struct rte_udp_hdr) <=
		      RL_FRAME_ROOM,
	      "the longest headers fit");

/* Sum of 16-bit words in memory order, not folded (RFC 1071). A last odd byte is padded with zero. */
#ifndef __SANITIZE_THREAD__ /* its code in the resolver that picks a clone would run before it is set up */
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t
sum_words(const uint8_t *p, uint32_t bytes)
{
	lanes_t acc = {0}, v;
	uint64_t sum = 0;
	uint32_t w;

	for (; bytes >= sizeof(v); bytes -= sizeof(v), p += sizeof(v)) {
		memcpy(&v, p, sizeof(v));
		acc += (v & 0xffffffff) + (v >> 32);
	}
	for (uint32_t i = 0; i < 8; i++)
		sum += acc[i];
	for (; bytes > 0; bytes -= rl_min32(bytes, 4), p += 4) {
		w = 0;
		memcpy(&w, p, rl_min32(bytes, 4));
		sum += w;
	}
	return sum;
}

static uint16_t
sum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

void
rl_frame_template(struct rl_frame_template *t, const struct rl_frame_end *src,
		  const struct rl_frame_end *dst)
{
	bool v6 = dst->ip.family == AF_INET6;
	uint32_t ip_bytes = v6 ? sizeof(struct rte_ipv6_hdr) : sizeof(struct rte_ipv4_hdr);
	struct rte_ether_hdr *eth;
	struct rte_ipv4_hdr *ip4;
	struct rte_ipv6_hdr *ip6;

	memset(t, 0, sizeof(*t));
	t->len = sizeof(*eth) + ip_bytes + sizeof(struct rte_udp_hdr);
	t->src_port = src->udp_port;
	t->dst_port = dst->udp_port;

	eth = (struct rte_ether_hdr *)(t->head + RL_FRAME_ROOM - t->len);
	memcpy(&eth->dst_addr, dst->mac, sizeof(eth->dst_addr));
	memcpy(&eth->src_addr, src->mac, sizeof(eth->src_addr));
	eth->ether_type = rte_cpu_to_be_16(v6 ? RTE_ETHER_TYPE_IPV6 : RTE_ETHER_TYPE_IPV4);
	if (v6) {
		ip6 = (struct rte_ipv6_hdr *)(eth + 1);
		ip6->vtc_flow = rte_cpu_to_be_32(6u << 28);
		ip6->proto = IPPROTO_UDP;
		ip6->hop_limits = FRAME_TTL;
		memcpy(ip6->src_addr, src->ip.addr, sizeof(ip6->src_addr));
		memcpy(ip6->dst_addr, dst->ip.addr, sizeof(ip6->dst_addr));
		t->sum = sum_words(src->ip.addr, 16) + sum_words(dst->ip.addr, 16) +
			 rte_cpu_to_be_16(IPPROTO_UDP);
	} else {
		ip4 = (struct rte_ipv4_hdr *)(eth + 1);
		ip4->version_ihl = RTE_IPV4_VHL_DEF;
		ip4->fragment_offset = rte_cpu_to_be_16(RTE_IPV4_HDR_DF_FLAG);
		ip4->time_to_live = FRAME_TTL;
		ip4->next_proto_id = IPPROTO_UDP;
		memcpy(&ip4->src_addr, src->ip.addr, sizeof(ip4->src_addr));
		memcpy(&ip4->dst_addr, dst->ip.addr, sizeof(ip4->dst_addr));
		t->sum = sum_words((const uint8_t *)ip4, sizeof(*ip4));
	}
}

void
rl_frame_push(const struct rl_frame_template *t, uint32_t queue, uint8_t *payload,
	      uint32_t payload_bytes)
{
	struct rte_udp_hdr *udp = (struct rte_udp_hdr *)payload - 1;
	uint16_t udp_len = rte_cpu_to_be_16((uint16_t)(sizeof(*udp) + payload_bytes));
	struct rte_ether_hdr *eth;
	struct rte_ipv4_hdr *ip4;
	struct rte_ipv6_hdr *ip6;

	memcpy(payload - RL_FRAME_ROOM, t->head, RL_FRAME_ROOM);
	eth = (struct rte_ether_hdr *)(payload - t->len);
	udp->src_port = rte_cpu_to_be_16((uint16_t)(t->src_port + queue));
	udp->dst_port = rte_cpu_to_be_16((uint16_t)(t->dst_port + queue));
	udp->dgram_len = udp_len;
	if (eth->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4)) {
		ip4 = (struct rte_ipv4_hdr *)(eth + 1);
		ip4->total_length =
			rte_cpu_to_be_16((uint16_t)(sizeof(*ip4) + sizeof(*udp) + payload_bytes));
		ip4->hdr_checksum = sum_fold(t->sum + ip4->total_length);
		return;
	}
	ip6 = (struct rte_ipv6_hdr *)(eth + 1);
	ip6->payload_len = udp_len;
	udp->dgram_cksum = sum_fold(t->sum + udp_len +
				    sum_words((const uint8_t *)udp, sizeof(*udp) + payload_bytes));
	if (udp->dgram_cksum == 0)
		udp->dgram_cksum = 0xffff; /* 0 means none */
}

/* What follows the Ethernet header and at most one VLAN tag. */
static uint8_t *
parse_ether(uint8_t *frame, uint32_t bytes, uint16_t *type, uint32_t *left)
{
	const struct rte_ether_hdr *eth = (const struct rte_ether_hdr *)frame;
	uint32_t at = sizeof(*eth);

	if (bytes < at)
		return NULL;
	memcpy(type, &eth->ether_type, sizeof(*type));
	if (*type == rte_cpu_to_be_16(RTE_ETHER_TYPE_VLAN)) {
		at += FRAME_VLAN_TAG;
		if (bytes < at)
			return NULL;
		memcpy(type, frame + at - sizeof(*type), sizeof(*type));
	}
	*left = bytes - at;
	return frame + at;
}

/* IPv4's payload, if it is one whole UDP datagram to @self. */
static uint8_t *
parse_ipv4(const struct rl_frame_end *self, uint8_t *p, uint32_t left, uint32_t *ip_payload)
{
	const struct rte_ipv4_hdr *ip = (const struct rte_ipv4_hdr *)p;
	uint32_t total;

	if (self->ip.family != AF_INET || left < sizeof(*ip))
		return NULL;
	total = rte_be_to_cpu_16(ip->total_length);
	if (ip->version_ihl != RTE_IPV4_VHL_DEF || ip->next_proto_id != IPPROTO_UDP ||
	    (ip->fragment_offset &
	     rte_cpu_to_be_16(RTE_IPV4_HDR_MF_FLAG | RTE_IPV4_HDR_OFFSET_MASK)) != 0 ||
	    total < sizeof(*ip) || total > left ||
	    memcmp(&ip->dst_addr, self->ip.addr, sizeof(ip->dst_addr)) != 0)
		return NULL;
	*ip_payload = total - (uint32_t)sizeof(*ip);
	return p + sizeof(*ip);
}

static uint8_t *
parse_ipv6(const struct rl_frame_end *self, uint8_t *p, uint32_t left, uint32_t *ip_payload)
{
	const struct rte_ipv6_hdr *ip = (const struct rte_ipv6_hdr *)p;

	if (self->ip.family != AF_INET6 || left < sizeof(*ip))
		return NULL;
	*ip_payload = rte_be_to_cpu_16(ip->payload_len);
	if (p[0] >> 4 != 6 || ip->proto != IPPROTO_UDP || *ip_payload > left - sizeof(*ip) ||
	    memcmp(ip->dst_addr, self->ip.addr, sizeof(ip->dst_addr)) != 0)
		return NULL;
	return p + sizeof(*ip);
}

uint8_t *
rl_frame_parse(const struct rl_frame_end *self, uint32_t n_ports, uint8_t *frame, uint32_t bytes,
	       uint32_t *payload_bytes)
{
	const struct rte_udp_hdr *udp;
	uint32_t left, len;
	uint16_t type;
	uint8_t *p = parse_ether(frame, bytes, &type, &left);

	if (p == NULL)
		return NULL;
	if (type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4))
		p = parse_ipv4(self, p, left, &left);
	else if (type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6))
		p = parse_ipv6(self, p, left, &left);
	else
		return NULL;
	if (p == NULL || left < sizeof(*udp))
		return NULL;

	udp = (const struct rte_udp_hdr *)p;
	len = rte_be_to_cpu_16(udp->dgram_len);
	/* One comparison for both ends of the range: below it wraps to a large number. */
	if (len < sizeof(*udp) || len > left ||
	    (uint32_t)rte_be_to_cpu_16(udp->dst_port) - self->udp_port >= n_ports)
		return NULL;
	*payload_bytes = len - (uint32_t)sizeof(*udp);
	return p + sizeof(*udp);
}

static uint32_t
answer_arp(const struct rl_frame_end *self, uint8_t *frame, uint32_t bytes)
{
	struct rte_ether_hdr *eth = (struct rte_ether_hdr *)frame;
	struct rte_arp_hdr *arp = (struct rte_arp_hdr *)(eth + 1);
	struct rte_arp_ipv4 *d = &arp->arp_data;

	if (self->ip.family != AF_INET || bytes < sizeof(*eth) + sizeof(*arp) ||
	    arp->arp_hardware != rte_cpu_to_be_16(RTE_ARP_HRD_ETHER) ||
	    arp->arp_protocol != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4) ||
	    arp->arp_hlen != sizeof(d->arp_sha) || arp->arp_plen != sizeof(d->arp_sip) ||
	    arp->arp_opcode != rte_cpu_to_be_16(RTE_ARP_OP_REQUEST) ||
	    memcmp(&d->arp_tip, self->ip.addr, sizeof(d->arp_tip)) != 0)
		return 0;
	arp->arp_opcode = rte_cpu_to_be_16(RTE_ARP_OP_REPLY);
	d->arp_tha = d->arp_sha;
	d->arp_tip = d->arp_sip;
	memcpy(&d->arp_sha, self->mac, sizeof(d->arp_sha));
	memcpy(&d->arp_sip, self->ip.addr, sizeof(d->arp_sip));
	eth->dst_addr = d->arp_tha;
	memcpy(&eth->src_addr, self->mac, sizeof(eth->src_addr));
	return sizeof(*eth) + sizeof(*arp);
}

struct nd_answer { /* RFC 4861 §4.4 and §4.6.1 */
	struct nd_neighbor_advert na;
	struct nd_opt_hdr opt;
	uint8_t mac[6];
};

static uint32_t
answer_nd(const struct rl_frame_end *self, uint8_t *frame, uint32_t bytes, uint32_t cap)
{
	struct rte_ether_hdr *eth = (struct rte_ether_hdr *)frame;
	struct rte_ipv6_hdr *ip = (struct rte_ipv6_hdr *)(eth + 1);
	uint32_t head = sizeof(*eth) + sizeof(*ip);
	static const uint8_t none[16];
	struct nd_neighbor_solicit ns;
	struct nd_answer na = {
		.na.nd_na_type = ND_NEIGHBOR_ADVERT,
		.na.nd_na_flags_reserved = ND_NA_FLAG_SOLICITED | ND_NA_FLAG_OVERRIDE,
		.opt = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1},
	};

	static_assert(sizeof(na) == 32, "as it lies on the wire");
	if (self->ip.family != AF_INET6 || bytes < head + sizeof(ns) || cap < head + sizeof(na))
		return 0;
	memcpy(&ns, frame + head, sizeof(ns));
	if (ip->proto != IPPROTO_ICMPV6 || ip->hop_limits != ND_HOP_LIMIT ||
	    ns.nd_ns_type != ND_NEIGHBOR_SOLICIT || ns.nd_ns_code != 0 ||
	    memcmp(ip->src_addr, none, sizeof(none)) == 0 ||
	    memcmp(&ns.nd_ns_target, self->ip.addr, sizeof(ns.nd_ns_target)) != 0)
		return 0;

	eth->dst_addr = eth->src_addr;
	memcpy(&eth->src_addr, self->mac, sizeof(eth->src_addr));
	memcpy(ip->dst_addr, ip->src_addr, sizeof(ip->dst_addr));
	memcpy(ip->src_addr, self->ip.addr, sizeof(ip->src_addr));
	ip->payload_len = rte_cpu_to_be_16(sizeof(na));
	na.na.nd_na_target = ns.nd_ns_target;
	memcpy(na.mac, self->mac, sizeof(na.mac));
	na.na.nd_na_cksum =
		sum_fold(sum_words(ip->src_addr, 16) + sum_words(ip->dst_addr, 16) +
			 rte_cpu_to_be_16(sizeof(na)) + rte_cpu_to_be_16(IPPROTO_ICMPV6) +
			 sum_words((const uint8_t *)&na, sizeof(na)));
	memcpy(frame + head, &na, sizeof(na));
	return head + (uint32_t)sizeof(na);
}

uint32_t
rl_frame_answer(const struct rl_frame_end *self, uint8_t *frame, uint32_t bytes, uint32_t cap)
{
	const struct rte_ether_hdr *eth = (const struct rte_ether_hdr *)frame;

	if (bytes < sizeof(*eth))
		return 0;
	if (eth->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_ARP))
		return answer_arp(self, frame, bytes);
	if (eth->ether_type == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6))
		return answer_nd(self, frame, bytes, cap);
	return 0;
}
