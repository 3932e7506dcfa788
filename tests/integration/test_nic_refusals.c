/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What dpdk: ports refuse, each with cause and remedy: arguments, interfaces, addresses, foreign XDP programs,
 * destinations, and frames that say one thing wrong.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "nic/dpdk_frame.h"
#include "nic_lab.h"

static const struct end xdp_a4 = {XDP_A, A4, B4, .n_queues = 1};

struct refusal {
	const char *uri, *address;
	uint32_t n_queues, mtu;
	int code;         /* 0: any */
	const char *says; /* what the error must name */
};

static void
refusal_process(const void *arg)
{
	const struct refusal *r = arg;
	struct rl_nic_opts opts = {.n_queues = r->n_queues != 0 ? r->n_queues : 1,
				   .udp_port = UDP_PORT,
				   .address = ip(r->address),
				   .mtu = r->mtu};
	struct rl_err err = {0};
	struct rl_nic *nic;
	int ret = rl_nic_open(r->uri, &opts, &nic, &err);

	CHECK(ret < 0 && err.code == ret, "%s was opened", r->uri);
	CHECK(r->code == 0 || ret == r->code, "%s: %d, not %d: %s", r->uri, ret, r->code, err.text);
	CHECK(strstr(err.text, r->says) != NULL, "%s: '%s' does not name '%s'", r->uri, err.text,
	      r->says);
}

static bool
refused(const struct refusal *r)
{
	return wait_ok(spawn(refusal_process, r, false));
}

static bool
case_refusals(void)
{
	static const struct refusal refusals[] = {
		{"dpdk:", .code = -EINVAL, .says = "needs a device"},
		{"dpdk:eth0", .code = -EINVAL, .says = "neither a PCI address"},
		{"dpdk:net_af_xdp", .code = -EINVAL, .says = "needs iface="},
		{"dpdk:net_af_xdp,iface", .code = -EINVAL, .says = "iface"},
		{"dpdk:net_af_xdp,iface=averyveryverylongname", .code = -EINVAL,
		 .says = "too long"},
		{XDP_A ",queue_count=2", .code = -EINVAL, .says = "set by the engine"},
		{XDP_A ",start_queue=x", .code = -EINVAL, .says = "start_queue"},
		{XDP_A ",no_such_key=1", .says = "check its arguments"},
		{"dpdk:net_af_xdp,iface=rlNone", .code = -ENODEV, .says = "rlNone"},
		{"dpdk:net_af_xdp,iface=rlDown", .code = -ENETDOWN,
		 .says = "ip link set dev rlDown up"},
		{"dpdk:net_af_xdp,iface=rlBare", .code = -EADDRNOTAVAIL, .says = "ip addr add"},
		{XDP_A, .n_queues = 2, .code = -EINVAL, .says = "numrxqueues"},
		{XDP_A, .mtu = 9000, .code = -EINVAL, .says = "MTU 9000"},
		{XDP_A, "198.18.99.9", .code = -EADDRNOTAVAIL, .says = "198.18.99.9"},
		{"dpdk:net_memif,role=server", .code = -EINVAL, .says = "set address"},
		{"dpdk:net_memif,role=client,socket=/tmp/ramlift-none", A4,
		 .says = "server's socket"},
		{"dpdk:net_memif,role=server,bsize=64", A4, .code = -EINVAL, .says = "bsize"},
		{"dpdk:net_tap,iface=rlTap", A4, .mtu = 20000, .code = -EINVAL,
		 .says = "MTU 20000"},
		{"dpdk:net_nothing", A4, .says = "net_nothing"},
		{"dpdk:0000:ff:1f.7", A4, .says = "0000:ff:1f.7"}, /* no hugepages, or no device */
	};
	bool ok = true;

	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
		ok = refused(&refusals[i]) && ok;
	return ok;
}

static bool
case_port_in_use(void)
{
	static const struct refusal r = {XDP_A, A4, .code = -EADDRINUSE, .says = "in use"};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(UDP_PORT)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool ok = bind(fd, (struct sockaddr *)&in, sizeof(in)) == 0 && refused(&r);

	close(fd);
	return ok;
}

/* A program that somebody else attached, by a link and by netlink. */
static bool
case_foreign_xdp(void)
{
	static const struct refusal held = {XDP_A, A6, .code = -EBUSY, .says = "another ramliftd"};
	static const struct refusal left = {XDP_A, A6, .code = -EBUSY,
					    .says = "ip link set dev rlA xdp off"};
	const struct bpf_insn pass[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = XDP_PASS},
		{.code = BPF_JMP | BPF_EXIT},
	};
	int ifindex = (int)if_nametoindex("rlA"), fd;
	struct rl_err err = {0};
	struct rl_xdp *xdp;
	bool ok;

	CHECK(rl_xdp_attach("rlA", 1, 1, &xdp, &err) == 0, "%s", err.text);
	ok = refused(&held);
	rl_xdp_detach(xdp);

	fd = bpf_prog_load(BPF_PROG_TYPE_XDP, "foreign", "GPL", pass, 2, NULL);
	CHECK(fd >= 0 && bpf_xdp_attach(ifindex, fd, 0, NULL) == 0, "%s", strerror(errno));
	ok = refused(&left) && ok;
	close(fd);
	return run("ip link set dev rlA xdp off") == 0 && ok;
}

/* veth cannot do XDP when its peer's frames may be longer than a page holds. */
static bool
case_large_mtu(void)
{
	static const struct refusal r = {XDP_A, .code = -ERANGE, .says = "mtu 3506"};
	bool ok = run("nsenter -t %d -n ip link set dev rlB mtu 9000", lab.holder) == 0 &&
		  refused(&r);

	return run("nsenter -t %d -n ip link set dev rlB mtu 3506", lab.holder) == 0 && ok;
}

struct path_refusal {
	const char *peer;
	int code;
	const char *says;
};

static void
path_process(const void *arg)
{
	static const struct path_refusal refusals[] = {
		{A4, -ENODEV, "leaves by"}, /* our own address: lo */
		{"198.18.80.9", -ENODEV, "leaves by rlBare"},
		{"203.0.113.9", -ENETUNREACH, "no route"},
		{B6, -EINVAL, "family"},
		{"198.18.77.99", -EHOSTUNREACH, "198.18.77.99"},
	};
	struct rl_nic *nic = end_open(arg);
	struct rl_nic_path *path;
	struct rl_err err = {0};
	int ret;

	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct rl_nic_peer peer = {.address = ip(refusals[i].peer), .udp_port = UDP_PORT};

		ret = rl_nic_path_open(nic, &peer, &path, &err);
		CHECK(ret == refusals[i].code && strstr(err.text, refusals[i].says) != NULL,
		      "%s: %d: %s", refusals[i].peer, ret, err.text);
	}
	CHECK(rl_nic_check(nic, &err) == 0, "%s", err.text);
	run("ip link set dev rlA down");
	CHECK(rl_nic_check(nic, &err) == -ENETDOWN, "an interface that is down passes");
	run("ip link set dev rlA up");
	rl_nic_close(nic);
}

static bool
case_paths(void)
{
	bool ok;

	run("ip addr add 198.18.80.1/24 dev rlBare");
	ok = wait_ok(spawn(path_process, &xdp_a4, false));
	run("ip addr flush dev rlBare; ip addr add " A6 "/64 dev rlA nodad");
	return ok;
}

static void
pci_after_vdev_process(const void *arg)
{
	static const struct refusal r = {"dpdk:0000:ff:1f.7", A4, .code = -EINVAL, .says = "first"};

	rl_nic_close(end_open(arg));
	refusal_process(&r);
}

static bool
case_pci_after_vdev(void)
{
	return wait_ok(spawn(pci_after_vdev_process, &xdp_a4, false));
}

/* The MAC is the peer's to say where nobody can be asked. */
static void
no_mac_process(const void *arg)
{
	struct rl_nic *nic = end_open(arg);
	struct rl_nic_peer peer = {.address = ip(B4), .udp_port = UDP_PORT};
	struct rl_nic_path *path;
	struct rl_err err = {0};

	CHECK(rl_nic_path_open(nic, &peer, &path, &err) == -EHOSTUNREACH, "%s", err.text);
	CHECK(rl_nic_check(nic, &err) == -ENETDOWN, "a memif without its other end passes");
	rl_nic_close(nic);
}

static bool
case_no_mac(void)
{
	char uri[96];
	struct end e = {uri, A4, B4, .n_queues = 1};

	snprintf(uri, sizeof(uri), "dpdk:net_memif,role=server,socket=%s/n", lab.dir);
	return wait_ok(spawn(no_mac_process, &e, false));
}

/* A frame that says one thing wrong is nobody's; @at counts from the Ethernet header. */
static void
frame_broken(const struct rl_frame_end *self, const uint8_t *frame, uint32_t bytes, uint32_t at,
	     uint8_t value)
{
	uint8_t copy[256];
	uint32_t len;

	memcpy(copy, frame, bytes);
	copy[at] = value;
	CHECK(rl_frame_parse(self, 4, copy, bytes, &len) == NULL, "byte %u = %u passes", at, value);
}

static void
frames(const char *src, const char *dst)
{
	struct rl_frame_end a = {.ip = ip(src), .mac = {2, 0, 0, 0, 0, 1}, .udp_port = 5000};
	struct rl_frame_end b = {.ip = ip(dst), .mac = {2, 0, 0, 0, 0, 2}, .udp_port = 6000};
	bool v6 = a.ip.family == AF_INET6;
	struct rl_frame_template t;
	uint8_t buf[256] = {0}, tagged[256], *frame, *got;
	uint32_t bytes, len = 0, ip_at = 14, udp_at = v6 ? 54 : 34;

	rl_frame_template(&t, &a, &b);
	memcpy(buf + 100, "payload", 7);
	rl_frame_push(&t, 3, buf + 100, 7);
	frame = buf + 100 - t.len;
	bytes = t.len + 7;
	got = rl_frame_parse(&b, 4, frame, bytes, &len);
	CHECK(got == buf + 100 && len == 7, "our own frame does not come through");
	CHECK(rl_frame_parse(&b, 3, frame, bytes, &len) == NULL, "port past the range passes");
	CHECK(rl_frame_parse(&a, 4, frame, bytes, &len) == NULL, "another address passes");
	for (uint32_t cut = 0; cut < bytes; cut++)
		CHECK(rl_frame_parse(&b, 4, frame, cut, &len) == NULL, "cut at %u passes", cut);
	CHECK(rl_frame_parse(&b, 4, frame, bytes + 20, &len) != NULL && len == 7, "padding");
	memcpy(tagged, frame, 12);
	memcpy(tagged + 12, "\x81\x00\x00\x00", 4);
	memcpy(tagged + 16, frame + 12, bytes - 12);
	CHECK(rl_frame_parse(&b, 4, tagged, bytes + 4, &len) == tagged + t.len + 4 && len == 7,
	      "tag");

	frame_broken(&b, frame, bytes, 12, 0x90);                /* Ethernet type */
	frame_broken(&b, frame, bytes, udp_at + 2, 0);           /* port below */
	frame_broken(&b, frame, bytes, udp_at + 4, 1);           /* UDP longer than IP */
	frame_broken(&b, frame, bytes, udp_at + 5, 7);           /* and shorter than itself */
	frame_broken(&b, frame, bytes, ip_at, v6 ? 0x40 : 0x46); /* version, options */
	frame_broken(&b, frame, bytes, ip_at + (v6 ? 6 : 9), 6); /* TCP */
	frame_broken(&b, frame, bytes, ip_at + (v6 ? 4 : 2), 1); /* IP longer than the frame */
	if (!v6) {
		frame_broken(&b, frame, bytes, ip_at + 6, 0x20); /* more fragments */
		frame_broken(&b, frame, bytes, ip_at + 7, 1);    /* a later fragment */
		frame_broken(&b, frame, bytes, ip_at + 3, 19);   /* IP shorter than itself */
	}
	CHECK(rl_frame_answer(&b, frame, bytes, 200) == 0, "a datagram is answered");
}

static bool
case_frames(void)
{
	frames(A4, B4);
	frames(A6, B6);
	return true;
}

static const struct lab_case cases[] = {
	{"refusals", case_refusals},
	{"port in use", case_port_in_use},
	{"foreign XDP program", case_foreign_xdp},
	{"MTU too large for veth", case_large_mtu},
	{"PCI after a virtual device", case_pci_after_vdev},
	{"no MAC", case_no_mac},
	{"paths", case_paths},
};

int
main(int argc, char **argv)
{
	case_frames(); /* needs nothing */
	return lab_main(cases, sizeof(cases) / sizeof(cases[0]), argc > 1 ? argv[1] : NULL);
}
