/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Routes, neighbours and interfaces of this network namespace, asked of the kernel by rtnetlink. The engine
 * speaks no ARP and no ND: the kernel does, and we look at its tables.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <libmnl/libmnl.h>

#include "base/clock.h"
#include "nic/port.h"

#define NEIGH_POLL_NS    (2 * RL_NS_PER_MS)
#define NEIGH_TRIGGER_NS (500 * RL_NS_PER_MS)
#define NEIGH_PORT       9 /* discard (RFC 863) */

#define NEIGH_USABLE     (NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE)

/* A request under construction, and the buffer of its answers: large enough for one part of a dump. */
union request {
	struct nlmsghdr nlh;
	char bytes[32768]; /* the most the kernel puts in one part */
};

struct link {
	char ifname[IF_NAMESIZE];
	uint32_t mtu, flags;
	uint8_t mac[6];
};

static size_t
ip_bytes(uint16_t family)
{
	return family == AF_INET ? 4 : 16;
}

/* Take an address out of an attribute, if it is as long as its family says. */
static void
ip_read(const struct nlattr *attr, uint16_t family, struct rl_ip *ip)
{
	if (mnl_attr_get_payload_len(attr) != ip_bytes(family))
		return;
	ip->family = family;
	memcpy(ip->addr, mnl_attr_get_payload(attr), ip_bytes(family));
}

static void *
request_init(union request *req, uint16_t type, uint16_t flags, size_t header_bytes)
{
	mnl_nlmsg_put_header(req->bytes);
	req->nlh.nlmsg_type = type;
	req->nlh.nlmsg_flags = NLM_F_REQUEST | flags;
	req->nlh.nlmsg_seq = 1; /* one request per socket */
	return mnl_nlmsg_put_extra_header(&req->nlh, header_bytes);
}

/* Send the request and give every answer to @cb, which returns MNL_CB_STOP behind the last. 0 or -errno. */
static int
request_run(union request *req, mnl_cb_t cb, void *data)
{
	struct mnl_socket *nl = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	ssize_t len;
	int ret = -1;

	if (nl == NULL)
		return -errno;
	if (mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) == 0 &&
	    mnl_socket_sendto(nl, req, req->nlh.nlmsg_len) >= 0) {
		do {
			len = mnl_socket_recvfrom(nl, req->bytes, sizeof(req->bytes));
			ret = len < 0 ? -1
				      : mnl_cb_run(req->bytes, (size_t)len, 1,
						   mnl_socket_get_portid(nl), cb, data);
		} while (ret > MNL_CB_STOP);
	}
	ret = ret < 0 ? -errno : 0;
	mnl_socket_close(nl);
	return ret;
}

static int
link_cb(const struct nlmsghdr *nlh, void *data)
{
	const struct ifinfomsg *ifi = mnl_nlmsg_get_payload(nlh);
	struct link *link = data;
	struct nlattr *attr;

	link->flags = ifi->ifi_flags;
	mnl_attr_for_each(attr, nlh, sizeof(*ifi))
	{
		uint16_t len = mnl_attr_get_payload_len(attr);

		switch (mnl_attr_get_type(attr)) {
		case IFLA_IFNAME:
			if (len <= IF_NAMESIZE)
				memcpy(link->ifname, mnl_attr_get_payload(attr), len);
			break;
		case IFLA_MTU:
			link->mtu = mnl_attr_get_u32(attr);
			break;
		case IFLA_ADDRESS:
			if (len == sizeof(link->mac))
				memcpy(link->mac, mnl_attr_get_payload(attr), len);
			break;
		}
	}
	return MNL_CB_STOP;
}

static int
link_get(uint32_t ifindex, struct link *link)
{
	union request req;
	struct ifinfomsg *ifi = request_init(&req, RTM_GETLINK, 0, sizeof(*ifi));

	ifi->ifi_index = (int)ifindex;
	memset(link, 0, sizeof(*link));
	return request_run(&req, link_cb, link);
}

struct route_answer {
	struct rl_route *route;
	uint8_t type; /* RTN_* */
};

static void
route_metrics(const struct nlattr *nest, struct rl_route *route)
{
	struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		if (mnl_attr_get_type(attr) == RTAX_MTU)
			route->mtu = mnl_attr_get_u32(attr);
	}
}

static int
route_cb(const struct nlmsghdr *nlh, void *data)
{
	const struct rtmsg *rtm = mnl_nlmsg_get_payload(nlh);
	struct route_answer *answer = data;
	struct rl_route *route = answer->route;
	const struct rtvia *via;
	struct nlattr *attr;

	answer->type = rtm->rtm_type;
	mnl_attr_for_each(attr, nlh, sizeof(*rtm))
	{
		switch (mnl_attr_get_type(attr)) {
		case RTA_OIF:
			route->ifindex = mnl_attr_get_u32(attr);
			break;
		case RTA_GATEWAY:
			ip_read(attr, rtm->rtm_family, &route->next_hop);
			break;
		case RTA_VIA: /* an IPv6 gateway of an IPv4 route */
			via = mnl_attr_get_payload(attr);
			if (via->rtvia_family == AF_INET6 &&
			    mnl_attr_get_payload_len(attr) == sizeof(*via) + 16) {
				route->next_hop.family = AF_INET6;
				memcpy(route->next_hop.addr, via->rtvia_addr, 16);
			}
			break;
		case RTA_PREFSRC:
			ip_read(attr, rtm->rtm_family, &route->source);
			break;
		case RTA_METRICS:
			route_metrics(attr, route);
			break;
		}
	}
	return MNL_CB_STOP;
}

int
rl_neigh_route(const struct rl_ip *dst, struct rl_route *route, struct rl_err *err)
{
	struct route_answer answer = {.route = route};
	char text[INET6_ADDRSTRLEN] = "?";
	union request req;
	struct rtmsg *rtm;
	struct link link;
	int ret;

	inet_ntop(dst->family, dst->addr, text, sizeof(text));
	if (dst->family == AF_INET6 && dst->addr[0] == 0xfe && (dst->addr[1] & 0xc0) == 0x80)
		return rl_err_set(
			err, -ENETUNREACH,
			"%s is a link-local address, which names no interface; use a global or "
			"unique local one (fd00::/8)",
			text);

	memset(route, 0, sizeof(*route));
	route->next_hop = *dst;
	rtm = request_init(&req, RTM_GETROUTE, 0, sizeof(*rtm));
	rtm->rtm_family = (uint8_t)dst->family;
	rtm->rtm_dst_len = (uint8_t)(ip_bytes(dst->family) * 8);
	mnl_attr_put(&req.nlh, RTA_DST, ip_bytes(dst->family), dst->addr);
	ret = request_run(&req, route_cb, &answer);
	if (ret != 0)
		return rl_err_set(err, -ENETUNREACH,
				  "no route to %s: %s; add one, or see `ip route get %s`", text,
				  strerror(-ret), text);
	if (answer.type != RTN_UNICAST && answer.type != RTN_LOCAL)
		return rl_err_set(err, -ENETUNREACH,
				  "%s is not the address of one host (broadcast, multicast or "
				  "blackholed); see `ip route get %s`",
				  text, text);

	ret = link_get(route->ifindex, &link);
	if (ret != 0)
		return rl_err_set(err, -ENETUNREACH,
				  "the interface of the route to %s cannot be read: %s; try again",
				  text, strerror(-ret));
	memcpy(route->ifname, link.ifname, sizeof(route->ifname));
	if (route->mtu == 0 || route->mtu > link.mtu)
		route->mtu = link.mtu;
	route->resolved = (link.flags & IFF_LOOPBACK) != 0; /* its MAC is zero */
	return 0;
}

struct neigh_answer {
	uint16_t state; /* NUD_*, 0: not in the table */
	uint8_t mac[6];
	bool has_mac;
};

static int
neigh_cb(const struct nlmsghdr *nlh, void *data)
{
	const struct ndmsg *ndm = mnl_nlmsg_get_payload(nlh);
	struct neigh_answer *answer = data;
	struct nlattr *attr;

	answer->state = ndm->ndm_state;
	mnl_attr_for_each(attr, nlh, sizeof(*ndm))
	{
		if (mnl_attr_get_type(attr) == NDA_LLADDR &&
		    mnl_attr_get_payload_len(attr) == sizeof(answer->mac)) {
			memcpy(answer->mac, mnl_attr_get_payload(attr), sizeof(answer->mac));
			answer->has_mac = true;
		}
	}
	return MNL_CB_STOP;
}

/* 0 with state 0: the kernel does not know the neighbour. */
static int
neigh_get(const struct rl_route *route, struct neigh_answer *answer)
{
	const struct rl_ip *hop = &route->next_hop;
	union request req;
	struct ndmsg *ndm = request_init(&req, RTM_GETNEIGH, 0, sizeof(*ndm));
	int ret;

	memset(answer, 0, sizeof(*answer));
	ndm->ndm_family = (uint8_t)hop->family;
	ndm->ndm_ifindex = (int)route->ifindex;
	mnl_attr_put(&req.nlh, NDA_DST, ip_bytes(hop->family), hop->addr);
	ret = request_run(&req, neigh_cb, answer);
	return ret == -ENOENT ? 0 : ret;
}

/* One byte to the next hop makes the kernel resolve, or confirm, its MAC. Whether it was sent shows in the table. */
static void
neigh_trigger(const struct rl_route *route)
{
	const struct rl_ip *hop = &route->next_hop;
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(NEIGH_PORT)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons(NEIGH_PORT),
				   .sin6_scope_id = route->ifindex};
	int fd = socket(hop->family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return;
	/* A gateway may be on-link without a route of its own. */
	setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, route->ifname,
		   (socklen_t)strnlen(route->ifname, IF_NAMESIZE));
	memcpy(&in.sin_addr, hop->addr, sizeof(in.sin_addr));
	memcpy(&in6.sin6_addr, hop->addr, sizeof(in6.sin6_addr));
	if (hop->family == AF_INET)
		sendto(fd, "", 1, 0, (const struct sockaddr *)&in, sizeof(in));
	else
		sendto(fd, "", 1, 0, (const struct sockaddr *)&in6, sizeof(in6));
	close(fd);
}

int
rl_neigh_resolve(struct rl_route *route, uint32_t wait_ms, struct rl_err *err)
{
	uint64_t now = rl_now_ns(), end = now + wait_ms * RL_NS_PER_MS, trigger = now;
	char text[INET6_ADDRSTRLEN] = "?";
	struct neigh_answer answer;
	int ret;

	while (!route->resolved) {
		ret = neigh_get(route, &answer);
		if (ret != 0)
			return rl_err_set(
				err, -EHOSTUNREACH,
				"the neighbour table of %s cannot be read: %s; is the interface "
				"still there?",
				route->ifname, strerror(-ret));
		/* A stale entry serves at once, and is confirmed for the next look. */
		if (!(answer.state & (NUD_REACHABLE | NUD_PERMANENT | NUD_NOARP)) &&
		    now >= trigger) {
			neigh_trigger(route);
			trigger = now + NEIGH_TRIGGER_NS;
		}
		if ((answer.state & NEIGH_USABLE) && answer.has_mac) {
			memcpy(route->mac, answer.mac, sizeof(route->mac));
			route->resolved = true;
		} else if (now >= end) {
			inet_ntop(route->next_hop.family, route->next_hop.addr, text, sizeof(text));
			return rl_err_set(
				err, -EHOSTUNREACH,
				"%s did not answer on %s within %u ms (ARP or neighbour "
				"discovery); "
				"is it up and on this network? See `ip neigh show dev %s`",
				text, route->ifname, wait_ms, route->ifname);
		} else {
			rl_sleep_ns(NEIGH_POLL_NS);
		}
		now = rl_now_ns();
	}
	return 0;
}

struct addr_search {
	uint32_t ifindex;
	bool loopback;
	struct rl_ip in, in6; /* the first of each */
};

static int
addr_cb(const struct nlmsghdr *nlh, void *data)
{
	const struct ifaddrmsg *ifa = mnl_nlmsg_get_payload(nlh);
	struct addr_search *search = data;
	struct rl_ip *first = ifa->ifa_family == AF_INET ? &search->in : &search->in6;
	struct rl_ip ip = {0};
	struct nlattr *attr;

	if (ifa->ifa_index != search->ifindex ||
	    (ifa->ifa_scope >= RT_SCOPE_LINK && !search->loopback) ||
	    (ifa->ifa_flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED)))
		return MNL_CB_OK;
	mnl_attr_for_each(attr, nlh, sizeof(*ifa))
	{
		/* On a point-to-point link IFA_ADDRESS is the other end. */
		if (mnl_attr_get_type(attr) == IFA_LOCAL ||
		    (mnl_attr_get_type(attr) == IFA_ADDRESS && ip.family == 0))
			ip_read(attr, ifa->ifa_family, &ip);
	}
	if (first->family == 0)
		*first = ip;
	return MNL_CB_OK;
}

int
rl_neigh_interface(const char *ifname, struct rl_ip *address, uint8_t mac[6], uint32_t *mtu,
		   bool *up, struct rl_err *err)
{
	struct addr_search search = {.ifindex = if_nametoindex(ifname)};
	union request req;
	struct link link;
	int ret;

	ret = search.ifindex == 0 ? -ENODEV : link_get(search.ifindex, &link);
	if (ret != 0)
		return rl_err_set(err, -ENODEV, "interface %s cannot be read: %s; see `ip link`",
				  ifname, strerror(-ret));
	search.loopback = (link.flags & IFF_LOOPBACK) != 0;
	request_init(&req, RTM_GETADDR, NLM_F_DUMP, sizeof(struct ifaddrmsg));
	ret = request_run(&req, addr_cb, &search);
	if (ret != 0)
		return rl_err_set(err, -ENODEV, "addresses of %s cannot be read: %s; try again",
				  ifname, strerror(-ret));
	*address = search.in.family != 0 ? search.in : search.in6;
	memcpy(mac, link.mac, sizeof(link.mac));
	*mtu = link.mtu;
	*up = (link.flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING);
	return 0;
}
