/* SPDX-License-Identifier: BSD-3-Clause */
/* The phase machine of a guest: which request may come when, and what it does. */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_BYTES 4096u

#define IN(phase)  (1u << RL_VMM_##phase)

struct handler {
	uint32_t request;
	const char *name;
	uint32_t size;   /* of the payload, exactly */
	uint32_t n_fds;  /* exactly */
	uint32_t phases; /* IN() bits: when it may come */
	int (*handle)(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans);
};

const char *
rl_vmm_phase_name(int phase)
{
	static const char *const names[] = {
		"?",         "running",   "incoming", "migrating", "paused",
		"committed", "receiving", "ready",    "moved",
	};

	return phase > 0 && phase < (int)(sizeof(names) / sizeof(names[0])) ? names[phase] : "?";
}

static int
fail(char *text, int code, const char *what)
{
	snprintf(text, RL_VMM_TEXT_BYTES, "%s: %s", what, strerror(-code));
	return code;
}

/* A callback's result, made sane: an error has a negative code and a text. */
static int
checked(int rc, char *text, const char *what)
{
	text[RL_VMM_TEXT_BYTES - 1] = 0;
	if (rc == 0)
		return 0;
	if (rc > 0)
		rc = -EIO;
	return text[0] != 0 ? rc : fail(text, rc, what);
}

static int
stop_logging(struct rl_vmm_machine *m, char *text)
{
	int rc;

	if (!m->logging)
		return 0;
	text[0] = 0;
	rc = checked(m->ops->log_stop(m->ctx, text), text, "the VMM cannot stop logging");
	if (rc == 0)
		m->logging = false;
	return rc;
}

/* For an engine that outlives this process. */
static void
set_runs(struct rl_vmm_machine *m, uint64_t runs)
{
	__atomic_store_n(m->guest_runs, runs, __ATOMIC_SEQ_CST);
}

static int
resume(struct rl_vmm_machine *m, char *text)
{
	text[0] = 0;
	set_runs(m, 1);
	return checked(m->ops->resume(m->ctx, text), text, "the VMM cannot resume the guest");
}

/* Punching a hole in hugetlb memory gives up its reservation too; mapping it reserves again, or tells now
 * that the pages are gone instead of by SIGBUS later. */
static int
discard_region(const struct rl_vmm_region *r, int fd)
{
	off_t offset = (off_t)r->fd_offset;
	size_t bytes = r->n_pages * PAGE_BYTES;
	void *at;

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)bytes) != 0)
		return -errno;
	if ((r->flags & RL_VMM_REGION_HUGETLB) == 0)
		return 0;
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
	if (at == MAP_FAILED)
		return -errno;
	munmap(at, bytes);
	return 0;
}

static void
free_ring(const struct rl_vmm_vcpu *ring, int fd)
{
	size_t bytes = ring->ring_entries * sizeof(struct rl_vmm_dirty_gfn);
	struct rl_vmm_dirty_gfn *gfn =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)ring->ring_offset);

	if (gfn == MAP_FAILED)
		return;
	for (uint32_t i = 0; i < ring->ring_entries; i++)
		if (__atomic_load_n(&gfn[i].flags, __ATOMIC_ACQUIRE) & RL_VMM_GFN_DIRTY)
			__atomic_store_n(&gfn[i].flags, RL_VMM_GFN_RESET, __ATOMIC_RELEASE);
	munmap(gfn, bytes);
}

/* Nobody takes entries any more, and KVM does not enter a vCPU whose ring is full. */
static void
free_rings(struct rl_vmm_machine *m)
{
	for (uint32_t i = 0; i < m->n_rings; i++)
		free_ring(&m->ring[i], m->ring_fd[i]);
	if (m->n_rings > 0)
		m->ops->reset_rings(m->ctx);
}

/* Source: whatever was done for the migration is undone. A VMM that cannot stop logging only runs slower. */
static int
abort_source(struct rl_vmm_machine *m, char *text)
{
	int rc;

	stop_logging(m, text);
	m->logging = false;
	free_rings(m);
	if (m->phase != RL_VMM_MIGRATING) {
		rc = resume(m, text);
		if (rc != 0)
			return rc;
	}
	m->last_outcome = RL_VMM_ABORTED;
	m->phase = RL_VMM_RUNNING;
	return 0;
}

static int
abort_target(struct rl_vmm_machine *m, char *text)
{
	int rc;

	for (uint32_t i = 0; i < m->n_regions; i++) {
		rc = discard_region(&m->region[i], m->region_fd[i]);
		if (rc != 0)
			return fail(text, rc, "cannot discard guest memory");
	}
	text[0] = 0;
	rc = checked(m->ops->reset(m->ctx, text), text, "the VMM cannot reset its devices");
	if (rc != 0)
		return rc;
	m->last_outcome = RL_VMM_ABORTED;
	m->phase = RL_VMM_INCOMING;
	return 0;
}

static int
session_begin(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	static const uint8_t none[sizeof(((struct rl_vmm_session *)0)->session)];
	bool incoming = m->phase == RL_VMM_INCOMING;
	struct rl_vmm_session s;

	memcpy(&s, req->payload, sizeof(s));
	if (memcmp(s.session, none, sizeof(none)) == 0 || s.is_target > 1 || s.reserved != 0 ||
	    memchr(s.peer, 0, sizeof(s.peer)) == NULL) {
		snprintf(ans->status.text, RL_VMM_TEXT_BYTES, "SESSION_BEGIN: not a session");
		return -EINVAL;
	}
	if (s.is_target != incoming) {
		snprintf(ans->status.text, RL_VMM_TEXT_BYTES, "%s",
			 incoming ? "this VMM waits for a guest and has none to send"
				  : "this VMM runs a guest and cannot receive another");
		return -EBADRQC;
	}
	m->last = s;
	m->last_outcome = RL_VMM_OUTCOME_NONE;
	m->phase = incoming ? RL_VMM_RECEIVING : RL_VMM_MIGRATING;
	return 0;
}

static int
log_start(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	char *text = ans->status.text;
	int rc;

	(void)req;
	if (m->logging)
		return 0;
	/* Before the VMM begins: a slot deleted meanwhile is drained for. */
	m->logging = true;
	rc = checked(m->ops->log_start(m->ctx, text), text, "the VMM cannot log dirty pages");
	if (rc != 0)
		m->logging = false;
	return rc;
}

static int
log_stop(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	(void)req;
	return stop_logging(m, ans->status.text);
}

static int
pause_guest(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	char *text = ans->status.text;
	int rc;

	(void)req;
	rc = checked(m->ops->pause(m->ctx, text), text, "the VMM cannot pause the guest");
	if (rc == 0) {
		set_runs(m, 0);
		m->phase = RL_VMM_PAUSED;
	}
	return rc;
}

static int
resume_guest(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	int rc = resume(m, ans->status.text);

	(void)req;
	if (rc == 0)
		m->phase = RL_VMM_MIGRATING;
	return rc;
}

static int
state_get(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	char *text = ans->status.text;
	uint64_t size = 0;
	int fd = -1;
	int rc;

	(void)req;
	rc = checked(m->ops->state_get(m->ctx, &fd, &size, text), text,
		     "the VMM cannot save its device state");
	if (rc == 0 && (fd < 0 || size == 0 || size > RL_VMM_STATE_MAX))
		rc = fail(text, -EFBIG, "the VMM's device state");
	if (rc != 0) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	ans->fd = fd;
	ans->state_size = size;
	return 0;
}

static int
state_put(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	char *text = ans->status.text;
	struct rl_vmm_state state;
	struct stat st;
	int rc;

	memcpy(&state, req->payload, sizeof(state));
	if (state.size == 0 || state.size > RL_VMM_STATE_MAX || fstat(req->fd[0], &st) != 0 ||
	    !S_ISREG(st.st_mode) || (uint64_t)st.st_size < state.size) {
		snprintf(text, RL_VMM_TEXT_BYTES, "STATE_PUT: %lu bytes are not in that file",
			 state.size);
		return -EINVAL;
	}
	rc = checked(m->ops->state_put(m->ctx, req->fd[0], state.size, text), text,
		     "the VMM cannot load the device state");
	if (rc == 0)
		m->phase = RL_VMM_READY;
	return rc;
}

static int
committing(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	(void)req;
	(void)ans;
	m->phase = RL_VMM_COMMITTED;
	return 0;
}

static int
run_guest(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	char *text = ans->status.text;
	int rc;

	(void)req;
	set_runs(m, 1);
	rc = checked(m->ops->run(m->ctx, text), text, "the VMM cannot run the guest");
	if (rc != 0) {
		set_runs(m, 0);
		return rc;
	}
	m->last_outcome = RL_VMM_COMPLETED;
	m->phase = RL_VMM_RUNNING;
	return 0;
}

static int
end_completed(struct rl_vmm_machine *m, struct rl_vmm_answer *ans)
{
	if (m->phase == RL_VMM_COMMITTED) {
		m->logging = false;
		m->last_outcome = RL_VMM_COMPLETED;
		m->phase = RL_VMM_MOVED;
		ans->moved = true;
		return 0;
	}
	/* A target completed when it ran; this is only the engine's goodbye. */
	if (m->phase == RL_VMM_RUNNING && m->last.is_target == 1 &&
	    m->last_outcome == RL_VMM_COMPLETED)
		return 0;
	snprintf(ans->status.text, RL_VMM_TEXT_BYTES, "SESSION_END: not completed, the guest is %s",
		 rl_vmm_phase_name(m->phase));
	return -EBADRQC;
}

static int
session_end(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	struct rl_vmm_session_end end;

	memcpy(&end, req->payload, sizeof(end));
	if ((end.outcome != RL_VMM_COMPLETED && end.outcome != RL_VMM_ABORTED) ||
	    end.reserved != 0) {
		snprintf(ans->status.text, RL_VMM_TEXT_BYTES, "SESSION_END: no such outcome");
		return -EINVAL;
	}
	if (end.outcome == RL_VMM_COMPLETED)
		return end_completed(m, ans);
	switch ((int)m->phase) {
	case RL_VMM_MIGRATING:
	case RL_VMM_PAUSED:
	case RL_VMM_COMMITTED:
		return abort_source(m, ans->status.text);
	case RL_VMM_RECEIVING:
	case RL_VMM_READY:
		return abort_target(m, ans->status.text);
	default:
		snprintf(ans->status.text, RL_VMM_TEXT_BYTES,
			 "SESSION_END: no migration to give up, the guest is %s",
			 rl_vmm_phase_name(m->phase));
		return -EBADRQC;
	}
}

static const struct handler handlers[] = {
	{RL_VMM_SESSION_BEGIN, "SESSION_BEGIN", sizeof(struct rl_vmm_session), 0,
	 IN(RUNNING) | IN(INCOMING), session_begin},
	{RL_VMM_LOG_START, "LOG_START", 0, 0, IN(MIGRATING) | IN(PAUSED), log_start},
	{RL_VMM_LOG_STOP, "LOG_STOP", 0, 0, IN(MIGRATING) | IN(PAUSED) | IN(COMMITTED), log_stop},
	{RL_VMM_PAUSE, "PAUSE", 0, 0, IN(MIGRATING), pause_guest},
	{RL_VMM_RESUME, "RESUME", 0, 0, IN(PAUSED), resume_guest},
	{RL_VMM_STATE_GET, "STATE_GET", 0, 0, IN(PAUSED), state_get},
	{RL_VMM_STATE_PUT, "STATE_PUT", sizeof(struct rl_vmm_state), 1, IN(RECEIVING), state_put},
	{RL_VMM_COMMITTING, "COMMITTING", 0, 0, IN(PAUSED), committing},
	{RL_VMM_RUN, "RUN", 0, 0, IN(READY), run_guest},
	{RL_VMM_SESSION_END, "SESSION_END", sizeof(struct rl_vmm_session_end), 0,
	 IN(RUNNING) | IN(MIGRATING) | IN(PAUSED) | IN(COMMITTED) | IN(RECEIVING) | IN(READY),
	 session_end},
};

static int
dispatch(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	const struct handler *h = NULL;
	char *text = ans->status.text;

	for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++)
		if (handlers[i].request == req->request)
			h = &handlers[i];
	if (h == NULL) {
		snprintf(text, RL_VMM_TEXT_BYTES, "no request %u", req->request);
		return -EBADRQC;
	}
	if (req->size != h->size || req->n_fds != h->n_fds) {
		snprintf(text, RL_VMM_TEXT_BYTES,
			 "%s has %u bytes and %u descriptors, not %u and %u", h->name, h->size,
			 h->n_fds, req->size, req->n_fds);
		return -EINVAL;
	}
	if ((h->phases >> m->phase & 1) == 0) {
		snprintf(text, RL_VMM_TEXT_BYTES, "%s: not while the guest is %s", h->name,
			 rl_vmm_phase_name(m->phase));
		return -EBADRQC;
	}
	return h->handle(m, req, ans);
}

void
rl_vmm_machine_request(struct rl_vmm_machine *m, struct rl_vmm_msg *req, struct rl_vmm_answer *ans)
{
	memset(ans, 0, sizeof(*ans));
	ans->fd = -1;
	ans->status.code = dispatch(m, req, ans);
	if (ans->status.code == 0)
		memset(ans->status.text, 0, sizeof(ans->status.text));
}

int
rl_vmm_machine_lost(struct rl_vmm_machine *m, char *text)
{
	switch ((int)m->phase) {
	case RL_VMM_MIGRATING:
	case RL_VMM_PAUSED:
		return abort_source(m, text);
	case RL_VMM_RECEIVING:
		return abort_target(m, text);
	default: /* nothing under way, or no longer ours to decide */
		return 0;
	}
}
