/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TESTS_VMM_PLAYER_H
#define RL_TESTS_VMM_PLAYER_H
/**
 * @file vmm_player.h
 * The test as a VMM on the other end of the engine's socket, descriptors and all. What the VMM sends is put into
 * the socket beforehand, so that one thread can play both.
 *
 * Threads: one. setup() and teardown() are cmocka's; teardown fails when a descriptor was left behind.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include <ramlift/version.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "control/vmm.h"

#define SOON_NS    (10 * RL_NS_PER_S)
#define SHORT_NS   (50 * RL_NS_PER_MS)
#define RAM_PAGES  1024u
#define N_VCPUS    2u
#define RING_BYTES (2048 * sizeof(struct rl_vmm_dirty_gfn))

/* The VMM. */
static struct {
	int sock;   /* its end; the engine's was given away */
	int engine; /* the engine's, until it is */
	int ram, shared, doorbell, ring;
	struct rl_vmm_hello hello;
	struct rl_vmm_region region;
	struct rl_vmm_shared_info info;
	struct rl_vmm_vcpu vcpu[N_VCPUS];
	uint32_t fds_before;
} vmm;

static inline uint32_t
open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t n = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

static inline int
make_memfd(size_t bytes, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static inline void
open_pair(void)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	vmm.sock = pair[0];
	vmm.engine = pair[1];
}

static inline int
setup(void **state)
{
	(void)state;
	vmm.fds_before = open_fds();
	vmm.ram = make_memfd(RAM_PAGES * RL_PAGE_SIZE, 0);
	vmm.shared = make_memfd(sizeof(struct rl_vmm_shared), F_SEAL_SHRINK);
	vmm.ring = make_memfd(N_VCPUS * RING_BYTES, F_SEAL_SHRINK);
	vmm.doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vmm.hello = (struct rl_vmm_hello){.features = RL_VMM_FEAT_DIRTY_RING,
					  .uuid = "0123456789abcde",
					  .name = "guest-1",
					  .phase = RL_VMM_RUNNING,
					  .n_vcpus = N_VCPUS};
	vmm.region = (struct rl_vmm_region){.gpn = 0, .n_pages = RAM_PAGES, .page_size = 4096};
	vmm.info = (struct rl_vmm_shared_info){.size = sizeof(struct rl_vmm_shared)};
	for (uint32_t i = 0; i < N_VCPUS; i++)
		vmm.vcpu[i] = (struct rl_vmm_vcpu){
			.index = i, .ring_entries = 2048, .ring_offset = i * RING_BYTES};
	open_pair();
	return 0;
}

static inline int
teardown(void **state)
{
	int fds[] = {vmm.sock, vmm.engine, vmm.ram, vmm.shared, vmm.doorbell, vmm.ring};

	(void)state;
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	assert_int_equal(open_fds(), vmm.fds_before);
	return 0;
}

/* One message of the VMM, with up to 16 descriptors. */
static inline void
send_raw(const struct rl_vmm_hdr *hdr, const void *payload, size_t bytes, const int *fds,
	 uint32_t n_fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(16 * sizeof(int))];
	} control = {0};
	struct iovec iov[2] = {{(void *)(uintptr_t)hdr, sizeof(*hdr)},
			       {(void *)(uintptr_t)payload, bytes}};
	struct msghdr mh = {.msg_iov = iov, .msg_iovlen = bytes > 0 ? 2 : 1};

	if (n_fds > 0) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	assert_int_equal(sendmsg(vmm.sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT), sizeof(*hdr) + bytes);
}

static inline void
send_msg(uint32_t request, uint32_t flags, const void *payload, uint32_t bytes, const int *fds,
	 uint32_t n_fds)
{
	struct rl_vmm_hdr hdr = {
		.request = request, .flags = RAMLIFT_VMM_VERSION | flags, .size = bytes};

	send_raw(&hdr, payload, bytes, fds, n_fds);
}

#define SEND(request, payload, fds, n_fds)                                                         \
	send_msg(request, 0, payload, sizeof(*(payload)), fds, n_fds)

static inline void
send_reply(uint32_t request, int32_t code, const char *text)
{
	struct rl_vmm_status st = {.code = code};

	snprintf(st.text, sizeof(st.text), "%s", text);
	send_msg(request, RL_VMM_F_REPLY, &st, sizeof(st), NULL, 0);
}

/* What the engine sent; false when it closed. *fd: a descriptor that came along, or -1. */
static inline bool
next_from_engine(struct rl_vmm_hdr *hdr, void *payload, size_t cap, int *fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {hdr, sizeof(*hdr)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof(control.buf)};
	ssize_t n = recvmsg(vmm.sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n <= 0)
		return false;
	assert_int_equal(n, sizeof(*hdr));
	*fd = -1;
	if (CMSG_FIRSTHDR(&mh) != NULL)
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(int));
	assert_int_equal(hdr->flags & RL_VMM_F_VERSION, RAMLIFT_VMM_VERSION);
	assert_true(hdr->size <= cap);
	if (hdr->size > 0)
		assert_int_equal(recv(vmm.sock, payload, hdr->size, MSG_DONTWAIT), hdr->size);
	return true;
}

/* The engine's reply to @request must be @code. */
static inline void
expect_status(uint32_t request, int32_t code, char *text)
{
	struct rl_vmm_status st;
	struct rl_vmm_hdr hdr;
	int fd;

	assert_true(next_from_engine(&hdr, &st, sizeof(st), &fd));
	assert_int_equal(hdr.request, request);
	assert_int_equal(hdr.flags & RL_VMM_F_REPLY, RL_VMM_F_REPLY);
	assert_int_equal(hdr.size, sizeof(st));
	assert_int_equal(st.code, code);
	assert_int_equal(st.text[0] == '\0', code == 0);
	if (text != NULL)
		memcpy(text, st.text, sizeof(st.text));
}

static inline int
may_register(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err)
{
	int *asked = ctx;

	(*asked)++;
	if (strcmp(hello->name, "taken") == 0)
		return rl_err_set(err, -EEXIST, "a VM named 'taken' is connected already");
	return 0;
}

static inline int
do_register(uint64_t timeout_ns, struct rl_vm **vm, struct rl_err *err)
{
	int fd = vmm.engine, asked = 0;

	vmm.engine = -1;
	memset(err, 0, sizeof(*err));
	return rl_vm_register(fd, timeout_ns, may_register, &asked, vm, err);
}

static inline void
send_shared(void)
{
	int fds[2] = {vmm.shared, vmm.doorbell};

	SEND(RL_VMM_SHARED, &vmm.info, fds, 2);
}

static inline void
send_all(void)
{
	SEND(RL_VMM_HELLO, &vmm.hello, NULL, 0);
	SEND(RL_VMM_REGION, &vmm.region, &vmm.ram, 1);
	send_shared();
	for (uint32_t i = 0; i < N_VCPUS; i++)
		SEND(RL_VMM_VCPU, &vmm.vcpu[i], &vmm.ring, 1);
	send_msg(RL_VMM_ONLINE, 0, NULL, 0, NULL, 0);
}

static inline struct rl_vm *
registered(void)
{
	struct rl_err err;
	struct rl_vm *vm;

	send_all();
	if (do_register(SOON_NS, &vm, &err) != 0)
		fail_msg("%s", err.text);
	expect_status(RL_VMM_HELLO, 0, NULL);
	expect_status(RL_VMM_REGION, 0, NULL);
	expect_status(RL_VMM_SHARED, 0, NULL);
	for (uint32_t i = 0; i < N_VCPUS; i++)
		expect_status(RL_VMM_VCPU, 0, NULL);
	return vm;
}

static inline void
hello(void)
{
	SEND(RL_VMM_HELLO, &vmm.hello, NULL, 0);
}

#define VMM_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif /* RL_TESTS_VMM_PLAYER_H */
