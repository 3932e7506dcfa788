/* SPDX-License-Identifier: BSD-3-Clause */
/* The word that a target waits for when its source gave up and could not say so. */
#include <errno.h>
#include <string.h>

#include <ramlift/version.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/daemon.h"
#include "control/notice.h"
#include "control/peer.h"
#include "control/units.h"

#define CONNECT_NS (5 * RL_NS_PER_S)
#define ANSWER_NS  (30 * RL_NS_PER_S)
#define RETRY_NS   (500 * RL_NS_PER_MS)
#define GIVE_UP_NS (3600 * RL_NS_PER_S) /* telling a peer that is out of reach */
#define UNKNOWN_NS                                                                                 \
	(30 * RL_NS_PER_S) /* asking one that does not know of it: its VMM may be on the way */

void
rl_notice_init(struct rl_notice *n, const struct rl_session *s)
{
	memcpy(n->id, s->id, sizeof(n->id));
	memcpy(n->peer, s->peer, sizeof(n->peer));
}

static int
connect_to(struct rl_daemon *d, struct rl_peer *p, const char *endpoint, struct rl_err *err)
{
	uint64_t deadline = rl_now_ns() + CONNECT_NS;
	struct sockaddr_storage to;
	socklen_t len;
	int rc = rl_parse_endpoint(endpoint, RL_DEFAULT_PORT, &to, &len, err);

	if (rc == 0)
		rc = rl_peer_connect(p, &to, len, deadline, err);
	return rc == 0 ? rl_peer_secure(p, d->tls, false, deadline, err) : rc;
}

/* 0: the target has forgotten the guest. -EAGAIN: it does not know of it, or has not forgotten it yet. */
static int
tell(struct rl_daemon *d, struct rl_peer *p, const struct rl_notice *n, struct rl_err *err)
{
	struct rl_peer_msg m;
	const char *state;
	int rc;

	rc = connect_to(d, p, n->peer, err);
	if (rc == 0)
		rc = rl_peer_send(p,
				  json_pack("{ss si ss}", "type", "abort", "wire",
					    RAMLIFT_WIRE_VERSION, "session", n->id),
				  NULL, 0, rl_now_ns() + ANSWER_NS, err);
	if (rc == 0)
		rc = rl_peer_expect(p, "outcome", &m, rl_now_ns() + ANSWER_NS, err);
	if (rc != 0)
		return rc;
	state = json_string_value(json_object_get(m.json, "state"));
	if (state == NULL || strcmp(state, "aborted") != 0)
		rc = rl_err_set(err, -EAGAIN, "it answers '%.32s'",
				state != NULL ? state : "nothing");
	rl_peer_msg_free(&m);
	return rc;
}

void
rl_notice_abort(struct rl_daemon *d, const struct rl_notice *n)
{
	struct rl_peer p = {.fd = -1, .cancel_fd = d->stop_fd};
	uint64_t deadline = rl_now_ns() + GIVE_UP_NS;
	struct rl_err err = {0};
	int rc;

	do {
		rc = tell(d, &p, n, &err);
		rl_peer_close(&p);
		if (rc == -EAGAIN)
			deadline = rl_min64(deadline, rl_now_ns() + UNKNOWN_NS);
	} while (rc != 0 && rl_now_ns() < deadline &&
		 rl_wait_readable(d->stop_fd, -1, rl_now_ns() + RETRY_NS) != 0);
	if (rc != 0)
		rl_warn("migration %s: given up, but %s could not be told: %s", n->id, n->peer,
			err.text);
}

void *
rl_source_session_abort(void *session)
{
	struct rl_session *s = session;
	struct rl_daemon *d = s->d;
	struct rl_notice notice;
	struct rl_err err = {0};

	rl_notice_init(&notice, s);
	rl_err_set(&err, -ECONNABORTED, "ramliftd ended in mid-migration; the guest runs on here");
	rl_session_end(s, RL_STATUS_FAILED, &err);
	rl_notice_abort(d, &notice);
	rl_daemon_thread_done(d);
	return NULL;
}
