/* SPDX-License-Identifier: BSD-3-Clause */
/* libramlift-vmm against an engine played by the test: registration, phases, hostile bytes, lost connections. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ramlift/version.h>

#include "vmm_engine.h"

static bool
same_file(int a, int b)
{
	struct stat sa, sb;

	assert_int_equal(fstat(a, &sa), 0);
	assert_int_equal(fstat(b, &sb), 0);
	return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

static void
test_registration(void **state)
{
	static const struct rl_vmm_session none;
	struct engine e;

	(void)state;
	engine_start(&e, true, false);
	assert_int_equal(e.hello.features, RL_VMM_FEAT_DIRTY_RING);
	assert_string_equal(e.hello.name, "guest-1");
	assert_int_equal(e.hello.uuid[2], 3);
	assert_int_equal(e.hello.phase, RL_VMM_INCOMING);
	assert_int_equal(e.hello.n_vcpus, N_VCPUS);
	assert_memory_equal(&e.hello.last, &none, sizeof(none));
	assert_int_equal(e.hello.last_outcome, RL_VMM_OUTCOME_NONE);
	assert_int_equal(e.region.gpn, 16);
	assert_int_equal(e.region.n_pages, 256);
	assert_int_equal(e.region.flags, RL_VMM_REGION_ZEROED);
	assert_true(same_file(e.region_fd, e.guest.ram));
	assert_true(same_file(e.ring_fd[1], e.guest.ring));
	assert_int_equal(e.shared->magic, RL_VMM_SHARED_MAGIC);
	assert_int_equal(e.shared->n_slots, RL_VMM_MAX_SLOTS);
	assert_int_equal(e.shared->slot[0].valid, 1); /* added before the start */
	assert_int_equal(e.shared->slot[0].gpn, 16);
	assert_int_equal(e.shared->slot[0].n_pages, 256);
	assert_true(fcntl(e.shared_fd, F_GET_SEALS) & F_SEAL_SHRINK);
	assert_int_equal(ftruncate(e.shared_fd, 0), -1);
	rl_vmm_ring_full(e.vmm);
	assert_int_equal(e.shared->ring_full_exits, 1);
	engine_finish(&e);

	engine_start(&e, false, false);
	assert_int_equal(e.hello.phase, RL_VMM_RUNNING);
	assert_int_equal(e.region.flags, 0); /* a guest that runs has written */
	engine_finish(&e);
}

static void
test_create_refuses(void **state)
{
	struct rl_vmm_ops lacking = guest_ops;
	struct rl_vmm_opts good = {
		.engine_socket = "/x", .name = "n", .features = 1, .n_vcpus = 1, .ops = &guest_ops};
	struct rl_vmm_opts bad;
	struct rl_vmm *vmm;

	(void)state;
	assert_int_equal(rl_vmm_create(&good, &vmm), 0);
	assert_int_equal(rl_vmm_start(vmm), -EINVAL); /* no region, no ring */
	rl_vmm_destroy(vmm);
	bad = good, bad.name = "a b";
	assert_int_equal(rl_vmm_create(&bad, &vmm), -EINVAL);
	bad = good, bad.features = RL_VMM_FEAT_ALL;
	assert_int_equal(rl_vmm_create(&bad, &vmm), -EINVAL);
	bad = good, bad.n_vcpus = RL_VMM_MAX_VCPUS + 1;
	assert_int_equal(rl_vmm_create(&bad, &vmm), -EINVAL);
	lacking.reset_rings = NULL;
	bad = good, bad.ops = &lacking;
	assert_int_equal(rl_vmm_create(&bad, &vmm), -EINVAL);
	assert_null(vmm);
}

static void
test_source(void **state)
{
	struct message m;
	struct engine e;
	struct rl_vmm_state_reply r;
	char buf[12];
	int fds;

	(void)state;
	engine_start(&e, false, false);
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_BEGIN, 0), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MIGRATING);
	assert_int_equal(engine_call(&e, RL_VMM_LOG_START, 0), 0);
	assert_int_equal(engine_call(&e, RL_VMM_PAUSE, 0), 0);
	assert_int_equal(engine_call(&e, RL_VMM_RESUME, 0), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MIGRATING);
	assert_int_equal(engine_call(&e, RL_VMM_PAUSE, 0), 0);
	fds = count_fds();
	assert_int_equal(engine_call_fds(&e, RL_VMM_STATE_GET, NULL, 0, NULL, 0, &m), 0);
	assert_int_equal(m.hdr.size, sizeof(r));
	assert_int_equal(m.n_fds, 1);
	memcpy(&r, m.payload, sizeof(r));
	assert_int_equal(r.state.size, 12);
	assert_int_equal(pread(m.fd[0], buf, 12, 0), 12);
	assert_memory_equal(buf, "device state", 12);
	close(m.fd[0]);
	assert_int_equal(engine_call(&e, RL_VMM_COMMITTING, 0), 0);
	assert_int_equal(count_fds(), fds);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_COMMITTED);
	assert_int_equal(e.guest.calls[MOVED], 0);
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_END, RL_VMM_COMPLETED), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MOVED);
	rl_vmm_stop(e.vmm);
	assert_int_equal(e.guest.calls[MOVED], 1);
	assert_int_equal(e.guest.calls[RESUME], 1); /* the one asked for: MOVED never resumes */
	assert_false(ram_is_zero(&e.guest));
	engine_finish(&e);
}

static void
test_target(void **state)
{
	struct engine e;

	(void)state;
	engine_start(&e, true, false);
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_BEGIN, 0), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_RECEIVING);
	assert_int_equal(engine_call(&e, RL_VMM_STATE_PUT, 0), 0);
	assert_string_equal(e.guest.loaded, "device state");
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_READY);
	assert_int_equal(engine_call(&e, RL_VMM_RUN, 0), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_RUNNING);
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_END, RL_VMM_ABORTED),
			 -EBADRQC); /* it runs */
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_END, RL_VMM_COMPLETED), 0);
	assert_int_equal(e.guest.calls[RUN], 1);
	assert_int_equal(e.guest.calls[RESET], 0);
	assert_false(ram_is_zero(&e.guest));
	e.incoming = false; /* and may go on to the next host */
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_BEGIN, 0), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MIGRATING);
	engine_finish(&e);
}

/* Which request may come in which phase: the contract's table, written down a second time. */
struct allowed {
	uint32_t request, outcome;
	const char *phases;
};

static const struct allowed table[] = {
	/* r: running, i: incoming, m: migrating, p: paused, c: committed, v: receiving, y: ready */
	{RL_VMM_SESSION_BEGIN, 0, "ri"},
	{RL_VMM_LOG_START, 0, "mp"},
	{RL_VMM_LOG_STOP, 0, "mpc"},
	{RL_VMM_PAUSE, 0, "m"},
	{RL_VMM_RESUME, 0, "p"},
	{RL_VMM_STATE_GET, 0, "p"},
	{RL_VMM_STATE_PUT, 0, "v"},
	{RL_VMM_COMMITTING, 0, "p"},
	{RL_VMM_RUN, 0, "y"},
	{RL_VMM_SESSION_END, RL_VMM_COMPLETED, "c"},
	{RL_VMM_SESSION_END, RL_VMM_ABORTED, "mpcvy"},
	{RL_VMM_HELLO, 0, ""},
	{RL_VMM_ONLINE, 0, ""},
	{0, 0, ""},
	{26, 0, ""},
};
#define N_TABLE (sizeof(table) / sizeof(table[0]))

static void
check_phase(int phase, char letter)
{
	struct engine e;
	bool target = strchr("ivy", letter) != NULL;

	for (size_t i = 0; i < N_TABLE; i++) {
		const struct allowed *a = &table[i];
		int before[N_OPS];

		engine_start(&e, target, false);
		engine_drive(&e, phase);
		while (phase == RL_VMM_MOVED && e.guest.calls[MOVED] == 0)
			usleep(100); /* it is told after the reply */
		for (int op = 0; op < N_OPS; op++)
			before[op] = e.guest.calls[op];
		if (strchr(a->phases, letter) != NULL) {
			assert_int_equal(engine_call(&e, a->request, a->outcome), 0);
		} else {
			assert_int_equal(engine_call(&e, a->request, a->outcome), -EBADRQC);
			assert_int_equal(rl_vmm_phase(e.vmm), phase);
			for (int op = 0; op < N_OPS; op++)
				assert_int_equal(e.guest.calls[op], before[op]);
		}
		engine_finish(&e);
	}
}

static void
test_phases(void **state)
{
	(void)state;
	check_phase(RL_VMM_RUNNING, 'r');
	check_phase(RL_VMM_INCOMING, 'i');
	check_phase(RL_VMM_MIGRATING, 'm');
	check_phase(RL_VMM_PAUSED, 'p');
	check_phase(RL_VMM_COMMITTED, 'c');
	check_phase(RL_VMM_RECEIVING, 'v');
	check_phase(RL_VMM_READY, 'y');
	check_phase(RL_VMM_MOVED, '-');
}

/* What an engine that comes back is told. */
struct loss {
	int phase, after;
	uint32_t outcome;
	int log_stops, resumes, resets;
};

static void
check_loss(const struct loss *l, bool target)
{
	struct engine e;
	struct message m;
	int fds;

	engine_start(&e, target, false);
	engine_drive(&e, l->phase);
	fds = count_fds();
	engine_hang_up(&e);
	engine_register(&e);
	assert_int_equal(e.hello.phase, l->after);
	assert_int_equal(rl_vmm_phase(e.vmm), l->after);
	assert_int_equal(e.hello.last_outcome, l->outcome);
	if (l->phase != RL_VMM_RUNNING && l->phase != RL_VMM_INCOMING) {
		assert_int_equal(e.hello.last.session[0], 7);
		assert_int_equal(e.hello.last.is_target, target);
		assert_string_equal(e.hello.last.peer, "198.18.0.2:4444");
	}
	assert_int_equal(e.guest.calls[LOG_STOP], l->log_stops);
	assert_int_equal(e.guest.calls[RESUME], l->resumes);
	assert_int_equal(e.guest.calls[RESET], l->resets);
	assert_int_equal(ram_is_zero(&e.guest), l->resets > 0);
	assert_int_equal(count_fds(), fds);
	/* And the new connection is a working one. */
	assert_int_equal(engine_call_fds(&e, 99, NULL, 0, NULL, 0, &m), -EBADRQC);
	engine_finish(&e);
}

static void
test_lost(void **state)
{
	static const struct loss source[] = {
		{RL_VMM_RUNNING, RL_VMM_RUNNING, 0, 0, 0, 0},
		{RL_VMM_MIGRATING, RL_VMM_RUNNING, RL_VMM_ABORTED, 1, 0, 0},
		{RL_VMM_PAUSED, RL_VMM_RUNNING, RL_VMM_ABORTED, 1, 1, 0},
		{RL_VMM_COMMITTED, RL_VMM_COMMITTED, 0, 0, 0, 0},
		{RL_VMM_MOVED, RL_VMM_MOVED, RL_VMM_COMPLETED, 0, 0, 0},
	};
	static const struct loss target[] = {
		{RL_VMM_INCOMING, RL_VMM_INCOMING, 0, 0, 0, 0},
		{RL_VMM_RECEIVING, RL_VMM_INCOMING, RL_VMM_ABORTED, 0, 0, 1},
		{RL_VMM_READY, RL_VMM_READY, 0, 0, 0, 0},
		{RL_VMM_RUNNING, RL_VMM_RUNNING, RL_VMM_COMPLETED, 0, 0, 0},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(source) / sizeof(source[0]); i++)
		check_loss(&source[i], false);
	for (size_t i = 0; i < sizeof(target) / sizeof(target[0]); i++)
		check_loss(&target[i], true);
}

static void
test_after_commit(void **state)
{
	struct engine e;

	/* The next engine learned from the peer that the guest did not start there, or that it did. */
	(void)state;
	engine_start(&e, false, false);
	engine_drive(&e, RL_VMM_COMMITTED);
	engine_hang_up(&e);
	engine_register(&e);
	assert_int_equal(engine_call(&e, RL_VMM_RESUME, 0), -EBADRQC);
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_END, RL_VMM_ABORTED), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_RUNNING);
	assert_int_equal(e.guest.calls[RESUME], 1);
	engine_finish(&e);

	engine_start(&e, true, false);
	engine_drive(&e, RL_VMM_READY);
	engine_hang_up(&e);
	engine_register(&e);
	assert_int_equal(e.region.flags, 0); /* memory is there */
	assert_int_equal(engine_call(&e, RL_VMM_SESSION_END, RL_VMM_ABORTED), 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_INCOMING);
	assert_true(ram_is_zero(&e.guest));
	engine_finish(&e);
}

static void
test_failing_vmm(void **state)
{
	struct engine e;
	struct rl_vmm_status st;
	struct message m;

	(void)state;
	engine_start(&e, false, false);
	engine_drive(&e, RL_VMM_MIGRATING);
	e.guest.fail[PAUSE] = -EBUSY;
	assert_int_equal(engine_call_fds(&e, RL_VMM_PAUSE, NULL, 0, NULL, 0, &m), -EBUSY);
	memcpy(&st, m.payload, sizeof(st));
	assert_string_equal(st.text, "told to fail");
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MIGRATING);
	e.guest.fail[PAUSE] = 0;
	assert_int_equal(engine_call(&e, RL_VMM_PAUSE, 0), 0);
	e.guest.state_bytes = RL_VMM_STATE_MAX + 1;
	int fds = count_fds();
	assert_int_equal(engine_call(&e, RL_VMM_STATE_GET, 0), -EFBIG);
	e.guest.fail[STATE_GET] = -EIO;
	assert_int_equal(engine_call(&e, RL_VMM_STATE_GET, 0), -EIO);
	assert_int_equal(count_fds(), fds);
	/* A guest that does not resume is tried again until it does, and no engine sees it meanwhile. */
	e.guest.fail[RESUME] = -EIO;
	engine_hang_up(&e);
	while (e.guest.calls[RESUME] < 2)
		usleep(1000);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_PAUSED);
	e.guest.fail[RESUME] = 0;
	engine_register(&e);
	assert_int_equal(e.hello.phase, RL_VMM_RUNNING);
	engine_finish(&e);

	engine_start(&e, true, false);
	engine_drive(&e, RL_VMM_RECEIVING);
	e.guest.fail[STATE_PUT] = 1; /* not an errno: still a failure */
	assert_int_equal(engine_call(&e, RL_VMM_STATE_PUT, 0), -EIO);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_RECEIVING);
	e.guest.fail[STATE_PUT] = 0;
	assert_int_equal(engine_call(&e, RL_VMM_STATE_PUT, 0), 0);
	e.guest.fail[RUN] = -ENOMEM;
	assert_int_equal(engine_call(&e, RL_VMM_RUN, 0),
			 -ENOMEM); /* engine_call() wants a text: the library's */
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_READY);
	engine_finish(&e);
}

static void
test_bad_requests(void **state)
{
	struct rl_vmm_session s = {.session = {7}, .is_target = 1, .peer = "x"}, bad;
	struct rl_vmm_session_end end = {.outcome = 3};
	struct rl_vmm_state st = {.size = 12};
	int pipe_fd[2], memfd = memfd_create("short", MFD_CLOEXEC), two[2] = {memfd, memfd};
	struct message m;
	struct engine e;
	int fds;

	(void)state;
	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
	engine_start(&e, true, false);
	fds = count_fds();
	const uint32_t begin = RL_VMM_SESSION_BEGIN;
	assert_int_equal(engine_call_fds(&e, begin, &s, sizeof(s) - 1, NULL, 0, &m), -EINVAL);
	assert_int_equal(engine_call_fds(&e, begin, &s, sizeof(s), two, 2, &m), -EINVAL);
	bad = s, bad.session[0] = 0;
	assert_int_equal(engine_call_fds(&e, begin, &bad, sizeof(bad), NULL, 0, &m), -EINVAL);
	bad = s, bad.is_target = 2;
	assert_int_equal(engine_call_fds(&e, begin, &bad, sizeof(bad), NULL, 0, &m), -EINVAL);
	bad = s, bad.reserved = 1;
	assert_int_equal(engine_call_fds(&e, begin, &bad, sizeof(bad), NULL, 0, &m), -EINVAL);
	bad = s, memset(bad.peer, 'x', sizeof(bad.peer));
	assert_int_equal(engine_call_fds(&e, begin, &bad, sizeof(bad), NULL, 0, &m), -EINVAL);
	bad = s, bad.is_target = 0;
	assert_int_equal(engine_call_fds(&e, begin, &bad, sizeof(bad), NULL, 0, &m), -EBADRQC);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_INCOMING);
	assert_int_equal(engine_call_fds(&e, begin, &s, sizeof(s), NULL, 0, &m), 0);

	const uint32_t put = RL_VMM_STATE_PUT;
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), NULL, 0, &m), -EINVAL);
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), two, 2, &m), -EINVAL);
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), &memfd, 1, &m),
			 -EINVAL); /* empty */
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), &pipe_fd[0], 1, &m), -EINVAL);
	st.size = UINT64_MAX;
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), &memfd, 1, &m), -EINVAL);
	st.size = 0;
	assert_int_equal(engine_call_fds(&e, put, &st, sizeof(st), &memfd, 1, &m), -EINVAL);
	assert_int_equal(e.guest.calls[STATE_PUT], 0);
	assert_int_equal(engine_call_fds(&e, RL_VMM_SESSION_END, &end, sizeof(end), NULL, 0, &m),
			 -EINVAL);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_RECEIVING);
	assert_int_equal(count_fds(), fds);
	engine_finish(&e);
	close(memfd);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

/* Bytes that are no message end the connection; the library comes back, with no descriptor more. */
static void
expect_dropped(struct engine *e, int fds)
{
	struct pollfd p = {.fd = e->conn, .events = POLLIN};
	char c;

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	assert_true(recv(e->conn, &c, 1, MSG_DONTWAIT) <= 0);
	engine_hang_up(e);
	engine_register(e);
	assert_int_equal(count_fds(), fds);
}

static void
test_garbage(void **state)
{
	struct rl_vmm_hdr hdr = {RL_VMM_PAUSE, RAMLIFT_VMM_VERSION, 0};
	struct rl_vmm_hdr put = {RL_VMM_STATE_PUT, RAMLIFT_VMM_VERSION,
				 sizeof(struct rl_vmm_state)};
	struct rl_vmm_hdr h;
	static uint8_t large[RL_VMM_HDR_BYTES + RL_VMM_MAX_PAYLOAD + 1];
	struct rl_vmm_status st = {0};
	int many[12];
	struct engine e;
	int fds;

	(void)state;
	engine_start(&e, false, false);
	fds = count_fds();
	for (int i = 0; i < 12; i++)
		many[i] = e.guest.ram;
	h = hdr, h.flags = 2;
	send_raw(e.conn, &h, sizeof(h), NULL, 0);
	expect_dropped(&e, fds);
	h = hdr, h.flags |= 8;
	send_raw(e.conn, &h, sizeof(h), many, 3);
	expect_dropped(&e, fds);
	h = hdr, h.size = RL_VMM_MAX_PAYLOAD + 1;
	memcpy(large, &h, sizeof(h));
	send_raw(e.conn, large, sizeof(large), many, 8);
	expect_dropped(&e, fds);
	send_raw(e.conn, &hdr, sizeof(hdr), many, 12);
	expect_dropped(&e, fds);
	send_msg(e.conn, RL_VMM_PAUSE, RL_VMM_F_REPLY, &st, sizeof(st), many, 1);
	expect_dropped(&e, fds);
	send_raw(e.conn, &hdr, 5, many, 1);
	shutdown(e.conn, SHUT_WR);
	expect_dropped(&e, fds);
	send_raw(e.conn, &put, sizeof(put), many, 1);
	send_raw(e.conn, &st, 3, many, 1);
	shutdown(e.conn, SHUT_WR);
	expect_dropped(&e, fds);
	/* Half a message and then silence. */
	send_raw(e.conn, &hdr, 5, many, 1);
	expect_dropped(&e, fds);
	assert_int_equal(e.guest.calls[PAUSE], 0);
	engine_finish(&e);
}

static void
test_bytewise(void **state)
{
	struct rl_vmm_hdr hdr = {RL_VMM_SESSION_BEGIN, RAMLIFT_VMM_VERSION,
				 sizeof(struct rl_vmm_session)};
	struct rl_vmm_session s = {.session = {7}, .peer = "x"};
	struct message m;
	struct engine e;

	(void)state;
	engine_start(&e, false, false);
	for (size_t i = 0; i < sizeof(hdr); i++)
		send_raw(e.conn, (uint8_t *)&hdr + i, 1, NULL, 0);
	for (size_t i = 0; i < sizeof(s); i++)
		send_raw(e.conn, (uint8_t *)&s + i, 1, NULL, 0);
	recv_msg(e.conn, &m);
	assert_int_equal(m.hdr.size, sizeof(struct rl_vmm_status));
	assert_int_equal(m.payload[0], 0);
	assert_int_equal(rl_vmm_phase(e.vmm), RL_VMM_MIGRATING);
	engine_finish(&e);
}

static void
test_refused(void **state)
{
	struct message m;
	struct engine e;

	(void)state;
	engine_open(&e, false, false);
	assert_int_equal(rl_vmm_start(e.vmm), 0);
	for (int i = 0; i < 2; i++) {
		engine_accept(&e);
		engine_expect(&e, RL_VMM_HELLO, sizeof(struct rl_vmm_hello), 0, &m);
		engine_reply(&e, RL_VMM_HELLO, -EEXIST);
		close(e.conn);
	}
	engine_register(&e); /* it went on trying */
	engine_finish(&e);
}

static void
test_stop_alone(void **state)
{
	struct engine e;
	int fds = count_fds();

	(void)state;
	engine_open(&e, false, false);
	unlink(e.path); /* nobody there */
	assert_int_equal(rl_vmm_start(e.vmm), 0);
	assert_int_equal(rl_vmm_start(e.vmm), -EBUSY);
	engine_finish(&e);
	assert_int_equal(count_fds(), fds);
}

static uint64_t
ring_door(struct engine *e, uint32_t cmd)
{
	uint64_t req = e->shared->door_ack + 1;

	__atomic_store_n(&e->shared->door_cmd, cmd, __ATOMIC_RELAXED);
	__atomic_store_n(&e->shared->door_req, req, __ATOMIC_RELEASE);
	assert_int_equal(eventfd_write(e->door_fd, 1), 0);
	for (int i = 0; i < WAIT_MS * 10; i++) {
		if (__atomic_load_n(&e->shared->door_ack, __ATOMIC_ACQUIRE) == req)
			return (uint64_t)e->shared->door_result;
		usleep(100);
	}
	fail_msg("nobody answers the door");
	return 0;
}

static void
test_doorbell(void **state)
{
	struct engine e;

	(void)state;
	engine_start(&e, false, false);
	assert_int_equal(ring_door(&e, RL_VMM_DOOR_RESET_RINGS), 42);
	assert_int_equal(e.guest.rings_reset, 1);
	assert_int_equal((int64_t)ring_door(&e, RL_VMM_DOOR_SYNC_BITMAP), -EINVAL);
	assert_int_equal((int64_t)ring_door(&e, 77), -EINVAL);
	/* A bell without a request is no request. */
	assert_int_equal(eventfd_write(e.door_fd, 5), 0);
	assert_int_equal(ring_door(&e, RL_VMM_DOOR_RESET_RINGS), 42);
	assert_int_equal(e.guest.rings_reset, 2);
	/* An engine that makes the eventfd block and rings without end holds up nobody. */
	assert_int_equal(fcntl(e.door_fd, F_SETFL, 0), 0);
	engine_hang_up(&e);
	engine_register(&e);
	assert_int_equal(ring_door(&e, RL_VMM_DOOR_RESET_RINGS), 42);
	engine_finish(&e);
}

struct deleter {
	struct rl_vmm *vmm;
	atomic_bool done;
};

static void *
delete_slot(void *arg)
{
	struct deleter *d = arg;

	rl_vmm_slot_delete(d->vmm, 0);
	d->done = true;
	return NULL;
}

static void
begin_delete(struct engine *e, struct deleter *d, pthread_t *thread)
{
	uint64_t before = e->shared->drain_req;

	*d = (struct deleter){.vmm = e->vmm};
	assert_int_equal(pthread_create(thread, NULL, delete_slot, d), 0);
	while (__atomic_load_n(&e->shared->drain_req, __ATOMIC_ACQUIRE) == before)
		usleep(100);
	usleep(20000);
}

static void
test_drain(void **state)
{
	struct deleter d;
	struct engine e;
	pthread_t thread;

	(void)state;
	engine_start(&e, false, false);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 0, 0, 1), -EEXIST);
	rl_vmm_slot_delete(e.vmm, 0); /* nobody logs: no waiting */
	assert_int_equal(e.shared->slot[0].valid, 0);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 0, 16, 128), 0);
	engine_drive(&e, RL_VMM_MIGRATING);

	/* The table stays until the engine has taken all entries by it. */
	begin_delete(&e, &d, &thread);
	assert_false(d.done);
	assert_int_equal(e.shared->slot[0].valid, 1);
	assert_int_equal(e.shared->slot[0].n_pages, 128);
	__atomic_store_n(&e.shared->drain_ack, e.shared->drain_req, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	assert_int_equal(e.shared->slot[0].valid, 0);

	/* Nobody acknowledges: a second at most. */
	assert_int_equal(e.guest.undrained, 0);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 0, 16, 128), 0);
	begin_delete(&e, &d, &thread);
	pthread_join(thread, NULL);
	assert_int_equal(e.shared->slot[0].valid, 0);
	assert_int_equal(e.guest.undrained, 1);

	/* The engine goes away. */
	assert_int_equal(rl_vmm_slot_add(e.vmm, 0, 16, 128), 0);
	begin_delete(&e, &d, &thread);
	assert_false(d.done);
	engine_hang_up(&e);
	pthread_join(thread, NULL);
	assert_int_equal(e.guest.undrained, 1); /* there was nobody to wait for */
	engine_register(&e);
	assert_int_equal(e.shared->slot[0].valid, 0);
	engine_finish(&e);
}

static const uint8_t *
bitmap_at(const struct engine *e, uint32_t i)
{
	return (const uint8_t *)e->shared + e->shared->slot[i].bitmap;
}

static void
test_bitmap(void **state)
{
	struct deleter d;
	struct engine e;
	pthread_t thread;
	uint64_t word;

	(void)state;
	engine_start(&e, false, true);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 1, 16, 64), 0);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 2, 80, 128), 0);
	assert_int_equal(rl_vmm_slot_add(e.vmm, 3, 16, 10000000), -ENOSPC);
	for (uint32_t i = 0; i < 3; i++) {
		uint64_t at = e.shared->slot[i].bitmap;
		uint64_t end = at + e.shared->slot[i].n_pages / 8;

		assert_in_range(at, sizeof(struct rl_vmm_shared), e.shared_size);
		assert_in_range(end, at, e.shared_size);
		for (uint32_t k = 0; k < i; k++)
			assert_true(at >= e.shared->slot[k].bitmap +
						    e.shared->slot[k].n_pages / 8 ||
				    end <= e.shared->slot[k].bitmap);
	}
	/* The table that counts is the library's, whatever the engine writes over the shared one. */
	e.shared->slot[2].n_pages = UINT64_MAX;
	engine_drive(&e, RL_VMM_MIGRATING);
	assert_int_equal(ring_door(&e, RL_VMM_DOOR_SYNC_BITMAP), 0);
	assert_int_equal((int64_t)ring_door(&e, RL_VMM_DOOR_RESET_RINGS), -EINVAL);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(e.guest.synced[i], 1);
		memcpy(&word, bitmap_at(&e, (uint32_t)i), 8);
		assert_int_equal(word & 0x1ff, 0x100 + i);
	}
	/* KVM forgot what was dirty in a deleted slot: all of it is, and it is not asked again. */
	begin_delete(&e, &d, &thread);
	assert_int_equal(ring_door(&e, RL_VMM_DOOR_SYNC_BITMAP), 0);
	assert_int_equal(e.guest.synced[0], 1);
	assert_int_equal(e.guest.synced[1], 2);
	for (uint32_t i = 0; i < 256 / 8; i++)
		assert_int_equal(bitmap_at(&e, 0)[i], 0xff);
	__atomic_store_n(&e.shared->drain_ack, e.shared->drain_req, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	engine_finish(&e);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registration), cmocka_unit_test(test_create_refuses),
		cmocka_unit_test(test_source),       cmocka_unit_test(test_target),
		cmocka_unit_test(test_phases),       cmocka_unit_test(test_lost),
		cmocka_unit_test(test_after_commit), cmocka_unit_test(test_failing_vmm),
		cmocka_unit_test(test_bad_requests), cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_bytewise),     cmocka_unit_test(test_refused),
		cmocka_unit_test(test_stop_alone),   cmocka_unit_test(test_doorbell),
		cmocka_unit_test(test_drain),        cmocka_unit_test(test_bitmap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
