/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_NIC_PORT_H
#define RL_NIC_PORT_H
/**
 * @file port.h
 * Inside nic/: what a backend implements. nic.c does what all share: the URI, the table of backends, injected
 * drops, the counters.
 *
 * Threads, units, errors: as nic/nic.h says for the public function of the same name.
 */
#include "nic/nic.h"
#include "base/rand.h"

#define RL_NIC_MIN_MTU 1280u /* what IPv6 needs (RFC 8200 §5) */

struct rl_nic_ops {
	const char *scheme; /* "dpdk" in "dpdk:…" */
	/** @rest: the URI behind the colon. Sets nic->info and nic->priv. */
	int (*open)(struct rl_nic *nic, const char *rest, struct rl_err *err);
	void (*close)(struct rl_nic *nic);
	int (*check)(const struct rl_nic *nic, struct rl_err *err);
	int (*thread_init)(struct rl_nic *nic);  /* may be NULL */
	void (*thread_fini)(struct rl_nic *nic); /* may be NULL */
	int (*path_open)(struct rl_nic *nic, struct rl_nic_path *path, struct rl_err *err);
	int (*path_refresh)(struct rl_nic_path *path, struct rl_err *err);
	void (*path_close)(struct rl_nic_path *path);
	uint32_t (*alloc)(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);
	uint32_t (*tx_burst)(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
			     struct rl_pkt *pkts, uint32_t n);
	uint32_t (*rx_burst)(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);
	void (*free)(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n);
};

struct rl_nic_queue {
	struct rl_nic_stats
		st; /* queue owner; backends count rx_foreign and alloc_failed, nic.c the rest */
	struct rl_rand rand; /* injected drops */
} __attribute__((aligned(64)));

struct rl_nic {
	const struct rl_nic_ops *ops;
	struct rl_nic_opts opts; /* strings are the caller's until open returns */
	struct rl_nic_info info;
	void *priv;
	struct rl_nic_queue queue[RL_NIC_MAX_QUEUES];
};

struct rl_nic_path {
	struct rl_nic *nic;
	struct rl_nic_peer peer;
	void *priv;
};

extern const struct rl_nic_ops rl_nic_dpdk_ops; /* nic_dpdk.c */
extern const struct rl_nic_ops rl_nic_udp_ops;  /* nic_udp.c */
extern const struct rl_nic_ops rl_nic_sim_ops;  /* nic_sim.c */

/* neigh.c: rtnetlink, by libmnl. */
struct rl_route {
	char ifname[IF_NAMESIZE];
	uint32_t ifindex;
	uint32_t mtu;          /* of the route, or of the interface */
	struct rl_ip next_hop; /* gateway, or the destination itself */
	struct rl_ip source;   /* preferred local address */
	uint8_t mac[6];        /* of next_hop, when resolved */
	bool resolved;
};

/** Route to @dst. -ENETUNREACH. */
int rl_neigh_route(const struct rl_ip *dst, struct rl_route *route, struct rl_err *err);
/** Look up route->next_hop's MAC; makes the kernel ask for it (a datagram to the discard port) and waits up to
 * @wait_ms. -EHOSTUNREACH. */
int rl_neigh_resolve(struct rl_route *route, uint32_t wait_ms, struct rl_err *err);
/** First global address of the interface (IPv4 before IPv6), its MAC, MTU and whether it is up. -ENODEV. */
int rl_neigh_interface(const char *ifname, struct rl_ip *address, uint8_t mac[6], uint32_t *mtu,
		       bool *up, struct rl_err *err);

/* xdp.c: our XDP filter on a kernel interface, held by a bpf_link while this process lives. */
struct rl_xdp;
/** Take UDP ports [udp_port, udp_port + n) of @ifname for AF_XDP sockets; the rest stays with the kernel. */
int rl_xdp_attach(const char *ifname, uint16_t udp_port, uint32_t n, struct rl_xdp **xdp,
		  struct rl_err *err);
void rl_xdp_detach(struct rl_xdp *xdp);

#endif /* RL_NIC_PORT_H */
