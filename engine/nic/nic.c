/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every port shares: the URI and the table of backends, the checks of options, injected drops, the
 * counters. A burst costs one indirect call and the counting.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/stats.h"
#include "nic/port.h"

static const struct rl_nic_ops *const backends[] = {
	&rl_nic_dpdk_ops,
	&rl_nic_udp_ops,
	&rl_nic_sim_ops,
};

/* The backend of @uri's scheme, and what follows the colon; NULL: none. */
static const struct rl_nic_ops *
backend_find(const char *uri, const char **rest)
{
	const char *colon = strchr(uri, ':');
	size_t len = colon != NULL ? (size_t)(colon - uri) : 0;

	for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
		const char *scheme = backends[i]->scheme;

		if (strlen(scheme) == len && memcmp(scheme, uri, len) == 0) {
			*rest = colon + 1;
			return backends[i];
		}
	}
	return NULL;
}

static bool
ip_valid(const struct rl_ip *ip)
{
	return ip->family == AF_INET || ip->family == AF_INET6;
}

static int
opts_check(const struct rl_nic_opts *o, struct rl_err *err)
{
	if (o->n_queues == 0 || o->n_queues > RL_NIC_MAX_QUEUES)
		return rl_err_set(err, -EINVAL, "%u queues asked for; a port has 1 to %u",
				  o->n_queues, RL_NIC_MAX_QUEUES);
	if (o->udp_port == 0 || o->udp_port + o->n_queues - 1 > UINT16_MAX)
		return rl_err_set(err, -EINVAL,
				  "UDP port %u with %u queues does not fit in 1..65535; queue k "
				  "uses port + k",
				  o->udp_port, o->n_queues);
	if (o->address.family != 0 && !ip_valid(&o->address))
		return rl_err_set(err, -EINVAL,
				  "address family %u is unknown; give an IPv4 or IPv6 address",
				  o->address.family);
	if (o->mtu != 0 && (o->mtu < RL_NIC_MIN_MTU || o->mtu > UINT16_MAX))
		return rl_err_set(err, -EINVAL,
				  "MTU %u is out of range; give %u..65535, or 0 for the "
				  "interface's",
				  o->mtu, RL_NIC_MIN_MTU);
	if (o->drop_ppm > 1000000)
		return rl_err_set(err, -EINVAL,
				  "a drop rate of %u per million is more than all; give 0..1000000",
				  o->drop_ppm);
	return 0;
}

int
rl_nic_open(const char *uri, const struct rl_nic_opts *opts, struct rl_nic **out,
	    struct rl_err *err)
{
	const char *rest = "";
	const struct rl_nic_ops *ops = backend_find(uri, &rest);
	struct rl_nic *nic;
	int ret;

	if (ops == NULL)
		return rl_err_set(
			err, -EINVAL,
			"port '%.64s' has no known scheme; known are dpdk:DEVARGS, udp: and "
			"sim:NAME/a|b (for example dpdk:net_af_xdp,iface=eth0, or udp: for kernel "
			"sockets)",
			uri);
	ret = opts_check(opts, err);
	if (ret != 0)
		return ret;
	if (strlen(uri) >= sizeof(nic->info.uri))
		return rl_err_set(err, -EINVAL,
				  "port '%.64s…' is %zu characters long; at most %zu fit", uri,
				  strlen(uri), sizeof(nic->info.uri) - 1);

	nic = aligned_alloc(_Alignof(struct rl_nic), sizeof(*nic));
	if (nic == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for port %s", uri);
	memset(nic, 0, sizeof(*nic));
	nic->ops = ops;
	nic->opts = *opts;
	memcpy(nic->info.uri, uri, strlen(uri));
	nic->info.n_queues = opts->n_queues;
	nic->info.udp_port = opts->udp_port;
	nic->info.address = opts->address;
	for (uint32_t i = 0; i < opts->n_queues; i++)
		nic->queue[i].rand.state = opts->drop_seed + i;

	ret = ops->open(nic, rest, err);
	if (ret != 0) {
		free(nic);
		return ret;
	}
	nic->opts.eal = NULL; /* the caller's string */
	*out = nic;
	return 0;
}

void
rl_nic_close(struct rl_nic *nic)
{
	if (nic == NULL)
		return;
	nic->ops->close(nic);
	free(nic);
}

const struct rl_nic_info *
rl_nic_info(const struct rl_nic *nic)
{
	return &nic->info;
}

int
rl_nic_check(const struct rl_nic *nic, struct rl_err *err)
{
	return nic->ops->check(nic, err);
}

int
rl_nic_thread_init(struct rl_nic *nic)
{
	return nic->ops->thread_init != NULL ? nic->ops->thread_init(nic) : 0;
}

void
rl_nic_thread_fini(struct rl_nic *nic)
{
	if (nic->ops->thread_fini != NULL)
		nic->ops->thread_fini(nic);
}

int
rl_nic_path_open(struct rl_nic *nic, const struct rl_nic_peer *peer, struct rl_nic_path **out,
		 struct rl_err *err)
{
	struct rl_nic_path *path;
	int ret;

	if (!ip_valid(&peer->address))
		return rl_err_set(
			err, -EINVAL,
			"the peer named no IPv4 or IPv6 address for its port; set one there");
	if (peer->udp_port == 0 || peer->udp_port + nic->info.n_queues - 1 > UINT16_MAX)
		return rl_err_set(err, -EINVAL,
				  "the peer's UDP port %u with %u queues does not fit in 1..65535",
				  peer->udp_port, nic->info.n_queues);

	path = calloc(1, sizeof(*path));
	if (path == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a path");
	path->nic = nic;
	path->peer = *peer;
	ret = nic->ops->path_open(nic, path, err);
	if (ret != 0) {
		free(path);
		return ret;
	}
	*out = path;
	return 0;
}

int
rl_nic_path_refresh(struct rl_nic_path *path, struct rl_err *err)
{
	return path->nic->ops->path_refresh(path, err);
}

void
rl_nic_path_close(struct rl_nic_path *path)
{
	if (path == NULL)
		return;
	path->nic->ops->path_close(path);
	free(path);
}

static uint64_t
payload_bytes(const struct rl_pkt *pkts, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += pkts[i].len;
	return bytes;
}

uint32_t
rl_nic_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	return nic->ops->alloc(nic, queue, pkts, n);
}

uint32_t
rl_nic_tx_burst(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
		struct rl_pkt *pkts, uint32_t n)
{
	struct rl_nic_stats *st = &nic->queue[queue].st;
	uint32_t taken;

	assert(n <= RL_NIC_BURST);
	taken = nic->ops->tx_burst(nic, queue, path, pkts, n);
	rl_count(&st->tx_packets, taken);
	rl_count(&st->tx_bytes, payload_bytes(pkts, taken));
	rl_count(&st->tx_refused, n - taken);
	return taken;
}

/* Free the unlucky, close the gaps. Returns how many are left. */
static uint32_t
inject_drops(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct rl_nic_queue *q = &nic->queue[queue];
	uint32_t kept = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (rl_rand_ppm(&q->rand, nic->opts.drop_ppm))
			nic->ops->free(nic, queue, &pkts[i], 1);
		else
			pkts[kept++] = pkts[i];
	}
	rl_count(&q->st.rx_injected_drops, n - kept);
	return kept;
}

uint32_t
rl_nic_rx_burst(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct rl_nic_stats *st = &nic->queue[queue].st;

	assert(n <= RL_NIC_BURST);
	n = nic->ops->rx_burst(nic, queue, pkts, n);
	if (rl_unlikely(nic->opts.drop_ppm != 0))
		n = inject_drops(nic, queue, pkts, n);
	rl_count(&st->rx_packets, n);
	rl_count(&st->rx_bytes, payload_bytes(pkts, n));
	return n;
}

void
rl_nic_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	nic->ops->free(nic, queue, pkts, n);
}

void
rl_nic_stats(const struct rl_nic *nic, uint32_t queue, struct rl_nic_stats *st)
{
	const uint64_t *from = (const uint64_t *)&nic->queue[queue].st;
	uint64_t *to = (uint64_t *)st;

	for (size_t i = 0; i < sizeof(*st) / sizeof(*to); i++)
		to[i] = rl_count_read(&from[i]);
}
