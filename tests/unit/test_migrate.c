/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whole migrations between two daemons in this process, on kernel sockets over loopback, with VMs that are a
 * memfd and libramlift-vmm: to the end, cancelled, cut by a daemon that stops, and a target whose VMM answers RUN too
 * late. Whatever happens, the guest runs in exactly one place afterwards. ThreadSanitizer sees all threads of both ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/daemon.h"
#include "control/rpc.h"
#include "ramlift-vmm.h"

#define RAM_PAGES 4096u
#define WAIT_NS   (60 * RL_NS_PER_S)
#define DEVICES   "devices of the guest"

static char dir[] = "/tmp/test_migrate.XXXXXX";

/* A host: daemon, control thread, one VM. */
struct host {
	char name; /* 'a' runs the guest at first, 'b' waits for it */
	struct rl_daemon *d;
	pthread_t loop;
	bool looping;

	struct rl_vmm *vmm;
	int ram_fd;
	uint8_t *ram;
	uint64_t run_delay_ns; /* RUN is answered that late */
	bool runs;             /* atomic: the guest is running here */
	bool moved, loaded;    /* atomic */
};

static struct host a, b;

/* ---- the VMM ---- */

static bool
is(const bool *flag)
{
	return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

static void
set(bool *flag, bool value)
{
	__atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

static int
nothing(void *ctx, char *text)
{
	(void)ctx;
	(void)text;
	return 0;
}

static int
pause_guest(void *ctx, char *text)
{
	(void)text;
	set(&((struct host *)ctx)->runs, false);
	return 0;
}

static int
resume_guest(void *ctx, char *text)
{
	(void)text;
	set(&((struct host *)ctx)->runs, true);
	return 0;
}

static int
run_guest(void *ctx, char *text)
{
	struct host *h = ctx;

	(void)text;
	rl_sleep_ns(h->run_delay_ns);
	set(&h->runs, true);
	return 0;
}

static int
state_get(void *ctx, int *memfd, uint64_t *size, char *text)
{
	(void)ctx;
	(void)text;
	*memfd = memfd_create("devices", MFD_CLOEXEC);
	*size = sizeof(DEVICES);
	return write(*memfd, DEVICES, sizeof(DEVICES)) == sizeof(DEVICES) ? 0 : -EIO;
}

static int
state_put(void *ctx, int memfd, uint64_t size, char *text)
{
	char buf[sizeof(DEVICES)];

	(void)text;
	if (size != sizeof(buf) || pread(memfd, buf, sizeof(buf), 0) != sizeof(buf) ||
	    memcmp(buf, DEVICES, sizeof(buf)) != 0)
		return -EINVAL;
	set(&((struct host *)ctx)->loaded, true);
	return 0;
}

static void
moved(void *ctx)
{
	set(&((struct host *)ctx)->moved, true);
}

static int
sync_bitmap(void *ctx, const struct rl_vmm_slot *slot, uint64_t *bitmap)
{
	(void)ctx;
	memset(bitmap, 0, (slot->n_pages + 63) / 64 * 8); /* this guest writes nothing */
	return 0;
}

static const struct rl_vmm_ops vmm_ops = {
	.log_start = nothing,
	.log_stop = nothing,
	.pause = pause_guest,
	.resume = resume_guest,
	.state_get = state_get,
	.state_put = state_put,
	.run = run_guest,
	.reset = nothing,
	.moved = moved,
	.sync_bitmap = sync_bitmap,
};

static void
start_vm(struct host *h)
{
	struct rl_vmm_region region = {.n_pages = RAM_PAGES, .page_size = RL_PAGE_SIZE};
	struct rl_vmm_opts opts = {.engine_socket = h->d->cfg.vmm_socket,
				   .name = "demo",
				   .incoming = h->name == 'b',
				   .features = RL_VMM_FEAT_DIRTY_BITMAP,
				   .n_vcpus = 1,
				   .ops = &vmm_ops,
				   .ctx = h};
	size_t bytes = RAM_PAGES * (size_t)RL_PAGE_SIZE;

	h->ram_fd = memfd_create("ram", MFD_CLOEXEC);
	assert_int_equal(ftruncate(h->ram_fd, (off_t)bytes), 0);
	h->ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h->ram_fd, 0);
	assert_ptr_not_equal(h->ram, MAP_FAILED);
	for (size_t i = 0; h->name == 'a' && i < bytes; i++)
		h->ram[i] = i / RL_PAGE_SIZE % 3 == 0 ? 0 : (uint8_t)(i * 2654435761u >> 13);
	h->runs = h->name == 'a';
	assert_int_equal(rl_vmm_create(&opts, &h->vmm), 0);
	assert_int_equal(rl_vmm_add_region(h->vmm, &region, h->ram_fd), 0);
	assert_int_equal(rl_vmm_slot_add(h->vmm, 0, 0, RAM_PAGES), 0);
	assert_int_equal(rl_vmm_start(h->vmm), 0);
}

static void
stop_vm(struct host *h)
{
	rl_vmm_destroy(h->vmm);
	munmap(h->ram, RAM_PAGES * (size_t)RL_PAGE_SIZE);
	close(h->ram_fd);
}

/* ---- the daemon ---- */

static void *
loop_main(void *arg)
{
	rl_daemon_run(((struct host *)arg)->d);
	return NULL;
}

static char psk_path[256];

/* Both hosts have the same. */
static void
write_psk(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	snprintf(psk_path, sizeof(psk_path), "%s", path);

	assert_true(fd >= 0);
	for (int i = 0; i < 32; i++)
		assert_int_equal(write(fd, "5a", 2), 2);
	close(fd);
}

static void
start_daemon(struct host *h)
{
	static uint32_t next;
	struct rl_err err = {0};
	struct rl_config cfg;
	int rc = -EADDRINUSE;

	rl_config_defaults(&cfg);
	cfg.workers = 2;
	snprintf(cfg.rpc_socket, sizeof(cfg.rpc_socket), "%s/%c.rpc", dir, h->name);
	snprintf(cfg.vmm_socket, sizeof(cfg.vmm_socket), "%s/%c.vmm", dir, h->name);
	snprintf(cfg.address, sizeof(cfg.address), "127.0.0.1");
	snprintf(cfg.tls, sizeof(cfg.tls), "psk");
	snprintf(cfg.tls_psk_file, sizeof(cfg.tls_psk_file), "%s/psk", dir);
	write_psk(cfg.tls_psk_file);
	for (int i = 0; i < 100 && rc == -EADDRINUSE; i++, next += 2) {
		cfg.udp_port = 15000 + ((uint32_t)getpid() * 32 + next) % 15000;
		snprintf(cfg.listen, sizeof(cfg.listen), "127.0.0.1:%u", (uint32_t)cfg.udp_port);
		rc = rl_daemon_start(&cfg, &h->d, &err);
	}
	if (rc != 0)
		fail_msg("%s", err.text);
	h->looping = pthread_create(&h->loop, NULL, loop_main, h) == 0;
	assert_true(h->looping);
}

/* SIGTERM goes to the process and each daemon only looks at it: both loops end. */
static void
stop_loops(void)
{
	sigset_t term;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	kill(getpid(), SIGTERM);
	pthread_join(a.loop, NULL);
	pthread_join(b.loop, NULL);
	sigwaitinfo(&term, NULL);
	a.looping = b.looping = false;
}

static int
setup(void **state)
{
	(void)state;
	a = (struct host){.name = 'a'};
	b = (struct host){.name = 'b'};
	start_daemon(&a);
	start_daemon(&b);
	start_vm(&a);
	start_vm(&b);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	if (a.looping)
		stop_loops();
	if (a.d != NULL)
		rl_daemon_stop(a.d);
	if (b.d != NULL)
		rl_daemon_stop(b.d);
	stop_vm(&a);
	stop_vm(&b);
	return 0;
}

/* The reply's result, or NULL. No errors are counted, so that this thread may ask, too. */
static json_t *
call(struct host *h, const char *method, const char *params)
{
	char line[512];
	json_t *reply, *result;

	snprintf(line, sizeof(line),
		 "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\",\"params\":%s}", method, params);
	reply = rl_rpc_handle(h->d, line, strlen(line));
	result = json_object_get(reply, "result");
	json_incref(result);
	json_decref(reply);
	return result;
}

static void
wait_for_vms(void)
{
	uint64_t end = rl_now_ns() + WAIT_NS;

	for (struct host *h = &a; h != NULL; h = h == &a ? &b : NULL) {
		size_t n = 0;

		while (n == 0 && rl_now_ns() < end) {
			json_t *j = call(h, "list", "{}");

			n = json_array_size(json_object_get(j, "vms"));
			json_decref(j);
			rl_sleep_ns(RL_NS_PER_MS);
		}
		assert_int_equal(n, 1);
	}
}

static void
start_migration(const char *more)
{
	char params[256];
	json_t *j;

	wait_for_vms();
	snprintf(params, sizeof(params), "{\"vm\":\"demo\",\"to\":\"%s\"%s}", b.d->cfg.listen,
		 more);
	j = call(&a, "migrate", params);
	assert_non_null(j);
	json_decref(j);
}

/* Until the newest migration of @h is @status; returns its picture, the caller's. */
static json_t *
wait_status(struct host *h, const char *status)
{
	uint64_t end = rl_now_ns() + WAIT_NS;

	for (;;) {
		json_t *list = call(h, "list", "{}"), *j;
		char now[32] = "none yet", why[400] = "";

		j = json_array_get(json_object_get(list, "migrations"), 0);
		if (j != NULL) {
			const char *error = json_string_value(json_object_get(j, "error-desc"));

			snprintf(now, sizeof(now), "%s",
				 json_string_value(json_object_get(j, "status")));
			snprintf(why, sizeof(why), "%s", error != NULL ? error : "");
		}
		json_incref(j);
		json_decref(list);
		if (strcmp(now, status) == 0)
			return j;
		json_decref(j);
		if (rl_now_ns() > end ||
		    (strcmp(now, "failed") == 0 && strcmp(status, "failed") != 0))
			fail_msg("%c: %s, not %s: %s", h->name, now, status, why);
		rl_sleep_ns(2 * RL_NS_PER_MS);
	}
}

static void
wait_flag(const bool *flag, bool value, const char *what)
{
	uint64_t end = rl_now_ns() + WAIT_NS;

	while (is(flag) != value) {
		if (rl_now_ns() > end)
			fail_msg("%s", what);
		rl_sleep_ns(RL_NS_PER_MS);
	}
}

static void
assert_moved(void)
{
	wait_flag(&b.runs, true, "the guest does not run at the target");
	wait_flag(&a.moved, true, "the source was not told that its guest moved");
	assert_false(is(&a.runs));
	assert_true(is(&b.loaded));
	assert_memory_equal(a.ram, b.ram, RAM_PAGES * (size_t)RL_PAGE_SIZE);
}

/* The guest goes on at the source, and the target is as empty as before. */
static void
assert_stayed(void)
{
	static const uint8_t zero[RL_PAGE_SIZE];
	uint64_t end = rl_now_ns() + WAIT_NS;

	wait_flag(&a.runs, true, "the guest does not run at the source");
	while (rl_vmm_phase(a.vmm) != RL_VMM_RUNNING || rl_vmm_phase(b.vmm) != RL_VMM_INCOMING) {
		if (rl_now_ns() > end)
			fail_msg("phases %s and %s", rl_vmm_phase_name(rl_vmm_phase(a.vmm)),
				 rl_vmm_phase_name(rl_vmm_phase(b.vmm)));
		rl_sleep_ns(RL_NS_PER_MS);
	}
	assert_false(is(&b.runs));
	assert_false(is(&a.moved));
	for (uint32_t i = 0; i < RAM_PAGES; i++)
		assert_memory_equal(b.ram + i * (size_t)RL_PAGE_SIZE, zero, RL_PAGE_SIZE);
}

static void
to_the_end(void **state)
{
	json_t *j, *ram;

	(void)state;
	start_migration(",\"verify\":true");
	j = wait_status(&a, "completed");
	assert_true(json_is_true(json_object_get(j, "verified")));
	assert_true(json_is_integer(json_object_get(j, "downtime")));
	ram = json_object_get(j, "ram");
	assert_int_equal(json_integer_value(json_object_get(ram, "total")),
			 RAM_PAGES * RL_PAGE_SIZE);
	assert_int_equal(json_integer_value(json_object_get(ram, "remaining")), 0);
	assert_true(json_integer_value(json_object_get(ram, "normal")) >= RAM_PAGES / 3 * 2);
	assert_true(json_integer_value(json_object_get(ram, "duplicate")) >= RAM_PAGES / 3);
	json_decref(j);
	j = wait_status(&b, "completed");
	assert_string_equal(json_string_value(json_object_get(j, "role")), "target");
	json_decref(j);
	assert_moved();
}

static void
cancelled_and_tried_again(void **state)
{
	json_t *j;

	(void)state;
	for (int i = 0; i < 2; i++) { /* from either end */
		start_migration(",\"max-bandwidth\":100000");
		json_decref(wait_status(&a, "active"));
		j = call(&a, "migrate-set-parameters",
			 "{\"max-bandwidth\":200000,\"downtime-limit\":20}");
		assert_int_equal(json_integer_value(json_object_get(j, "max-bandwidth")), 200000);
		json_decref(j);
		json_decref(wait_status(&b, "active"));
		json_decref(call(i == 0 ? &a : &b, "migrate-cancel", "{\"vm\":\"demo\"}"));
		json_decref(wait_status(i == 0 ? &a : &b, "cancelled"));
		json_decref(wait_status(i == 0 ? &b : &a, "failed"));
		assert_stayed();
	}
	start_migration("");
	json_decref(wait_status(&a, "completed"));
	assert_moved();
}

static void
stopped_in_the_middle(void **state)
{
	(void)state;
	start_migration(",\"max-bandwidth\":100000");
	json_decref(wait_status(&b, "active"));
	stop_loops();
	rl_daemon_stop(a.d);
	a.d = NULL;
	assert_stayed();
}

/*
 * RUN is not answered in time and the guest then runs: "aborted" would have been a lie that makes it run twice.
 * The target's ramliftd hangs up on its VMM, which comes back and says that it runs.
 */
static void
late_run(void **state)
{
	uint64_t end = rl_now_ns() + WAIT_NS;

	(void)state;
	b.run_delay_ns = 11 * RL_NS_PER_S;
	start_migration("");
	json_decref(wait_status(&b, "device"));
	while (!is(&b.runs) && rl_now_ns() < end) {
		if (rl_vmm_phase(b.vmm) == RL_VMM_READY)
			assert_false(is(&a.runs));
		rl_sleep_ns(RL_NS_PER_MS);
	}
	json_decref(wait_status(&a, "completed"));
	assert_moved();
	assert_int_equal(rl_vmm_phase(b.vmm), RL_VMM_RUNNING);
}

static int
setup_all(void **state)
{
	sigset_t term;

	(void)state;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigaddset(&term, SIGINT);
	sigprocmask(SIG_BLOCK, &term, NULL);
	signal(SIGPIPE, SIG_IGN);
	rl_log_set_level(RL_LOG_ERROR);
	return mkdtemp(dir) == NULL;
}

static int
teardown_all(void **state)
{
	(void)state;
	unlink(psk_path);
	return rmdir(dir);
}

#define MIGRATION(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		MIGRATION(to_the_end),
		MIGRATION(cancelled_and_tried_again),
		MIGRATION(stopped_in_the_middle),
		MIGRATION(late_run),
	};

	return cmocka_run_group_tests(tests, setup_all, teardown_all);
}
