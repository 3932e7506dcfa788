/* SPDX-License-Identifier: BSD-3-Clause */
/* A counting VMM and a hand-made engine, for the tests of libramlift-vmm. */
#include "vmm_engine.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <ramlift/version.h>

/* ---- the VMM under the library ---- */

static int
count(struct guest *g, enum op op, char *text)
{
	int rc = g->fail[op];

	g->calls[op]++;
	if (rc != 0 && op != RUN)
		snprintf(text, RL_VMM_TEXT_BYTES, "told to fail");
	return rc;
}

#define OP(name, op)                                                                               \
	static int name(void *ctx, char *text)                                                     \
	{                                                                                          \
		return count(ctx, op, text);                                                       \
	}
OP(op_log_start, LOG_START)
OP(op_log_stop, LOG_STOP)
OP(op_pause, PAUSE)
OP(op_resume, RESUME)
OP(op_run, RUN)
OP(op_reset, RESET)

static int
op_state_get(void *ctx, int *memfd, uint64_t *size, char *text)
{
	struct guest *g = ctx;

	*memfd = memfd_create("state", MFD_CLOEXEC);
	assert_int_equal(write(*memfd, "device state", 12), 12);
	*size = g->state_bytes;
	return count(g, STATE_GET, text);
}

static int
op_state_put(void *ctx, int memfd, uint64_t size, char *text)
{
	struct guest *g = ctx;

	assert_in_range(size, 1, sizeof(g->loaded) - 1);
	memset(g->loaded, 0, sizeof(g->loaded));
	assert_int_equal(pread(memfd, g->loaded, size, 0), size);
	return count(g, STATE_PUT, text);
}

static void
op_moved(void *ctx)
{
	((struct guest *)ctx)->calls[MOVED]++;
}

static int64_t
op_reset_rings(void *ctx)
{
	((struct guest *)ctx)->rings_reset++;
	return 42;
}

static int
op_sync_bitmap(void *ctx, const struct rl_vmm_slot *slot, uint64_t *bitmap)
{
	struct guest *g = ctx;

	g->synced[slot->slot]++;
	bitmap[0] = 0x100 + slot->slot;
	bitmap[(slot->n_pages - 1) / 64] |= 1ull << 63;
	return 0;
}

static void
op_log(void *ctx, const char *line)
{
	if (strstr(line, "did not drain") != NULL)
		((struct guest *)ctx)->undrained++;
}

const struct rl_vmm_ops guest_ops = {
	.log_start = op_log_start,
	.log_stop = op_log_stop,
	.pause = op_pause,
	.resume = op_resume,
	.state_get = op_state_get,
	.state_put = op_state_put,
	.run = op_run,
	.reset = op_reset,
	.moved = op_moved,
	.reset_rings = op_reset_rings,
	.sync_bitmap = op_sync_bitmap,
	.log = op_log,
};

/* ---- the engine ---- */

int
count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(d);
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

void
wait_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
}

void
send_raw(int sock, const void *data, size_t bytes, const int *fds, uint32_t n_fds)
{
	char control[CMSG_SPACE(16 * sizeof(int))] = {0};
	struct iovec iov = {(void *)(uintptr_t)data, bytes};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds > 0) {
		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	assert_int_equal(sendmsg(sock, &mh, MSG_NOSIGNAL), bytes);
}

void
send_msg(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
	 const int *fds, uint32_t n_fds)
{
	uint8_t buf[RL_VMM_HDR_BYTES + RL_VMM_MAX_PAYLOAD];
	struct rl_vmm_hdr hdr = {request, RAMLIFT_VMM_VERSION | flags, size};

	memcpy(buf, &hdr, sizeof(hdr));
	if (size > 0)
		memcpy(buf + sizeof(hdr), payload, size);
	send_raw(sock, buf, sizeof(hdr) + size, fds, n_fds);
}

void
recv_msg(int sock, struct message *m)
{
	char control[CMSG_SPACE(RL_VMM_MAX_FDS * sizeof(int))];
	struct iovec iov[2] = {{&m->hdr, sizeof(m->hdr)}, {m->payload, sizeof(m->payload)}};
	struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = control};

	/* The library sends a message in one piece and nothing more before our answer. */
	mh.msg_controllen = sizeof(control);
	m->n_fds = 0;
	wait_readable(sock);
	ssize_t n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	assert_true(n >= (ssize_t)sizeof(m->hdr));
	assert_int_equal(n, sizeof(m->hdr) + m->hdr.size);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c != NULL; c = CMSG_NXTHDR(&mh, c)) {
		m->n_fds = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(m->fd, CMSG_DATA(c), m->n_fds * sizeof(int));
	}
}

void
engine_expect(struct engine *e, uint32_t request, uint32_t size, uint32_t n_fds, struct message *m)
{
	recv_msg(e->conn, m);
	assert_int_equal(m->hdr.request, request);
	assert_int_equal(m->hdr.flags, RAMLIFT_VMM_VERSION);
	assert_int_equal(m->hdr.size, size);
	assert_int_equal(m->n_fds, n_fds);
}

void
engine_reply(struct engine *e, uint32_t request, int code)
{
	struct rl_vmm_status st = {.code = code};

	send_msg(e->conn, request, RL_VMM_F_REPLY, &st, sizeof(st), NULL, 0);
}

void
engine_accept(struct engine *e)
{
	wait_readable(e->listener);
	e->conn = accept4(e->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(e->conn >= 0);
}

/* Play the engine's part of a registration and keep what was said. */
void
engine_register(struct engine *e)
{
	struct rl_vmm_shared_info info;
	struct rl_vmm_vcpu vcpu;
	struct message m;

	engine_accept(e);
	engine_expect(e, RL_VMM_HELLO, sizeof(e->hello), 0, &m);
	memcpy(&e->hello, m.payload, sizeof(e->hello));
	engine_reply(e, RL_VMM_HELLO, 0);
	engine_expect(e, RL_VMM_REGION, sizeof(e->region), 1, &m);
	memcpy(&e->region, m.payload, sizeof(e->region));
	e->region_fd = m.fd[0];
	engine_reply(e, RL_VMM_REGION, 0);
	engine_expect(e, RL_VMM_SHARED, sizeof(info), 2, &m);
	memcpy(&info, m.payload, sizeof(info));
	e->shared_fd = m.fd[0];
	e->door_fd = m.fd[1];
	e->shared_size = info.size;
	e->shared = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, e->shared_fd, 0);
	assert_ptr_not_equal(e->shared, MAP_FAILED);
	engine_reply(e, RL_VMM_SHARED, 0);
	for (uint32_t i = 0; i < N_VCPUS && !e->bitmap; i++) {
		engine_expect(e, RL_VMM_VCPU, sizeof(vcpu), 1, &m);
		memcpy(&vcpu, m.payload, sizeof(vcpu));
		assert_int_equal(vcpu.index, i);
		assert_int_equal(vcpu.ring_entries, RING_SLOTS);
		assert_int_equal(vcpu.ring_offset, i * RING_SLOTS * 16);
		e->ring_fd[i] = m.fd[0];
		engine_reply(e, RL_VMM_VCPU, 0);
	}
	engine_expect(e, RL_VMM_ONLINE, 0, 0, &m);
	engine_reply(e, RL_VMM_ONLINE, 0);
}

void
engine_hang_up(struct engine *e)
{
	if (e->conn < 0)
		return;
	munmap(e->shared, e->shared_size);
	close(e->region_fd);
	close(e->shared_fd);
	close(e->door_fd);
	for (uint32_t i = 0; i < N_VCPUS && !e->bitmap; i++)
		close(e->ring_fd[i]);
	close(e->conn);
	e->conn = -1;
}

static void
make_vmm(struct engine *e)
{
	struct rl_vmm_opts opts = {
		.engine_socket = e->path,
		.name = "guest-1",
		.uuid = {1, 2, 3},
		.incoming = e->incoming,
		.features = e->bitmap ? RL_VMM_FEAT_DIRTY_BITMAP : RL_VMM_FEAT_DIRTY_RING,
		.n_vcpus = N_VCPUS,
		.ops = &guest_ops,
		.ctx = &e->guest,
	};
	struct rl_vmm_region region = {
		.gpn = 16, .n_pages = 256, .page_size = 4096, .flags = RL_VMM_REGION_ZEROED};

	assert_int_equal(rl_vmm_create(&opts, &e->vmm), 0);
	assert_int_equal(rl_vmm_add_region(e->vmm, &region, e->guest.ram), 0);
	for (uint32_t i = 0; i < N_VCPUS && !e->bitmap; i++) {
		struct rl_vmm_vcpu vcpu = {i, RING_SLOTS, i * RING_SLOTS * 16};

		assert_int_equal(rl_vmm_add_vcpu(e->vmm, &vcpu, e->guest.ring), 0);
	}
	assert_int_equal(rl_vmm_slot_add(e->vmm, 0, 16, 256), 0);
}

void
engine_open(struct engine *e, bool incoming, bool bitmap)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	memset(e, 0, sizeof(*e));
	e->conn = -1;
	e->incoming = incoming;
	e->bitmap = bitmap;
	e->guest.state_bytes = 12;
	e->guest.ram = memfd_create("ram", MFD_CLOEXEC);
	e->guest.ring = memfd_create("ring", MFD_CLOEXEC);
	assert_int_equal(ftruncate(e->guest.ram, RAM_BYTES), 0);
	assert_int_equal(pwrite(e->guest.ram, "guest", 5, 8192), 5);
	snprintf(e->dir, sizeof(e->dir), "/tmp/ramlift-test.XXXXXX");
	assert_non_null(mkdtemp(e->dir));
	snprintf(e->path, sizeof(e->path), "%s/vmm", e->dir);
	memcpy(addr.sun_path, e->path, sizeof(e->path));
	e->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(e->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(e->listener, 4), 0);
	make_vmm(e);
}

/* A VMM, connected. */
void
engine_start(struct engine *e, bool incoming, bool bitmap)
{
	engine_open(e, incoming, bitmap);
	assert_int_equal(rl_vmm_start(e->vmm), 0);
	engine_register(e);
}

void
engine_finish(struct engine *e)
{
	rl_vmm_stop(e->vmm);
	rl_vmm_destroy(e->vmm);
	engine_hang_up(e);
	close(e->listener);
	close(e->guest.ram);
	close(e->guest.ring);
	unlink(e->path);
	rmdir(e->dir);
}

int
engine_call_fds(struct engine *e, uint32_t request, const void *payload, uint32_t size,
		const int *fds, uint32_t n_fds, struct message *m)
{
	struct rl_vmm_status st;

	send_msg(e->conn, request, 0, payload, size, fds, n_fds);
	recv_msg(e->conn, m);
	assert_int_equal(m->hdr.request, request);
	assert_int_equal(m->hdr.flags, RAMLIFT_VMM_VERSION | RL_VMM_F_REPLY);
	assert_true(m->hdr.size >= sizeof(st));
	memcpy(&st, m->payload, sizeof(st));
	assert_non_null(memchr(st.text, 0, sizeof(st.text)));
	if (st.code == 0)
		assert_int_equal(st.text[0], 0);
	else
		assert_int_not_equal(st.text[0], 0);
	return st.code;
}

/* A well-formed request of any kind. */
int
engine_call(struct engine *e, uint32_t request, uint32_t outcome)
{
	struct rl_vmm_session session = {
		.session = {7}, .is_target = e->incoming, .peer = "198.18.0.2:4444"};
	struct rl_vmm_session_end end = {.outcome = outcome};
	struct rl_vmm_state state = {.size = 12};
	int memfd = memfd_create("state", MFD_CLOEXEC);
	struct message m;
	int code;

	assert_int_equal(write(memfd, "device state", 12), 12);
	switch (request) {
	case RL_VMM_SESSION_BEGIN:
		code = engine_call_fds(e, request, &session, sizeof(session), NULL, 0, &m);
		break;
	case RL_VMM_SESSION_END:
		code = engine_call_fds(e, request, &end, sizeof(end), NULL, 0, &m);
		break;
	case RL_VMM_STATE_PUT:
		code = engine_call_fds(e, request, &state, sizeof(state), &memfd, 1, &m);
		break;
	default:
		code = engine_call_fds(e, request, NULL, 0, NULL, 0, &m);
	}
	close(memfd);
	for (uint32_t i = 0; i < m.n_fds; i++)
		close(m.fd[i]);
	return code;
}

/* From RUNNING or INCOMING to @phase. */
void
engine_drive(struct engine *e, int phase)
{
	static const uint32_t source[] = {RL_VMM_SESSION_BEGIN, RL_VMM_LOG_START, RL_VMM_PAUSE,
					  RL_VMM_COMMITTING, RL_VMM_SESSION_END};
	static const uint32_t target[] = {RL_VMM_SESSION_BEGIN, RL_VMM_STATE_PUT, RL_VMM_RUN};
	const uint32_t *steps = e->incoming ? target : source;

	for (uint32_t i = 0; (int)rl_vmm_phase(e->vmm) != phase; i++)
		assert_int_equal(engine_call(e, steps[i], RL_VMM_COMPLETED), 0);
	if (phase == RL_VMM_MIGRATING)
		assert_int_equal(engine_call(e, RL_VMM_LOG_START, 0), 0);
}

bool
ram_is_zero(const struct guest *g)
{
	char buf[5];

	assert_int_equal(pread(g->ram, buf, 5, 8192), 5);
	return memcmp(buf, "\0\0\0\0\0", 5) == 0;
}
