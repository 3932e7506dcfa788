/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two kinds of session share: their life, cancelling, their picture in JSON. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stats.h"
#include "control/daemon.h"
#include "control/peer.h"
#include "control/session.h"
#include "control/tls.h"
#include "control/uuid.h"
#include "crypto/keys.h"

static const char *const status_names[] = {
	[RL_STATUS_NONE] = "none",
	[RL_STATUS_SETUP] = "setup",
	[RL_STATUS_ACTIVE] = "active",
	[RL_STATUS_DEVICE] = "device",
	[RL_STATUS_COMPLETED] = "completed",
	[RL_STATUS_FAILED] = "failed",
	[RL_STATUS_CANCELLING] = "cancelling",
	[RL_STATUS_CANCELLED] = "cancelled",
};

const char *
rl_status_name(enum rl_status status)
{
	return status_names[status];
}

struct rl_session *
rl_session_create(struct rl_daemon *d, bool target, const uint8_t uuid[16], const char *vm_name,
		  const char *peer)
{
	struct rl_session *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	s->d = d;
	s->target = target;
	memcpy(s->uuid, uuid, sizeof(s->uuid));
	rl_uuid_format(uuid, s->id);
	memcpy(s->vm_name, vm_name, rl_min64(strlen(vm_name), sizeof(s->vm_name) - 1));
	memcpy(s->peer, peer, rl_min64(strlen(peer), sizeof(s->peer) - 1));
	s->born_ns = rl_now_ns();
	s->verified = -1;
	s->new_peer.fd = -1;
	s->status = RL_STATUS_SETUP;
	s->param.max_bandwidth = d->cfg.max_bandwidth;
	s->param.downtime_limit_ms = d->cfg.downtime_limit_ms;
	pthread_mutex_init(&s->lock, NULL);
	s->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->relink_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->cancel_fd < 0 || s->relink_fd < 0) {
		rl_session_destroy(s);
		return NULL;
	}
	return s;
}

void
rl_session_destroy(struct rl_session *s)
{
	if (s->cancel_fd >= 0)
		close(s->cancel_fd);
	if (s->relink_fd >= 0)
		close(s->relink_fd);
	rl_peer_close(&s->new_peer);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int
rl_session_start(struct rl_session *s, void *(*main_fn)(void *), struct rl_err *err)
{
	int rc = rl_daemon_thread(s->d, main_fn, s);

	return rc == 0 ? 0 : rl_err_set(err, rc, "cannot start a thread: %s", strerror(-rc));
}

void
rl_session_set_status(struct rl_session *s, enum rl_status status)
{
	pthread_mutex_lock(&s->lock);
	if (s->status != RL_STATUS_CANCELLING)
		s->status = status;
	if (status == RL_STATUS_ACTIVE)
		s->setup_ns = rl_now_ns() - s->born_ns;
	pthread_mutex_unlock(&s->lock);
	rl_info("migration %s: %s of '%s' %s %s: %s", s->id, s->target ? "target" : "source",
		s->vm_name, s->target ? "from" : "to", s->peer, rl_status_name(status));
}

void
rl_session_end(struct rl_session *s, enum rl_status status, const struct rl_err *why)
{
	pthread_mutex_lock(&s->lock);
	s->status = status;
	s->ended_ns = rl_now_ns();
	s->recovering = false;
	if (why != NULL && status == RL_STATUS_FAILED)
		s->error = *why;
	pthread_mutex_unlock(&s->lock);
	if (status == RL_STATUS_FAILED)
		rl_error("migration %s: %s of '%s' failed: %s", s->id,
			 s->target ? "target" : "source", s->vm_name, s->error.text);
	else
		rl_info("migration %s: %s of '%s': %s", s->id, s->target ? "target" : "source",
			s->vm_name, rl_status_name(status));
	pthread_mutex_lock(&s->d->lock);
	s->ended = true;
	/* A source that came back too late to be heard shall ask again. */
	rl_peer_close(&s->new_peer);
	pthread_mutex_unlock(&s->d->lock);
}

int
rl_session_cancel(struct rl_session *s, struct rl_err *err)
{
	const uint64_t one = 1;
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	if (s->committed) {
		rc = rl_err_set(
			err, -EALREADY,
			"migration %s is past its commit: only its two ends together decide now",
			s->id);
	} else if (s->ended_ns == 0) {
		s->status = RL_STATUS_CANCELLING;
		if (write(s->cancel_fd, &one, sizeof(one)) < 0)
			rc = rl_err_set(err, -errno, "cannot cancel: %s", strerror(errno));
	} else {
		rc = rl_err_set(err, -ESRCH, "migration %s has ended: %s", s->id,
				rl_status_name(s->status));
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

int
rl_session_decide(struct rl_session *s, enum rl_decision decision, struct rl_err *err)
{
	const uint64_t one = 1;
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	if (!s->recovering) {
		rc = rl_err_set(err, -EALREADY, "migration %s is %s: there is nothing to decide",
				s->id, rl_status_name(s->status));
	} else {
		s->decision = decision;
		if (write(s->relink_fd, &one, sizeof(one)) < 0)
			rc = rl_err_set(err, -errno, "cannot wake the migration: %s",
					strerror(errno));
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

bool
rl_session_cancelled(const struct rl_session *s)
{
	struct pollfd p = {.fd = s->cancel_fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* All of it is counters, which a worker writes meanwhile. */
static void
dirty_picture(const struct rl_dirty_stats *from, struct rl_dirty_stats *to)
{
	uint64_t count[sizeof(*to) / sizeof(uint64_t)];

	for (size_t i = 0; i < sizeof(count) / sizeof(count[0]); i++)
		count[i] = rl_count_read((const uint64_t *)from + i);
	memcpy(to, count, sizeof(*to));
}

int
rl_session_keys(const struct rl_session *s, struct rl_peer *peer, struct rl_keys **keys,
		struct rl_err *err)
{
	uint8_t master[RL_TLS_MASTER_BYTES];
	int rc;

	*keys = NULL;
	if (peer->tls == NULL)
		return 0;
	rc = rl_tls_master(peer->tls, s->uuid, master, err);
	if (rc == 0)
		rc = rl_keys_create(master, keys, err);
	explicit_bzero(master, sizeof(master));
	return rc;
}

static uint64_t
ms(uint64_t ns)
{
	return (ns + RL_NS_PER_MS / 2) / RL_NS_PER_MS;
}

json_t *
rl_parameters_json(const struct rl_parameters *p)
{
	return json_pack("{sI sI sI ss sb}", "max-bandwidth", (json_int_t)p->max_bandwidth,
			 "downtime-limit", (json_int_t)p->downtime_limit_ms, "timeout",
			 (json_int_t)p->timeout_s, "timeout-strategy",
			 p->timeout_strategy == RL_TIMEOUT_CANCEL ? "cancel" : "switchover",
			 "verify", p->verify);
}

static json_t *
ram_json(const struct rl_session *s)
{
	const struct rl_source_progress *p = &s->progress;
	uint64_t bytes = s->target ? s->sink_stats.bytes : p->bytes;
	uint64_t remaining = s->status == RL_STATUS_COMPLETED || s->target
				     ? 0
				     : (p->pending_pages + p->fill) * RL_PAGE_SIZE;

	return json_pack("{sI sI sI sI sI sI sI sI sf sI sI sI sI}", "transferred",
			 (json_int_t)bytes, "remaining", (json_int_t)remaining, "total",
			 (json_int_t)s->total_bytes, "duplicate", (json_int_t)p->duplicate_pages,
			 "normal", (json_int_t)p->normal_pages, "normal-bytes",
			 (json_int_t)(p->normal_pages * RL_PAGE_SIZE), "dirty-sync-count",
			 (json_int_t)p->dirty_sync_count, "dirty-pages-rate",
			 (json_int_t)s->dirty_pages_per_s, "mbps", (double)s->bytes_per_s * 8 / 1e6,
			 "pages-per-second", (json_int_t)s->pages_per_s, "page-size",
			 (json_int_t)RL_PAGE_SIZE, "downtime-bytes", (json_int_t)s->final_bytes,
			 "precopy-bytes", (json_int_t)(bytes - s->final_bytes));
}

static json_t *
dirty_json(const struct rl_session *s)
{
	const struct rl_dirty_stats *t = &s->dirty_stats;

	return json_pack("{sI sI sI sI sI sI sI sI sI sI sI sI}", "entries", (json_int_t)t->entries,
			 "pages", (json_int_t)t->pages, "collections", (json_int_t)t->collections,
			 "pressure", (json_int_t)t->pressure, "drains", (json_int_t)t->drains,
			 "overflows", (json_int_t)t->overflows, "ring-full-exits",
			 (json_int_t)s->ring_full_exits, "max-fill", (json_int_t)t->max_fill,
			 "reset-ns", (json_int_t)t->reset_ns, "harvest-ns",
			 (json_int_t)t->harvest_ns, "unknown-slot", (json_int_t)t->unknown_slot,
			 "out-of-slot", (json_int_t)t->out_of_slot);
}

static json_t *
link_json(const struct rl_session *s)
{
	const struct rl_sender_stats *l = &s->progress.link;
	const struct rl_sink_lane_stats *k = &s->sink_stats;

	if (s->target)
		return json_pack("{sI sI sI sI sI sI}", "packets", (json_int_t)k->packets,
				 "duplicates", (json_int_t)k->duplicates, "stale-records",
				 (json_int_t)k->stale_records, "bad-packets",
				 (json_int_t)k->bad_packets, "bad-records",
				 (json_int_t)k->bad_records, "acks", (json_int_t)k->acks);
	return json_pack("{sI sI sI sI sI sI sI sI sI sI}", "packets", (json_int_t)l->packets,
			 "lost", (json_int_t)l->lost, "spurious", (json_int_t)l->spurious,
			 "refused", (json_int_t)l->refused, "acked", (json_int_t)l->acked, "ptos",
			 (json_int_t)l->ptos, "srtt-us", (json_int_t)(l->srtt_ns / 1000), "window",
			 (json_int_t)l->window, "in-flight",
			 (json_int_t)s->progress.in_flight_packets, "bad-packets",
			 (json_int_t)s->progress.bad_packets);
}

/* The source, sink and dirty source end before the session does; keep their last picture. */
static void
refresh(struct rl_session *s)
{
	if (s->source != NULL)
		rl_source_progress(s->source, &s->progress);
	if (s->dirty != NULL)
		dirty_picture(rl_dirty_stats(s->dirty), &s->dirty_stats);
	if (s->sink != NULL)
		rl_sink_stats(s->sink, &s->sink_stats);
}

json_t *
rl_session_json(struct rl_session *s)
{
	json_t *j;
	uint64_t end;

	pthread_mutex_lock(&s->lock);
	refresh(s);
	end = s->ended_ns != 0 ? s->ended_ns : rl_now_ns();
	j = json_pack("{ss ss ss ss ss ss sI sI so so so}", "id", s->id, "vm", s->vm_name, "role",
		      s->target ? "target" : "source", "peer", s->peer, "mode", "precopy", "status",
		      rl_status_name(s->status), "total-time", (json_int_t)ms(end - s->born_ns),
		      "setup-time", (json_int_t)ms(s->setup_ns), "ram", ram_json(s), "dirty",
		      dirty_json(s), "link", link_json(s));
	if (s->status == RL_STATUS_FAILED || s->error.code != 0)
		json_object_set_new(j, "error-desc", rl_peer_text(s->error.text));
	if (s->downtime_ns != 0)
		json_object_set_new(j, "downtime", json_integer((json_int_t)ms(s->downtime_ns)));
	if (s->status == RL_STATUS_ACTIVE)
		json_object_set_new(j, "expected-downtime",
				    json_integer((json_int_t)ms(s->expected_downtime_ns)));
	if (s->recovering)
		json_object_set_new(j, "recovering", json_true());
	json_object_set_new(j, "verified",
			    s->verified < 0 ? json_null() : json_boolean(s->verified));
	json_object_set_new(j, "parameters", rl_parameters_json(&s->param));
	pthread_mutex_unlock(&s->lock);
	return j;
}
