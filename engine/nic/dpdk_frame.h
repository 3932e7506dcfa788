/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_NIC_DPDK_FRAME_H
#define RL_NIC_DPDK_FRAME_H
/**
 * @file dpdk_frame.h
 * Ethernet, IPv4, IPv6 and UDP headers, written and read by us because the kernel is not in the path.
 *
 * Threads: [any], pure functions.
 * Units:   bytes; ports in host byte order.
 * Errors:  a frame that is not ours, in any way, is NULL or 0.
 */
#include <stdint.h>

#include "nic/nic.h"

/* Written in front of a payload; the headers are its last 42 (IPv4) or 62 (IPv6) bytes. */
#define RL_FRAME_ROOM 64u

struct rl_frame_end {
	struct rl_ip ip;
	uint8_t mac[6];
	uint16_t udp_port; /* of queue 0 */
};

struct rl_frame_template {
	uint8_t head[RL_FRAME_ROOM]; /* right-aligned */
	uint32_t len;                /* of the headers */
	uint64_t sum; /* IPv4: of the header; IPv6: of the pseudo header; both without lengths */
	uint16_t src_port, dst_port;
	struct rl_frame_template *older; /* replaced, but perhaps still in a worker's hands */
};

/** Headers from @src to @dst, which are of one family. */
void rl_frame_template(struct rl_frame_template *t, const struct rl_frame_end *src,
		       const struct rl_frame_end *dst);

/**
 * Write the headers for @queue in front of the payload; RL_FRAME_ROOM bytes there are overwritten. UDP's
 * checksum is 0 over IPv4 (the payload is authenticated) and computed over IPv6, which demands it (RFC 8200).
 */
void rl_frame_push(const struct rl_frame_template *t, uint32_t queue, uint8_t *payload,
		   uint32_t payload_bytes);

/**
 * The UDP payload of a frame to @self, ports [udp_port, udp_port + n_ports), or NULL: another address, a
 * fragment, IPv4 options, IPv6 extension headers, lengths that contradict each other. One VLAN tag may be there.
 */
uint8_t *rl_frame_parse(const struct rl_frame_end *self, uint32_t n_ports, uint8_t *frame,
			uint32_t bytes, uint32_t *payload_bytes);

/**
 * Turn an ARP request or IPv6 neighbour solicitation for @self's address into its answer, in place; @cap is the
 * room at @frame. Returns the bytes of the answer, or 0 when the frame is neither.
 */
uint32_t rl_frame_answer(const struct rl_frame_end *self, uint8_t *frame, uint32_t bytes,
			 uint32_t cap);

#endif /* RL_NIC_DPDK_FRAME_H */
