/* SPDX-License-Identifier: BSD-3-Clause */
/* Framing of the VMM socket: header, payload, descriptors by SCM_RIGHTS with the first byte. */
#include "msg.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <ramlift/version.h>

#define FDS_BYTES (RL_VMM_MAX_FDS * sizeof(int))

/* Room for the descriptors' control message, aligned as one. */
union control {
	struct cmsghdr align;
	char buf[CMSG_SPACE(FDS_BYTES)];
};

static int64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* @deadline_ms < 0: for ever. */
static int
wait_for(const struct rl_vmm_conn *conn, short events, int64_t deadline_ms)
{
	struct pollfd p[2] = {
		{.fd = conn->sock, .events = events},
		{.fd = conn->stop_fd, .events = POLLIN},
	};
	int64_t left;
	int n;

	do {
		left = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
		if (deadline_ms >= 0 && left < 0)
			left = 0;
		n = poll(p, 2, (int)left);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (p[1].revents != 0)
		return -ECANCELED;
	return n == 0 ? -ETIMEDOUT : 0;
}

static bool
again(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

static void
take_fds(struct msghdr *mh, struct rl_vmm_msg *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL; c = CMSG_NXTHDR(mh, c)) {
		size_t bytes;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		/* The control buffer holds no more than RL_VMM_MAX_FDS in one message of this type. */
		bytes = c->cmsg_len - CMSG_LEN(0);
		memcpy(msg->fd, CMSG_DATA(c), bytes);
		msg->n_fds = (uint32_t)(bytes / sizeof(int));
	}
}

/* The first bytes of a header, and the descriptors. Returns how many bytes came. */
static ssize_t
recv_first(const struct rl_vmm_conn *conn, struct rl_vmm_hdr *hdr, int64_t deadline_ms,
	   struct rl_vmm_msg *msg)
{
	union control control;
	struct iovec iov = {.iov_base = hdr, .iov_len = sizeof(*hdr)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf};
	ssize_t n;
	int err;

	for (;;) {
		err = wait_for(conn, POLLIN, deadline_ms);
		if (err != 0)
			return err;
		mh.msg_controllen = sizeof(control.buf);
		n = recvmsg(conn->sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0)
			break;
		if (!again())
			return -errno;
	}
	if (n == 0)
		return -ECONNRESET;
	take_fds(&mh, msg);
	return mh.msg_flags & MSG_CTRUNC ? -EPROTO : n;
}

/* Descriptors that come with later bytes are dropped by the kernel: recv() has no place for them. */
static int
recv_rest(const struct rl_vmm_conn *conn, uint8_t *buf, size_t bytes, int64_t deadline_ms)
{
	ssize_t n;
	int err;

	while (bytes > 0) {
		err = wait_for(conn, POLLIN, deadline_ms);
		if (err != 0)
			return err;
		n = recv(conn->sock, buf, bytes, MSG_DONTWAIT);
		if (n == 0)
			return -EPROTO;
		if (n < 0) {
			if (!again())
				return -errno;
			continue;
		}
		buf += n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int
take_header(const struct rl_vmm_hdr *hdr, struct rl_vmm_msg *msg)
{
	if ((hdr->flags & ~(RL_VMM_F_VERSION | RL_VMM_F_REPLY)) != 0 ||
	    (hdr->flags & RL_VMM_F_VERSION) != RAMLIFT_VMM_VERSION ||
	    hdr->size > RL_VMM_MAX_PAYLOAD)
		return -EPROTO;
	msg->request = hdr->request;
	msg->is_reply = (hdr->flags & RL_VMM_F_REPLY) != 0;
	msg->size = hdr->size;
	return 0;
}

int
rl_vmm_msg_recv(const struct rl_vmm_conn *conn, int first_ms, struct rl_vmm_msg *msg)
{
	struct rl_vmm_hdr hdr;
	int64_t deadline_ms;
	ssize_t n;
	int err;

	msg->n_fds = 0;
	n = recv_first(conn, &hdr, first_ms < 0 ? -1 : now_ms() + first_ms, msg);
	if (n < 0) {
		err = (int)n;
		goto close_fds;
	}
	deadline_ms = now_ms() + RL_VMM_MSG_REST_MS;
	err = recv_rest(conn, (uint8_t *)&hdr + n, sizeof(hdr) - (size_t)n, deadline_ms);
	if (err == 0)
		err = take_header(&hdr, msg);
	if (err == 0)
		err = recv_rest(conn, msg->payload, msg->size, deadline_ms);
	if (err == 0)
		return 0;

close_fds:
	rl_vmm_msg_close_fds(msg);
	return err;
}

void
rl_vmm_msg_close_fds(struct rl_vmm_msg *msg)
{
	for (uint32_t i = 0; i < msg->n_fds; i++)
		if (msg->fd[i] >= 0)
			close(msg->fd[i]);
	msg->n_fds = 0;
}

static void
put_fds(struct msghdr *mh, union control *control, const struct rl_vmm_msg *msg)
{
	size_t bytes = msg->n_fds * sizeof(int);
	struct cmsghdr *c;

	memset(control, 0, sizeof(*control));
	mh->msg_control = control->buf;
	mh->msg_controllen = CMSG_SPACE(bytes);
	c = CMSG_FIRSTHDR(mh);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(c), msg->fd, bytes);
}

int
rl_vmm_msg_send(const struct rl_vmm_conn *conn, const struct rl_vmm_msg *msg)
{
	uint8_t buf[RL_VMM_HDR_BYTES + RL_VMM_MAX_PAYLOAD];
	struct rl_vmm_hdr hdr = {
		.request = msg->request,
		.flags = RAMLIFT_VMM_VERSION | (msg->is_reply ? RL_VMM_F_REPLY : 0),
		.size = msg->size,
	};
	struct iovec iov = {.iov_base = buf, .iov_len = sizeof(hdr) + msg->size};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	int64_t deadline_ms = now_ms() + RL_VMM_MSG_REST_MS;
	union control control;
	ssize_t n;
	int err;

	memcpy(buf, &hdr, sizeof(hdr));
	memcpy(buf + sizeof(hdr), msg->payload, msg->size);
	if (msg->n_fds > 0)
		put_fds(&mh, &control, msg);
	while (iov.iov_len > 0) {
		n = sendmsg(conn->sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) {
			if (!again())
				return -errno;
			err = wait_for(conn, POLLOUT, deadline_ms);
			if (err != 0)
				return err;
			continue;
		}
		/* The descriptors went with the first byte. */
		mh.msg_control = NULL;
		mh.msg_controllen = 0;
		iov.iov_base = (uint8_t *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
	}
	return 0;
}
