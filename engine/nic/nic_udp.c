/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * udp: a port of kernel sockets, one per queue. UDP_SEGMENT sends a run of equal packets in one piece,
 * UDP_GRO receives them so; a received piece is lent out in place, packet by packet, and its buffer goes back
 * when the last of them is freed.
 */
#include <errno.h>
#include <ifaddrs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/stats.h"
#include "nic/port.h"

#define UDP_HEADERS      48u         /* IPv6 and UDP: a payload that fits IPv4 too */
#define UDP_WILDCARD_MTU 1500u       /* a port that may send on any interface */
#define UDP_RX_BUFS      128u        /* pieces: up to 64 KiB each, touched only when used */
#define UDP_RX_BYTES     65536u      /* the largest datagram, merged or not */
#define UDP_RX_BATCH     8u          /* pieces per system call */
#define UDP_TX_BUFS      256u        /* packets being filled */
#define UDP_GSO_BYTES    65487u      /* 65535 less IPv6 and UDP headers */
#define UDP_RCVBUF_BYTES (16u << 20) /* the kernel doubles it */
#define UDP_SNDBUF_BYTES (1u << 20)  /* what may wait in front of an urgent page */
#define UDP_RX_RING_MIN  64u
#define UDP_RX_RING_MAX  4096u

union udp_addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

struct udp_pool;

struct udp_buf {
	struct udp_buf *next;
	struct udp_pool *pool;
	uint8_t *data;
	uint32_t refs; /* atomic: packets lent out of it */
};

/* Free buffers of one queue. The owner takes from `local`; any worker pushes to `returned`, which the owner
 * empties as a whole, so a plain compare-and-swap stack is safe (no ABA). */
struct udp_pool {
	struct udp_buf *local;
	struct udp_buf *bufs;
	uint8_t *mem;
	size_t mem_bytes;
	struct udp_buf *returned __attribute__((aligned(64))); /* atomic */
};

/* A received piece, not yet lent out as a whole: datagrams of `segment` bytes, the last may be shorter. */
struct udp_piece {
	struct udp_buf *buf;
	uint32_t offset, len, segment;
};

union udp_control {
	struct cmsghdr align;
	uint8_t bytes[CMSG_SPACE(sizeof(int))];
};

struct udp_queue {
	int fd;
	bool gso; /* until the kernel says that the way out cannot segment */
	uint32_t piece, n_pieces;
	struct udp_piece pieces[UDP_RX_BATCH];
	struct udp_pool rx_pool, tx_pool;
	struct mmsghdr rx_msg[UDP_RX_BATCH], tx_msg[RL_NIC_BURST];
	struct iovec rx_iov[UDP_RX_BATCH], tx_iov[RL_NIC_BURST];
	union udp_control rx_control[UDP_RX_BATCH], tx_control[RL_NIC_BURST];
};

struct udp_port {
	uint16_t family; /* of the sockets; AF_INET6 without an address serves IPv4 peers too */
	struct udp_queue queue[];
};

struct udp_path {
	uint16_t n;
	union udp_addr to[]; /* by queue */
};

static void
pool_fini(struct udp_pool *pool)
{
	if (pool->mem != NULL)
		munmap(pool->mem, pool->mem_bytes);
	free(pool->bufs);
}

static int
pool_init(struct udp_pool *pool, uint32_t n, uint32_t buf_bytes)
{
	void *mem;

	pool->bufs = calloc(n, sizeof(*pool->bufs));
	if (pool->bufs == NULL)
		return -ENOMEM;
	pool->mem_bytes = (size_t)n * buf_bytes;
	mem = mmap(NULL, pool->mem_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	if (mem == MAP_FAILED)
		return -ENOMEM;
	pool->mem = mem;
	for (uint32_t i = 0; i < n; i++) {
		struct udp_buf *buf = &pool->bufs[i];

		buf->pool = pool;
		buf->data = pool->mem + (size_t)i * buf_bytes;
		buf->next = pool->local;
		pool->local = buf;
	}
	return 0;
}

/* [queue owner] */
static struct udp_buf *
pool_take(struct udp_pool *pool)
{
	struct udp_buf *buf, *next;

	/* What was freed last is warm, so it goes on top. */
	if (__atomic_load_n(&pool->returned, __ATOMIC_RELAXED) != NULL) {
		buf = __atomic_exchange_n(&pool->returned, NULL, __ATOMIC_ACQUIRE);
		for (; buf != NULL; buf = next) {
			next = buf->next;
			buf->next = pool->local;
			pool->local = buf;
		}
	}
	buf = pool->local;
	if (buf != NULL)
		pool->local = buf->next;
	return buf;
}

/* Drop @n references; the last one gives the buffer back. [any worker] */
static void
buf_put(struct udp_buf *buf, uint32_t n)
{
	struct udp_pool *pool = buf->pool;
	struct udp_buf *head;

	if (__atomic_sub_fetch(&buf->refs, n, __ATOMIC_ACQ_REL) != 0)
		return;
	head = __atomic_load_n(&pool->returned, __ATOMIC_RELAXED);
	do {
		buf->next = head;
	} while (!__atomic_compare_exchange_n(&pool->returned, &head, buf, true, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

static void
udp_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	(void)nic;
	(void)queue;
	/* Neighbours mostly share a buffer: one atomic for each run of them. */
	for (uint32_t i = 0, run; i < n; i += run) {
		for (run = 1; i + run < n && pkts[i + run].priv == pkts[i].priv; run++)
			;
		buf_put(pkts[i].priv, run);
	}
}

static uint32_t
udp_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct udp_port *port = nic->priv;
	uint32_t got;

	for (got = 0; got < n; got++) {
		struct udp_buf *buf = pool_take(&port->queue[queue].tx_pool);

		if (buf == NULL)
			break;
		buf->refs = 1;
		pkts[got] = (struct rl_pkt){
			.data = buf->data, .cap = nic->info.max_payload, .priv = buf};
	}
	rl_count(&nic->queue[queue].st.alloc_failed, n - got);
	return got;
}

/* How many packets from @pkts on go into one datagram to be segmented: equal ones, the last may be shorter. */
static uint32_t
tx_run(const struct rl_pkt *pkts, uint32_t n, uint32_t *bytes)
{
	uint32_t segment = pkts[0].len, run = 1;

	*bytes = segment;
	while (run < n && pkts[run - 1].len == segment && pkts[run].len <= segment &&
	       pkts[run].len > 0 && *bytes + pkts[run].len <= UDP_GSO_BYTES)
		*bytes += pkts[run++].len;
	return run;
}

/* Fill tx_msg[] with all of @pkts; returns the messages. */
static uint32_t
tx_build(struct udp_queue *q, union udp_addr *to, socklen_t to_bytes, const struct rl_pkt *pkts,
	 uint32_t n)
{
	uint32_t n_msgs = 0, run, bytes;

	for (uint32_t i = 0; i < n; i += run) {
		struct msghdr *msg = &q->tx_msg[n_msgs].msg_hdr;
		uint16_t segment = (uint16_t)pkts[i].len;

		run = q->gso ? tx_run(&pkts[i], n - i, &bytes) : 1;
		for (uint32_t k = i; k < i + run; k++)
			q->tx_iov[k] = (struct iovec){pkts[k].data, pkts[k].len};
		*msg = (struct msghdr){.msg_name = to,
				       .msg_namelen = to_bytes,
				       .msg_iov = &q->tx_iov[i],
				       .msg_iovlen = run};
		if (run > 1) {
			struct cmsghdr *cmsg = &q->tx_control[n_msgs].align;

			msg->msg_control = cmsg;
			msg->msg_controllen = CMSG_SPACE(sizeof(segment));
			cmsg->cmsg_level = SOL_UDP;
			cmsg->cmsg_type = UDP_SEGMENT;
			cmsg->cmsg_len = CMSG_LEN(sizeof(segment));
			memcpy(CMSG_DATA(cmsg), &segment, sizeof(segment));
		}
		n_msgs++;
	}
	return n_msgs;
}

static uint32_t
udp_tx_burst(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
	     struct rl_pkt *pkts, uint32_t n)
{
	struct udp_port *port = nic->priv;
	struct udp_queue *q = &port->queue[queue];
	struct udp_path *up = path->priv;
	socklen_t to_bytes =
		port->family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	uint32_t taken = 0, n_msgs;
	int sent;

	while (taken < n) {
		n_msgs = tx_build(q, &up->to[queue], to_bytes, pkts + taken, n - taken);
		sent = sendmmsg(q->fd, q->tx_msg, n_msgs, MSG_DONTWAIT);
		for (int i = 0; i < sent; i++)
			taken += (uint32_t)q->tx_msg[i].msg_hdr.msg_iovlen;
		if (sent > 0)
			continue; /* a short count hides the errno; the next call tells it */
		if ((errno == EIO || errno == EINVAL) && q->tx_msg[0].msg_hdr.msg_iovlen > 1)
			q->gso = false; /* no checksum offload on the way out, or a tunnel */
		else
			break; /* EAGAIN, ENOBUFS, EMSGSIZE, no route: refused */
	}
	udp_free(nic, queue, pkts, n);
	return taken;
}

/* The size of the datagrams in a received piece. */
static uint32_t
rx_segment(struct msghdr *msg, uint32_t len)
{
	int segment;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
			memcpy(&segment, CMSG_DATA(c), sizeof(segment));
			if (segment > 0 && (uint32_t)segment < len)
				return (uint32_t)segment;
		}
	}
	return len;
}

/* Fetch pieces from the socket once all earlier ones are lent out. */
static void
rx_fetch(struct udp_queue *q, uint32_t max_payload, struct rl_nic_stats *st)
{
	struct udp_buf *bufs[UDP_RX_BATCH];
	uint32_t n_bufs = 0;
	int n;

	q->piece = q->n_pieces = 0;
	while (n_bufs < UDP_RX_BATCH && (bufs[n_bufs] = pool_take(&q->rx_pool)) != NULL) {
		q->rx_iov[n_bufs].iov_base = bufs[n_bufs]->data;
		q->rx_msg[n_bufs].msg_hdr.msg_controllen = sizeof(q->rx_control[0]);
		n_bufs++;
	}
	if (n_bufs == 0) {
		rl_count(&st->alloc_failed, 1); /* all lent out */
		return;
	}
	n = recvmmsg(q->fd, q->rx_msg, n_bufs, MSG_DONTWAIT, NULL);
	for (uint32_t i = 0; i < n_bufs; i++) {
		uint32_t len = n > (int)i ? q->rx_msg[i].msg_len : 0;
		uint32_t segment = len > 0 ? rx_segment(&q->rx_msg[i].msg_hdr, len) : 1;
		uint32_t n_pkts = RL_DIV_ROUND_UP(len, segment);

		if (len > 0 && segment <= max_payload) {
			__atomic_store_n(&bufs[i]->refs, n_pkts, __ATOMIC_RELAXED);
			q->pieces[q->n_pieces++] = (struct udp_piece){bufs[i], 0, len, segment};
			continue;
		}
		if (n > (int)i) /* empty, or larger than any packet of ours */
			rl_count(&st->rx_foreign, len > 0 ? n_pkts : 1);
		bufs[i]->next = q->rx_pool.local;
		q->rx_pool.local = bufs[i];
	}
}

static uint32_t
udp_rx_burst(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct udp_port *port = nic->priv;
	struct udp_queue *q = &port->queue[queue];
	uint32_t got = 0;

	if (q->piece == q->n_pieces)
		rx_fetch(q, nic->info.max_payload, &nic->queue[queue].st);
	while (got < n && q->piece < q->n_pieces) {
		struct udp_piece *p = &q->pieces[q->piece];
		uint32_t len = rl_min32(p->segment, p->len - p->offset);

		pkts[got++] = (struct rl_pkt){
			.data = p->buf->data + p->offset, .len = len, .cap = len, .priv = p->buf};
		p->offset += len;
		if (p->offset == p->len)
			q->piece++;
	}
	return got;
}

/* The kernel interface that holds @ip; false: none does. */
static bool
interface_of(const struct rl_ip *ip, char ifname[IF_NAMESIZE])
{
	struct ifaddrs *list, *ifa;
	bool found = false;

	if (getifaddrs(&list) != 0)
		return false;
	for (ifa = list; ifa != NULL && !found; ifa = ifa->ifa_next) {
		const union udp_addr *a = (const union udp_addr *)(const void *)ifa->ifa_addr;

		if (a == NULL || a->sa.sa_family != ip->family)
			continue;
		found = ip->family == AF_INET ? memcmp(&a->in.sin_addr, ip->addr, 4) == 0
					      : memcmp(&a->in6.sin6_addr, ip->addr, 16) == 0;
		if (found)
			memcpy(ifname, ifa->ifa_name, strnlen(ifa->ifa_name, IF_NAMESIZE - 1));
	}
	freeifaddrs(list);
	return found;
}

/* What fits everywhere: 1500, or less where an interface that is up has less. */
static uint32_t
wildcard_mtu(void)
{
	struct if_nameindex *list = if_nameindex();
	uint32_t mtu = UDP_WILDCARD_MTU;

	for (struct if_nameindex *i = list; i != NULL && i->if_index != 0; i++) {
		struct rl_ip address;
		uint32_t if_mtu;
		uint8_t mac[6];
		bool up;

		if (rl_neigh_interface(i->if_name, &address, mac, &if_mtu, &up, NULL) == 0 && up &&
		    address.family != 0)
			mtu = rl_min32(mtu, if_mtu);
	}
	if_freenameindex(list);
	return mtu;
}

static bool
ip_is_any(const struct rl_ip *ip)
{
	static const uint8_t zero[16];

	return ip->family == 0 || memcmp(ip->addr, zero, ip->family == AF_INET ? 4 : 16) == 0;
}

static void
addr_init(union udp_addr *a, uint16_t family, const struct rl_ip *ip, uint16_t udp_port)
{
	memset(a, 0, sizeof(*a));
	a->sa.sa_family = family;
	if (family == AF_INET) {
		a->in.sin_port = htons(udp_port);
		memcpy(&a->in.sin_addr, ip->addr, 4);
		return;
	}
	a->in6.sin6_port = htons(udp_port);
	if (ip->family == AF_INET) { /* IPv4-mapped (RFC 4291 §2.5.5.2) */
		memset(&a->in6.sin6_addr.s6_addr[10], 0xff, 2);
		memcpy(&a->in6.sin6_addr.s6_addr[12], ip->addr, 4);
	} else {
		memcpy(&a->in6.sin6_addr, ip->addr, 16);
	}
}

static int
set_int(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof(value));
}

/* Buffers beyond the system's limit need CAP_NET_ADMIN; without it the limit has to do. */
static void
socket_buffers(int fd)
{
	if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, UDP_RCVBUF_BYTES) != 0)
		set_int(fd, SOL_SOCKET, SO_RCVBUF, UDP_RCVBUF_BYTES);
	if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, UDP_SNDBUF_BYTES) != 0)
		set_int(fd, SOL_SOCKET, SO_SNDBUF, UDP_SNDBUF_BYTES);
}

static int
bind_error(const struct rl_nic *nic, uint16_t udp_port, int error, struct rl_err *err)
{
	char text[INET6_ADDRSTRLEN] = "any address";

	if (!ip_is_any(&nic->info.address))
		inet_ntop(nic->info.address.family, nic->info.address.addr, text, sizeof(text));
	if (error == EADDRINUSE)
		return rl_err_set(
			err, -EADDRINUSE,
			"UDP port %u on %s is in use; give another udp-port (the queues take %u to "
			"%u), or see who holds it with `ss -ulnp sport = :%u`",
			udp_port, text, nic->info.udp_port,
			nic->info.udp_port + nic->info.n_queues - 1, udp_port);
	if (error == EADDRNOTAVAIL)
		return rl_err_set(err, -EADDRNOTAVAIL,
				  "%s is not an address of this host; `ip address` lists them",
				  text);
	return rl_err_set(err, -error,
			  "cannot bind UDP port %u on %s: %s; give another address or "
			  "udp-port",
			  udp_port, text, strerror(error));
}

static int
queue_open(struct rl_nic *nic, uint32_t k, struct rl_err *err)
{
	struct udp_port *port = nic->priv;
	struct udp_queue *q = &port->queue[k];
	bool v6 = port->family == AF_INET6;
	uint16_t udp_port = (uint16_t)(nic->info.udp_port + k);
	union udp_addr local;

	q->fd = socket(port->family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (q->fd < 0)
		return rl_err_set(err, -errno, "cannot make a UDP socket: %s", strerror(errno));
	socket_buffers(q->fd);
	/* DF on every packet: a packet too large is refused here, never fragmented. */
	if (set_int(q->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO) != 0 ||
	    (v6 && (set_int(q->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO) != 0 ||
		    set_int(q->fd, IPPROTO_IPV6, IPV6_V6ONLY, 0) != 0)) ||
	    set_int(q->fd, SOL_UDP, UDP_GRO, 1) != 0)
		return rl_err_set(err, -errno,
				  "cannot set up a UDP socket: %s; Linux 5.0 or newer is "
				  "needed",
				  strerror(errno));
	addr_init(&local, port->family, &nic->info.address, udp_port);
	if (bind(q->fd, &local.sa, v6 ? sizeof(local.in6) : sizeof(local.in)) != 0)
		return bind_error(nic, udp_port, errno, err);

	if (pool_init(&q->rx_pool, UDP_RX_BUFS, UDP_RX_BYTES) != 0 ||
	    pool_init(&q->tx_pool, UDP_TX_BUFS, RL_DIV_ROUND_UP(nic->info.max_payload, 64) * 64) !=
		    0)
		return rl_err_set(err, -ENOMEM, "no memory for the packet buffers of queue %u", k);
	for (uint32_t i = 0; i < UDP_RX_BATCH; i++) {
		q->rx_iov[i].iov_len = UDP_RX_BYTES;
		q->rx_msg[i].msg_hdr = (struct msghdr){.msg_iov = &q->rx_iov[i],
						       .msg_iovlen = 1,
						       .msg_control = &q->rx_control[i]};
	}
	q->gso = true;
	return 0;
}

static void
udp_close(struct rl_nic *nic)
{
	struct udp_port *port = nic->priv;

	for (uint32_t k = 0; k < nic->info.n_queues; k++) {
		struct udp_queue *q = &port->queue[k];

		if (q->fd >= 0)
			close(q->fd);
		pool_fini(&q->rx_pool);
		pool_fini(&q->tx_pool);
	}
	free(port);
}

/* IPv6 sockets serve both families; where the host has no IPv6 an open port is an IPv4 one. */
static uint16_t
socket_family(const struct rl_ip *address)
{
	int fd;

	if (address->family != 0)
		return address->family;
	fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return AF_INET;
	close(fd);
	return AF_INET6;
}

static int
find_mtu(struct rl_nic *nic, uint32_t *mtu, struct rl_err *err)
{
	struct rl_nic_info *info = &nic->info;
	struct rl_ip address;
	uint8_t mac[6];
	bool up;
	int ret = 0;

	if (ip_is_any(&info->address) || !interface_of(&info->address, info->ifname))
		*mtu = wildcard_mtu();
	else
		ret = rl_neigh_interface(info->ifname, &address, mac, mtu, &up, err);
	if (ret != 0)
		return ret;
	if (nic->opts.mtu != 0)
		*mtu = nic->opts.mtu;
	if (*mtu < RL_NIC_MIN_MTU)
		return rl_err_set(err, -EINVAL,
				  "an interface's MTU is %u; raise it to %u or more, or name "
				  "the local address of another",
				  *mtu, RL_NIC_MIN_MTU);
	return 0;
}

static int
udp_open(struct rl_nic *nic, const char *rest, struct rl_err *err)
{
	struct rl_nic_info *info = &nic->info;
	struct udp_port *port;
	uint32_t mtu, rcvbuf = 0, packet;
	socklen_t len = sizeof(rcvbuf);
	size_t bytes;
	int ret;

	if (rest[0] != '\0')
		return rl_err_set(
			err, -EINVAL,
			"udp: takes nothing behind the colon ('%.64s' found); the local address "
			"and the UDP port are options of their own",
			rest);
	ret = find_mtu(nic, &mtu, err);
	if (ret != 0)
		return ret;
	info->max_payload = rl_min32(mtu - UDP_HEADERS, RL_NIC_MAX_PAYLOAD);
	info->segments_in_kernel = true;

	bytes = sizeof(*port) + info->n_queues * sizeof(port->queue[0]);
	port = aligned_alloc(64, RL_DIV_ROUND_UP(bytes, 64) * 64);
	if (port == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for %u queues", info->n_queues);
	memset(port, 0, bytes);
	port->family = socket_family(&info->address);
	if (ip_is_any(&info->address))
		info->address.family = 0; /* the way to each peer tells the source */
	nic->priv = port;
	for (uint32_t k = 0; k < info->n_queues; k++)
		port->queue[k].fd = -1;
	for (uint32_t k = 0; k < info->n_queues; k++) {
		ret = queue_open(nic, k, err);
		if (ret != 0)
			goto err_close;
	}

	/* The kernel accounts a power of two per packet, and its own headers. */
	getsockopt(port->queue[0].fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, &len);
	for (packet = 2048; packet < info->max_payload + 512; packet *= 2)
		;
	info->rx_ring = rcvbuf / (packet + 512);
	info->rx_ring = info->rx_ring < UDP_RX_RING_MIN ? UDP_RX_RING_MIN : info->rx_ring;
	info->rx_ring = rl_min32(info->rx_ring, UDP_RX_RING_MAX);
	return 0;

err_close:
	udp_close(nic);
	return ret;
}

static int
udp_check(const struct rl_nic *nic, struct rl_err *err)
{
	struct rl_ip address;
	uint8_t mac[6];
	uint32_t mtu;
	bool up;

	if (nic->info.ifname[0] == '\0')
		return 0;
	if (rl_neigh_interface(nic->info.ifname, &address, mac, &mtu, &up, err) != 0)
		return rl_err_set(err, -ENETDOWN,
				  "interface %s is gone; bring it back, or open the port "
				  "anew on another",
				  nic->info.ifname);
	if (!up)
		return rl_err_set(err, -ENETDOWN,
				  "interface %s is down; check the cable, or `ip link set "
				  "%s up`",
				  nic->info.ifname, nic->info.ifname);
	return 0;
}

static int
udp_path_refresh(struct rl_nic_path *path, struct rl_err *err)
{
	const struct rl_nic_info *info = &path->nic->info;
	char text[INET6_ADDRSTRLEN] = "?";
	struct rl_route route;
	int ret;

	ret = rl_neigh_route(&path->peer.address, &route, err);
	if (ret != 0)
		return ret;
	inet_ntop(path->peer.address.family, path->peer.address.addr, text, sizeof(text));
	if (strcmp(info->ifname, "lo") == 0 && strcmp(route.ifname, "lo") != 0)
		return rl_err_set(
			err, -ENODEV,
			"the port is bound to a loopback address, but %s is reached by %s; give "
			"the port an address of %s",
			text, route.ifname, route.ifname);
	if (route.mtu < info->max_payload + UDP_HEADERS)
		return rl_err_set(
			err, -EMSGSIZE,
			"the route to %s by %s has an MTU of %u, but the port was opened for %u; "
			"open it with mtu %u",
			text, route.ifname, route.mtu, info->max_payload + UDP_HEADERS, route.mtu);
	return 0;
}

static int
udp_path_open(struct rl_nic *nic, struct rl_nic_path *path, struct rl_err *err)
{
	struct udp_port *port = nic->priv;
	const struct rl_nic_peer *peer = &path->peer;
	bool mapped = port->family == AF_INET6 && ip_is_any(&nic->info.address);
	struct udp_path *up;
	int ret;

	if (peer->address.family != port->family && !mapped)
		return rl_err_set(
			err, -EAFNOSUPPORT,
			"the port is open for %s only, but the peer's address is %s; give both "
			"ends addresses of one family",
			port->family == AF_INET ? "IPv4" : "IPv6",
			port->family == AF_INET ? "IPv6" : "IPv4");
	ret = udp_path_refresh(path, err);
	if (ret != 0)
		return ret;

	up = calloc(1, sizeof(*up) + nic->info.n_queues * sizeof(up->to[0]));
	if (up == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a path");
	for (uint32_t k = 0; k < nic->info.n_queues; k++)
		addr_init(&up->to[k], port->family, &peer->address, (uint16_t)(peer->udp_port + k));
	path->priv = up;
	return 0;
}

static void
udp_path_close(struct rl_nic_path *path)
{
	free(path->priv);
}

const struct rl_nic_ops rl_nic_udp_ops = {
	.scheme = "udp",
	.open = udp_open,
	.close = udp_close,
	.check = udp_check,
	.path_open = udp_path_open,
	.path_refresh = udp_path_refresh,
	.path_close = udp_path_close,
	.alloc = udp_alloc,
	.tx_burst = udp_tx_burst,
	.rx_burst = udp_rx_burst,
	.free = udp_free,
};
