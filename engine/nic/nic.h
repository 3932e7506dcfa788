/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_NIC_NIC_H
#define RL_NIC_NIC_H
/**
 * @file nic.h
 * A port that moves UDP datagrams, opened by URI. Opaque payloads in, opaque payloads out: knows no
 * pages, no records. Queue k sends from and receives on UDP port `udp_port + k`.
 *
 *   dpdk:DEVARGS   any DPDK ethdev. `dpdk:0000:5e:00.0` a NIC by PCI address with its native driver;
 *                  `dpdk:net_af_xdp,iface=veth0`; `dpdk:net_memif,role=server,id=0,socket=/run/m.sock`;
 *                  `dpdk:net_af_packet,iface=veth0`. One queue pair per worker.
 *   udp:           kernel sockets with UDP_SEGMENT and UDP_GRO; nothing to set up.
 *   sim:NAME       one end of an in-process network made with rl_sim_create() (nic/sim.h).
 *
 * Packet buffers belong to the port: alloc -> fill -> tx_burst takes them; rx_burst lends them -> free.
 *
 * Threads: open/close/path functions [control]; the burst functions of queue k by the one thread that owns
 *          queue k, after it called rl_nic_thread_init(); rl_nic_free() by any worker of the port.
 * Units:   bytes of UDP payload; host byte order for ports.
 * Errors:  control functions return 0 or -errno and fill @err with cause and remedy. Burst functions return
 *          counts and never fail; drops are counted.
 */
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define RL_NIC_BURST       32u /* packets per burst, at most */
#define RL_NIC_MAX_QUEUES  64u
#define RL_NIC_MAX_PAYLOAD 8952u /* UDP payload of a 9000-byte MTU over IPv6 */

/* An IPv4 (family AF_INET, 4 bytes used) or IPv6 address. */
struct rl_ip {
	uint16_t family; /* AF_INET, AF_INET6; 0 = none */
	uint8_t addr[16];
};

struct rl_nic_opts {
	uint32_t n_queues;
	uint16_t udp_port;    /* of queue 0 */
	struct rl_ip address; /* local address; none: the interface's first */
	uint32_t mtu;         /* 0: the interface's */
	uint32_t drop_ppm;    /* lab only: drop this share of received packets, per million */
	uint64_t drop_seed;
	const char *eal; /* extra EAL arguments, or NULL */
};

struct rl_nic_info {
	char uri[128];
	char ifname[IF_NAMESIZE]; /* kernel interface, or "" */
	uint32_t n_queues;
	uint32_t max_payload; /* UDP payload of one datagram over IPv4 and IPv6 alike */
	uint32_t rx_ring;     /* packets that a queue holds while its worker is away */
	uint16_t udp_port;
	struct rl_ip address; /* the local address in use */
	uint8_t mac[6];
	bool segments_in_kernel; /* the kernel may pass super-packets (udp:), say so in benchmarks */
};

/* Where to send: what the peer said of its port over the control channel. */
struct rl_nic_peer {
	struct rl_ip address;
	uint16_t udp_port; /* of its queue 0 */
	uint8_t mac[6];    /* used where there is no kernel interface to resolve neighbours with */
};

struct rl_pkt {
	uint8_t *data; /* UDP payload */
	uint32_t len;  /* bytes of payload: set by the caller for tx, by rx_burst for rx */
	uint32_t cap;  /* room at data */
	void *priv;    /* the port's */
};

struct rl_nic_stats { /* per queue, written by its owner; rl_count_read() */
	uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes;
	uint64_t tx_refused; /* handed back by tx_burst */
	uint64_t rx_foreign; /* not UDP, not our port, malformed */
	uint64_t rx_injected_drops;
	uint64_t alloc_failed;
};

struct rl_nic;      /* a port */
struct rl_nic_path; /* a destination, resolved: the packet headers to put in front */

int rl_nic_open(const char *uri, const struct rl_nic_opts *opts, struct rl_nic **nic,
		struct rl_err *err);
void rl_nic_close(struct rl_nic *nic);
const struct rl_nic_info *rl_nic_info(const struct rl_nic *nic);

/** Is the link up and the interface still there? 0, or -ENETDOWN with cause and remedy. [control] */
int rl_nic_check(const struct rl_nic *nic, struct rl_err *err);

/** Once in every worker thread before its first burst. */
int rl_nic_thread_init(struct rl_nic *nic);
void rl_nic_thread_fini(struct rl_nic *nic);

/**
 * Resolve route and neighbour (rtnetlink; waits up to 3 s for ARP or ND) and build the headers. -ENETUNREACH,
 * -EHOSTUNREACH, -ENODEV (the route leaves by another interface). [control]
 */
int rl_nic_path_open(struct rl_nic *nic, const struct rl_nic_peer *peer, struct rl_nic_path **path,
		     struct rl_err *err);
/** Look again: a changed neighbour or route takes effect for the next burst. [control] */
int rl_nic_path_refresh(struct rl_nic_path *path, struct rl_err *err);
void rl_nic_path_close(struct rl_nic_path *path);

/** Get up to @n empty buffers; returns how many. [queue owner] */
uint32_t rl_nic_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);

/**
 * Send; one doorbell. Returns how many were taken, in order; the rest were freed (count them as refused).
 * [queue owner]
 */
uint32_t rl_nic_tx_burst(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
			 struct rl_pkt *pkts, uint32_t n);

/** Receive up to @n datagrams addressed to the port's UDP ports; the caller frees them. [queue owner] */
uint32_t rl_nic_rx_burst(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);

void rl_nic_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);

/** Copy the counters of one queue. [any] */
void rl_nic_stats(const struct rl_nic *nic, uint32_t queue, struct rl_nic_stats *st);

#endif /* RL_NIC_NIC_H */
