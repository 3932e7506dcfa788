/* SPDX-License-Identifier: BSD-3-Clause */
/* The control channel: framed JSON and blobs over TCP and TLS, blocking with deadlines. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "control/peer.h"
#include "control/tls.h"

int
rl_wait_fd(int fd, short events, int cancel_fd, uint64_t deadline_ns)
{
	for (;;) {
		struct pollfd p[2] = {{.fd = fd, .events = events},
				      {.fd = cancel_fd, .events = POLLIN}};
		uint64_t now = rl_now_ns();
		uint64_t left_ms;

		if (now >= deadline_ns)
			return -ETIMEDOUT;
		left_ms = rl_min64((deadline_ns - now) / RL_NS_PER_MS + 1, 60000);
		int n = poll(p, 2, (int)left_ms);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents != 0)
			return -ECANCELED;
		if (n > 0 && p[0].revents != 0)
			return 0;
	}
}

int
rl_wait_readable(int fd, int cancel_fd, uint64_t deadline_ns)
{
	return rl_wait_fd(fd, POLLIN, cancel_fd, deadline_ns);
}

/* Words for what went wrong on the channel; the caller says what it was doing. */
static int
channel_error(struct rl_err *err, int code)
{
	switch (code) {
	case -ETIMEDOUT:
		return rl_err_set(err, code, "the peer does not answer");
	case -ECANCELED:
		return rl_err_set(err, code, "cancelled");
	case -ECONNRESET:
	case -EPIPE:
		return rl_err_set(err, -ECONNRESET, "the peer closed the connection");
	case -EBADMSG:
		return rl_err_set(err, code,
				  "the connection was tampered with: TLS rejects what came");
	default:
		return rl_err_set(err, code, "control channel: %s", strerror(-code));
	}
}

/* A dead peer must be noticed within seconds, also when nothing is said. */
static void
set_keepalive(int fd)
{
	const int on = 1, idle_s = 3, interval_s = 1, count = 5;
	const unsigned int user_timeout_ms = 8000;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof(user_timeout_ms));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

int
rl_peer_connect(struct rl_peer *p, const struct sockaddr_storage *to, socklen_t len,
		uint64_t deadline_ns, struct rl_err *err)
{
	int rc, soerr = 0;
	socklen_t soerr_len = sizeof(soerr);

	p->fd = socket(to->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (p->fd < 0)
		return rl_err_set(err, -errno, "socket: %s", strerror(errno));
	if (connect(p->fd, (const struct sockaddr *)to, len) != 0 && errno != EINPROGRESS) {
		rc = -errno;
		goto fail;
	}
	rc = rl_wait_fd(p->fd, POLLOUT, p->cancel_fd, deadline_ns);
	if (rc == 0 && getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &soerr, &soerr_len) == 0)
		rc = -soerr;
	if (rc != 0)
		goto fail;
	set_keepalive(p->fd);
	return 0;
fail:
	rl_peer_close(p);
	if (rc == -ECANCELED)
		return channel_error(err, rc);
	return rl_err_set(err, rc,
			  "%s; is ramliftd running there, and does a firewall let its TCP "
			  "port through?",
			  strerror(-rc));
}

int
rl_peer_secure(struct rl_peer *p, struct rl_tls *tls, bool server, uint64_t deadline_ns,
	       struct rl_err *err)
{
	if (tls == NULL)
		return 0;
	return rl_tls_handshake(tls, p->fd, server, p->cancel_fd, deadline_ns, &p->tls, err);
}

void
rl_peer_close(struct rl_peer *p)
{
	rl_tls_close(p->tls);
	p->tls = NULL;
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
}

static int
send_all(struct rl_peer *p, const void *buf, size_t n, uint64_t deadline_ns)
{
	const uint8_t *at = buf;

	if (p->tls != NULL)
		return rl_tls_write(p->tls, buf, n, p->cancel_fd, deadline_ns);
	while (n > 0) {
		ssize_t k = send(p->fd, at, n, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (k > 0) {
			at += k;
			n -= (size_t)k;
			continue;
		}
		if (k < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		int rc = rl_wait_fd(p->fd, POLLOUT, p->cancel_fd, deadline_ns);

		if (rc != 0)
			return rc;
	}
	return 0;
}

static int
recv_all(struct rl_peer *p, void *buf, size_t n, uint64_t deadline_ns)
{
	uint8_t *at = buf;

	if (p->tls != NULL)
		return rl_tls_read(p->tls, buf, n, p->cancel_fd, deadline_ns);
	while (n > 0) {
		ssize_t k = recv(p->fd, at, n, MSG_DONTWAIT);

		if (k == 0)
			return -ECONNRESET;
		if (k > 0) {
			at += k;
			n -= (size_t)k;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		int rc = rl_wait_fd(p->fd, POLLIN, p->cancel_fd, deadline_ns);

		if (rc != 0)
			return rc;
	}
	return 0;
}

int
rl_peer_send(struct rl_peer *p, json_t *json, const void *blob, size_t blob_bytes,
	     uint64_t deadline_ns, struct rl_err *err)
{
	char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
	uint8_t hdr[RL_PEER_HDR];
	int rc = -ENOMEM;

	json_decref(json);
	if (text == NULL)
		goto out;
	rl_store32(hdr, RL_PEER_MAGIC);
	rl_store32(hdr + 4, (uint32_t)strlen(text));
	rl_store64(hdr + 8, blob_bytes);
	rc = send_all(p, hdr, sizeof(hdr), deadline_ns);
	if (rc == 0)
		rc = send_all(p, text, strlen(text), deadline_ns);
	if (rc == 0 && blob_bytes > 0)
		rc = send_all(p, blob, blob_bytes, deadline_ns);
out:
	free(text);
	return rc != 0 ? channel_error(err, rc) : 0;
}

int
rl_peer_header(const uint8_t *buf, uint32_t *json_bytes, uint64_t *blob_bytes)
{
	*json_bytes = rl_load32(buf + 4);
	*blob_bytes = rl_load64(buf + 8);
	if (rl_load32(buf) != RL_PEER_MAGIC || *json_bytes < 2 || *json_bytes > RL_PEER_MAX_JSON ||
	    *blob_bytes > RL_PEER_MAX_BLOB)
		return -EPROTO;
	return 0;
}

static int
recv_body(struct rl_peer *p, struct rl_peer_msg *msg, uint32_t json_bytes, uint64_t deadline_ns,
	  struct rl_err *err)
{
	char *text = malloc(json_bytes);
	json_error_t jerr;
	int rc = -ENOMEM;

	msg->blob = msg->blob_bytes > 0 ? malloc(msg->blob_bytes) : NULL;
	if (text != NULL && (msg->blob != NULL || msg->blob_bytes == 0))
		rc = recv_all(p, text, json_bytes, deadline_ns);
	if (rc == 0 && msg->blob_bytes > 0)
		rc = recv_all(p, msg->blob, msg->blob_bytes, deadline_ns);
	if (rc != 0) {
		free(text);
		return channel_error(err, rc);
	}
	msg->json = json_loadb(text, json_bytes, 0, &jerr);
	free(text);
	msg->type = json_string_value(json_object_get(msg->json, "type"));
	if (msg->type == NULL)
		return rl_err_set(err, -EPROTO,
				  "the peer sent a message that is not JSON with a type");
	return 0;
}

int
rl_peer_recv(struct rl_peer *p, struct rl_peer_msg *msg, uint64_t deadline_ns, struct rl_err *err)
{
	uint8_t hdr[RL_PEER_HDR] = {0};
	uint32_t json_bytes;
	uint64_t blob_bytes;
	int rc;

	memset(msg, 0, sizeof(*msg));
	rc = recv_all(p, hdr, sizeof(hdr), deadline_ns);
	/* An alert or a ClientHello (RFC 8446 5.1); the alert is shorter than a header. */
	if (p->tls == NULL && (hdr[0] == 21 || hdr[0] == 22) && hdr[1] == 3)
		return rl_err_set(err, -EPROTO,
				  "the peer speaks TLS, this ramliftd does not; the same tls = is "
				  "needed at both");
	if (rc != 0)
		return channel_error(err, rc);
	if (rl_peer_header(hdr, &json_bytes, &blob_bytes) != 0)
		return rl_err_set(
			err, -EPROTO,
			"what came is not ramlift's control protocol; is that port ramliftd's?");
	if (blob_bytes > p->max_blob)
		return rl_err_set(err, -EPROTO,
				  "the peer sent %llu bytes of data, %llu are allowed here",
				  (unsigned long long)blob_bytes, (unsigned long long)p->max_blob);
	msg->blob_bytes = (size_t)blob_bytes;
	rc = recv_body(p, msg, json_bytes, deadline_ns, err);
	if (rc == 0 && strcmp(msg->type, "error") == 0) {
		const char *text = json_string_value(json_object_get(msg->json, "text"));

		rc = rl_err_set(err, -EREMOTEIO, "%s", text != NULL ? text : "the peer gave up");
	}
	if (rc != 0)
		rl_peer_msg_free(msg);
	return rc;
}

int
rl_peer_expect(struct rl_peer *p, const char *type, struct rl_peer_msg *msg, uint64_t deadline_ns,
	       struct rl_err *err)
{
	int rc = rl_peer_recv(p, msg, deadline_ns, err);

	if (rc == 0 && strcmp(msg->type, type) != 0) {
		rc = rl_err_set(err, -EPROTO, "the peer sent '%.32s' where '%s' was due", msg->type,
				type);
		rl_peer_msg_free(msg);
	}
	return rc;
}

void
rl_peer_msg_free(struct rl_peer_msg *msg)
{
	json_decref(msg->json);
	free(msg->blob);
	memset(msg, 0, sizeof(*msg));
}

json_t *
rl_peer_text(const char *text)
{
	char plain[sizeof(((struct rl_err *)0)->text)];
	json_t *j = json_string(text);
	size_t n = 0;

	if (j != NULL)
		return j;
	for (; text[n] != '\0' && n < sizeof(plain) - 1; n++)
		plain[n] = (text[n] & 0x80) != 0 ? '?' : text[n];
	plain[n] = '\0';
	return json_string(plain);
}

void
rl_peer_send_error(struct rl_peer *p, const struct rl_err *why)
{
	if (p->fd >= 0) {
		struct rl_peer once = {.fd = p->fd, .tls = p->tls, .cancel_fd = -1};

		/* The session may have been cancelled: the peer is to know all the same. */
		rl_peer_send(&once,
			     json_pack("{ss so}", "type", "error", "text", rl_peer_text(why->text)),
			     NULL, 0, rl_now_ns() + RL_NS_PER_S, NULL);
	}
}
