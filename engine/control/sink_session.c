/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The target of a migration: check that the guest fits, receive its memory, load its state, answer READY, and
 * run it when - and only when - the source commits. Once READY, a lost connection decides nothing: the
 * session keeps the guest still and waits for the source to come back.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <ramlift/version.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/daemon.h"
#include "control/peer.h"
#include "control/session.h"
#include "control/units.h"
#include "control/uuid.h"
#include "crypto/keys.h"

#define HELLO_NS  (5 * RL_NS_PER_S)
#define ANSWER_NS (30 * RL_NS_PER_S)
#define RUN_NS    (10 * RL_NS_PER_S)
/* The source reports every second, but not while its VMM pauses and saves its state. */
#define SILENCE_NS (30 * RL_NS_PER_S)

struct sink {
	struct rl_session *s;
	struct rl_daemon *d;
	struct rl_vm *vm;
	struct rl_peer peer;
	struct rl_peer_msg hello;
	struct sockaddr_storage from;
	struct rl_nic_path *path;
	struct rl_keys *keys; /* NULL: insecure lab */
	struct rl_sink *sink;
	uint32_t receiver;
	bool begun, attached;
};

struct accepted {
	struct rl_daemon *d;
	int fd;
};

static uint64_t
after(uint64_t ns)
{
	return rl_now_ns() + ns;
}

static void
sink_rx(void *obj, uint32_t lane, const uint8_t *data, uint32_t len, uint64_t now_ns)
{
	rl_sink_rx(obj, lane, data, len, now_ns);
}

static uint32_t
sink_turn(void *obj, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns)
{
	return rl_sink_turn(obj, lane, now_ns, wake_ns);
}

static const struct rl_task_ops sink_ops = {.rx = sink_rx, .turn = sink_turn};

/* The source's guest memory must be this VM's, region by region. */
static int
check_regions(const struct rl_ram *ram, json_t *regions, struct rl_err *err)
{
	uint64_t theirs = 0;
	json_t *item;
	size_t i;

	json_array_foreach(regions, i, item)
	{
		json_int_t pages = json_integer_value(json_object_get(item, "pages"));

		if (pages <= 0 || pages > (json_int_t)1 << 40)
			return rl_err_set(err, -EPROTO, "malformed region in hello");
		theirs += (uint64_t)pages;
	}
	if (theirs != ram->n_pages)
		return rl_err_set(
			err, -EINVAL,
			"the guest has %llu MiB of memory, the VM waiting here %llu MiB; start "
			"it with the source's memory size",
			(unsigned long long)(theirs >> 8), (unsigned long long)(ram->n_pages >> 8));
	if (json_array_size(regions) != ram->n)
		return rl_err_set(err, -EINVAL,
				  "the guest's memory has %zu regions, here %u; the VMMs "
				  "must lay it out alike",
				  json_array_size(regions), ram->n);
	json_array_foreach(regions, i, item)
	{
		const struct rl_region *r = &ram->region[i];
		json_int_t size = json_integer_value(json_object_get(item, "page-size"));

		if (json_integer_value(json_object_get(item, "gpn")) != (json_int_t)r->gpn ||
		    json_integer_value(json_object_get(item, "pages")) != (json_int_t)r->n_pages)
			return rl_err_set(err, -EINVAL,
					  "region %zu differs; the VMMs must lay out guest "
					  "memory alike",
					  i);
		if (size != (json_int_t)r->page_size)
			return rl_err_set(
				err, -EINVAL,
				"the guest is backed by pages of %lld KiB, the VM waiting here "
				"by pages of %u KiB; start it with the same backing",
				(long long)(size >> 10), r->page_size >> 10);
	}
	return 0;
}

static int
parse_hello(struct sink *k, uint32_t *lanes, uint32_t *receiver, struct rl_err *err)
{
	json_int_t l = 0, r = 0;

	if (json_unpack(k->hello.json, "{sI sI}", "lanes", &l, "receiver", &r) != 0 || l < 1 ||
	    l > RL_MAX_LANES || !rl_is_pow2((uint64_t)l) || r < 0 || r > UINT32_MAX)
		return rl_err_set(err, -EPROTO, "malformed hello");
	*lanes = rl_min32((uint32_t)l, rl_workers_count(k->d->workers));
	*receiver = (uint32_t)r;
	return 0;
}

static int
prepare_memory(struct sink *k, struct rl_err *err)
{
	int rc = rl_ram_map(&k->vm->ram, true, err);

	if (rc == 0 && !k->vm->zeroed)
		rc = rl_ram_discard(&k->vm->ram, err);
	k->vm->zeroed = false;
	return rc;
}

static int
setup(struct sink *k, struct rl_err *err)
{
	struct rl_session *s = k->s;
	struct rl_sink_opts opts = {.nic = k->d->nic};
	struct rl_nic_peer port;
	uint32_t unused;
	int rc;

	rc = parse_hello(k, &opts.n_lanes, &opts.receiver, err);
	if (rc == 0)
		rc = rl_daemon_port_parse(json_object_get(k->hello.json, "port"), &k->from, &port,
					  &unused, &unused, err);
	if (rc == 0)
		rc = rl_daemon_take_vm(k->d, s->vm_name, RL_VMM_INCOMING, &k->vm, err);
	if (rc == 0)
		rc = check_regions(&k->vm->ram, json_object_get(k->hello.json, "regions"), err);
	if (rc == 0)
		rc = rl_nic_check(k->d->nic, err);
	if (rc == 0)
		rc = rl_session_keys(s, &k->peer, &k->keys, err);
	if (rc == 0)
		rc = rl_nic_path_open(k->d->nic, &port, &k->path, err);
	if (rc == 0)
		rc = prepare_memory(k, err);
	if (rc != 0)
		return rc;
	opts.path = k->path;
	opts.keys = k->keys;
	opts.credit = rl_nic_info(k->d->nic)->rx_ring;
	opts.ram = &k->vm->ram;
	rc = rl_sink_create(&opts, &k->sink, err);
	if (rc == 0)
		rc = rl_vm_session_begin(k->vm, s->uuid, true, s->peer, err);
	if (rc != 0)
		return rc;
	k->begun = true;
	pthread_mutex_lock(&s->lock);
	s->sink = k->sink;
	s->total_bytes = k->vm->ram.n_pages * RL_PAGE_SIZE;
	pthread_mutex_unlock(&s->lock);
	k->receiver = rl_workers_receiver(k->d->workers);
	rc = rl_workers_attach(k->d->workers, k->receiver, &sink_ops, k->sink, opts.n_lanes);
	if (rc != 0)
		return rl_err_set(err, rc, "too many migrations at once; wait for one to end");
	k->attached = true;
	return rl_peer_send(&k->peer,
			    json_pack("{ss ss sI sI so}", "type", "welcome", "version",
				      RAMLIFT_VERSION, "lanes", (json_int_t)opts.n_lanes,
				      "receiver", (json_int_t)k->receiver, "port",
				      rl_daemon_port_json(k->d)),
			    NULL, 0, after(ANSWER_NS), err);
}

/* Wait for the next message; a VMM that dies meanwhile ends the wait. */
static int
next_message(struct sink *k, struct rl_peer_msg *m, uint64_t deadline, struct rl_err *err)
{
	for (;;) {
		struct pollfd p[3] = {
			{.fd = k->peer.fd, .events = POLLIN},
			{.fd = k->s->cancel_fd, .events = POLLIN},
			{.fd = k->vm->fd, .events = POLLRDHUP},
		};
		uint64_t now = rl_now_ns();

		if (now >= deadline)
			return rl_err_set(err, -ETIMEDOUT, "the source has been silent for %llu s",
					  SILENCE_NS / RL_NS_PER_S);
		if (poll(p, 3, 500) <= 0)
			continue;
		if (p[1].revents != 0)
			return rl_err_set(err, -ECANCELED, "cancelled at the target");
		if (p[2].revents != 0)
			return rl_err_set(err, -ESRCH, "the VMM waiting for the guest has gone");
		return rl_peer_recv(&k->peer, m, deadline, err);
	}
}

/* Compare digests: ours are made while the source still makes its own. */
static int
verify(struct sink *k, struct rl_err *err)
{
	uint64_t blocks = RL_RAM_BLOCKS(&k->vm->ram), wrong = 0, first = 0;
	uint64_t *ours = calloc(blocks, sizeof(*ours));
	struct rl_peer_msg m;
	int rc;

	if (ours == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for the digests");
	rl_ram_digest(&k->vm->ram, rl_sink_touched(k->sink), ours);
	rc = rl_peer_expect(&k->peer, "digest", &m, after(ANSWER_NS), err);
	if (rc != 0)
		goto out;
	if (m.blob_bytes != blocks * sizeof(*ours))
		rc = rl_err_set(err, -EPROTO, "digests of %zu bytes for %llu blocks", m.blob_bytes,
				(unsigned long long)blocks);
	for (uint64_t i = 0; i < blocks && rc == 0; i++)
		if (ours[i] != rl_load64(m.blob + i * sizeof(*ours)) && wrong++ == 0)
			first = i;
	rl_peer_msg_free(&m);
	if (wrong > 0)
		rc = rl_err_set(
			err, -EILSEQ,
			"guest memory differs in %llu of %llu blocks of 2 MiB, the first at guest "
			"address %#llx; please report this",
			(unsigned long long)wrong, (unsigned long long)blocks,
			(unsigned long long)(rl_ram_gpn(&k->vm->ram, first * 512)
					     << RL_PAGE_SHIFT));
out:
	free(ours);
	return rc;
}

/* Memory arrives on the workers; here only the control messages up to the switch-over. */
static int
receive(struct sink *k, struct rl_err *err)
{
	struct rl_peer_msg m;
	bool switchover = false;
	int rc;

	do {
		rc = next_message(k, &m, after(SILENCE_NS), err);
		if (rc != 0)
			return rc;
		if (strcmp(m.type, "switchover") == 0) {
			rl_session_set_status(k->s, RL_STATUS_DEVICE);
			switchover = true;
			if (json_is_true(json_object_get(m.json, "verify"))) {
				rc = verify(k, err);
				pthread_mutex_lock(&k->s->lock);
				k->s->verified = rc == 0;
				pthread_mutex_unlock(&k->s->lock);
			}
			if (rc == 0 && m.blob_bytes == 0)
				rc = rl_err_set(err, -EPROTO, "switch-over without device state");
			if (rc == 0)
				rc = rl_vm_state_put(k->vm, m.blob, m.blob_bytes, err);
		} else if (strcmp(m.type, "progress") == 0) {
			struct rl_source_progress *p = &k->s->progress;

			pthread_mutex_lock(&k->s->lock);
			p->normal_pages =
				(uint64_t)json_integer_value(json_object_get(m.json, "normal"));
			p->duplicate_pages =
				(uint64_t)json_integer_value(json_object_get(m.json, "duplicate"));
			pthread_mutex_unlock(&k->s->lock);
		} else {
			rc = rl_err_set(err, -EPROTO, "unexpected '%.32s'", m.type);
		}
		rl_peer_msg_free(&m);
	} while (rc == 0 && !switchover);
	return rc;
}

/*
 * Woken up: the source came back with a new connection, or an operator decided in its place. Returns 1: commit,
 * 0: wait on, -EREMOTEIO: give up.
 */
static int
relink(struct sink *k, struct rl_err *err)
{
	struct rl_session *s = k->s;
	enum rl_decision decision;
	uint64_t n;
	bool abort;

	if (read(s->relink_fd, &n, sizeof(n)) != (ssize_t)sizeof(n))
		return 0;
	pthread_mutex_lock(&s->lock);
	rl_peer_close(&k->peer);
	k->peer.fd = s->new_peer.fd;
	k->peer.tls = s->new_peer.tls;
	s->new_peer = (struct rl_peer){.fd = -1};
	abort = s->new_peer_abort;
	decision = s->decision;
	s->recovering = false;
	pthread_mutex_unlock(&s->lock);
	if (decision == RL_DECIDE_RESUME)
		return 1;
	if (decision == RL_DECIDE_DISCARD)
		return rl_err_set(err, -EREMOTEIO, "the operator discarded the guest here");
	if (abort)
		return rl_err_set(err, -EREMOTEIO, "the source gave the migration up");
	if (rl_peer_send(&k->peer, json_pack("{ss ss}", "type", "outcome", "state", "ready"), NULL,
			 0, after(ANSWER_NS), NULL) != 0)
		rl_peer_close(&k->peer);
	return 0;
}

/* Ready, and nobody there to say what for: `ramlift recover` shows it and may decide. */
static void
in_doubt(struct rl_session *s, const struct rl_err *why)
{
	pthread_mutex_lock(&s->lock);
	s->recovering = true;
	s->error = *why;
	pthread_mutex_unlock(&s->lock);
}

/* READY: until the source says commit or abort. 0: commit. */
static int
await_decision(struct sink *k, struct rl_err *err)
{
	struct rl_session *s = k->s;

	for (;;) {
		struct pollfd p[4] = {
			{.fd = k->peer.fd, .events = POLLIN},
			{.fd = s->cancel_fd, .events = POLLIN},
			{.fd = s->relink_fd, .events = POLLIN},
			{.fd = k->vm->fd, .events = POLLRDHUP},
		};
		struct rl_peer_msg m;
		int rc;

		if (poll(p, 4, -1) < 0 && errno != EINTR)
			return rl_err_set(err, -errno, "poll: %s", strerror(errno));
		if (p[3].revents != 0)
			return rl_err_set(err, -ESRCH,
					  "the VMM that held the guest ready has gone");
		if (p[1].revents != 0)
			return rl_err_set(err, -EINTR,
					  "ramliftd ends; the VMM keeps the guest ready");
		if (p[2].revents != 0) {
			rc = relink(k, err);
			if (rc != 0)
				return rc > 0 ? 0 : rc;
			continue;
		}
		if (p[0].revents == 0)
			continue;
		rc = rl_peer_recv(&k->peer, &m, after(ANSWER_NS), err);
		if (rc == -EREMOTEIO)
			return rc; /* the source gave up */
		if (rc != 0) {
			rl_warn("migration %s: ready, but the source is gone (%s); waiting for it",
				s->id, err->text);
			rl_peer_close(&k->peer);
			in_doubt(s, err);
			continue;
		}
		rc = strcmp(m.type, "commit");
		rl_peer_msg_free(&m);
		if (rc == 0)
			return 0;
	}
}

static void
send_outcome(struct sink *k, const char *state, const char *text)
{
	if (k->peer.fd >= 0)
		rl_peer_send(&k->peer,
			     json_pack("{ss ss so}", "type", "outcome", "state", state, "text",
				       rl_peer_text(text)),
			     NULL, 0, after(RL_NS_PER_S), NULL);
}

static void
release_flow(struct sink *k)
{
	struct rl_session *s = k->s;

	if (k->attached)
		rl_workers_detach(k->d->workers, k->receiver);
	k->attached = false;
	pthread_mutex_lock(&s->lock);
	if (s->sink != NULL)
		rl_sink_stats(k->sink, &s->sink_stats);
	s->sink = NULL;
	pthread_mutex_unlock(&s->lock);
	rl_sink_destroy(k->sink);
	rl_keys_destroy(k->keys);
	k->sink = NULL;
	k->keys = NULL;
	if (k->path != NULL)
		rl_nic_path_close(k->path);
	k->path = NULL;
}

static void
sink_release(struct sink *k)
{
	release_flow(k);
	rl_peer_close(&k->peer);
	rl_peer_msg_free(&k->hello);
	if (k->vm != NULL) {
		rl_ram_unmap(&k->vm->ram);
		rl_daemon_put_vm(k->d, k->vm);
	}
}

/* Memory back to zeros, the VM waits for the next one. False: nobody knows whether its VMM has done so. */
static bool
forget(struct sink *k)
{
	struct rl_err err = {0};

	release_flow(k);
	if (k->vm == NULL)
		return true;
	rl_ram_unmap(&k->vm->ram);
	if (!k->begun || rl_vm_dead(k->vm, rl_vm_gone(k->vm) ? 2000 : 0) ||
	    rl_vm_session_end(k->vm, RL_VMM_ABORTED, &err) == 0)
		return true;
	rl_warn("migration %s: telling the VMM to forget the guest: %s", k->s->id, err.text);
	return false;
}

/* Not READY yet: the guest never ran here. */
static void
sink_abort(struct sink *k, const struct rl_err *why)
{
	/* A VMM that does not confirm may be READY: no outcome yet, its next HELLO tells. */
	bool known = forget(k);

	pthread_mutex_lock(&k->s->lock);
	k->s->committed = !known;
	pthread_mutex_unlock(&k->s->lock);
	rl_peer_send_error(&k->peer, why);
}

/* From READY on. */
static void
decide(struct sink *k)
{
	struct rl_session *s = k->s;
	struct rl_err err = {0};
	int rc = await_decision(k, &err);

	if (rc == -EINTR) { /* in doubt: VMM and source sort it out with the next ramliftd */
		sink_release(k);
		rl_session_end(s, RL_STATUS_FAILED, &err);
		return;
	}
	if (rc == 0)
		rc = rl_vm_call(k->vm, RL_VMM_RUN, NULL, 0, RUN_NS, &err);
	if (rc != 0 && rc != -EREMOTEIO && rl_vm_dead(k->vm, rl_vm_gone(k->vm) ? 2000 : 0) &&
	    rl_vm_guest_runs(k->vm)) {
		/* Its disks and peers have seen it run: the source's older copy must not. */
		rl_warn("migration %s: the VMM died as soon as it ran the guest", s->id);
		rc = 0;
	}
	if (rc == 0) {
		rl_vm_set_phase(k->vm, RL_VMM_RUNNING);
		send_outcome(k, "running", "");
		if (rl_vm_session_end(k->vm, RL_VMM_COMPLETED, &err) != 0)
			rl_warn("migration %s: %s", s->id, err.text);
		sink_release(k);
		rl_session_end(s, RL_STATUS_COMPLETED, NULL);
		return;
	}
	/* A VMM that did not answer RUN in time may run the guest yet, and so may one that did not confirm to
	 * forget it. It registers anew, and tells where it stands; the source asks until then. */
	if (rc == -ETIMEDOUT || !forget(k)) {
		shutdown(k->vm->fd, SHUT_RDWR);
		rl_peer_close(&k->peer);
		sink_release(k);
		rl_session_end(s, RL_STATUS_FAILED, &err);
		return;
	}
	pthread_mutex_lock(&s->lock);
	s->committed = false; /* what rl_daemon_outcome() answers from now on: aborted */
	pthread_mutex_unlock(&s->lock);
	send_outcome(k, "aborted", err.text);
	sink_release(k);
	rl_session_end(s, RL_STATUS_FAILED, &err);
}

static void *
sink_main(void *arg)
{
	struct sink *k = arg;
	struct rl_session *s = k->s;
	struct rl_daemon *d = k->d;
	struct rl_err err = {0};
	int rc;

	rc = setup(k, &err);
	if (rc == 0) {
		rl_session_set_status(s, RL_STATUS_ACTIVE);
		k->peer.max_blob = RL_PEER_MAX_BLOB;
		rc = receive(k, &err);
	}
	if (rc == 0) {
		pthread_mutex_lock(&s->lock);
		if (rl_session_cancelled(s))
			rc = rl_err_set(&err, -ECANCELED, "cancelled at the target");
		s->committed = rc == 0; /* READY: not ours to cancel any more */
		pthread_mutex_unlock(&s->lock);
	}
	if (rc == 0) {
		if (rl_peer_send(
			    &k->peer,
			    json_pack("{ss so}", "type", "ready", "verified",
				      s->verified < 0 ? json_null() : json_boolean(s->verified)),
			    NULL, 0, after(ANSWER_NS), &err) != 0)
			rl_peer_close(&k->peer);
		if (k->peer.fd < 0)
			in_doubt(s, &err);
		decide(k);
	} else {
		bool cancelled = rc == -ECANCELED || rl_session_cancelled(s);

		sink_abort(k, &err);
		sink_release(k);
		rl_session_end(s, cancelled ? RL_STATUS_CANCELLED : RL_STATUS_FAILED, &err);
	}
	free(k);
	rl_daemon_thread_done(d);
	return NULL;
}

void *
rl_sink_session_recover(void *session)
{
	struct rl_session *s = session;
	struct rl_daemon *d = s->d;
	struct sink k = {.s = s, .d = d, .peer = {.fd = -1, .cancel_fd = s->cancel_fd}};
	struct rl_err err = {0};

	pthread_mutex_lock(&s->lock);
	s->committed = true;
	pthread_mutex_unlock(&s->lock);
	if (rl_daemon_take_vm(d, s->vm_name, RL_VMM_READY, &k.vm, &err) == 0) {
		k.begun = true;
		rl_session_set_status(s, RL_STATUS_DEVICE);
		rl_err_set(&err, -ENOTCONN, "the source has not asked yet since ramliftd started");
		in_doubt(s, &err);
		decide(&k);
	} else {
		rl_session_end(s, RL_STATUS_FAILED, &err);
	}
	rl_daemon_thread_done(d);
	return NULL;
}

/* A session that is READY answers for itself, over the new connection. */
static bool
hand_over(struct rl_session *live, struct rl_peer *peer, bool abort)
{
	const uint64_t one = 1;
	bool handed = false;

	pthread_mutex_lock(&live->lock);
	if (live->committed && live->new_peer.fd < 0 &&
	    write(live->relink_fd, &one, sizeof(one)) == (ssize_t)sizeof(one)) {
		live->new_peer = *peer;
		live->new_peer_abort = abort;
		*peer = (struct rl_peer){.fd = -1};
		handed = true;
	}
	pthread_mutex_unlock(&live->lock);
	return handed;
}

/* The source asks what became of a migration, or says that it gave one up. */
static void
answer_outcome(struct rl_daemon *d, struct rl_peer *peer, const struct rl_peer_msg *m)
{
	const char *id = json_string_value(json_object_get(m->json, "session"));
	bool abort = strcmp(m->type, "abort") == 0, handed = false;
	struct rl_session *live;
	const char *state;
	uint8_t uuid[16];

	if (id == NULL || rl_uuid_parse(id, uuid) != 0)
		return;
	pthread_mutex_lock(&d->lock);
	state = rl_daemon_outcome(d, uuid, &live);
	if (live != NULL) {
		handed = hand_over(live, peer, abort);
		if (!handed && abort)
			rl_session_cancel(live, NULL);
	}
	pthread_mutex_unlock(&d->lock);
	if (!handed)
		rl_peer_send(peer, json_pack("{ss ss}", "type", "outcome", "state", state), NULL, 0,
			     after(RL_NS_PER_S), NULL);
}

static int
check_wire(const struct rl_peer_msg *m, struct rl_err *err)
{
	json_t *wire = json_object_get(m->json, "wire");
	const char *version = json_string_value(json_object_get(m->json, "version"));

	if (json_integer_value(wire) == RAMLIFT_WIRE_VERSION)
		return 0;
	return rl_err_set(
		err, -EPROTONOSUPPORT,
		"the source (ramlift %.16s) speaks wire version %lld, this ramliftd (%s) only %d; "
		"update the older one",
		version != NULL ? version : "?", (long long)json_integer_value(wire),
		RAMLIFT_VERSION, RAMLIFT_WIRE_VERSION);
}

static int
begin_session(struct sink *k, struct rl_err *err)
{
	const char *id = json_string_value(json_object_get(k->hello.json, "session"));
	const char *vm = json_string_value(json_object_get(k->hello.json, "vm"));
	char peer[RL_ENDPOINT_TEXT];
	socklen_t len = sizeof(k->from);
	struct rl_session *live;
	uint8_t uuid[16];
	bool known;

	if (id == NULL || vm == NULL || strlen(vm) >= RL_VMM_NAME_BYTES ||
	    rl_uuid_parse(id, uuid) != 0)
		return rl_err_set(err, -EPROTO, "malformed hello");
	/* What became of a migration is asked for by its id: nobody else may have it. */
	pthread_mutex_lock(&k->d->lock);
	known = strcmp(rl_daemon_outcome(k->d, uuid, &live), "unknown") != 0;
	pthread_mutex_unlock(&k->d->lock);
	if (known)
		return rl_err_set(err, -EEXIST, "migration %s is known here already", id);
	if (getpeername(k->peer.fd, (struct sockaddr *)&k->from, &len) != 0)
		return rl_err_set(err, -errno, "the source has gone");
	rl_format_endpoint(&k->from, peer);
	k->s = rl_session_create(k->d, true, uuid, vm, peer);
	if (k->s == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a migration");
	k->peer.cancel_fd = k->s->cancel_fd;
	rl_daemon_add_session(k->d, k->s);
	return 0;
}

static void *
accept_main(void *arg)
{
	struct accepted a = *(struct accepted *)arg;
	struct sink *k = calloc(1, sizeof(*k));
	struct rl_err err = {0};
	int rc = -ENOMEM;
	bool met;

	free(arg);
	if (k == NULL) {
		close(a.fd);
		goto out;
	}
	k->d = a.d;
	k->peer = (struct rl_peer){.fd = a.fd, .cancel_fd = a.d->stop_fd};
	rc = rl_peer_secure(&k->peer, a.d->tls, true, after(HELLO_NS), &err);
	met = rc == 0;
	if (rc == 0)
		rc = rl_peer_recv(&k->peer, &k->hello, after(HELLO_NS), &err);
	if (rc == 0)
		rc = check_wire(&k->hello, &err);
	if (rc == 0 && strcmp(k->hello.type, "hello") == 0) {
		rc = begin_session(k, &err);
		if (rc == 0)
			return sink_main(k);
	} else if (rc == 0 &&
		   (strcmp(k->hello.type, "outcome") == 0 || strcmp(k->hello.type, "abort") == 0)) {
		answer_outcome(a.d, &k->peer, &k->hello);
	} else if (rc == 0) {
		rc = rl_err_set(&err, -EPROTO, "unexpected '%.32s'", k->hello.type);
	}
	if (rc != 0) {
		rl_warn("control channel: %s", err.text);
		pthread_mutex_lock(&a.d->lock);
		a.d->peer_refused++;
		pthread_mutex_unlock(&a.d->lock);
		if (met) /* else nothing is said in clear */
			rl_peer_send_error(&k->peer, &err);
	}
	rl_peer_close(&k->peer);
	rl_peer_msg_free(&k->hello);
	free(k);
out:
	rl_daemon_thread_done(a.d);
	return NULL;
}

void
rl_sink_accept(struct rl_daemon *d, int fd)
{
	struct accepted *a = malloc(sizeof(*a));

	if (a != NULL) {
		*a = (struct accepted){.d = d, .fd = fd};
		if (rl_daemon_thread(d, accept_main, a) == 0)
			return;
	}
	free(a);
	close(fd);
}
