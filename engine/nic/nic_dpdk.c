/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dpdk: backend: any DPDK ethdev as a port. Where the device sits on a kernel interface (net_af_xdp,
 * net_af_packet, mlx5) the kernel keeps the addresses and the neighbours and we look at its tables; elsewhere
 * the peer says its MAC and we answer ARP and neighbour solicitations ourselves.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "base/bytes.h"
#include "base/stats.h"
#include "nic/nic_dpdk.h"

#define PORT_HEADERS 48u /* IPv6 and UDP */
#define PORT_MTU_MAX (RL_NIC_MAX_PAYLOAD + PORT_HEADERS)
#define PORT_BUFFERS                                                                               \
	6144u /* per queue: 2048 received, 2048 sent but not completed, the rest ours */
#define PORT_RX_MARGIN  16u /* a 16th of the ring, for a burst that comes before the credit */
#define PORT_RESOLVE_MS 3000u

static_assert(RTE_PKTMBUF_HEADROOM >= RL_FRAME_ROOM, "headers fit in front of the payload");

struct dpdk_queue {
	uint16_t port, queue; /* ethdev */
};

struct dpdk_port {
	/* Set at open, then constant. */
	struct dpdk_queue queue[RL_NIC_MAX_QUEUES];
	struct rl_frame_end self;
	uint32_t n_queues;
	struct rte_mempool *pool;
	bool answers; /* ARP and ND are ours */

	struct rl_dpdk_spec spec;
	struct rl_dpdk_dev dev[RL_NIC_MAX_QUEUES];
	uint32_t n_devs;
	struct rl_xdp *xdp;
	int port_fd[RL_NIC_MAX_QUEUES];
	uint32_t n_port_fds;
};

struct dpdk_path {
	struct rl_frame_template *current; /* atomic: workers read, control replaces */
};

static int
interface_error(const char *ifname, struct rl_err *err)
{
	return rl_err_set(err, -ENETDOWN,
			  "interface %s is down, or its cable or peer is; `ip link set dev %s up` "
			  "(and the other end)",
			  ifname, ifname);
}

/* Address, MAC and MTU of the kernel interface into @self and @mtu. */
static int
interface_read(struct rl_nic *nic, struct rl_frame_end *self, uint32_t *mtu, struct rl_err *err)
{
	struct rl_ip first;
	bool up;
	int ret;

	ret = rl_neigh_interface(nic->info.ifname, &first, self->mac, mtu, &up, err);
	if (ret != 0)
		return ret;
	if (!up)
		return interface_error(nic->info.ifname, err);
	if (self->ip.family == 0)
		self->ip = first;
	if (self->ip.family == 0)
		return rl_err_set(err, -EADDRNOTAVAIL,
				  "interface %s has no address; `ip addr add ADDRESS/LEN dev %s`, "
				  "or wait until IPv6 has checked its own",
				  nic->info.ifname, nic->info.ifname);
	return 0;
}

/*
 * A kernel socket on each of our UDP ports: reserves them, and what leaks past the filter is not answered with
 * "port unreachable". It receives nothing else.
 */
static int
port_fds_open(struct dpdk_port *p, struct rl_err *err)
{
	const struct rl_ip *ip = &p->self.ip;
	struct sockaddr_in in = {.sin_family = AF_INET};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	bool v6 = ip->family == AF_INET6;
	char text[INET6_ADDRSTRLEN] = "?";
	int small = 0, fd;

	memcpy(&in.sin_addr, ip->addr, sizeof(in.sin_addr));
	memcpy(&in6.sin6_addr, ip->addr, sizeof(in6.sin6_addr));
	for (uint32_t k = 0; k < p->n_queues; k++) {
		in.sin_port = in6.sin6_port = htons((uint16_t)(p->self.udp_port + k));
		fd = socket(ip->family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (fd < 0)
			return rl_err_set(
				err, -errno,
				"no socket for UDP port %u: %s; raise the limit of open files",
				p->self.udp_port + k, strerror(errno));
		p->port_fd[p->n_port_fds++] = fd;
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
		if (bind(fd, v6 ? (const struct sockaddr *)&in6 : (const struct sockaddr *)&in,
			 v6 ? sizeof(in6) : sizeof(in)) == 0)
			continue;
		inet_ntop(ip->family, ip->addr, text, sizeof(text));
		if (errno == EADDRINUSE)
			return rl_err_set(
				err, -EADDRINUSE,
				"UDP port %u of %s is in use; set udp-port to another, or stop the "
				"program that has it (`ss -ulnp`)",
				p->self.udp_port + k, text);
		return rl_err_set(
			err, -errno,
			"UDP port %u of address %s cannot be taken: %s; is it an address of "
			"this host? See `ip addr`",
			p->self.udp_port + k, text, strerror(errno));
	}
	return 0;
}

/* The devices, and through them the kernel interface there may be. */
static int
port_probe(struct rl_nic *nic, struct dpdk_port *p, struct rl_err *err)
{
	uint32_t n = p->spec.kind == RL_DPDK_AF_XDP ? p->n_queues : 1, if_index = 0;
	struct rte_eth_dev_info info;
	int ret;

	for (uint32_t i = 0; i < n; i++) {
		p->n_devs++;
		ret = rl_dpdk_dev_probe(&p->spec, p->n_queues, i, &p->dev[i], err);
		if (ret != 0)
			return ret;
	}
	for (uint16_t k = 0; k < p->n_queues; k++) {
		p->queue[k].port = p->dev[n == 1 ? 0 : k].port;
		p->queue[k].queue = n == 1 ? k : 0;
	}
	if (p->dev[0].isolated && rte_eth_dev_info_get(p->dev[0].port, &info) == 0)
		if_index = info.if_index;
	if (if_index != 0)
		if_indextoname(if_index, nic->info.ifname);
	return 0;
}

/* Who we are, and the MTU: of the interface or the device, no more than the driver can, or as asked for. */
static int
port_identify(struct rl_nic *nic, struct dpdk_port *p, uint32_t *mtu, struct rl_err *err)
{
	bool kernel = nic->info.ifname[0] != '\0';
	uint16_t dev_mtu;
	uint32_t max;
	int ret;

	if (kernel) {
		ret = interface_read(nic, &p->self, &max, err);
		if (ret != 0)
			return ret;
	} else {
		rte_eth_dev_get_mtu(p->dev[0].port, &dev_mtu);
		max = p->spec.mtu_max != 0 ? p->spec.mtu_max : dev_mtu;
		rte_eth_macaddr_get(p->dev[0].port, (struct rte_ether_addr *)p->self.mac);
		p->answers = true;
	}
	if (p->spec.mtu_max != 0)
		max = rl_min32(max, p->spec.mtu_max);
	else if (!kernel && nic->opts.mtu != 0)
		max = nic->opts.mtu; /* a device of our own can be told */
	max = rl_min32(max, PORT_MTU_MAX);
	*mtu = nic->opts.mtu != 0 ? nic->opts.mtu : max;
	if (*mtu > max)
		return rl_err_set(
			err, -EINVAL,
			"MTU %u is more than the %u that %s can carry; lower mtu, or raise that",
			*mtu, max, kernel ? nic->info.ifname : p->spec.name);
	return 0;
}

static int
port_start(struct rl_nic *nic, struct dpdk_port *p, uint32_t mtu, struct rl_err *err)
{
	uint32_t room = p->spec.room_bytes != 0
				? p->spec.room_bytes
				: RTE_PKTMBUF_HEADROOM + RTE_ALIGN_CEIL(mtu + 64, 1024u);
	int ret;

	if (nic->info.ifname[0] != '\0') {
		ret = port_fds_open(p, err);
		if (ret != 0)
			return ret;
	}
	if (p->spec.kind == RL_DPDK_AF_XDP) {
		ret = rl_xdp_attach(p->spec.ifname, p->self.udp_port, p->n_queues, &p->xdp, err);
		if (ret != 0)
			return ret;
	}
	ret = rl_dpdk_pool_create(&p->spec, room, p->n_queues * PORT_BUFFERS, &p->pool, err);
	for (uint32_t i = 0; i < p->n_devs && ret == 0; i++)
		ret = rl_dpdk_dev_start(&p->dev[i], &p->spec, p->n_queues / p->n_devs, mtu,
					&p->self, p->pool, err);
	return ret;
}

static void
dpdk_close(struct rl_nic *nic)
{
	struct dpdk_port *p = nic->priv;

	for (uint32_t i = 0; i < p->n_devs; i++)
		rl_dpdk_dev_close(&p->dev[i]);
	rl_xdp_detach(p->xdp);
	for (uint32_t k = 0; k < p->n_port_fds; k++)
		close(p->port_fd[k]);
	rte_mempool_free(p->pool);
	free(p);
	nic->priv = NULL;
}

static int
dpdk_open(struct rl_nic *nic, const char *rest, struct rl_err *err)
{
	struct dpdk_port *p = calloc(1, sizeof(*p));
	uint32_t mtu;
	int ret;

	if (p == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a DPDK port");
	nic->priv = p;
	p->n_queues = nic->opts.n_queues;
	p->self.ip = nic->opts.address;
	p->self.udp_port = nic->opts.udp_port;
	ret = rl_dpdk_spec_parse(rest, &p->spec, err);
	if (ret != 0)
		goto err_close;
	memcpy(nic->info.ifname, p->spec.ifname, sizeof(nic->info.ifname));
	/* Said before DPDK says it worse. */
	if (nic->info.ifname[0] != '\0')
		ret = interface_read(nic, &p->self, &mtu, err);
	else if (p->spec.kind != RL_DPDK_PCI && p->self.ip.family == 0)
		ret = rl_err_set(
			err, -EINVAL,
			"dpdk:%s has no kernel interface to take an address from; set address",
			p->spec.name);
	if (ret == 0)
		ret = rl_dpdk_eal_init(&p->spec, nic->opts.eal, err);
	if (ret == 0)
		ret = port_probe(nic, p, err);
	if (ret == 0)
		ret = port_identify(nic, p, &mtu, err);
	if (ret == 0 && p->self.ip.family == 0)
		ret = rl_err_set(err, -EINVAL,
				 "%s has no kernel interface to take an address from; set address",
				 p->spec.name);
	if (ret == 0)
		ret = port_start(nic, p, mtu, err);
	if (ret != 0)
		goto err_close;

	nic->info.max_payload = mtu - PORT_HEADERS;
	nic->info.rx_ring = p->dev[0].rx_ring - p->dev[0].rx_ring / PORT_RX_MARGIN;
	nic->info.address = p->self.ip;
	memcpy(nic->info.mac, p->self.mac, sizeof(nic->info.mac));
	return 0;

err_close:
	dpdk_close(nic);
	return ret;
}

static int
dpdk_check(const struct rl_nic *nic, struct rl_err *err)
{
	const struct dpdk_port *p = nic->priv;
	struct rl_frame_end self = p->self;
	struct rte_eth_link link = {0};
	uint32_t mtu;
	bool up;

	if (nic->info.ifname[0] != '\0') {
		if (rl_neigh_interface(nic->info.ifname, &self.ip, self.mac, &mtu, &up, err) != 0)
			return rl_err_set(
				err, -ENETDOWN,
				"interface %s is gone; make it again and restart ramliftd",
				nic->info.ifname);
		return up ? 0 : interface_error(nic->info.ifname, err);
	}
	rte_eth_link_get_nowait(p->dev[0].port, &link);
	if (link.link_status == RTE_ETH_LINK_UP)
		return 0;
	return rl_err_set(err, -ENETDOWN,
			  p->spec.kind == RL_DPDK_MEMIF
				  ? "%s is not connected; start the other end (a client connects "
				    "only when it is opened)"
				  : "%s has no link; check the cable and the switch",
			  p->spec.name);
}

static int
dpdk_thread_init(struct rl_nic *nic)
{
	(void)nic;
	return rl_dpdk_thread_register();
}

static void
dpdk_thread_fini(struct rl_nic *nic)
{
	(void)nic;
	rl_dpdk_thread_unregister();
}

/* The MAC of the next hop on the way to the peer. */
static int
path_resolve(struct rl_nic *nic, const struct rl_nic_peer *peer, uint8_t mac[6], struct rl_err *err)
{
	static const uint8_t none[6];
	char text[INET6_ADDRSTRLEN] = "?";
	struct rl_route route;
	int ret;

	inet_ntop(peer->address.family, peer->address.addr, text, sizeof(text));
	if (peer->address.family != nic->info.address.family)
		return rl_err_set(
			err, -EINVAL,
			"the peer's address %s is not of the family of our own; set address at "
			"one of the ends so that both are IPv4 or IPv6",
			text);
	if (nic->info.ifname[0] == '\0') {
		if (memcmp(peer->mac, none, sizeof(none)) == 0)
			return rl_err_set(err, -EHOSTUNREACH,
					  "the peer at %s said no MAC, and %s has no kernel "
					  "interface to ask for it; use a port with a MAC there",
					  text, nic->info.uri);
		memcpy(mac, peer->mac, sizeof(none));
		return 0;
	}
	ret = rl_neigh_route(&peer->address, &route, err);
	if (ret != 0)
		return ret;
	if (strcmp(route.ifname, nic->info.ifname) != 0)
		return rl_err_set(err, -ENODEV,
				  "the route to %s leaves by %s, but this port is on %s; open the "
				  "port on %s, or change the route",
				  text, route.ifname, nic->info.ifname, route.ifname);
	ret = rl_neigh_resolve(&route, PORT_RESOLVE_MS, err);
	if (ret == 0)
		memcpy(mac, route.mac, sizeof(none));
	return ret;
}

static int
dpdk_path_refresh(struct rl_nic_path *path, struct rl_err *err)
{
	const struct dpdk_port *p = path->nic->priv;
	struct dpdk_path *dp = path->priv;
	struct rl_frame_end dst = {.ip = path->peer.address, .udp_port = path->peer.udp_port};
	struct rl_frame_template *t;
	int ret;

	ret = path_resolve(path->nic, &path->peer, dst.mac, err);
	if (ret != 0)
		return ret;
	t = malloc(sizeof(*t));
	if (t == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a path");
	rl_frame_template(t, &p->self, &dst);
	if (dp->current != NULL && memcmp(t->head, dp->current->head, sizeof(t->head)) == 0) {
		free(t);
		return 0;
	}
	t->older = dp->current;
	__atomic_store_n(&dp->current, t, __ATOMIC_RELEASE);
	return 0;
}

static void
dpdk_path_close(struct rl_nic_path *path)
{
	struct dpdk_path *dp = path->priv;
	struct rl_frame_template *t, *older;

	for (t = dp->current; t != NULL; t = older) {
		older = t->older;
		free(t);
	}
	free(dp);
}

static int
dpdk_path_open(struct rl_nic *nic, struct rl_nic_path *path, struct rl_err *err)
{
	int ret;

	(void)nic;
	path->priv = calloc(1, sizeof(struct dpdk_path));
	if (path->priv == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a path");
	ret = dpdk_path_refresh(path, err);
	if (ret != 0)
		dpdk_path_close(path);
	return ret;
}

static uint32_t
dpdk_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	const struct dpdk_port *p = nic->priv;
	struct rte_mbuf *m[RL_NIC_BURST];

	n = rl_min32(n, RL_NIC_BURST);
	if (rl_unlikely(rte_pktmbuf_alloc_bulk(p->pool, m, n) != 0)) {
		rl_count(&nic->queue[queue].st.alloc_failed, 1);
		return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		pkts[i].data = rte_pktmbuf_mtod(m[i], uint8_t *);
		pkts[i].len = 0;
		pkts[i].cap = nic->info.max_payload;
		pkts[i].priv = m[i];
	}
	return n;
}

static uint32_t
dpdk_tx_burst(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
	      struct rl_pkt *pkts, uint32_t n)
{
	const struct dpdk_port *p = nic->priv;
	const struct dpdk_path *dp = path->priv;
	const struct rl_frame_template *t = __atomic_load_n(&dp->current, __ATOMIC_ACQUIRE);
	struct rte_mbuf *m[RL_NIC_BURST];
	uint32_t taken;

	for (uint32_t i = 0; i < n; i++) {
		m[i] = pkts[i].priv;
		assert(pkts[i].len <= nic->info.max_payload);
		rl_frame_push(t, queue, pkts[i].data, pkts[i].len);
		m[i]->data_off = (uint16_t)(pkts[i].data - t->len - (uint8_t *)m[i]->buf_addr);
		m[i]->data_len = (uint16_t)(pkts[i].len + t->len);
		m[i]->pkt_len = m[i]->data_len;
	}
	taken = rte_eth_tx_burst(p->queue[queue].port, p->queue[queue].queue, m, (uint16_t)n);
	if (rl_unlikely(taken < n))
		rte_pktmbuf_free_bulk(m + taken, n - taken);
	return taken;
}

/* A frame that is no datagram for us; where the kernel does not, it may want an answer. */
static void
rx_foreign(struct rl_nic *nic, uint32_t queue, struct rte_mbuf *m)
{
	const struct dpdk_port *p = nic->priv;
	uint32_t bytes = 0;

	rl_count(&nic->queue[queue].st.rx_foreign, 1);
	if (p->answers && m->nb_segs == 1)
		bytes = rl_frame_answer(&p->self, rte_pktmbuf_mtod(m, uint8_t *), m->data_len,
					(uint32_t)m->data_len + rte_pktmbuf_tailroom(m));
	if (bytes != 0) {
		m->data_len = (uint16_t)bytes;
		m->pkt_len = bytes;
		m->ol_flags = 0;
		if (rte_eth_tx_burst(p->queue[queue].port, p->queue[queue].queue, &m, 1) == 1)
			return;
	}
	rte_pktmbuf_free(m);
}

static uint32_t
dpdk_rx_burst(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	const struct dpdk_port *p = nic->priv;
	struct rte_mbuf *m[RL_NIC_BURST];
	uint32_t got, kept = 0;
	struct rl_pkt *pkt;

	got = rte_eth_rx_burst(p->queue[queue].port, p->queue[queue].queue, m, (uint16_t)n);
	for (uint32_t i = 0; i < got; i++) {
		pkt = &pkts[kept];
		pkt->data = m[i]->nb_segs != 1 ? NULL
					       : rl_frame_parse(&p->self, p->n_queues,
								rte_pktmbuf_mtod(m[i], uint8_t *),
								m[i]->data_len, &pkt->len);
		if (rl_unlikely(pkt->data == NULL)) {
			rx_foreign(nic, queue, m[i]);
			continue;
		}
		pkt->cap = pkt->len;
		pkt->priv = m[i];
		kept++;
	}
	return kept;
}

static void
dpdk_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	(void)nic;
	(void)queue;
	for (uint32_t i = 0; i < n; i++)
		rte_pktmbuf_free(pkts[i].priv);
}

const struct rl_nic_ops rl_nic_dpdk_ops = {
	.scheme = "dpdk",
	.open = dpdk_open,
	.close = dpdk_close,
	.check = dpdk_check,
	.thread_init = dpdk_thread_init,
	.thread_fini = dpdk_thread_fini,
	.path_open = dpdk_path_open,
	.path_refresh = dpdk_path_refresh,
	.path_close = dpdk_path_close,
	.alloc = dpdk_alloc,
	.tx_burst = dpdk_tx_burst,
	.rx_burst = dpdk_rx_burst,
	.free = dpdk_free,
};
