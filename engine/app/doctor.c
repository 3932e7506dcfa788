/* SPDX-License-Identifier: BSD-3-Clause */
/* ramlift doctor: one table of checks; each says what it found and, when that is not enough, the remedy. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <jansson.h>

#include "app/doctor.h"
#include "app/rpc_client.h"
#include "memory/probe.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum need { REQUIRED, WANTED };

struct finding {
	bool ok;
	char text[160];
};

struct check {
	const char *name;
	enum need need;
	void (*fn)(struct finding *f);
	const char *why;
	const char *remedy;
};

static const char *doctor_rpc_socket;

static void
set(struct finding *f, int rc, const char *found)
{
	f->ok = rc == 0;
	snprintf(f->text, sizeof(f->text), "%s", rc == 0 ? found : strerror(-rc));
}

static void
check_root(struct finding *f)
{
	set(f, geteuid() == 0 ? 0 : -EPERM, "running as root");
}

static void
check_kernel(struct finding *f)
{
	struct utsname u;
	unsigned int major = 0, minor = 0;

	uname(&u);
	f->ok = sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
		(major > 5 || (major == 5 && minor >= 18));
	snprintf(f->text, sizeof(f->text), "Linux %.60s", u.release);
}

static void
check_kvm(struct finding *f)
{
	set(f, rl_probe_kvm(), "/dev/kvm opens");
}

static void
check_dirty_ring(struct finding *f)
{
	uint32_t entries = 0;
	int rc = rl_probe_dirty_ring(&entries);

	set(f, rc, "");
	if (rc == 0)
		snprintf(f->text, sizeof(f->text), "up to %u entries per vCPU", entries);
}

static void
check_userfaultfd(struct finding *f)
{
	set(f, rl_probe_userfaultfd(), "missing and minor faults on shmem and hugetlbfs");
}

static void
hugepages(struct finding *f, uint64_t bytes)
{
	uint64_t total = 0, free_pages = 0;
	int rc = rl_probe_hugepages(bytes, &total, &free_pages);

	f->ok = rc == 0 && total > 0;
	if (rc != 0)
		snprintf(f->text, sizeof(f->text), "this kernel has no such pages");
	else
		snprintf(f->text, sizeof(f->text), "%llu, %llu of them free",
			 (unsigned long long)total, (unsigned long long)free_pages);
}

static void
check_hugepages_2m(struct finding *f)
{
	hugepages(f, 2ull << 20);
}

static void
check_hugepages_1g(struct finding *f)
{
	hugepages(f, 1ull << 30);
}

static void
check_memlock(struct finding *f)
{
	struct rlimit r;

	f->ok = getrlimit(RLIMIT_MEMLOCK, &r) == 0 &&
		(r.rlim_cur == RLIM_INFINITY || r.rlim_cur >= 64u << 20 || geteuid() == 0);
	snprintf(f->text, sizeof(f->text), "locked memory for packet buffers");
}

static void
check_udp_gso(struct finding *f)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), size = 1400;

	set(f,
	    fd >= 0 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size)) == 0 ? 0
											  : -errno,
	    "UDP_SEGMENT");
	if (fd >= 0)
		close(fd);
}

static void
check_af_xdp(struct finding *f)
{
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);

	set(f, fd >= 0 ? 0 : -errno, "AF_XDP sockets");
	if (fd >= 0)
		close(fd);
}

static void
check_dpdk(struct finding *f)
{
	static const char *const dirs[] = {"/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0",
					   "/usr/lib/dpdk/pmds-23.0"};

	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		snprintf(f->text, sizeof(f->text), "%s/librte_net_af_xdp.so.23", dirs[i]);
		f->ok = access(f->text, R_OK) == 0;
		if (f->ok)
			return;
	}
	snprintf(f->text, sizeof(f->text), "DPDK's net_af_xdp driver is not installed");
}

static void
check_daemon(struct finding *f)
{
	struct rl_rpc_client c;
	struct rl_err err = {0};
	json_t *j = NULL;
	int rc = rl_rpc_connect(&c, doctor_rpc_socket, &err);

	if (rc == 0) {
		rc = rl_rpc_call(&c, "version", NULL, &j, &err);
		rl_rpc_disconnect(&c);
	}
	f->ok = rc == 0;
	if (rc == 0)
		snprintf(f->text, sizeof(f->text), "ramliftd %s answers on %.100s",
			 json_string_value(json_object_get(j, "version")), doctor_rpc_socket);
	else
		snprintf(f->text, sizeof(f->text), "none answers on %.100s", doctor_rpc_socket);
	json_decref(j);
}

static const struct check checks[] = {
	{"privileges", REQUIRED, check_root, "AF_XDP, userfaultfd and hugepages need them",
	 "run as root (sudo ramliftd …)"},
	{"kernel", REQUIRED, check_kernel,
	 "5.18 or newer: dirty rings, XDP links, MADV_COLLAPSE after it",
	 "apt-get install linux-image-amd64 and reboot"},
	{"kvm", WANTED, check_kvm, "labvm and QEMU/KVM guests (synthvm does without)",
	 "modprobe kvm_intel || modprobe kvm_amd; in a VM turn on nested virtualisation"},
	{"dirty ring", WANTED, check_dirty_ring,
	 "cheap dirty logging (the bitmap backend does without)",
	 "a kernel of 5.11 or newer with KVM"},
	{"userfaultfd", WANTED, check_userfaultfd, "post-copy",
	 "a kernel of 5.14 or newer with CONFIG_USERFAULTFD"},
	{"2 MiB hugepages", WANTED, check_hugepages_2m, "guests with --backing hugetlb-2M",
	 "scripts/setup hugepages"},
	{"1 GiB hugepages", WANTED, check_hugepages_1g, "guests with --backing hugetlb-1G",
	 "echo 4 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"},
	{"locked memory", REQUIRED, check_memlock, "packet buffers of AF_XDP",
	 "ulimit -l unlimited"},
	{"udp segmentation", WANTED, check_udp_gso, "a fast udp: port",
	 "a kernel of 4.18 or newer"},
	{"af_xdp", WANTED, check_af_xdp, "dpdk:net_af_xdp ports",
	 "a kernel with CONFIG_XDP_SOCKETS; without it use a udp: port"},
	{"dpdk drivers", REQUIRED, check_dpdk, "dpdk: ports", "scripts/setup install"},
	{"ramliftd", WANTED, check_daemon, "ramlift talks to it",
	 "ramliftd --uri udp: (or see pmd-config/ for a DPDK port)"},
};

int
rl_doctor(const char *rpc_socket, bool json)
{
	json_t *all = json_array();
	int status = 0;

	doctor_rpc_socket = rpc_socket;
	for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		const struct check *c = &checks[i];
		struct finding f = {0};

		c->fn(&f);
		if (!f.ok && c->need == REQUIRED)
			status = 1;
		json_array_append_new(all, json_pack("{ss sb sb ss ss}", "name", c->name, "found",
						     f.ok, "required", c->need == REQUIRED, "text",
						     f.text, "remedy", f.ok ? "" : c->remedy));
		if (json)
			continue;
		printf("%-8s %-17s %s\n", f.ok ? "found" : "missing", c->name, f.text);
		if (!f.ok)
			printf("%-8s %-17s %s: %s; to mend it: %s\n", "", "",
			       c->need == REQUIRED ? "required" : "wanted", c->why, c->remedy);
	}
	if (json) {
		char *text = json_dumps(all, JSON_COMPACT);

		puts(text != NULL ? text : "[]");
		free(text);
	}
	json_decref(all);
	return status;
}
