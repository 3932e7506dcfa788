/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an engine may send to a VMM: framing with descriptors, and the phase machine behind it.
 *
 * The first byte picks source or target. Then the input is pieces as they come through a socket: a byte
 * whose low nibble is the number of descriptors (more than allowed, too) and whose high nibble 0xf means that
 * the connection was lost and this is the first piece of the next; a length byte; that many bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"
#include "machine.h"

#define MAX_REQUESTS 64
#define LOST         0xf

struct vmm {
	bool paused, logging, loaded, moved;
};

static int
log_start(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(!v->logging);
	v->logging = true;
	return 0;
}

static int
log_stop(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(v->logging);
	v->logging = false;
	return 0;
}

static int
pause_guest(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(!v->paused);
	v->paused = true;
	return 0;
}

static int
resume_guest(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(v->paused && !v->moved);
	v->paused = false;
	return 0;
}

static int
state_get(void *ctx, int *memfd, uint64_t *size, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(v->paused);
	*memfd = memfd_create("state", MFD_CLOEXEC);
	*size = 1;
	return *memfd < 0 ? -errno : 0;
}

static int
state_put(void *ctx, int memfd, uint64_t size, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(memfd >= 0 && size > 0 && size <= RL_VMM_STATE_MAX && !v->loaded);
	v->loaded = true;
	return 0;
}

static int
run_guest(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(v->loaded && v->paused);
	v->paused = false;
	return 0;
}

static int
reset(void *ctx, char *text)
{
	struct vmm *v = ctx;

	(void)text;
	FUZZ_CHECK(v->paused);
	v->loaded = false;
	return 0;
}

static const struct rl_vmm_ops ops = {
	.log_start = log_start,
	.log_stop = log_stop,
	.pause = pause_guest,
	.resume = resume_guest,
	.state_get = state_get,
	.state_put = state_put,
	.run = run_guest,
	.reset = reset,
};

static void
send_piece(int sock, const uint8_t *data, size_t bytes, uint32_t n_fds, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(15 * sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)data, bytes};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (n_fds > 0) {
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		for (uint32_t i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(int));
	}
	FUZZ_CHECK(sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes);
}

static void
check_machine(const struct rl_vmm_machine *m, const struct vmm *v, const struct rl_vmm_answer *ans)
{
	bool still = m->phase == RL_VMM_PAUSED || m->phase == RL_VMM_COMMITTED ||
		     m->phase == RL_VMM_MOVED || m->phase == RL_VMM_INCOMING ||
		     m->phase == RL_VMM_RECEIVING || m->phase == RL_VMM_READY;

	FUZZ_CHECK(m->phase >= RL_VMM_RUNNING && m->phase <= RL_VMM_MOVED);
	FUZZ_CHECK(v->paused == still); /* never both sides, and never neither */
	FUZZ_CHECK(m->logging == v->logging || m->phase == RL_VMM_MOVED);
	FUZZ_CHECK(memchr(ans->status.text, 0, sizeof(ans->status.text)) != NULL);
	FUZZ_CHECK((ans->status.code == 0) == (ans->status.text[0] == 0));
	FUZZ_CHECK(ans->status.code <= 0 && (ans->fd < 0 || ans->status.code == 0));
}

static void
serve(const struct rl_vmm_conn *conn, struct rl_vmm_machine *m, struct vmm *v)
{
	static struct rl_vmm_msg msg;
	struct rl_vmm_answer ans;
	char text[RL_VMM_TEXT_BYTES];

	for (int i = 0; i < MAX_REQUESTS && rl_vmm_msg_recv(conn, 0, &msg) == 0; i++) {
		FUZZ_CHECK(msg.size <= RL_VMM_MAX_PAYLOAD && msg.n_fds <= RL_VMM_MAX_FDS);
		rl_vmm_machine_request(m, &msg, &ans);
		rl_vmm_msg_close_fds(&msg);
		if (ans.fd >= 0)
			close(ans.fd);
		v->moved |= ans.moved;
		check_machine(m, v, &ans);
	}
	FUZZ_CHECK(rl_vmm_machine_lost(m, text) == 0);
	FUZZ_CHECK(m->phase == RL_VMM_RUNNING || m->phase == RL_VMM_INCOMING ||
		   m->phase == RL_VMM_COMMITTED || m->phase == RL_VMM_READY ||
		   m->phase == RL_VMM_MOVED);
}

/* One connection's worth of pieces; returns how much of the input it took. */
static size_t
connection(const uint8_t *data, size_t size, struct rl_vmm_machine *m, struct vmm *v, int fd)
{
	struct rl_vmm_conn conn = {.stop_fd = -1};
	size_t at = 0;
	int pair[2];

	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	for (uint32_t n = 0; n < MAX_REQUESTS && size - at >= 3; n++) {
		size_t bytes = data[at + 1];

		if (data[at] >> 4 == LOST && n > 0)
			break;
		bytes = bytes == 0 ? 1 : bytes;
		if (bytes > size - at - 2)
			bytes = size - at - 2;
		send_piece(pair[0], data + at + 2, bytes, data[at] & 15, fd);
		at += 2 + bytes;
	}
	shutdown(pair[0], SHUT_WR);
	conn.sock = pair[1];
	serve(&conn, m, v);
	close(pair[0]);
	close(pair[1]);
	return at;
}

/* The lowest number that is free. */
static int
next_fd(int fd)
{
	int probe = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	close(probe);
	return probe;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool target = size > 0 && (data[0] & 1) != 0;
	uint64_t guest_runs = !target;
	struct rl_vmm_machine m = {.ops = &ops, .guest_runs = &guest_runs};
	struct vmm v = {.paused = target};
	size_t at = 1;
	int fd, probe;

	fd = memfd_create("fuzz", MFD_CLOEXEC);
	probe = next_fd(fd);
	FUZZ_CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
	m.ctx = &v;
	m.phase = target ? RL_VMM_INCOMING : RL_VMM_RUNNING;
	m.n_regions = 1;
	m.region[0].n_pages = 1;
	m.region_fd[0] = fd;
	for (int n = 0; n < 4 && at + 3 <= size; n++)
		at += connection(data + at, size - at, &m, &v, fd);
	FUZZ_CHECK(next_fd(fd) == probe); /* nothing stayed open */
	close(fd);
	return 0;
}
