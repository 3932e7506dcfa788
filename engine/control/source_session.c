/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The source of a migration, step by step: agree with the target, send all pages while the guest runs, pause,
 * send the rest, commit. Until the commit any failure leaves the guest running here; after it only the
 * target knows, and is asked until it answers.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stats.h"
#include "control/daemon.h"
#include "control/notice.h"
#include "control/peer.h"
#include "control/session.h"
#include "control/units.h"
#include "crypto/keys.h"
#include <ramlift/version.h>

#define CONNECT_NS (5 * RL_NS_PER_S)
#define ANSWER_NS  (30 * RL_NS_PER_S)
#define DRAIN_NS   (60 * RL_NS_PER_S)
#define SILENCE_NS (10 * RL_NS_PER_S) /* packets in flight, no ACK: the data path is dead */
#define SAMPLE_NS  (50 * RL_NS_PER_MS)
#define REPORT_NS  RL_NS_PER_S
#define PAUSE_NS   (10 * RL_NS_PER_S)
#define RETRY_NS   (500 * RL_NS_PER_MS)

/* What the thread holds; released in reverse by source_release(). */
struct source {
	struct rl_session *s;
	struct rl_daemon *d;
	struct rl_vm *vm;
	struct rl_peer peer;
	struct rl_nic_path *path;
	struct rl_keys *keys; /* NULL: insecure lab */
	struct rl_source *src;
	struct rl_dirty *dirty;
	uint32_t receiver; /* ours, for ACKs */
	uint32_t n_lanes;
	bool begun, attached, vmm_dead;
	bool offered;               /* the target has the device state: it may be READY */
	struct rl_parameters param; /* as apply_parameters() last saw them */
	uint64_t overflows;         /* of dirty rings, after which the log was started anew */

	/* bandwidth */
	uint64_t sample_ns, sample_bytes, report_ns;
	uint64_t report_bytes, report_pages, report_entries;
	uint64_t bandwidth; /* bytes/s while there was something to send */
	uint64_t last_acked, last_ack_ns;
	uint64_t pause_ns, pause_bytes;
};

static uint64_t
after(uint64_t ns)
{
	return rl_now_ns() + ns;
}

static json_t *
regions_json(const struct rl_ram *ram)
{
	json_t *a = json_array();

	for (uint32_t i = 0; i < ram->n; i++)
		json_array_append_new(a,
				      json_pack("{sI sI sI}", "gpn", (json_int_t)ram->region[i].gpn,
						"pages", (json_int_t)ram->region[i].n_pages,
						"page-size", (json_int_t)ram->region[i].page_size));
	return a;
}

static int
connect_peer(struct source *x, uint64_t deadline_ns, struct rl_err *err)
{
	struct sockaddr_storage to;
	socklen_t len;
	int rc = rl_parse_endpoint(x->s->peer, RL_DEFAULT_PORT, &to, &len, err);

	if (rc == 0)
		rc = rl_peer_connect(&x->peer, &to, len, deadline_ns, err);
	if (rc == 0)
		rc = rl_peer_secure(&x->peer, x->d->tls, false, deadline_ns, err);
	return rc != 0 ? rl_err_prefix(err, "cannot reach %s", x->s->peer) : 0;
}

/* hello -> welcome: versions, guest memory, lanes, ports. */
static int
greet(struct source *x, struct rl_nic_peer *port, struct rl_source_opts *opts, struct rl_err *err)
{
	struct rl_session *s = x->s;
	struct sockaddr_storage from = {0};
	socklen_t from_len = sizeof(from);
	struct rl_peer_msg m;
	json_int_t lanes = 0, receiver = 0;
	int rc;

	rc = connect_peer(x, after(CONNECT_NS), err);
	if (rc != 0)
		return rc;
	x->receiver = rl_workers_receiver(x->d->workers);
	rc = rl_peer_send(&x->peer,
			  json_pack("{ss si ss ss ss sI sI so so sb}", "type", "hello", "wire",
				    RAMLIFT_WIRE_VERSION, "version", RAMLIFT_VERSION, "session",
				    s->id, "vm", s->vm_name, "lanes",
				    (json_int_t)rl_workers_count(x->d->workers), "receiver",
				    (json_int_t)x->receiver, "regions", regions_json(&x->vm->ram),
				    "port", rl_daemon_port_json(x->d), "verify", x->param.verify),
			  NULL, 0, after(ANSWER_NS), err);
	if (rc == 0)
		rc = rl_peer_expect(&x->peer, "welcome", &m, after(ANSWER_NS), err);
	if (rc != 0)
		return rl_err_prefix(err, "target %s", s->peer);
	if (json_unpack(m.json, "{sI sI}", "lanes", &lanes, "receiver", &receiver) != 0 ||
	    lanes < 1 || lanes > (json_int_t)rl_workers_count(x->d->workers) ||
	    !rl_is_pow2((uint64_t)lanes) || receiver < 0 || receiver > UINT32_MAX)
		rc = rl_err_set(err, -EPROTO, "target %s: malformed welcome", s->peer);
	x->n_lanes = opts->n_lanes = (uint32_t)lanes;
	opts->receiver = (uint32_t)receiver;
	if (rc == 0 && getpeername(x->peer.fd, (struct sockaddr *)&from, &from_len) != 0)
		rc = rl_err_set(err, -ECONNRESET, "target %s has gone", s->peer);
	if (rc == 0)
		rc = rl_daemon_port_parse(json_object_get(m.json, "port"), &from, port,
					  &opts->max_payload, &opts->credit, err);
	opts->max_payload = rl_min32(opts->max_payload, rl_nic_info(x->d->nic)->max_payload);
	rl_peer_msg_free(&m);
	return rc;
}

static void
source_rx(void *obj, uint32_t lane, const uint8_t *data, uint32_t len, uint64_t now_ns)
{
	rl_source_rx(obj, lane, data, len, now_ns);
}

static uint32_t
source_turn(void *obj, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns)
{
	return rl_source_turn(obj, lane, now_ns, wake_ns);
}

static const struct rl_task_ops source_ops = {.rx = source_rx, .turn = source_turn};

static int
start_log(struct source *x, struct rl_err *err)
{
	struct rl_dirty_opts opts = {.pending = rl_source_pending(x->src)};
	int rc = rl_vm_call(x->vm, RL_VMM_LOG_START, NULL, 0, ANSWER_NS, err);

	if (rc != 0)
		return rl_err_prefix(err, "starting the dirty log");
	rl_vm_dirty_opts(x->vm, &opts);
	return rl_dirty_open(&opts, &x->dirty, err);
}

static int
setup(struct source *x, struct rl_err *err)
{
	struct rl_session *s = x->s;
	struct rl_source_opts opts = {.nic = x->d->nic,
				      .max_bandwidth = x->param.max_bandwidth,
				      .cc = x->d->cfg.congestion_control};
	struct rl_nic_peer port;
	int rc;

	rc = rl_daemon_take_vm(x->d, s->vm_name, RL_VMM_RUNNING, &x->vm, err);
	if (rc == 0)
		rc = rl_nic_check(x->d->nic, err);
	if (rc == 0)
		rc = greet(x, &port, &opts, err);
	if (rc == 0)
		rc = rl_session_keys(s, &x->peer, &x->keys, err);
	if (rc == 0)
		rc = rl_nic_path_open(x->d->nic, &port, &x->path, err);
	if (rc == 0)
		rc = rl_ram_map(&x->vm->ram, false, err);
	if (rc != 0)
		return rc;
	opts.path = x->path;
	opts.keys = x->keys;
	opts.ram = &x->vm->ram;
	rc = rl_source_create(&opts, &x->src, err);
	if (rc == 0)
		rc = rl_vm_session_begin(x->vm, s->uuid, false, s->peer, err);
	if (rc != 0)
		return rc;
	x->begun = true;
	rc = start_log(x, err);
	if (rc != 0)
		return rc;
	rl_source_start(x->src, x->dirty);
	pthread_mutex_lock(&s->lock);
	s->source = x->src;
	s->dirty = x->dirty;
	s->total_bytes = x->vm->ram.n_pages * RL_PAGE_SIZE;
	pthread_mutex_unlock(&s->lock);
	rc = rl_workers_attach(x->d->workers, x->receiver, &source_ops, x->src, x->n_lanes);
	if (rc != 0)
		return rl_err_set(err, rc, "too many migrations at once; wait for one to end");
	x->attached = true;
	return 0;
}

/* How many pages fit into downtime-limit at the bandwidth seen: QEMU's threshold_size. */
static void
update_threshold(struct source *x, const struct rl_source_progress *p, uint64_t now)
{
	struct rl_session *s = x->s;
	uint64_t span = now - x->sample_ns;
	uint64_t pages;

	if (span < SAMPLE_NS)
		return;
	/* A sender with nothing to send says nothing about the link. */
	if (p->pending_pages > 0 || x->bandwidth == 0) {
		double bytes = (double)(p->link.acked_bytes - x->sample_bytes);
		uint64_t bw = (uint64_t)(bytes * RL_NS_PER_S / (double)span);

		x->bandwidth = rl_max64(bw, x->bandwidth - x->bandwidth / 8);
	}
	x->sample_ns = now;
	x->sample_bytes = p->link.acked_bytes;
	pages = x->bandwidth * x->param.downtime_limit_ms / 1000 / RL_PAGE_SIZE;
	rl_source_set_threshold(x->src, pages);
	pthread_mutex_lock(&s->lock);
	if (x->bandwidth > 0)
		s->expected_downtime_ns = (p->pending_pages + p->fill) * RL_PAGE_SIZE *
					  RL_NS_PER_MS / (x->bandwidth / 1000 + 1);
	pthread_mutex_unlock(&s->lock);
}

/* Once a second: rates for the statistics, a sign of life for the target. */
static int
report(struct source *x, const struct rl_source_progress *p, uint64_t now, struct rl_err *err)
{
	struct rl_session *s = x->s;
	uint64_t entries = rl_count_read(&rl_dirty_stats(x->dirty)->entries) + p->fill;
	uint64_t pages = p->normal_pages + p->duplicate_pages;
	double span = (double)(now - x->report_ns) / 1e9;

	if (now - x->report_ns < REPORT_NS)
		return 0;
	pthread_mutex_lock(&s->lock);
	s->bytes_per_s = (uint64_t)((double)(p->bytes - x->report_bytes) / span);
	s->pages_per_s = (uint64_t)((double)(pages - x->report_pages) / span);
	s->dirty_pages_per_s = entries > x->report_entries
				       ? (uint64_t)((double)(entries - x->report_entries) / span)
				       : 0;
	s->ring_full_exits = x->vm->shared->ring_full_exits;
	pthread_mutex_unlock(&s->lock);
	x->report_ns = now;
	x->report_bytes = p->bytes;
	x->report_pages = pages;
	x->report_entries = entries;
	return rl_peer_send(&x->peer,
			    json_pack("{ss sI sI}", "type", "progress", "normal",
				      (json_int_t)p->normal_pages, "duplicate",
				      (json_int_t)p->duplicate_pages),
			    NULL, 0, after(ANSWER_NS), err);
}

static void
apply_parameters(struct source *x)
{
	struct rl_session *s = x->s;

	pthread_mutex_lock(&s->lock);
	if (s->param_changed) {
		x->param = s->param;
		rl_source_set_max_bandwidth(x->src, x->param.max_bandwidth);
		s->param_changed = false;
		x->sample_ns = 0; /* a new threshold at once */
	}
	pthread_mutex_unlock(&s->lock);
}

/* The target has nothing to say until its next answer is due: whatever comes before is the end. */
static int
peer_left(struct source *x, struct rl_err *err)
{
	struct pollfd p = {.fd = x->peer.fd, .events = POLLIN};
	struct rl_peer_msg m;
	int rc;

	if (poll(&p, 1, 0) <= 0)
		return 0;
	rc = rl_peer_recv(&x->peer, &m, after(ANSWER_NS), err);
	if (rc == 0) {
		rc = rl_err_set(err, -EPROTO, "unexpected '%.32s'", m.type);
		rl_peer_msg_free(&m);
	}
	return rl_err_prefix(err, "target %s", x->s->peer);
}

/* Is everything that we depend on still there? */
static int
check_health(struct source *x, const struct rl_source_progress *p, uint64_t now, struct rl_err *err)
{
	int rc;

	if (rl_session_cancelled(x->s))
		return rl_err_set(err, -ECANCELED, "cancelled");
	if (rl_vm_gone(x->vm)) {
		x->vmm_dead = rl_vm_dead(x->vm, 1000);
		return rl_err_set(err, -ESRCH, "the VMM of '%s' %s", x->s->vm_name,
				  x->vmm_dead ? "has died, and the guest with it"
					      : "closed its socket; the guest is still its own");
	}
	if (rl_source_events(x->src) & RL_SOURCE_FAILED)
		return rl_err_set(err, rl_source_error(x->src), "the dirty log failed: %s",
				  strerror(-rl_source_error(x->src)));
	rc = peer_left(x, err);
	if (rc != 0)
		return rc;
	if (p->link.acked != x->last_acked || p->in_flight_packets == 0) {
		x->last_acked = p->link.acked;
		x->last_ack_ns = now;
	}
	if (now - x->last_ack_ns > SILENCE_NS)
		return rl_err_set(
			err, -ETIMEDOUT,
			"no packet was acknowledged for %llu s although the control channel "
			"works: does a firewall drop UDP port %u, or is the MTU too large?",
			SILENCE_NS / RL_NS_PER_S, rl_nic_info(x->d->nic)->udp_port);
	return 0;
}

/* Wait for events of the source, at most @ms; cancel and a dead VMM or peer end the wait as well. */
static void
wait_event(struct source *x, int timeout_ms)
{
	struct pollfd p[4] = {
		{.fd = rl_source_event_fd(x->src), .events = POLLIN},
		{.fd = x->peer.fd, .events = POLLIN},
		{.fd = x->s->cancel_fd, .events = POLLIN},
		{.fd = x->vm->fd, .events = POLLRDHUP},
	};
	uint64_t n;

	if (poll(p, 4, timeout_ms) > 0 && p[0].revents != 0 &&
	    read(p[0].fd, &n, sizeof(n)) != (ssize_t)sizeof(n))
		return; /* raced with another wake-up: the caller looks at the events anyway */
}

/* An overflow left pages that KVM no longer reports: only a log started anew protects them again. */
static int
relog(struct source *x, struct rl_err *err)
{
	uint64_t overflows = rl_count_read(&rl_dirty_stats(x->dirty)->overflows);
	int rc;

	if (overflows == x->overflows)
		return 0;
	rl_warn("migration %s: a dirty ring overflowed; all pages are sent again", x->s->id);
	rc = rl_vm_call(x->vm, RL_VMM_LOG_STOP, NULL, 0, ANSWER_NS, err);
	if (rc == 0)
		rc = rl_vm_call(x->vm, RL_VMM_LOG_START, NULL, 0, ANSWER_NS, err);
	if (rc != 0)
		return rl_err_prefix(err, "restarting the dirty log after an overflow");
	rl_dirty_relogged(x->dirty, overflows);
	x->overflows = overflows;
	return 0;
}

/* Pre-copy until what is left fits into downtime-limit. */
static int
iterate(struct source *x, struct rl_err *err)
{
	struct rl_session *s = x->s;
	struct rl_source_progress p;
	uint64_t start = rl_now_ns();
	int rc = 0;

	x->sample_ns = x->report_ns = x->last_ack_ns = start;
	while (rc == 0 && !(rl_source_events(x->src) & RL_SOURCE_CONVERGED)) {
		uint64_t now;

		wait_event(x, 20);
		now = rl_now_ns();
		rl_source_progress(x->src, &p);
		apply_parameters(x);
		rc = check_health(x, &p, now, err);
		if (rc != 0)
			break;
		update_threshold(x, &p, now);
		rc = report(x, &p, now, err);
		if (rc == 0)
			rc = relog(x, err);
		if (x->param.timeout_s == 0 || now - start < x->param.timeout_s * RL_NS_PER_S)
			continue;
		if (x->param.timeout_strategy == RL_TIMEOUT_SWITCHOVER)
			break;
		rc = rl_err_set(
			err, -ETIMEDOUT,
			"not converged within %llu s: the guest dirties %llu pages/s; raise "
			"max-bandwidth or downtime-limit, or use timeout-strategy switchover",
			(unsigned long long)x->param.timeout_s,
			(unsigned long long)s->dirty_pages_per_s);
	}
	return rc;
}

static int
pause_guest(struct source *x, struct rl_err *err)
{
	struct rl_source_progress p;
	int rc;

	rl_session_set_status(x->s, RL_STATUS_DEVICE);
	rl_source_progress(x->src, &p);
	x->pause_bytes = p.bytes;
	x->pause_ns = rl_now_ns();
	rc = rl_vm_call(x->vm, RL_VMM_PAUSE, NULL, 0, PAUSE_NS, err);
	if (rc != 0)
		return rl_err_prefix(err, "pausing the guest");
	rl_vm_set_phase(x->vm, RL_VMM_PAUSED);
	return 0;
}

/* The guest is still: send what is left until the target has acknowledged it all. */
static int
drain(struct source *x, struct rl_err *err)
{
	uint64_t deadline = after(DRAIN_NS);
	struct rl_source_progress p;
	int rc = 0;

	x->last_ack_ns = rl_now_ns();
	rl_source_set_phase(x->src, RL_SOURCE_FINAL);
	while (rc == 0 && !(rl_source_events(x->src) & RL_SOURCE_DRAINED)) {
		uint64_t now;

		wait_event(x, 20);
		now = rl_now_ns();
		rl_source_progress(x->src, &p);
		apply_parameters(x);
		rc = check_health(x, &p, now, err);
		if (rc == 0)
			rc = report(x, &p, now, err);
		if (rc == 0 && now > deadline)
			rc = rl_err_set(err, -ETIMEDOUT,
					"the last pages were not through after %llu s",
					DRAIN_NS / RL_NS_PER_S);
	}
	rl_source_progress(x->src, &p);
	pthread_mutex_lock(&x->s->lock);
	x->s->final_bytes = p.bytes - x->pause_bytes;
	pthread_mutex_unlock(&x->s->lock);
	return rc;
}

static int
send_digest(struct source *x, struct rl_err *err)
{
	uint64_t blocks = RL_RAM_BLOCKS(&x->vm->ram);
	uint64_t *digest = calloc(blocks, sizeof(*digest));
	int rc;

	if (digest == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for the digests");
	rl_ram_digest(&x->vm->ram, NULL, digest);
	for (uint64_t i = 0; i < blocks; i++)
		digest[i] = htole64(digest[i]);
	rc = rl_peer_send(&x->peer, json_pack("{ss}", "type", "digest"), digest,
			  blocks * sizeof(*digest), after(ANSWER_NS), err);
	free(digest);
	return rc;
}

/* Everything but the decision: device state over, target READY. */
static int
prepare(struct source *x, struct rl_err *err)
{
	struct rl_session *s = x->s;
	struct rl_peer_msg m;
	uint8_t *state = NULL;
	uint64_t size;
	int rc;

	rc = rl_vm_state_get(x->vm, &state, &size, err);
	if (rc != 0)
		return rl_err_prefix(err, "saving device state");
	x->offered = true;
	rc = rl_peer_send(&x->peer,
			  json_pack("{ss sb}", "type", "switchover", "verify", x->param.verify),
			  state, size, after(ANSWER_NS), err);
	free(state);
	if (rc == 0 && x->param.verify)
		rc = send_digest(x, err);
	if (rc == 0)
		rc = rl_peer_expect(&x->peer, "ready", &m, after(DRAIN_NS), err);
	if (rc != 0)
		return rl_err_prefix(err, "target %s", s->peer);
	pthread_mutex_lock(&s->lock);
	s->verified = x->param.verify ? json_is_true(json_object_get(m.json, "verified")) : -1;
	pthread_mutex_unlock(&s->lock);
	rl_peer_msg_free(&m);
	return 0;
}

/*
 * The point of no return. The VMM is told first, so that it keeps the guest still even if this process dies
 * now. A VMM that is dead has no guest to keep: then the copy at the target is the only one, and it shall run.
 */
static int
commit_here(struct source *x, struct rl_err *err)
{
	struct rl_session *s = x->s;
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = rl_session_cancelled(s) ? rl_err_set(err, -ECANCELED, "cancelled") : 0;
	s->committed = rc == 0;
	pthread_mutex_unlock(&s->lock);
	if (rc != 0)
		return rc;
	rc = rl_vm_call(x->vm, RL_VMM_COMMITTING, NULL, 0, ANSWER_NS, err);
	x->vmm_dead = rc != 0 && rl_vm_dead(x->vm, 1000);
	if (x->vmm_dead && !rl_vm_guest_runs(x->vm)) {
		rl_warn("migration %s: the VMM died while paused; its guest goes on at %s", s->id,
			s->peer);
		return 0;
	}
	if (rc == 0) {
		rl_vm_set_phase(x->vm, RL_VMM_COMMITTED);
		/* Our COMMIT has not left yet: a target that is gone by now will never see it. */
		rc = peer_left(x, err);
	}
	if (rc == 0)
		return 0;
	pthread_mutex_lock(&s->lock);
	s->committed = false;
	pthread_mutex_unlock(&s->lock);
	return rc;
}

/* Ask the target to run the guest. 0: it runs. -ENOENT: it never will. Else: not known. */
static int
commit_there(struct source *x, struct rl_err *err)
{
	struct rl_peer_msg m;
	const char *state;
	int rc;

	rc = rl_peer_send(&x->peer, json_pack("{ss ss}", "type", "commit", "session", x->s->id),
			  NULL, 0, after(ANSWER_NS), err);
	if (rc == 0)
		rc = rl_peer_expect(&x->peer, "outcome", &m, after(ANSWER_NS), err);
	if (rc != 0)
		return rc == -ENOENT ? -EAGAIN : rc;
	state = json_string_value(json_object_get(m.json, "state"));
	if (state != NULL && strcmp(state, "running") == 0) {
		rc = 0;
	} else if (state != NULL && strcmp(state, "aborted") == 0) {
		const char *text = json_string_value(json_object_get(m.json, "text"));

		rc = rl_err_set(err, -ENOENT, "the target lost the guest before it ran: %s",
				text != NULL ? text : "no reason given");
	} else {
		rc = rl_err_set(err, -EAGAIN, "the target answers '%.32s'",
				state != NULL ? state : "nothing");
	}
	rl_peer_msg_free(&m);
	return rc;
}

/* One attempt to learn the outcome over a fresh connection; results as commit_there(). */
static int
ask_outcome(struct source *x, struct rl_err *err)
{
	struct rl_peer_msg m;
	const char *state;
	int rc;

	rl_peer_close(&x->peer);
	rc = connect_peer(x, after(CONNECT_NS), err);
	if (rc == 0)
		rc = rl_peer_send(&x->peer,
				  json_pack("{ss si ss}", "type", "outcome", "wire",
					    RAMLIFT_WIRE_VERSION, "session", x->s->id),
				  NULL, 0, after(ANSWER_NS), err);
	if (rc == 0)
		rc = rl_peer_expect(&x->peer, "outcome", &m, after(ANSWER_NS), err);
	if (rc != 0)
		return rc == -ENOENT ? -EAGAIN : rc;
	state = json_string_value(json_object_get(m.json, "state"));
	if (state == NULL)
		state = "";
	if (strcmp(state, "running") == 0)
		rc = 0;
	else if (strcmp(state, "aborted") == 0)
		rc = rl_err_set(err, -ENOENT, "the target lost the guest before it ran");
	else if (strcmp(state, "ready") == 0)
		rc = commit_there(x, err);
	else
		rc = rl_err_set(
			err, -EAGAIN,
			"the target does not know of this migration: its VMM is not connected to "
			"ramliftd there");
	rl_peer_msg_free(&m);
	return rc;
}

/* Committed and the word is out: ask until the peer answers. @rc: what the first try gave. */
static int
resolve(struct source *x, int rc, struct rl_err *err)
{
	struct rl_session *s = x->s;
	enum rl_decision decision;

	while (rc != 0 && rc != -ENOENT) {
		pthread_mutex_lock(&s->lock);
		if (!s->recovering || strcmp(s->error.text, err->text) != 0)
			rl_warn("migration %s: committed, asking %s for the outcome: %s", s->id,
				s->peer, err->text);
		s->recovering = true;
		s->error = *err;
		decision = s->decision;
		pthread_mutex_unlock(&s->lock);
		if (decision == RL_DECIDE_DISCARD) {
			rc = 0;
			break;
		}
		if (decision == RL_DECIDE_RESUME) {
			rc = rl_err_set(err, -ENOENT, "the operator resumed the guest here");
			break;
		}
		/* Cancelled means here: the daemon ends. The VMM keeps the question for the next one. */
		if (rl_wait_readable(s->cancel_fd, -1, after(RETRY_NS)) == 0)
			return rl_err_set(
				err, -ECANCELED,
				"ramliftd ends; the outcome will be asked for when it is back");
		rc = ask_outcome(x, err);
	}
	pthread_mutex_lock(&s->lock);
	s->recovering = false;
	if (rc == 0)
		memset(&s->error, 0, sizeof(s->error));
	pthread_mutex_unlock(&s->lock);
	return rc;
}

/* Stop sending; keep the last picture for the statistics. */
static void
release_flow(struct source *x)
{
	struct rl_session *s = x->s;

	if (x->attached)
		rl_workers_detach(x->d->workers, x->receiver);
	x->attached = false;
	pthread_mutex_lock(&s->lock);
	if (s->source != NULL)
		rl_source_progress(x->src, &s->progress);
	if (s->dirty != NULL)
		s->dirty_stats = *rl_dirty_stats(x->dirty);
	if (x->vm != NULL && x->vm->shared != NULL)
		s->ring_full_exits = x->vm->shared->ring_full_exits;
	s->source = NULL;
	s->dirty = NULL;
	pthread_mutex_unlock(&s->lock);
	rl_dirty_close(x->dirty);
	rl_source_destroy(x->src);
	rl_keys_destroy(x->keys);
	x->dirty = NULL;
	x->src = NULL;
	x->keys = NULL;
	if (x->path != NULL)
		rl_nic_path_close(x->path);
	x->path = NULL;
}

static void
source_release(struct source *x)
{
	release_flow(x);
	rl_peer_close(&x->peer);
	if (x->vm != NULL) {
		rl_ram_unmap(&x->vm->ram);
		rl_daemon_put_vm(x->d, x->vm);
	}
}

/* Not committed: the target forgets, the guest runs on here. */
static void
give_up(struct source *x, const struct rl_err *why)
{
	struct rl_err err = {0};

	release_flow(x);
	rl_peer_send_error(&x->peer, why);
	if (x->begun && !x->vmm_dead && rl_vm_session_end(x->vm, RL_VMM_ABORTED, &err) != 0)
		rl_warn("migration %s: telling the VMM to go on: %s", x->s->id, err.text);
}

static void
finish(struct source *x, int rc, const struct rl_err *why)
{
	struct rl_session *s = x->s;
	struct rl_notice notice;
	struct rl_daemon *d = x->d;
	struct rl_err err = {0};
	bool given_up = !s->committed || rc == -ENOENT;

	rl_notice_init(&notice, s);
	if (rc == 0) {
		pthread_mutex_lock(&s->lock);
		if (x->pause_ns != 0)
			s->downtime_ns = rl_now_ns() - x->pause_ns;
		pthread_mutex_unlock(&s->lock);
		release_flow(x);
		if (!x->vmm_dead && rl_vm_session_end(x->vm, RL_VMM_COMPLETED, &err) != 0)
			rl_warn("migration %s: telling the VMM that its guest moved: %s", s->id,
				err.text);
		source_release(x);
		rl_session_end(s, RL_STATUS_COMPLETED, NULL);
		return;
	}
	/* Ending in doubt (the daemon stops) leaves the VMM as it is: committed. */
	if (given_up)
		give_up(x, why);
	source_release(x);
	rl_session_end(
		s, rc == -ECANCELED && !s->committed ? RL_STATUS_CANCELLED : RL_STATUS_FAILED, why);
	/* The target may be READY and not have heard us, also one that said it failed: its VMM decides. */
	if (given_up && x->offered && rc != -ENOENT)
		rl_notice_abort(d, &notice);
}

void *
rl_source_session_main(void *session)
{
	struct rl_session *s = session;
	struct rl_daemon *d = s->d;
	struct source x = {.s = s, .d = d, .peer = {.fd = -1, .cancel_fd = s->cancel_fd}};
	struct rl_err err = {0};
	int rc;

	pthread_mutex_lock(&s->lock);
	x.param = s->param;
	pthread_mutex_unlock(&s->lock);
	rc = setup(&x, &err);
	if (rc == 0) {
		rl_session_set_status(s, RL_STATUS_ACTIVE);
		rc = iterate(&x, &err);
	}
	if (rc == 0)
		rc = pause_guest(&x, &err);
	if (rc == 0)
		rc = drain(&x, &err);
	if (rc == 0)
		rc = prepare(&x, &err);
	if (rc == 0)
		rc = commit_here(&x, &err);
	if (rc == 0)
		rc = resolve(&x, commit_there(&x, &err), &err);
	finish(&x, rc, &err);
	rl_daemon_thread_done(d);
	return NULL;
}

void *
rl_source_session_recover(void *session)
{
	struct rl_session *s = session;
	struct rl_daemon *d = s->d;
	struct source x = {.s = s, .d = d, .peer = {.fd = -1, .cancel_fd = s->cancel_fd}};
	struct rl_err err = {0};
	int rc;

	pthread_mutex_lock(&s->lock);
	s->committed = true;
	pthread_mutex_unlock(&s->lock);
	rc = rl_daemon_take_vm(d, s->vm_name, RL_VMM_COMMITTED, &x.vm, &err);
	if (rc == 0) {
		x.begun = true;
		rl_session_set_status(s, RL_STATUS_DEVICE);
		rc = resolve(&x, ask_outcome(&x, &err), &err);
	}
	finish(&x, rc, &err);
	rl_daemon_thread_done(d);
	return NULL;
}
