/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_NIC_NIC_DPDK_H
#define RL_NIC_NIC_DPDK_H
/**
 * @file nic_dpdk.h
 * Between the files of the dpdk: backend. dpdk_eal.c: DPDK itself, threads, packet pools. dpdk_dev.c: devices.
 * dpdk_frame.c: headers. nic_dpdk.c: the port.
 *
 * Threads: [control], but for rl_dpdk_thread_*, which a worker calls for itself.
 * Errors:  0 or -errno, with cause and remedy in @err.
 */
#include <stdbool.h>
#include <stdint.h>
#include <rte_dev.h>
#include <rte_mempool.h>

#include "nic/dpdk_frame.h"
#include "nic/port.h"

enum rl_dpdk_kind {
	RL_DPDK_AF_XDP,    /* one device per queue */
	RL_DPDK_AF_PACKET, /* this and all below: one device with all queues */
	RL_DPDK_MEMIF,
	RL_DPDK_VDEV, /* any other virtual device */
	RL_DPDK_PCI,
};

/* What the URI says. */
struct rl_dpdk_spec {
	enum rl_dpdk_kind kind;
	char name[64];            /* the driver's, or the PCI address */
	char args[128];           /* behind the first comma */
	char ifname[IF_NAMESIZE]; /* iface= of a driver that sits on a kernel interface, or "" */
	uint32_t first_queue;     /* AF_XDP: start_queue= */
	uint32_t rx_ring;         /* packets, where the driver or its arguments fix it */
	uint32_t mtu_max;         /* 0: the device's own */
	uint32_t room_bytes; /* of a packet buffer for that MTU, with headroom; 0: by the MTU */
};

struct rl_dpdk_dev {
	uint16_t port; /* ethdev */
	bool started;
	bool isolated;             /* the kernel shares it and keeps what no rule of ours takes */
	struct rte_device *device; /* NULL: none */
	uint32_t rx_ring;          /* packets per queue */
	int xsk_fd;                /* AF_XDP: the socket, which the driver forgets to close */
	uint64_t xsk_cookie;
};

int rl_dpdk_eal_init(const struct rl_dpdk_spec *spec, const char *extra, struct rl_err *err);

/** Give this thread a DPDK identity (and with it a cache of the pools); nests. */
int rl_dpdk_thread_register(void);
void rl_dpdk_thread_unregister(void);

/** @n packet buffers of @room_bytes, headroom included. Free with rte_mempool_free(). */
int rl_dpdk_pool_create(const struct rl_dpdk_spec *spec, uint32_t room_bytes, uint32_t n,
			struct rte_mempool **pool, struct rl_err *err);

int rl_dpdk_spec_parse(const char *rest, struct rl_dpdk_spec *spec, struct rl_err *err);

/** Make or find device @i of the port. @n_queues: of the port. */
int rl_dpdk_dev_probe(const struct rl_dpdk_spec *spec, uint32_t n_queues, uint32_t i,
		      struct rl_dpdk_dev *dev, struct rl_err *err);

/** Configure @n_queues pairs and start. @self: for the rules that steer UDP port + k to queue k. */
int rl_dpdk_dev_start(struct rl_dpdk_dev *dev, const struct rl_dpdk_spec *spec, uint32_t n_queues,
		      uint32_t mtu, const struct rl_frame_end *self, struct rte_mempool *pool,
		      struct rl_err *err);

void rl_dpdk_dev_close(struct rl_dpdk_dev *dev);

#endif /* RL_NIC_NIC_DPDK_H */
