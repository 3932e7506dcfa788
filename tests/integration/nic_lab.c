/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The laboratory of the NIC tests: namespaces, veth pairs, processes.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "nic_lab.h"

#define SKIP   77
#define CASE_S 60 /* no case takes longer */

struct lab lab = {.dir = "/tmp/ramlift-test-XXXXXX"};

static pid_t main_pid;

int
run(const char *fmt, ...)
{
	char command[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	return system(command);
}

static void
network_remove(void)
{
	if (lab.holder > 0) {
		kill(lab.holder, SIGKILL);
		waitpid(lab.holder, NULL, 0);
	}
	run("rm -rf %s", lab.dir);
}

void
lab_give_up(void)
{
	if (getpid() == main_pid)
		network_remove();
	_exit(1);
}

struct rl_ip
ip(const char *text)
{
	struct rl_ip out = {0};

	if (text == NULL)
		return out;
	out.family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET;
	CHECK(inet_pton(out.family, text, out.addr) == 1, "%s", text);
	return out;
}

static void
enter_b(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/ns/net", lab.holder);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && setns(fd, CLONE_NEWNET) == 0, "%s: %s", path, strerror(errno));
	close(fd);
}

pid_t
spawn(void (*fn)(const void *arg), const void *arg, bool in_b)
{
	pid_t pid = fork();

	CHECK(pid >= 0, "fork: %s", strerror(errno));
	if (pid > 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(CASE_S);
	if (in_b)
		enter_b();
	fn(arg);
	_exit(0);
}

bool
wait_ok(pid_t pid)
{
	int status = -1;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void
wait_ready(int n)
{
	for (int i = 0; i < 5000 && atomic_load(&lab.shared->ready) < n; i++)
		rl_sleep_ns(2 * RL_NS_PER_MS);
	CHECK(atomic_load(&lab.shared->ready) >= n, "the other end did not open its port");
}

struct rl_nic *
end_open(const struct end *e)
{
	struct rl_nic_opts opts = {
		.n_queues = e->n_queues, .udp_port = UDP_PORT, .address = ip(e->address)};
	struct rl_err err = {0};
	cpu_set_t before, after;
	struct rl_nic *nic;

	sched_getaffinity(0, sizeof(before), &before);
	CHECK(rl_nic_open(e->uri, &opts, &nic, &err) == 0, "%s: %s", e->uri, err.text);
	sched_getaffinity(0, sizeof(after), &after);
	CHECK(CPU_EQUAL(&before, &after), "opening a port pinned its caller");
	atomic_fetch_add(&lab.shared->ready, 1);
	return nic;
}

static void
holder_process(const void *arg)
{
	(void)arg;
	alarm(0);
	if (unshare(CLONE_NEWNET) != 0)
		_exit(1);
	atomic_store(&lab.shared->ready, 1);
	for (;;)
		pause();
}

/* Two namespaces and a veth pair between them. Says what is missing, or NULL. */
static const char *
network_make(void)
{
	if (geteuid() != 0)
		return "root";
	if (run("ip -V >/dev/null 2>&1") != 0)
		return "ip (iproute2)";
	if (run("ping -V >/dev/null 2>&1") != 0)
		return "ping (iputils-ping)";
	if (run("nsenter -V >/dev/null 2>&1") != 0)
		return "nsenter (util-linux)";
	if (unshare(CLONE_NEWNET) != 0)
		return "network namespaces (CONFIG_NET_NS)";
	lab.holder = spawn(holder_process, NULL, false);
	wait_ready(1);
	if (run("ip link set lo up && ip link add rlA mtu 3506 type veth peer name rlB mtu 3506 && "
		"ip link set rlB netns %d",
		lab.holder) != 0)
		return "veth (CONFIG_VETH)";
	CHECK(run("ip link add rlM mtu 3506 numrxqueues 4 numtxqueues 4 type veth "
		  "peer name rlN mtu 3506 numrxqueues 4 numtxqueues 4 && "
		  "ip link set rlN netns %d && ip addr add " M4
		  "/24 dev rlM && ip link set rlM up && "
		  "ip addr add " A4 "/24 dev rlA && ip addr add " A6 "/64 dev rlA nodad && "
		  "ip link set rlA up",
		  lab.holder) == 0,
	      "end A");
	CHECK(run("nsenter -t %d -n sh -c 'ip link set lo up && ip addr add " B4 "/24 dev rlB && "
		  "ip addr add " B6 "/64 dev rlB nodad && ip link set rlB up && "
		  "ip addr add " N4 "/24 dev rlN && ip link set rlN up'",
		  lab.holder) == 0,
	      "end B");
	CHECK(run("ip link add rlDown type veth peer name rlDownPeer && "
		  "ip link add rlBare type veth peer name rlBarePeer && "
		  "ip link set rlBare up && ip link set rlBarePeer up") == 0,
	      "more interfaces");
	return NULL;
}

int
lab_main(const struct lab_case *cases, size_t n, const char *only)
{
	const char *missing;
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	main_pid = getpid();
	lab.shared = mmap(NULL, sizeof(*lab.shared), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(lab.shared != MAP_FAILED && mkdtemp(lab.dir) != NULL, "%s", strerror(errno));
	missing = network_make();
	for (size_t i = 0; missing == NULL && i < n; i++) {
		uint64_t start = rl_now_ns();
		bool ok;

		if (only != NULL && strstr(cases[i].name, only) == NULL)
			continue;
		ok = cases[i].run();
		printf("%s  %s (%.1f s)\n", ok ? "ok  " : "FAIL", cases[i].name,
		       (double)(rl_now_ns() - start) / (double)RL_NS_PER_S);
		failed += !ok;
	}
	network_remove();
	if (missing == NULL)
		return failed != 0;
	printf("skipped: needs %s\n", missing);
	return SKIP;
}
