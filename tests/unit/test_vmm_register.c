/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Registration of a VM, the engine's side: a good one, every malformed message, a VMM that is slow, gone or deaf.
 */
#include "vmm_player.h"

static void
good_registration(void **state)
{
	struct rl_dirty_opts opts = {0};
	struct rl_vm *vm;
	struct rl_vmm_hdr hdr;
	struct rl_err err;
	uint8_t buf[512];
	int fd;

	(void)state;
	vmm.region.flags = RL_VMM_REGION_ZEROED;
	vm = registered();
	assert_false(next_from_engine(&hdr, buf, sizeof(buf),
				      &fd)); /* ONLINE is answered when it is true */
	assert_int_equal(rl_vm_online(vm, &err), 0);
	expect_status(RL_VMM_ONLINE, 0, NULL);
	assert_string_equal(vm->hello.name, "guest-1");
	assert_int_equal(vm->ram.n_pages, RAM_PAGES);
	assert_int_equal(vm->pid, getpid());
	assert_true(vm->zeroed);
	assert_non_null(vm->shared);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_RUNNING);
	assert_false(rl_vm_gone(vm));
	assert_false(rl_vm_dead(vm, 0));
	rl_vm_dirty_opts(vm, &opts);
	assert_int_equal(opts.n_rings, N_VCPUS);
	assert_false(opts.bitmap);
	assert_int_equal(opts.ring[1].offset, RING_BYTES);
	assert_int_equal(opts.shared_size, sizeof(struct rl_vmm_shared));
	close(vmm.sock);
	vmm.sock = -1;
	assert_true(rl_vm_gone(vm));
	assert_false(rl_vm_dead(vm, 0)); /* its process is this one */
	rl_vm_destroy(vm);
	rl_vm_destroy(NULL);
}

static void
bitmap_needs_no_rings(void **state)
{
	struct rl_dirty_opts opts = {0};
	struct rl_err err;
	struct rl_vm *vm;

	(void)state;
	vmm.hello.features = RL_VMM_FEAT_DIRTY_BITMAP;
	SEND(RL_VMM_HELLO, &vmm.hello, NULL, 0);
	send_shared(); /* in any order */
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	vmm.region.gpn = 1 << 20;
	vmm.region.flags = RL_VMM_REGION_ZEROED;
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	send_msg(RL_VMM_ONLINE, 0, NULL, 0, NULL, 0);
	assert_int_equal(do_register(SOON_NS, &vm, &err), 0);
	rl_vm_dirty_opts(vm, &opts);
	assert_true(opts.bitmap);
	assert_int_equal(opts.n_rings, 0);
	assert_int_equal(vm->ram.n, 2);
	assert_false(vm->zeroed); /* one region is not */
	rl_vm_destroy(vm);
}

/* What is wrong with the last message that the VMM sends before the engine gives up. */
struct bad {
	const char *what;
	void (*send)(void);
	uint32_t request;
	int code;
	const char *says;
};

static void
hello_long(void)
{
	uint8_t buf[sizeof(vmm.hello) + 1] = {0};

	send_msg(RL_VMM_HELLO, 0, buf, sizeof(buf), NULL, 0);
}

static void
hello_with_fd(void)
{
	SEND(RL_VMM_HELLO, &vmm.hello, &vmm.ram, 1);
}

static void
hello_name(void)
{
	memset(vmm.hello.name, 'a', sizeof(vmm.hello.name)); /* no end */
	hello();
}

static void
hello_name_slash(void)
{
	memcpy(vmm.hello.name, "../x", 5);
	hello();
}

static void
hello_no_name(void)
{
	vmm.hello.name[0] = '\0';
	hello();
}

static void
hello_taken(void)
{
	memcpy(vmm.hello.name, "taken", 6);
	hello();
}

static void
hello_features(void)
{
	vmm.hello.features = 1ull << 40 | RL_VMM_FEAT_DIRTY_RING;
	hello();
}

static void
hello_both_features(void)
{
	vmm.hello.features = RL_VMM_FEAT_ALL;
	hello();
}

static void
hello_no_features(void)
{
	vmm.hello.features = 0;
	hello();
}

static void
hello_vcpus(void)
{
	vmm.hello.n_vcpus = RL_VMM_MAX_VCPUS + 1;
	hello();
}

static void
hello_phase(void)
{
	vmm.hello.phase = RL_VMM_MOVED + 1;
	hello();
}

static void
hello_twice(void)
{
	hello();
	hello();
}

static void
region_first(void)
{
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
}

static void
region_without_fd(void)
{
	hello();
	SEND(RL_VMM_REGION, &vmm.region, NULL, 0);
}

static void
region_two_fds(void)
{
	int fds[2] = {vmm.ram, vmm.shared};

	hello();
	SEND(RL_VMM_REGION, &vmm.region, fds, 2);
}

static void
region_short(void)
{
	hello();
	send_msg(RL_VMM_REGION, 0, &vmm.region, sizeof(vmm.region) - 1, &vmm.ram, 1);
}

static void
region_too_large(void)
{
	hello();
	vmm.region.n_pages++;
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
}

static void
region_overlap(void)
{
	hello();
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	vmm.region.gpn = RAM_PAGES - 1;
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
}

static void
region_17th(void)
{
	hello();
	vmm.region.n_pages = 1;
	for (uint32_t i = 0; i <= RL_VMM_MAX_REGIONS; i++) {
		vmm.region.gpn = i * 8;
		SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	}
}

static void
shared_unsealed(void)
{
	int fds[2] = {make_memfd(sizeof(struct rl_vmm_shared), 0), vmm.doorbell};

	hello();
	SEND(RL_VMM_SHARED, &vmm.info, fds, 2);
	close(fds[0]);
}

static void
shared_on_disk(void)
{
	char path[] = "/tmp/test_vmm_chan.XXXXXX";
	int fds[2] = {mkstemp(path), vmm.doorbell};

	unlink(path);
	assert_int_equal(ftruncate(fds[0], sizeof(struct rl_vmm_shared)), 0);
	hello();
	SEND(RL_VMM_SHARED, &vmm.info, fds, 2);
	close(fds[0]);
}

static void
shared_small(void)
{
	int fds[2] = {make_memfd(64, F_SEAL_SHRINK), vmm.doorbell};

	hello();
	SEND(RL_VMM_SHARED, &vmm.info, fds, 2);
	close(fds[0]);
}

static void
shared_one_fd(void)
{
	hello();
	SEND(RL_VMM_SHARED, &vmm.info, &vmm.shared, 1);
}

static void
shared_twice(void)
{
	hello();
	send_shared();
	send_shared();
}

static void
vcpu_index(void)
{
	hello();
	vmm.vcpu[0].index = N_VCPUS;
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
}

static void
vcpu_index_max(void)
{
	hello();
	vmm.vcpu[0].index = UINT32_MAX;
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
}

static void
vcpu_twice(void)
{
	hello();
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
}

static void
vcpu_ring_small(void)
{
	hello();
	vmm.vcpu[0].ring_entries = 1024;
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
}

static void
vcpu_ring_odd(void)
{
	hello();
	vmm.vcpu[0].ring_entries = 3000;
	SEND(RL_VMM_VCPU, &vmm.vcpu[0], &vmm.ring, 1);
}

static void
online_without_region(void)
{
	hello();
	send_shared();
	send_msg(RL_VMM_ONLINE, 0, NULL, 0, NULL, 0);
}

static void
online_without_shared(void)
{
	hello();
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	send_msg(RL_VMM_ONLINE, 0, NULL, 0, NULL, 0);
}

static void
online_without_vcpu(void)
{
	hello();
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	send_shared();
	SEND(RL_VMM_VCPU, &vmm.vcpu[1], &vmm.ring, 1);
	send_msg(RL_VMM_ONLINE, 0, NULL, 0, NULL, 0);
}

static void
online_with_payload(void)
{
	hello();
	send_msg(RL_VMM_ONLINE, 0, &vmm.info, sizeof(vmm.info), NULL, 0);
}

static void
unknown_request(void)
{
	hello();
	send_msg(77, 0, &vmm.info, sizeof(vmm.info), &vmm.ram, 1);
}

static void
engines_request(void)
{
	hello();
	send_msg(RL_VMM_PAUSE, 0, NULL, 0, NULL, 0);
}

static void
reply_instead(void)
{
	send_msg(RL_VMM_HELLO, RL_VMM_F_REPLY, &vmm.hello, sizeof(vmm.hello), NULL, 0);
}

static void
version_two(void)
{
	struct rl_vmm_hdr hdr = {.request = RL_VMM_HELLO, .flags = 2, .size = sizeof(vmm.hello)};

	send_raw(&hdr, &vmm.hello, sizeof(vmm.hello), &vmm.ram, 1);
}

static void
unknown_flags(void)
{
	send_msg(RL_VMM_HELLO, 8, &vmm.hello, sizeof(vmm.hello), &vmm.ram, 1);
}

static void
too_large(void)
{
	struct rl_vmm_hdr hdr = {.request = RL_VMM_HELLO,
				 .flags = RAMLIFT_VMM_VERSION,
				 .size = RL_VMM_MAX_PAYLOAD + 1};

	send_raw(&hdr, NULL, 0, &vmm.ram, 1);
}

static void
nine_fds(void)
{
	int fds[9];

	for (int i = 0; i < 9; i++)
		fds[i] = vmm.ram;
	hello();
	SEND(RL_VMM_REGION, &vmm.region, fds, 9);
}

/* Eight with the header and eight with the payload. */
static void
sixteen_fds(void)
{
	struct rl_vmm_hdr hdr = {.request = RL_VMM_REGION,
				 .flags = RAMLIFT_VMM_VERSION,
				 .size = sizeof(struct rl_vmm_hdr)};
	int fds[8];

	for (int i = 0; i < 8; i++)
		fds[i] = vmm.ram;
	hello();
	send_raw(&hdr, NULL, 0, fds, 8);
	send_raw(&hdr, NULL, 0, fds, 8); /* the payload */
}

static const struct bad bads[] = {
	{"long hello", hello_long, RL_VMM_HELLO, -EPROTO, "257 bytes"},
	{"hello with fd", hello_with_fd, RL_VMM_HELLO, -EPROTO, "HELLO"},
	{"endless name", hello_name, RL_VMM_HELLO, -EINVAL, "name"},
	{"name with slash", hello_name_slash, RL_VMM_HELLO, -EINVAL, "name"},
	{"no name", hello_no_name, RL_VMM_HELLO, -EINVAL, "name"},
	{"taken name", hello_taken, RL_VMM_HELLO, -EEXIST, "'taken' is connected already"},
	{"unknown feature", hello_features, RL_VMM_HELLO, -EINVAL, "features 0x10000000001"},
	{"both features", hello_both_features, RL_VMM_HELLO, -EINVAL, "one of dirty ring and"},
	{"no feature", hello_no_features, RL_VMM_HELLO, -EINVAL, "features"},
	{"too many vCPUs", hello_vcpus, RL_VMM_HELLO, -EINVAL, "257 vCPUs"},
	{"unknown phase", hello_phase, RL_VMM_HELLO, -EINVAL, "phase 9"},
	{"hello twice", hello_twice, RL_VMM_HELLO, -EPROTO, "HELLO comes first, and once"},
	{"no hello", region_first, RL_VMM_REGION, -EPROTO, "HELLO comes first"},
	{"region without fd", region_without_fd, RL_VMM_REGION, -EPROTO, "one descriptor"},
	{"region with two fds", region_two_fds, RL_VMM_REGION, -EPROTO, "one descriptor"},
	{"short region", region_short, RL_VMM_REGION, -EPROTO, "32 bytes"},
	{"region beyond its file", region_too_large, RL_VMM_REGION, -EINVAL,
	 "make the file larger"},
	{"overlapping regions", region_overlap, RL_VMM_REGION, -EINVAL, "overlaps"},
	{"17 regions", region_17th, RL_VMM_REGION, -ENOSPC, "more than 16 regions"},
	{"unsealed shared page", shared_unsealed, RL_VMM_SHARED, -EPROTO, "F_SEAL_SHRINK"},
	{"shared page on disk", shared_on_disk, RL_VMM_SHARED, -EPROTO, "memfd"},
	{"small shared page", shared_small, RL_VMM_SHARED, -EPROTO, "or more"},
	{"shared page without doorbell", shared_one_fd, RL_VMM_SHARED, -EPROTO, "two descriptors"},
	{"two shared pages", shared_twice, RL_VMM_SHARED, -EPROTO, "once"},
	{"vCPU out of range", vcpu_index, RL_VMM_VCPU, -EINVAL, "vCPU 2"},
	{"vCPU far out of range", vcpu_index_max, RL_VMM_VCPU, -EINVAL, "vCPU 4294967295"},
	{"vCPU twice", vcpu_twice, RL_VMM_VCPU, -EINVAL, "given twice"},
	{"small ring", vcpu_ring_small, RL_VMM_VCPU, -EINVAL, "1024 entries"},
	{"odd ring", vcpu_ring_odd, RL_VMM_VCPU, -EINVAL, "3000 entries"},
	{"online without region", online_without_region, RL_VMM_ONLINE, -EPROTO, "REGION"},
	{"online without shared", online_without_shared, RL_VMM_ONLINE, -EPROTO, "SHARED"},
	{"online without vCPU", online_without_vcpu, RL_VMM_ONLINE, -EPROTO, "vCPU 0 has no"},
	{"online with payload", online_with_payload, RL_VMM_ONLINE, -EPROTO, "ONLINE"},
	{"unknown request", unknown_request, 77, -EPROTO, "request 77"},
	{"the engine's request", engines_request, RL_VMM_PAUSE, -EPROTO,
	 "not one of a registration"},
	{"a reply", reply_instead, RL_VMM_HELLO, -EPROTO, "a reply where a request was due"},
	{"another version", version_two, RL_VMM_HELLO, -EPROTONOSUPPORT, "version 2"},
	{"unknown flags", unknown_flags, RL_VMM_HELLO, -EPROTO, "flags"},
	{"too large", too_large, RL_VMM_HELLO, -EPROTO, "4097 bytes"},
	{"nine fds", nine_fds, RL_VMM_REGION, -EPROTO, "more descriptors than allowed"},
	{"sixteen fds", sixteen_fds, RL_VMM_REGION, -EPROTO, "one descriptor"},
};

/* Each gets one clear error, in the engine's log and in the VMM's hands, and leaves no descriptor open. */
static void
bad_registrations(void **state)
{
	for (size_t i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
		struct rl_vmm_status st = {0};
		struct rl_vmm_hdr hdr = {0};
		uint32_t fds, errors = 0;
		struct rl_vm *vm;
		struct rl_err err;
		int rc, fd;

		teardown(state);
		setup(state);
		bads[i].send();
		fds = open_fds();
		rc = do_register(SOON_NS, &vm, &err);
		if (rc != bads[i].code || strstr(err.text, bads[i].says) == NULL)
			fail_msg("%s: %d '%s'", bads[i].what, rc, err.text);
		assert_null(vm);
		assert_int_equal(open_fds(), fds - 1); /* the engine's end of the socket */
		while (next_from_engine(&hdr, &st, sizeof(st), &fd))
			errors += st.code != 0;
		if (errors != 1 || hdr.request != bads[i].request || st.code != rc ||
		    strstr(st.text, bads[i].says) == NULL)
			fail_msg("%s: %u errors, request %u, %d '%s'", bads[i].what, errors,
				 hdr.request, st.code, st.text);
	}
}

static void
slow_or_gone_while_registering(void **state)
{
	struct rl_err err;
	struct rl_vm *vm;
	uint64_t start = rl_now_ns();

	(void)state;
	assert_int_equal(do_register(SHORT_NS, &vm, &err), -ETIMEDOUT); /* says nothing */
	assert_true(rl_now_ns() - start >= SHORT_NS);
	close(vmm.sock);
	open_pair();
	hello();
	assert_int_equal(send(vmm.sock, "abc", 3, 0), 3); /* a quarter of a header */
	assert_int_equal(do_register(SHORT_NS, &vm, &err), -ETIMEDOUT);
	close(vmm.sock);
	open_pair();
	hello();
	close(vmm.sock);
	vmm.sock = -1;
	assert_int_equal(do_register(SOON_NS, &vm, &err), -ECONNRESET);
	open_pair();
}

/* A VMM that does not read its replies must not hold up the engine, which answers ONLINE under a lock. */
static void
deaf_while_registering(void **state)
{
	struct rl_err err = {0};
	struct rl_vm *vm;
	const int small = 1;
	uint8_t fill[1024] = {0};
	int rc;

	(void)state;
	setsockopt(vmm.engine, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	while (send(vmm.engine, fill, sizeof(fill), MSG_DONTWAIT) > 0)
		;
	hello();
	rc = do_register(SOON_NS, &vm, &err);
	assert_int_equal(rc, -EPROTO);
	assert_non_null(strstr(err.text, "does not read"));
	close(vmm.sock);
	open_pair();
	vm = registered();
	while (send(vm->fd, fill, sizeof(fill), MSG_DONTWAIT) > 0)
		;
	assert_int_equal(rl_vm_online(vm, &err), -EPROTO);
	rl_vm_destroy(vm);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		VMM_TEST(good_registration),      VMM_TEST(bitmap_needs_no_rings),
		VMM_TEST(bad_registrations),      VMM_TEST(slow_or_gone_while_registering),
		VMM_TEST(deaf_while_registering),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
