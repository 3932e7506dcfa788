/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * labvm by itself: a real guest is stopped, its state and RAM go to a second machine, and it goes on there with
 * every page right and its serial line unbroken; hostile states are refused. Needs /dev/kvm.
 * usage: test_labvm RAMLIFT-GUEST
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "labvm.h"

#define MEMORY_BYTES (48ull << 20)
#define PATIENCE_MS  30000
#define PAGE         4096u

static const char *guest_path;
static char dir[] = "/tmp/test_labvm.XXXXXX";
static char text[RL_VMM_TEXT_BYTES];

/* A machine and the other end of its serial line. */
struct machine {
	struct labvm_opts opts;
	struct vm vm;
	char serial[128];
	int line_fd;
	size_t used;
	char output[1 << 18];
};

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void
must(int err)
{
	if (err)
		fail_msg("%s (%d)", text, err);
}

static void
connect_line(struct machine *m)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", m->serial + 5);
	m->line_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(connect(m->line_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	serial_accept(&m->vm.serial);
}

/* A machine; with @append it boots the guest, which waits for go(). */
static struct machine *
machine_create(const char *name, uint32_t n_vcpus, uint64_t memory_bytes, const char *append)
{
	struct machine *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	snprintf(m->serial, sizeof(m->serial), "unix:%s/%s", dir, name);
	m->opts = (struct labvm_opts){
		.name = name,
		.backing = "plain",
		.append = append,
		.kernel = guest_path,
		.incoming = !append,
		.memory_bytes = memory_bytes,
		.n_vcpus = n_vcpus,
		.ring_entries = 4096,
	};
	must(vm_create(&m->vm, &m->opts, text));
	must(serial_open(&m->vm.serial, m->serial, text));
	connect_line(m);
	must(vm_add_slots(&m->vm, text));
	if (append)
		must(boot_load(&m->vm, text));
	must(vcpu_start_all(&m->vm, text));
	return m;
}

static void
machine_destroy(struct machine *m)
{
	vcpu_stop_all(&m->vm);
	serial_close(&m->vm.serial);
	vm_destroy(&m->vm);
	close(m->line_fd);
	free(m);
}

static void
read_line(struct machine *m, int wait_ms)
{
	struct pollfd pfd = {.fd = m->line_fd, .events = POLLIN};
	ssize_t n;

	poll(&pfd, 1, wait_ms);
	n = read(m->line_fd, m->output + m->used, sizeof(m->output) - 1 - m->used);
	if (n > 0)
		m->used += (size_t)n;
	m->output[m->used] = 0;
}

static uint32_t
count(const char *in, const char *what)
{
	uint32_t n = 0;

	while ((in = strstr(in, what)) != NULL) {
		in += strlen(what);
		n++;
	}
	return n;
}

static void
wait_for(struct machine *m, const char *what, uint32_t times)
{
	uint64_t end = now_ms() + PATIENCE_MS;

	while (count(m->output, what) < times) {
		if (now_ms() > end || m->vm.leaving)
			fail_msg("%s: no %u x '%s' in: %s", m->opts.name, times, what, m->output);
		read_line(m, 100);
	}
}

/* What main does with a byte that comes in. */
static void
type_key(struct machine *m, char key)
{
	pthread_mutex_lock(&m->vm.serial.lock);
	uart_receive(&m->vm.uart, (uint8_t)key);
	pthread_mutex_unlock(&m->vm.serial.lock);
}

static void
wait_for_end(struct machine *m, int status)
{
	uint64_t end = now_ms() + PATIENCE_MS;

	while (!m->vm.leaving) {
		if (now_ms() > end)
			fail_msg("%s: does not end: %s", m->opts.name, m->output);
		read_line(m, 50);
	}
	read_line(m, 0);
	if (m->vm.exit_status != status)
		fail_msg("%s: status %d instead of %d: %s", m->opts.name, m->vm.exit_status, status,
			 m->output);
}

/* In lines that have come whole. */
static uint64_t
last_value(const struct machine *m, const char *key)
{
	const char *at = m->output, *end = strrchr(m->output, '\n'), *last = NULL;

	while (end && (at = strstr(at, key)) != NULL && at < end)
		last = at += strlen(key);
	return last ? strtoull(last, NULL, 10) : 0;
}

/* Hold @from, take all of it to @to and let it go on there. */
static void
move(struct machine *from, struct machine *to)
{
	uint64_t bytes;
	int memfd;

	vm_hold(&from->vm);
	must(state_save(&from->vm, &memfd, &bytes, text));
	memcpy(to->vm.region[0].hva, from->vm.region[0].hva, from->vm.region[0].bytes);
	must(state_load(&to->vm, memfd, bytes, text));
	close(memfd);
}

static void
test_goes_on_elsewhere(void **state)
{
	static const char append[] = "ws=60% cold=20% rate=20000 report=100";
	struct machine *m = machine_create("m0", 4, MEMORY_BYTES, append);
	uint64_t writes = 0;

	(void)state;
	vm_release(&m->vm);
	wait_for(m, "writes=", 3);
	for (uint32_t i = 1; i <= 5; i++) {
		char name[8];
		struct machine *next;

		snprintf(name, sizeof(name), "m%u", i);
		next = machine_create(name, 4, MEMORY_BYTES, NULL);
		move(m, next);
		read_line(m, 0);
		writes = last_value(m, "writes=");
		machine_destroy(m);
		m = next;
		vm_release(&m->vm);
		wait_for(m, "writes=", 3);
		assert_true(last_value(m, "writes=") > writes);
	}
	type_key(m, 'q');
	wait_for_end(m, 0x10 << 1 | 1);
	assert_non_null(strstr(m->output, " wrong=0 "));
	assert_null(strstr(m->output, "WRONG"));
	machine_destroy(m);
}

/* The test can fail: a page that does not arrive is noticed by the guest. */
static void
test_lost_page_is_noticed(void **state)
{
	struct machine *a = machine_create("lost-a", 1, MEMORY_BYTES,
					   "ws=50% rate=1000 report=100 content=random");
	struct machine *b = machine_create("lost-b", 1, MEMORY_BYTES, NULL);

	(void)state;
	vm_release(&a->vm);
	wait_for(a, "writes=", 3);
	move(a, b);
	memset(b->vm.region[0].hva + (16u << 20), 0, PAGE);
	vm_release(&b->vm);
	type_key(b, 'q');
	wait_for_end(b, 0x11 << 1 | 1);
	assert_non_null(strstr(b->output, "WRONG page="));
	machine_destroy(a);
	machine_destroy(b);
}

/* Port I/O that a hold interrupts is done once: a talkative guest that is held and moved over and over loses no
 * character of its lines and repeats none. */
static void
test_serial_line_is_unbroken(void **state)
{
	struct machine *a =
		machine_create("talk-a", 1, MEMORY_BYTES, "ws=1M rate=100 report=1 check=end");
	struct machine *b = machine_create("talk-b", 1, MEMORY_BYTES, NULL);
	uint64_t end = now_ms() + PATIENCE_MS;
	static char all[1 << 19];
	char *line, *next;
	uint32_t lines = 0;

	(void)state;
	vm_release(&a->vm);
	for (uint32_t i = 0; i < 300 || count(a->output, "\n") < 100; i++) {
		assert_true(now_ms() < end);
		vm_hold(&a->vm);
		/* an exit for I/O that KVM has not seen the end of would be lost with this process */
		assert_false(a->vm.vcpu[0].unfinished);
		vm_release(&a->vm);
		read_line(a, 0);
		usleep(i * 7 % 1000);
	}
	move(a, b);
	vm_release(&b->vm);
	wait_for(b, "writes=", 50);
	read_line(a, 0);
	snprintf(all, sizeof(all), "%s%s", a->output, b->output);
	for (line = all; (next = strchr(line, '\n')) != NULL; line = next + 1) {
		unsigned long long v[7];
		char again[256];

		*next = 0;
		if (!strncmp(line, "guest: filled", 13))
			continue;
		memset(v, 0, sizeof(v));
		sscanf(line,
		       "guest: t=%llu writes=%llu rate=%llu/s pass=%llu checked=%llu wrong=%llu "
		       "gap=%lluus",
		       &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6]);
		snprintf(again, sizeof(again),
			 "guest: t=%llu writes=%llu rate=%llu/s pass=%llu checked=%llu wrong=%llu "
			 "gap=%lluus",
			 v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
		assert_string_equal(line, again);
		lines++;
	}
	assert_true(lines > 100);
	machine_destroy(a);
	machine_destroy(b);
}

/* A slot that is replaced over and over under a running guest. */
static void
test_reslot(void **state)
{
	struct machine *m =
		machine_create("slots", 2, MEMORY_BYTES, "ws=80% rate=20000 report=100");

	(void)state;
	vm_release(&m->vm);
	wait_for(m, "writes=", 2);
	must(vm_log_dirty(&m->vm, true, text));
	must(vm_log_dirty(&m->vm, false, text));
	for (uint32_t i = 0; i < 50; i++) {
		uint32_t id = m->vm.slot[1].id;

		must(vm_reslot(&m->vm, text));
		assert_int_not_equal(m->vm.slot[1].id, id);
	}
	type_key(m, 'q');
	wait_for_end(m, 0x10 << 1 | 1);
	machine_destroy(m);
}

/* Nobody harvests: the ring fills up, the vCPU waits for it and can still be held. */
static void
test_ring_full_can_be_held(void **state)
{
	struct machine *m =
		machine_create("full", 1, MEMORY_BYTES, "ws=80% rate=200000 report=100 check=end");

	(void)state;
	vm_release(&m->vm);
	wait_for(m, "writes=", 2);
	must(vm_log_dirty(&m->vm, true, text));
	usleep(300000);
	vm_hold(&m->vm);
	must(vm_log_dirty(&m->vm, false, text));
	vm_release(&m->vm);
	machine_destroy(m);
}

struct blob {
	uint8_t *bytes;
	uint64_t size;
};

static struct blob
save(struct machine *m)
{
	struct blob b = {0};
	int fd;

	must(state_save(&m->vm, &fd, &b.size, text));
	b.bytes = malloc(b.size);
	assert_non_null(b.bytes);
	assert_int_equal(pread(fd, b.bytes, b.size, 0), (ssize_t)b.size);
	close(fd);
	return b;
}

static int
load_bytes(struct vm *vm, const uint8_t *bytes, uint64_t size)
{
	int err, fd = memfd_create("hostile", MFD_CLOEXEC);

	assert_int_equal(write(fd, bytes, size), (ssize_t)size);
	text[0] = 0;
	err = state_load(vm, fd, size, text);
	close(fd);
	return err;
}

static struct blob
good_state(uint32_t n_vcpus)
{
	struct machine *m = machine_create("good", n_vcpus, MEMORY_BYTES, "ws=1M report=100");
	struct blob b;

	vm_release(&m->vm);
	wait_for(m, "writes=", 1);
	vm_hold(&m->vm);
	b = save(m);
	machine_destroy(m);
	return b;
}

/* Things that this guest does not use: SSE and debug registers, the UART's scratch register, input. */
static void
set_rare_state(struct vm *vm)
{
	struct kvm_fpu fpu;
	struct kvm_debugregs debug;

	assert_int_equal(ioctl(vm->vcpu[0].fd, KVM_GET_FPU, &fpu), 0);
	memset(fpu.xmm, 0x5a, sizeof(fpu.xmm));
	assert_int_equal(ioctl(vm->vcpu[0].fd, KVM_SET_FPU, &fpu), 0);
	assert_int_equal(ioctl(vm->vcpu[0].fd, KVM_GET_DEBUGREGS, &debug), 0);
	debug.db[1] = 0x123456;
	assert_int_equal(ioctl(vm->vcpu[0].fd, KVM_SET_DEBUGREGS, &debug), 0);
	uart_write(&vm->uart, 7, 0x99);
	uart_receive(&vm->uart, 'x');
}

/* MSRs that count time. */
static bool
runs_by_itself(uint32_t msr)
{
	return msr == 0x10 || msr == 0xe7 || msr == 0xe8;
}

/* What is loaded is what is there, byte for byte, but for the clocks. */
static void
test_state_comes_whole(void **state)
{
	struct machine *a = machine_create("whole-a", 2, MEMORY_BYTES, "ws=1M report=100");
	struct machine *b = machine_create("whole-b", 2, MEMORY_BYTES, NULL);
	struct blob sent, got;
	uint64_t at = 32;

	(void)state;
	vm_release(&a->vm);
	wait_for(a, "writes=", 2);
	vm_hold(&a->vm);
	set_rare_state(&a->vm);
	sent = save(a);
	assert_int_equal(load_bytes(&b->vm, sent.bytes, sent.size), 0);
	got = save(b);
	assert_int_equal(sent.size, got.size);
	while (at < sent.size) {
		const struct kvm_msr_entry *x = (const void *)(sent.bytes + at + 16);
		const struct kvm_msr_entry *y = (const void *)(got.bytes + at + 16);
		uint32_t type = sent.bytes[at];
		uint64_t n;

		memcpy(&n, sent.bytes + at + 8, 8);
		if (type == 21) { /* MSRs */
			for (uint64_t i = 0; i < n / sizeof(*x); i++)
				if (x[i].data != y[i].data && !runs_by_itself(x[i].index))
					fail_msg("MSR %#x: %llx, %llx", x[i].index, x[i].data,
						 y[i].data);
		} else if (type != 2 && type != 3 && memcmp(x, y, n)) { /* but PIT and clock */
			fail_msg("section %u is another one", type);
		}
		at += 16 + (n + 7) / 8 * 8;
	}
	free(sent.bytes);
	free(got.bytes);
	machine_destroy(a);
	machine_destroy(b);
}

static void
refused(struct vm *vm, const struct blob *b, const char *why)
{
	assert_true(load_bytes(vm, b->bytes, b->size) < 0);
	if (!strstr(text, why))
		fail_msg("'%s' does not say '%s'", text, why);
}

static void
test_mismatches_are_named(void **state)
{
	struct machine *one = machine_create("one", 1, MEMORY_BYTES, NULL);
	struct machine *two = machine_create("two", 2, MEMORY_BYTES, NULL);
	struct machine *more = machine_create("more", 1, 2 * MEMORY_BYTES, NULL);
	struct blob b = good_state(1);

	(void)state;
	refused(&two->vm, &b, "--vcpus 1");
	refused(&more->vm, &b, "--memory 48M");
	b.bytes[4]++; /* version */
	refused(&one->vm, &b, "format version 2");
	b.bytes[4]--;
	b.bytes[32] = 99; /* the first section's type */
	refused(&one->vm, &b, "section 99 is unknown");
	b.bytes[32] = 17; /* sregs, twice then */
	refused(&one->vm, &b, "too many");
	b.bytes[32] = 16;
	assert_int_equal(load_bytes(&one->vm, b.bytes, b.size), 0);
	free(b.bytes);
	machine_destroy(one);
	machine_destroy(two);
	machine_destroy(more);
}

static void
test_hostile_states(void **state)
{
	struct machine *m = machine_create("hostile", 2, MEMORY_BYTES, NULL);
	struct blob b = good_state(2);
	uint32_t seed = 12345;

	(void)state;
	for (uint64_t size = 0; size < b.size; size += size < 4096 ? 7 : 997)
		assert_true(load_bytes(&m->vm, b.bytes, size) < 0);
	for (uint32_t i = 0; i < 1500; i++) {
		uint8_t *copy = malloc(b.size);
		uint64_t reach = i % 2 ? 512 : b.size;

		assert_non_null(copy);
		memcpy(copy, b.bytes, b.size);
		for (uint32_t k = 0; k <= i % 5; k++) {
			seed = seed * 1664525 + 1013904223;
			copy[(seed >> 8) % reach] ^= (uint8_t)(1u << (seed & 7));
		}
		load_bytes(&m->vm, copy, b.size); /* refused or not: never out of bounds */
		free(copy);
	}
	assert_int_equal(load_bytes(&m->vm, b.bytes, b.size), 0);
	free(b.bytes);
	machine_destroy(m);
}

static void
test_bad_kernels(void **state)
{
	static const char *const kernels[] = {"/dev/null", "/nonexistent", "/proc/self/exe"};
	struct machine *m = machine_create("kernels", 1, MEMORY_BYTES, NULL);

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		m->opts.kernel = kernels[i];
		m->opts.append = "";
		text[0] = 0;
		assert_true(boot_load(&m->vm, text) < 0);
		assert_non_null(strstr(text, kernels[i]));
	}
	machine_destroy(m);
}

int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_on_elsewhere),
		cmocka_unit_test(test_state_comes_whole),
		cmocka_unit_test(test_lost_page_is_noticed),
		cmocka_unit_test(test_serial_line_is_unbroken),
		cmocka_unit_test(test_reslot),
		cmocka_unit_test(test_ring_full_can_be_held),
		cmocka_unit_test(test_mismatches_are_named),
		cmocka_unit_test(test_hostile_states),
		cmocka_unit_test(test_bad_kernels),
	};
	int failed;

	if (argc != 2)
		return 2;
	guest_path = argv[1];
	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "skipped: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	if (!mkdtemp(dir))
		return 2;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return failed;
}
