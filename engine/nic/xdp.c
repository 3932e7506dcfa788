/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The XDP filter (pmd-config/ramlift_xdp.bpf.c) on a kernel interface, held by a bpf_link: the kernel takes it
 * off when this process ends in whatever way, so that the next one can start at once.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <net/if.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <xdp/libxdp.h>

#include "base/log.h"
#include "nic/port.h"
#include "ramlift_xdp.h"

struct rl_xdp {
	struct bpf_object *object;
	struct bpf_link *link;
};

/* .rodata of the filter: rl_ports. */
struct ports {
	uint32_t first, n;
};

__attribute__((format(printf, 1, 0))) static int
log_line(const char *fmt, va_list ap)
{
	char line[256];
	int len = vsnprintf(line, sizeof(line), fmt, ap);

	rl_debug("%.*s", (int)strcspn(line, "\n"), line);
	return len;
}

/* What they print goes with an error that we report ourselves. */
static int
log_libbpf(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	return level == LIBBPF_DEBUG ? 0 : log_line(fmt, ap);
}

static int
log_libxdp(enum libxdp_print_level level, const char *fmt, va_list ap)
{
	return level == LIBXDP_DEBUG ? 0 : log_line(fmt, ap);
}

static int
set_ports(struct bpf_object *object, struct ports ports)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
	{
		if (strstr(bpf_map__name(map), ".rodata") != NULL)
			return bpf_map__set_initial_value(map, &ports, sizeof(ports));
	}
	return -ENOENT;
}

static int
busy_error(const char *ifname, uint32_t ifindex, struct rl_err *err)
{
	struct bpf_prog_info info = {0};
	uint32_t bytes = sizeof(info), id = 0;
	int fd;

	if (bpf_xdp_query_id((int)ifindex, 0, &id) == 0 && id != 0) {
		fd = bpf_prog_get_fd_by_id(id);
		if (fd >= 0) {
			bpf_obj_get_info_by_fd(fd, &info, &bytes);
			close(fd);
		}
	}
	return rl_err_set(err, -EBUSY,
			  "interface %s already has an XDP program ('%s', id %u); take it off with "
			  "`ip link set dev %s xdp off`, or stop the process that holds it%s",
			  ifname, info.name, id, ifname,
			  strcmp(info.name, "xsk_def_prog") == 0 ? " (perhaps another ramliftd)"
								 : "");
}

static int
attach_error(const char *ifname, uint32_t ifindex, int code, struct rl_err *err)
{
	switch (code) {
	case -EBUSY:
	case -EEXIST:
		return busy_error(ifname, ifindex, err);
	case -ERANGE:
		return rl_err_set(
			err, code,
			"the MTU of %s's peer is too large for XDP: set both ends to 3506 or less, "
			"`ip link set dev %s mtu 3506` and the same on the peer",
			ifname, ifname);
	case -EPERM:
		return rl_err_set(
			err, code,
			"no permission to attach an XDP program to %s; run as root, or with "
			"CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
			ifname);
	case -EINVAL:
	case -EOPNOTSUPP:
		return rl_err_set(
			err, code,
			"the driver of %s refuses an XDP program: %s; set its MTU to 3506 or less, "
			"or use dpdk:net_af_packet,iface=%s",
			ifname, strerror(-code), ifname);
	default:
		return rl_err_set(err, code, "cannot attach the XDP program to %s: %s; see `dmesg`",
				  ifname, strerror(-code));
	}
}

int
rl_xdp_attach(const char *ifname, uint16_t udp_port, uint32_t n, struct rl_xdp **out,
	      struct rl_err *err)
{
	struct ports ports = {.first = udp_port, .n = n};
	uint32_t ifindex = if_nametoindex(ifname);
	struct bpf_program *program;
	struct rl_xdp *xdp;
	int ret;

	if (ifindex == 0)
		return rl_err_set(err, -ENODEV, "there is no interface %s; see `ip link`", ifname);
	libbpf_set_print(log_libbpf);
	libxdp_set_print(log_libxdp);
	xdp = calloc(1, sizeof(*xdp));
	if (xdp == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for the XDP filter of %s", ifname);

	xdp->object = bpf_object__open_mem(ramlift_xdp_object, sizeof(ramlift_xdp_object), NULL);
	if (xdp->object == NULL) {
		ret = rl_err_set(err, -errno, "the XDP filter is damaged: %s; reinstall ramlift",
				 strerror(errno));
		goto err_free;
	}
	ret = set_ports(xdp->object, ports);
	if (ret == 0)
		ret = bpf_object__load(xdp->object);
	if (ret != 0) {
		rl_err_set(err, ret,
			   "the kernel does not load the XDP filter: %s; it needs CAP_BPF and "
			   "CAP_NET_ADMIN, and a kernel with XDP sockets (CONFIG_XDP_SOCKETS)",
			   strerror(-ret));
		goto err_close;
	}
	program = bpf_object__find_program_by_name(xdp->object, "xsk_def_prog");
	xdp->link = bpf_program__attach_xdp(program, (int)ifindex);
	if (xdp->link == NULL) {
		ret = attach_error(ifname, ifindex, -errno, err);
		goto err_close;
	}
	*out = xdp;
	return 0;

err_close:
	bpf_object__close(xdp->object);
err_free:
	free(xdp);
	return ret;
}

void
rl_xdp_detach(struct rl_xdp *xdp)
{
	if (xdp == NULL)
		return;
	bpf_link__destroy(xdp->link);
	bpf_object__close(xdp->object);
	free(xdp);
}
