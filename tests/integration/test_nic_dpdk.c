/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dpdk: ports against each other and against the kernel: net_af_xdp and net_af_packet over veth, net_memif between
 * two processes, net_tap to the kernel of the same namespace; and what happens when a process is killed. Every
 * datagram size goes there and back.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "nic_lab.h"

#define BURST  RL_NIC_BURST
#define WINDOW 256 /* datagrams on the way */
#define PING   "ping -q -c 5 -i 0.2 -W 2 "

/* What a datagram of @len bytes holds. */
static void
pattern_fill(uint8_t *data, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		data[i] = (uint8_t)(len * 31 + i * 7 + (i >> 8));
}

static bool
pattern_ok(const uint8_t *data, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		if (data[i] != (uint8_t)(len * 31 + i * 7 + (i >> 8)))
			return false;
	return true;
}

static struct rl_nic_path *
end_path(struct rl_nic *nic, const struct end *e)
{
	struct rl_nic_peer peer = {.address = ip(e->peer), .udp_port = UDP_PORT};
	struct rl_nic_path *path;
	struct rl_err err = {0};

	if (e->peer_mac != NULL)
		CHECK(sscanf(e->peer_mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &peer.mac[0],
			     &peer.mac[1], &peer.mac[2], &peer.mac[3], &peer.mac[4],
			     &peer.mac[5]) == 6,
		      "MAC");
	CHECK(rl_nic_path_open(nic, &peer, &path, &err) == 0, "%s", err.text);
	return path;
}

/* Send back whatever comes, until told to stop. */
static void
echo_process(const void *arg)
{
	const struct end *e = arg;
	struct rl_nic *nic = end_open(e);
	struct rl_nic_path *path = end_path(nic, e);
	struct rl_pkt rx[BURST], tx[BURST];
	uint32_t n, room;

	CHECK(rl_nic_thread_init(nic) == 0, "thread");
	for (uint32_t q = 0; !atomic_load(&lab.shared->stop); q = (q + 1) % e->n_queues) {
		n = rl_nic_rx_burst(nic, q, rx, BURST);
		if (n == 0)
			sched_yield(); /* the other end may share the core */
		room = n != 0 ? rl_nic_alloc(nic, q, tx, n) : 0;
		for (uint32_t i = 0; i < room; i++) {
			memcpy(tx[i].data, rx[i].data, rx[i].len);
			tx[i].len = rx[i].len;
		}
		if (room != 0)
			rl_nic_tx_burst(nic, e->one_port ? 0 : q, path, tx, room);
		rl_nic_free(nic, q, rx, n);
	}
	rl_nic_thread_fini(nic);
	rl_nic_path_close(path);
	rl_nic_close(nic);
}

struct client {
	struct rl_nic *nic;
	struct rl_nic_path *path;
	uint32_t n_queues;
};

/* Take what came back; returns how many sizes were new. */
static uint32_t
client_receive(const struct client *c, bool *got, uint32_t max)
{
	struct rl_pkt rx[BURST];
	uint32_t fresh = 0, n;

	sched_yield(); /* the other end may share the core */
	for (uint32_t q = 0; q < c->n_queues; q++) {
		n = rl_nic_rx_burst(c->nic, q, rx, BURST);
		for (uint32_t i = 0; i < n; i++) {
			CHECK(rx[i].len >= 1 && rx[i].len <= max, "%u bytes came back", rx[i].len);
			CHECK(pattern_ok(rx[i].data, rx[i].len), "%u bytes, damaged", rx[i].len);
			fresh += !got[rx[i].len];
			got[rx[i].len] = true;
		}
		rl_nic_free(c->nic, q, rx, n);
	}
	return fresh;
}

/* Send what of the sizes [first, end) has not come back, take what does. Returns how many are still out. */
static uint32_t
client_round(const struct client *c, bool *got, uint32_t first, uint32_t end, uint32_t max)
{
	uint64_t again = rl_now_ns() + 200 * RL_NS_PER_MS;
	uint32_t out = 0, fresh, q;
	struct rl_pkt tx;

	for (uint32_t size = first; size < end; size++) {
		out += !got[size];
		q = size % c->n_queues;
		if (got[size] || rl_nic_alloc(c->nic, q, &tx, 1) != 1)
			continue;
		CHECK(tx.cap >= max, "room for %u of %u bytes", tx.cap, max);
		tx.len = size;
		pattern_fill(tx.data, size);
		rl_nic_tx_burst(c->nic, q, c->path, &tx, 1);
	}
	while (out > 0 && rl_now_ns() < again) {
		fresh = client_receive(c, got, max);
		out -= fresh;
	}
	return out;
}

/* Every size must come back; a lost one is sent again. In a thread of its own, as workers are. */
static void *
client_thread(void *arg)
{
	const struct client *c = arg;
	uint32_t max = rl_nic_info(c->nic)->max_payload, end;
	bool *got = calloc(max + 1, sizeof(*got));

	CHECK(got != NULL && rl_nic_thread_init(c->nic) == 0, "thread");
	for (uint32_t first = 1; first <= max; first = end) {
		end = first + WINDOW <= max ? first + WINDOW : max + 1;
		while (client_round(c, got, first, end, max) != 0)
			;
	}
	rl_nic_thread_fini(c->nic);
	free(got);
	return NULL;
}

static void
client_process(const void *arg)
{
	const struct end *e = arg;
	struct client c = {.nic = end_open(e), .n_queues = e->n_queues};
	struct rl_nic_stats st;
	struct rl_err err = {0};
	pthread_t thread;

	for (int i = 0; i < 5000 && rl_nic_check(c.nic, &err) != 0; i++)
		rl_sleep_ns(2 * RL_NS_PER_MS); /* memif: until both ends have met */
	CHECK(rl_nic_check(c.nic, &err) == 0, "%s", err.text);
	c.path = end_path(c.nic, e);
	CHECK(rl_nic_path_refresh(c.path, &err) == 0, "%s", err.text);
	CHECK(pthread_create(&thread, NULL, client_thread, &c) == 0, "thread");
	pthread_join(thread, NULL);
	for (uint32_t q = 0; q < e->n_queues; q++) {
		rl_nic_stats(c.nic, q, &st);
		CHECK(st.tx_packets > 0 && st.rx_packets > 0, "queue %u did nothing", q);
	}
	rl_nic_path_close(c.path);
	rl_nic_close(c.nic);
}

/* @b answers, in namespace B if @in_b, @a asks in A; @beside runs meanwhile. */
static bool
exchange(const struct end *a, const struct end *b, bool in_b, const char *beside)
{
	pid_t echo, client;
	bool ok;

	memset(lab.shared, 0, sizeof(*lab.shared));
	echo = spawn(echo_process, b, in_b);
	wait_ready(1);
	client = spawn(client_process, a, false);
	ok = beside == NULL || run("%s >%s/out 2>&1", beside, lab.dir) == 0 ||
	     (run("cat %s/out >&2", lab.dir), false);
	ok = wait_ok(client) && ok;
	atomic_store(&lab.shared->stop, 1);
	return wait_ok(echo) && ok;
}

static const struct end xdp_a4 = {XDP_A, A4, B4, .n_queues = 1};
static const struct end xdp_b4 = {XDP_B, B4, A4, .n_queues = 1};
static const struct end xdp_a6 = {XDP_A, A6, B6, .n_queues = 1};
static const struct end xdp_b6 = {XDP_B, B6, A6, .n_queues = 1};

static bool
case_af_xdp_ipv4(void)
{
	return exchange(&xdp_a4, &xdp_b4, true, PING B4);
}

static bool
case_af_xdp_ipv6(void)
{
	return exchange(&xdp_a6, &xdp_b6, true, PING B6);
}

static bool
case_af_xdp_two_queues(void)
{
	static const struct end a = {XDP_M ",start_queue=2", NULL, N4, .n_queues = 2};
	static const struct end b = {XDP_N ",start_queue=2", NULL, M4, .n_queues = 2};

	return exchange(&a, &b, true, NULL);
}

static bool
case_af_packet(void)
{
	static const struct end a = {"dpdk:net_af_packet,iface=rlA", A4, B4, .n_queues = 1};
	static const struct end b = {"dpdk:net_af_packet,iface=rlB", B4, A4, .n_queues = 1};

	return exchange(&a, &b, true, PING B4);
}

static bool
memif(const char *a_ip, const char *b_ip, bool in_b)
{
	/* An abstract socket, the driver's default, is seen in its own network namespace only. */
	const char *file = in_b ? ",socket-abstract=no" : "";
	char server[120], client[120];
	struct end b = {server, b_ip, a_ip, .peer_mac = "02:00:00:00:00:0a", .n_queues = 2};
	struct end a = {client, a_ip, b_ip, .peer_mac = "02:00:00:00:00:0b", .n_queues = 2};

	snprintf(server, sizeof(server),
		 "dpdk:net_memif,role=server,socket=%s/m,mac=02:00:00:00:00:0b%s", lab.dir, file);
	snprintf(client, sizeof(client),
		 "dpdk:net_memif,role=client,socket=%s/m,mac=02:00:00:00:00:0a%s", lab.dir, file);
	return exchange(&a, &b, in_b, NULL);
}

static bool
case_memif_ipv4(void)
{
	return memif(A4, B4, false);
}

static bool
case_memif_ipv6(void)
{
	return memif(A6, B6, true);
}

/* A kernel socket asks: the kernel checks our checksums, and finds us by ARP or ND. */
static void
kernel_process(const void *arg)
{
	const struct end *e = arg;
	struct rl_ip self = ip(e->address), peer = ip(e->peer);
	struct sockaddr_storage ss[2] = {0};
	struct timeval wait = {.tv_usec = 200000};
	uint8_t data[4096];
	int fd = socket(self.family, SOCK_DGRAM, 0);
	ssize_t len = 0;

	for (int i = 0; i < 2; i++) {
		struct sockaddr_in *in = (struct sockaddr_in *)&ss[i];
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss[i];
		const struct rl_ip *p = i == 0 ? &self : &peer;

		ss[i].ss_family = p->family;
		in->sin_port = htons(UDP_PORT); /* sin6_port lies there too */
		if (p->family == AF_INET)
			memcpy(&in->sin_addr, p->addr, 4);
		else
			memcpy(&in6->sin6_addr, p->addr, 16);
	}
	CHECK(bind(fd, (struct sockaddr *)&ss[0], sizeof(ss[0])) == 0, "%s", strerror(errno));
	CHECK(connect(fd, (struct sockaddr *)&ss[1], sizeof(ss[1])) == 0, "%s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	for (uint32_t size = 1; size <= e->n_queues; size++) { /* here: the largest */
		for (int tries = 0; len != (ssize_t)size; tries++) {
			CHECK(tries < 10, "%u bytes do not come back", size);
			pattern_fill(data, size);
			CHECK(send(fd, data, size, 0) == (ssize_t)size, "%s", strerror(errno));
			memset(data, 0, sizeof(data));
			len = recv(fd, data, sizeof(data), 0);
		}
		CHECK(pattern_ok(data, size), "%u bytes, damaged", size);
	}
}

/* @b is the port, in namespace B or else in A; the kernel's end is always in A. */
static bool
kernel_exchange(const struct end *b, bool in_b, uint32_t largest, const char *setup)
{
	struct end kernel = {NULL, b->peer, b->address, .n_queues = largest};
	pid_t echo;
	bool ok;

	memset(lab.shared, 0, sizeof(*lab.shared));
	echo = spawn(echo_process, b, in_b);
	wait_ready(1);
	ok = setup == NULL || run("%s", setup) == 0;
	ok = ok && wait_ok(spawn(kernel_process, &kernel, false));
	atomic_store(&lab.shared->stop, 1);
	return wait_ok(echo) && ok;
}

static bool
case_kernel_ipv4(void)
{
	return kernel_exchange(&xdp_b4, true, 3458, NULL);
}

static bool
case_kernel_ipv6(void)
{
	return kernel_exchange(&xdp_b6, true, 3458, NULL);
}

/* A port without a kernel interface answers ARP and neighbour solicitations itself. */
static bool
case_tap(void)
{
	static const char setup[] = "ip link set rltap0 address 02:00:00:00:00:0c up && "
				    "ip addr add 198.18.78.1/24 dev rltap0 && "
				    "ip addr add fd00:78::1/64 dev rltap0 nodad";
	static const struct end v4 = {"dpdk:net_tap,iface=rltap0,mac=02:00:00:00:00:0d",
				      "198.18.78.2", "198.18.78.1", .peer_mac = "02:00:00:00:00:0c",
				      .n_queues = 1};
	static const struct end v6 = {"dpdk:net_tap,iface=rltap0,mac=02:00:00:00:00:0d",
				      "fd00:78::2",
				      "fd00:78::1",
				      .peer_mac = "02:00:00:00:00:0c",
				      .n_queues = 2,
				      .one_port = true}; /* spread by hash */

	if (access("/dev/net/tun", R_OK | W_OK) != 0) {
		fprintf(stderr, "no /dev/net/tun, so net_tap is not tested\n");
		return true;
	}
	return kernel_exchange(&v4, false, 1452, setup) && kernel_exchange(&v6, false, 1452, setup);
}

/* A daemon that is killed can start again at once on the same interface. */
static bool
case_kill_and_restart(void)
{
	int status;
	pid_t pid;

	for (int i = 0; i < 3; i++) {
		memset(lab.shared, 0, sizeof(*lab.shared));
		pid = spawn(echo_process, &xdp_b4, true);
		wait_ready(1);
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		if (!exchange(&xdp_a4, &xdp_b4, true, NULL))
			return false;
	}
	return true;
}

static void
reopen_process(const void *arg)
{
	const struct end *e = arg;

	for (int i = 0; i < 4; i++)
		rl_nic_close(end_open(e));
	client_process(e);
}

/* And a port that is closed can be opened again by the same process. */
static bool
case_reopen(void)
{
	static const struct end a = {XDP_M, M4, N4, .n_queues = 2};
	static const struct end b = {XDP_N, N4, M4, .n_queues = 2};
	pid_t echo;
	bool ok;

	memset(lab.shared, 0, sizeof(*lab.shared));
	echo = spawn(echo_process, &b, true);
	wait_ready(1);
	ok = wait_ok(spawn(reopen_process, &a, false));
	atomic_store(&lab.shared->stop, 1);
	return wait_ok(echo) && ok;
}

static const struct lab_case cases[] = {
	{"AF_XDP, IPv4, ping beside", case_af_xdp_ipv4},
	{"AF_XDP, IPv6, ping beside", case_af_xdp_ipv6},
	{"AF_XDP, two queues", case_af_xdp_two_queues},
	{"AF_XDP and the kernel, IPv4", case_kernel_ipv4},
	{"AF_XDP and the kernel, IPv6", case_kernel_ipv6},
	{"AF_XDP, killed and restarted", case_kill_and_restart},
	{"AF_XDP, closed and opened again", case_reopen},
	{"AF_PACKET", case_af_packet},
	{"memif, IPv4", case_memif_ipv4},
	{"memif, IPv6", case_memif_ipv6},
	{"tap, ARP and ND", case_tap},
};

int
main(int argc, char **argv)
{
	return lab_main(cases, sizeof(cases) / sizeof(cases[0]), argc > 1 ? argv[1] : NULL);
}
