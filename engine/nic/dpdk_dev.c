/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DPDK devices: what the URI asks for, which arguments a driver needs from us, how its queues are set up. The
 * odd numbers are properties of the drivers of DPDK 22.11, each with its reason.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_kvargs.h>
#include <rte_mbuf.h>

#include "base/log.h"
#include "nic/nic_dpdk.h"

#define DEV_RX_RING 2048 /* packets a queue holds while its worker is away */
#define DEV_TX_RING 512  /* short, or a missed page waits behind bulk */

/*
 * A received frame lies in one 4096-byte object: the kernel keeps 256 bytes, the mempool's header, the mbuf and
 * its headroom are 64 + 128 + 128. 3520 are left, MTU 3506, which is also the most veth allows for XDP.
 */
#define AF_XDP_MTU  3506
#define AF_XDP_ROOM (4096 - 64 - (uint32_t)sizeof(struct rte_mbuf))

/* One frame per 4096-byte block, for the driver takes frames to lie back to back; the kernel's header is 66. */
#define AF_PACKET_FRAME 4096
#define AF_PACKET_MTU   (AF_PACKET_FRAME - 66 - 14)

#define MEMIF_FRAME     4096
#define MEMIF_MTU       (MEMIF_FRAME - 14)
#define MEMIF_RSIZE     10 /* the driver's default, log2 */

static const struct driver {
	const char *name;
	enum rl_dpdk_kind kind;
	uint32_t mtu_max, room_bytes;
	const char *required;   /* key */
	const char *refused[4]; /* keys that are ours to set */
} drivers[] = {
	{"net_af_xdp",
	 RL_DPDK_AF_XDP,
	 AF_XDP_MTU,
	 AF_XDP_ROOM,
	 "iface",
	 {"queue_count", "shared_umem", "xdp_prog"}},
	{"net_af_packet",
	 RL_DPDK_AF_PACKET,
	 AF_PACKET_MTU,
	 AF_PACKET_FRAME + RTE_PKTMBUF_HEADROOM,
	 "iface",
	 {"qpairs", "framesz", "blocksz"}},
	{"net_memif",
	 RL_DPDK_MEMIF,
	 MEMIF_MTU,
	 MEMIF_FRAME + RTE_PKTMBUF_HEADROOM,
	 "role",
	 {"bsize", "zero-copy"}},
	{"net_", RL_DPDK_VDEV, 0, 0, NULL, {NULL}}, /* any other */
};

/* "net_af_xdp0" names the driver net_af_xdp too. */
static const struct driver *
driver_find(const char *name)
{
	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
		const struct driver *d = &drivers[i];
		size_t len = strlen(d->name);

		if (strncmp(name, d->name, len) == 0 &&
		    (d->kind == RL_DPDK_VDEV ||
		     name[len + strspn(name + len, "0123456789")] == '\0'))
			return d;
	}
	return NULL;
}

static int
number_arg(const struct rte_kvargs *kv, const char *key, uint32_t max, uint32_t *value,
	   struct rl_err *err)
{
	const char *text = rte_kvargs_get(kv, key);
	unsigned long v;
	char *end;

	if (text == NULL)
		return 0;
	v = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end != '\0' || v > max)
		return rl_err_set(err, -EINVAL, "%s=%.32s is no number up to %u", key, text, max);
	*value = (uint32_t)v;
	return 0;
}

static int
spec_check_args(const struct driver *d, const struct rte_kvargs *kv, struct rl_dpdk_spec *spec,
		struct rl_err *err)
{
	uint32_t rsize = MEMIF_RSIZE;
	const char *ifname;
	int ret;

	for (uint32_t i = 0; i < 4 && d->refused[i] != NULL; i++)
		if (rte_kvargs_get(kv, d->refused[i]) != NULL)
			return rl_err_set(err, -EINVAL, "%s: %s is set by the engine; leave it out",
					  d->name, d->refused[i]);
	if (d->required != NULL && rte_kvargs_get(kv, d->required) == NULL)
		return rl_err_set(err, -EINVAL, "%s needs %s=; for example dpdk:%s,%s=%s", d->name,
				  d->required, d->name, d->required,
				  d->kind == RL_DPDK_MEMIF ? "server" : "eth0");
	if (d->kind == RL_DPDK_AF_XDP || d->kind == RL_DPDK_AF_PACKET) {
		ifname = rte_kvargs_get(kv, "iface");
		if (strlen(ifname) >= sizeof(spec->ifname))
			return rl_err_set(err, -EINVAL,
					  "interface name '%.32s' is too long; see `ip link`",
					  ifname);
		memcpy(spec->ifname, ifname, strlen(ifname) + 1);
	}
	if (d->kind == RL_DPDK_MEMIF) {
		ret = number_arg(kv, "rsize", 14, &rsize, err);
		spec->rx_ring = 1u << rsize;
		return ret;
	}
	if (d->kind == RL_DPDK_AF_XDP)
		return number_arg(kv, "start_queue", RL_NIC_MAX_QUEUES - 1, &spec->first_queue,
				  err);
	if (d->kind == RL_DPDK_AF_PACKET)
		return number_arg(kv, "framecnt", 65536, &spec->rx_ring, err);
	return 0;
}

/* "5e:00.0" or "0000:5e:00.0" */
static bool
is_pci_address(const char *name)
{
	unsigned int a, b, c, d;
	int len = 0;

	if (sscanf(name, "%4x:%2x:%2x.%1x%n", &a, &b, &c, &d, &len) == 4 && name[len] == '\0')
		return true;
	return sscanf(name, "%2x:%2x.%1x%n", &a, &b, &c, &len) == 3 && name[len] == '\0';
}

int
rl_dpdk_spec_parse(const char *rest, struct rl_dpdk_spec *spec, struct rl_err *err)
{
	size_t name_len = strcspn(rest, ",");
	const char *args = rest[name_len] == ',' ? rest + name_len + 1 : "";
	const struct driver *d;
	struct rte_kvargs *kv;
	int ret;

	memset(spec, 0, sizeof(*spec));
	spec->rx_ring = DEV_RX_RING;
	if (name_len == 0 || name_len >= sizeof(spec->name) || strlen(args) >= sizeof(spec->args))
		return rl_err_set(err, -EINVAL,
				  "dpdk: needs a device of up to %zu and arguments of up to "
				  "%zu characters, for example dpdk:net_af_xdp,iface=eth0",
				  sizeof(spec->name) - 1, sizeof(spec->args) - 1);
	memcpy(spec->name, rest, name_len);
	memcpy(spec->args, args, strlen(args) + 1);
	if (is_pci_address(spec->name)) {
		spec->kind = RL_DPDK_PCI;
		return 0;
	}
	d = driver_find(spec->name);
	if (d == NULL)
		return rl_err_set(
			err, -EINVAL,
			"dpdk:%s is neither a PCI address (0000:5e:00.0) nor a virtual device "
			"(net_af_xdp, net_memif, net_af_packet, …)",
			spec->name);
	spec->kind = d->kind;
	spec->mtu_max = d->mtu_max;
	spec->room_bytes = d->room_bytes;
	kv = rte_kvargs_parse(spec->args, NULL);
	if (kv == NULL)
		return rl_err_set(err, -EINVAL,
				  "dpdk:%s: '%s' is not of the form key=value,key=value",
				  spec->name, spec->args);
	ret = spec_check_args(d, kv, spec, err);
	rte_kvargs_free(kv);
	return ret;
}

/* One ethtool request to a kernel interface; @data begins with the command. */
static int
ethtool(const char *ifname, void *data)
{
	struct ifreq ifr = {.ifr_data = data};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;

	if (fd < 0)
		return -errno;
	memcpy(ifr.ifr_name, ifname, strlen(ifname) + 1);
	ret = ioctl(fd, SIOCETHTOOL, &ifr) == 0 ? 0 : -errno;
	close(fd);
	return ret;
}

static int
af_xdp_check_queues(const struct rl_dpdk_spec *spec, uint32_t n_queues, bool veth,
		    struct rl_err *err)
{
	struct ethtool_channels ch = {.cmd = ETHTOOL_GCHANNELS};
	uint32_t have = 1;

	if (ethtool(spec->ifname, &ch) == 0)
		have = ch.combined_count != 0 ? ch.combined_count : ch.rx_count;
	if (spec->first_queue + n_queues > have)
		return rl_err_set(
			err, -EINVAL,
			"interface %s has %u queues, %u from queue %u on are needed: %s, or use "
			"fewer workers",
			spec->ifname, have, n_queues, spec->first_queue,
			veth ? "make the veth pair with numrxqueues and numtxqueues at both ends"
			     : "`ethtool -L IFACE combined N`");
	if (n_queues < have)
		rl_warn("interface %s has %u queues, the port takes %u: it does not see what the "
			"NIC spreads to the others; give it as many by `ethtool -L`, or steer its "
			"UDP ports by `ethtool -N`",
			spec->ifname, have, n_queues);
	return 0;
}

/* Arguments of the device of queue @i, with what we add. */
static int
dev_args(const struct rl_dpdk_spec *spec, uint32_t n_queues, uint32_t i, char *out, size_t bytes,
	 struct rl_err *err)
{
	struct ethtool_drvinfo drv = {.cmd = ETHTOOL_GDRVINFO};
	bool veth;
	int ret;

	switch (spec->kind) {
	case RL_DPDK_AF_XDP:
		veth = ethtool(spec->ifname, &drv) == 0 && strcmp(drv.driver, "veth") == 0;
		ret = i == 0 ? af_xdp_check_queues(spec, n_queues, veth, err) : 0;
		if (ret != 0)
			return ret;
		/*
		 * Copy mode needs no busy polling, which costs a system call per empty poll. With zero copy
		 * budget 0 makes an empty poll sleep, for up to a second.
		 */
		snprintf(out, bytes, "%s,start_queue=%u%s", spec->args, spec->first_queue + i,
			 veth && strstr(spec->args, "busy_budget=") == NULL ? ",busy_budget=0"
									    : "");
		return 0;
	case RL_DPDK_AF_PACKET:
		snprintf(out, bytes, "%s,qpairs=%u,framesz=%u,blocksz=%u%s", spec->args, n_queues,
			 AF_PACKET_FRAME, AF_PACKET_FRAME,
			 strstr(spec->args, "framecnt=") == NULL ? ",framecnt=2048" : "");
		return 0;
	case RL_DPDK_MEMIF:
		snprintf(out, bytes, "%s,bsize=%u", spec->args, MEMIF_FRAME);
		return 0;
	default:
		snprintf(out, bytes, "%s", spec->args);
		return 0;
	}
}

static int
probe_vdev(const struct rl_dpdk_spec *spec, uint32_t n_queues, uint32_t i, uint16_t *port,
	   struct rl_err *err)
{
	static uint32_t seq;
	char name[sizeof(spec->name) + 16], args[sizeof(spec->args) + 96];
	int ret = dev_args(spec, n_queues, i, args, sizeof(args), err);

	if (ret != 0)
		return ret;
	snprintf(name, sizeof(name), "%s_rl%u", spec->name, seq++);
	ret = rte_eal_hotplug_add("vdev", name, args);
	if (ret == 0)
		ret = rte_eth_dev_get_port_by_name(name, port);
	if (ret != 0)
		return rl_err_set(err, ret,
				  "DPDK cannot make the device %s,%s: %s; check its arguments%s "
				  "(DPDK's log is at debug level)",
				  spec->name, args, rte_strerror(-ret),
				  spec->kind == RL_DPDK_MEMIF
					  ? ", and remove a socket file that a killed server left"
					  : "");
	return 0;
}

static int
probe_pci(const struct rl_dpdk_spec *spec, uint16_t *port, struct rl_err *err)
{
	char devargs[sizeof(spec->name) + sizeof(spec->args)];
	struct rte_dev_iterator it;
	uint16_t id;
	int ret;

	snprintf(devargs, sizeof(devargs), "%s%s%s", spec->name, spec->args[0] != '\0' ? "," : "",
		 spec->args);
	ret = rte_dev_probe(devargs);
	*port = RTE_MAX_ETHPORTS;
	RTE_ETH_FOREACH_MATCHING_DEV(id, spec->name, &it)
	{
		*port = *port == RTE_MAX_ETHPORTS ? id : *port; /* the first */
	}
	if (*port == RTE_MAX_ETHPORTS)
		return rl_err_set(err, -ENODEV,
				  "DPDK has no Ethernet device at %s%s%s; bind it to vfio-pci, see "
				  "`dpdk-devbind.py --status` (mlx5 keeps its kernel driver)",
				  spec->name, ret < 0 ? ": " : "",
				  ret < 0 ? rte_strerror(-ret) : "");
	return 0;
}

int
rl_dpdk_dev_probe(const struct rl_dpdk_spec *spec, uint32_t n_queues, uint32_t i,
		  struct rl_dpdk_dev *dev, struct rl_err *err)
{
	bool pci = spec->kind == RL_DPDK_PCI;
	struct rte_eth_dev_info info;
	int ret;

	memset(dev, 0, sizeof(*dev));
	dev->xsk_fd = -1;
	ret = pci ? probe_pci(spec, &dev->port, err)
		  : probe_vdev(spec, n_queues, i, &dev->port, err);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_info_get(dev->port, &info);
	if (ret != 0)
		return rl_err_set(err, ret,
				  "DPDK says nothing about %s: %s; is the device still there?",
				  spec->name, rte_strerror(-ret));
	dev->device = info.device;
	/* A driver that shares the NIC with the kernel (mlx5) must leave it all but our ports. */
	dev->isolated = pci && info.if_index != 0;
	if (dev->isolated && rte_flow_isolate(dev->port, 1, NULL) != 0)
		return rl_err_set(err, -ENOTSUP,
				  "%s cannot share its NIC with the kernel (no flow isolation); "
				  "give the engine a port of its own",
				  spec->name);
	return 0;
}

/* UDP port + k of our address goes to queue k. */
static int
steer_queue(uint16_t port, const struct rl_frame_end *self, uint16_t queue)
{
	const struct rte_flow_attr attr = {.ingress = 1};
	struct rte_flow_item_ipv4 ip4 = {0}, ip4_mask = {.hdr.dst_addr = UINT32_MAX};
	struct rte_flow_item_ipv6 ip6 = {0}, ip6_mask = {0};
	struct rte_flow_item_udp udp_mask = {.hdr.dst_port = UINT16_MAX};
	struct rte_flow_item_udp udp = {
		.hdr.dst_port = rte_cpu_to_be_16((uint16_t)(self->udp_port + queue))};
	const struct rte_flow_action_queue to = {.index = queue};
	const struct rte_flow_item pattern[] = {
		{.type = RTE_FLOW_ITEM_TYPE_ETH},
		self->ip.family == AF_INET ? (struct rte_flow_item){.type = RTE_FLOW_ITEM_TYPE_IPV4,
								    .spec = &ip4,
								    .mask = &ip4_mask}
					   : (struct rte_flow_item){.type = RTE_FLOW_ITEM_TYPE_IPV6,
								    .spec = &ip6,
								    .mask = &ip6_mask},
		{.type = RTE_FLOW_ITEM_TYPE_UDP, .spec = &udp, .mask = &udp_mask},
		{.type = RTE_FLOW_ITEM_TYPE_END},
	};
	const struct rte_flow_action actions[] = {
		{.type = RTE_FLOW_ACTION_TYPE_QUEUE, .conf = &to},
		{.type = RTE_FLOW_ACTION_TYPE_END},
	};
	struct rte_flow_error why;

	memcpy(&ip4.hdr.dst_addr, self->ip.addr, sizeof(ip4.hdr.dst_addr));
	memcpy(ip6.hdr.dst_addr, self->ip.addr, sizeof(ip6.hdr.dst_addr));
	memset(ip6_mask.hdr.dst_addr, 0xff, sizeof(ip6_mask.hdr.dst_addr));
	return rte_flow_create(port, &attr, pattern, actions, &why) != NULL ? 0 : -rte_errno;
}

/* The identity of the socket at @fd if it is an XDP socket, or 0. */
static uint64_t
xsk_cookie(int fd)
{
	int domain = 0;
	uint64_t cookie = 0;
	socklen_t bytes = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0 || domain != AF_XDP)
		return 0;
	bytes = sizeof(cookie);
	return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &bytes) == 0 ? cookie : 0;
}

static int
setup_xsk(struct rl_dpdk_dev *dev, const struct rl_dpdk_spec *spec, struct rte_mempool *pool,
	  struct rl_err *err)
{
	int ret;

	/* The lowest free number is the one that the socket will get. */
	dev->xsk_fd = dup(STDERR_FILENO);
	close(dev->xsk_fd);
	ret = rte_eth_rx_queue_setup(dev->port, 0, DEV_RX_RING, SOCKET_ID_ANY, NULL, pool);
	if (ret != 0) {
		dev->device = NULL; /* the driver's close would touch what its failure freed */
		return rl_err_set(err, ret,
				  "no AF_XDP socket on interface %s: is the queue in use by "
				  "another program? It also needs CAP_NET_RAW and CAP_IPC_LOCK",
				  spec->ifname);
	}
	dev->xsk_cookie = xsk_cookie(dev->xsk_fd);
	return 0;
}

static int
setup_queues(struct rl_dpdk_dev *dev, const struct rl_dpdk_spec *spec, uint32_t n_queues,
	     struct rte_mempool *pool, struct rl_err *err)
{
	uint16_t n_rx = DEV_RX_RING, n_tx = DEV_TX_RING;
	int ret;

	rte_eth_dev_adjust_nb_rx_tx_desc(dev->port, &n_rx, &n_tx);
	dev->rx_ring = spec->kind >= RL_DPDK_VDEV ? n_rx : spec->rx_ring;
	for (uint16_t q = 0; q < n_queues; q++) {
		if (spec->kind == RL_DPDK_AF_XDP) {
			ret = setup_xsk(dev, spec, pool, err);
			if (ret != 0)
				return ret;
		} else {
			ret = rte_eth_rx_queue_setup(dev->port, q, n_rx, SOCKET_ID_ANY, NULL, pool);
		}
		if (ret == 0)
			ret = rte_eth_tx_queue_setup(dev->port, q, n_tx, SOCKET_ID_ANY, NULL);
		if (ret != 0)
			return rl_err_set(err, ret,
					  "%s: queue %u cannot be set up: %s; use fewer workers",
					  spec->name, q, rte_strerror(-ret));
	}
	return 0;
}

/* Configure, set up queues, start. Without @rss a queue gets what steer_queue() gives it. */
static int
dev_setup(struct rl_dpdk_dev *dev, const struct rl_dpdk_spec *spec, uint32_t n_queues, uint32_t mtu,
	  bool rss, struct rte_mempool *pool, struct rl_err *err)
{
	struct rte_eth_conf conf = {0};
	struct rte_eth_dev_info info;
	int ret;

	ret = rte_eth_dev_info_get(dev->port, &info);
	if (ret == 0 && (n_queues > info.max_rx_queues || n_queues > info.max_tx_queues))
		return rl_err_set(err, -EINVAL, "%s has %u queues, not %u; use fewer workers",
				  spec->name, info.max_rx_queues, n_queues);
	if (ret == 0 && rss) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf =
			info.flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_UDP);
	}
	/* The drivers with a fixed frame size take no MTU, or would set the kernel interface's. */
	if (spec->mtu_max == 0)
		conf.rxmode.mtu = mtu;
	if (ret == 0)
		ret = rte_eth_dev_configure(dev->port, (uint16_t)n_queues, (uint16_t)n_queues,
					    &conf);
	if (ret == 0 && spec->mtu_max == 0) {
		ret = rte_eth_dev_set_mtu(dev->port, (uint16_t)mtu);
		ret = ret == -ENOTSUP ? 0 : ret;
	}
	if (ret != 0)
		return rl_err_set(
			err, ret,
			"%s cannot be configured for %u queues and MTU %u: %s; change them "
			"(DPDK's log is at debug level)",
			spec->name, n_queues, mtu, rte_strerror(-ret));
	ret = setup_queues(dev, spec, n_queues, pool, err);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_start(dev->port);
	if (ret != 0)
		return rl_err_set(
			err, ret, "%s does not start: %s", spec->name,
			spec->kind == RL_DPDK_MEMIF
				? "the server's socket is not there; open the server first"
				: "see DPDK's log at debug level");
	dev->started = true;
	return 0;
}

int
rl_dpdk_dev_start(struct rl_dpdk_dev *dev, const struct rl_dpdk_spec *spec, uint32_t n_queues,
		  uint32_t mtu, const struct rl_frame_end *self, struct rte_mempool *pool,
		  struct rl_err *err)
{
	int ret = dev_setup(dev, spec, n_queues, mtu, false, pool, err);

	if (ret != 0 || spec->mtu_max != 0)
		return ret;
	/* For neighbour solicitations; a driver that cannot choose delivers them anyway. */
	rte_eth_allmulticast_enable(dev->port);
	if (n_queues == 1 && !dev->isolated)
		return 0;
	for (uint16_t q = 0; q < n_queues && ret == 0; q++)
		ret = steer_queue(dev->port, self, q);
	if (ret == 0)
		return 0;
	if (dev->isolated)
		return rl_err_set(
			err, ret,
			"%s takes no rule for UDP port %u: %s; see its firmware's setting "
			"of flow steering",
			spec->name, self->udp_port, rte_strerror(-ret));
	/* No rules: spread by hash. Whatever queue a datagram comes in on, its port says whose it is. */
	rte_flow_flush(dev->port, NULL);
	rte_eth_dev_stop(dev->port);
	dev->started = false;
	return dev_setup(dev, spec, n_queues, mtu, true, pool, err);
}

void
rl_dpdk_dev_close(struct rl_dpdk_dev *dev)
{
	if (dev->device == NULL)
		return;
	if (dev->started)
		rte_eth_dev_stop(dev->port);
	rte_eth_dev_close(dev->port);
	rte_dev_remove(dev->device);
	/* net_af_xdp of 22.11 counts its users wrong and leaves the socket open, so the queue would stay taken. */
	if (dev->xsk_cookie != 0 && xsk_cookie(dev->xsk_fd) == dev->xsk_cookie)
		close(dev->xsk_fd);
	dev->device = NULL;
}
