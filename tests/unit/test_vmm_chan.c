/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine's requests to a VM: replies good and bad, late or missing, device state, a VMM that is gone or dead.
 */
#include "vmm_player.h"

static void
calls(void **state)
{
	static const uint8_t uuid[16] = "migration-00001";
	struct rl_vm *vm = registered();
	struct rl_vmm_session_end end;
	struct rl_vmm_session s;
	struct rl_vmm_hdr hdr;
	struct rl_err err;
	int fd;

	(void)state;
	send_reply(RL_VMM_SESSION_BEGIN, 0, "");
	assert_int_equal(rl_vm_session_begin(vm, uuid, false, "198.18.0.2:7410", &err), 0);
	assert_true(next_from_engine(&hdr, &s, sizeof(s), &fd));
	assert_int_equal(hdr.request, RL_VMM_SESSION_BEGIN);
	assert_int_equal(hdr.flags & RL_VMM_F_REPLY, 0);
	assert_int_equal(hdr.size, sizeof(s));
	assert_memory_equal(s.session, uuid, 16);
	assert_string_equal(s.peer, "198.18.0.2:7410");
	assert_int_equal(s.is_target, 0);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_MIGRATING);

	send_reply(RL_VMM_PAUSE, -EBUSY, "not now"); /* refused: all goes on */
	assert_int_equal(rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SOON_NS, &err), -EBUSY);
	assert_non_null(strstr(err.text, "the VMM refused: not now"));
	assert_true(next_from_engine(&hdr, &s, sizeof(s), &fd));
	assert_int_equal(hdr.size, 0);
	assert_false(rl_vm_gone(vm));
	send_reply(RL_VMM_PAUSE, 1234, ""); /* not an errno */
	assert_int_equal(rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SOON_NS, &err), -EIO);
	assert_true(next_from_engine(&hdr, &s, sizeof(s), &fd));
	send_reply(RL_VMM_PAUSE, INT32_MIN, "");
	assert_int_equal(rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SOON_NS, &err), -EIO);
	assert_true(next_from_engine(&hdr, &s, sizeof(s), &fd));

	send_reply(RL_VMM_SESSION_END, 0, "");
	assert_int_equal(rl_vm_session_end(vm, RL_VMM_ABORTED, &err), 0);
	assert_true(next_from_engine(&hdr, &end, sizeof(end), &fd));
	assert_int_equal(end.outcome, RL_VMM_ABORTED);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_RUNNING);
	send_reply(RL_VMM_SESSION_BEGIN, 0, "");
	assert_int_equal(rl_vm_session_begin(vm, uuid, true, "x", &err), 0);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_RECEIVING);
	send_reply(RL_VMM_SESSION_END, 0, "");
	assert_int_equal(rl_vm_session_end(vm, RL_VMM_ABORTED, &err), 0);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_INCOMING);
	rl_vm_destroy(vm);
}

static void
reply_wrong_number(void)
{
	send_reply(RL_VMM_RESUME, 0, "");
}

static void
reply_not_one(void)
{
	struct rl_vmm_status st = {0};

	send_msg(RL_VMM_PAUSE, 0, &st, sizeof(st), &vmm.ram, 1);
}

static void
reply_short(void)
{
	struct rl_vmm_status st = {0};

	send_msg(RL_VMM_PAUSE, RL_VMM_F_REPLY, &st, sizeof(st) - 1, &vmm.ram, 1);
}

static void
reply_long(void)
{
	struct rl_vmm_state_reply r = {0};

	send_msg(RL_VMM_PAUSE, RL_VMM_F_REPLY, &r, sizeof(r), &vmm.ram, 1);
}

static void
reply_other_version(void)
{
	struct rl_vmm_hdr hdr = {.request = RL_VMM_PAUSE, .flags = 3 | RL_VMM_F_REPLY};

	send_raw(&hdr, NULL, 0, NULL, 0);
}

static void
reply_none(void)
{
}

static void
reply_half(void)
{
	assert_int_equal(send(vmm.sock, "half a head", 11, 0), 11);
}

/* After a reply that is not one, the next would be taken for another's: the engine hangs up. */
static void
bad_replies(void **state)
{
	static const struct {
		void (*send)(void);
		int code;
	} cases[] = {
		{reply_wrong_number, -EPROTO},
		{reply_not_one, -EPROTO},
		{reply_short, -EPROTO},
		{reply_long, -EPROTO},
		{reply_other_version, -EPROTONOSUPPORT},
		{reply_none, -ETIMEDOUT},
		{reply_half, -ETIMEDOUT},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rl_err err = {0};
		struct rl_vm *vm;
		uint32_t fds;

		teardown(state);
		setup(state);
		vm = registered();
		cases[i].send();
		fds = open_fds();
		if (rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SHORT_NS, &err) != cases[i].code)
			fail_msg("%zu: %s", i, err.text);
		assert_int_equal(open_fds(), fds);
		assert_true(rl_vm_gone(vm));
		assert_int_equal(rl_vm_call(vm, RL_VMM_RESUME, NULL, 0, SHORT_NS, &err),
				 -ECONNRESET);
		rl_vm_destroy(vm);
	}
}

static void
put_state(uint64_t size, int fd, uint32_t n_fds)
{
	struct rl_vmm_state_reply r = {.state.size = size};
	int fds[2] = {fd, fd};

	send_msg(RL_VMM_STATE_GET, RL_VMM_F_REPLY, &r, sizeof(r), fds, n_fds);
}

static void
device_state(void **state)
{
	struct rl_vm *vm = registered();
	int memfd = make_memfd(5000, 0), pipefd[2];
	uint8_t text[5000], back[5000], *got = NULL;
	struct rl_vmm_state st;
	struct rl_vmm_hdr hdr;
	uint64_t size;
	struct rl_err err;
	uint32_t fds = open_fds();
	int fd = -1;

	(void)state;
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (uint8_t)(i * 7);
	assert_int_equal(pwrite(memfd, text, sizeof(text), 0), sizeof(text));
	put_state(sizeof(text), memfd, 1);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), 0);
	assert_int_equal(size, sizeof(text));
	assert_memory_equal(got, text, size);
	free(got);
	put_state(sizeof(text) + 1, memfd, 1); /* more than there is */
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	put_state(sizeof(text), memfd, 2);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	put_state(sizeof(text), memfd, 0);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	put_state(0, memfd, 1);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	put_state(RL_VMM_STATE_MAX + 1, memfd, 1);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	assert_int_equal(pipe2(pipefd, O_CLOEXEC), 0); /* reading it would wait for ever */
	put_state(10, pipefd[0], 1);
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EPROTO);
	close(pipefd[0]);
	close(pipefd[1]);
	send_reply(RL_VMM_STATE_GET, -EIO, "a device is stuck");
	assert_int_equal(rl_vm_state_get(vm, &got, &size, &err), -EIO);
	assert_int_equal(open_fds(), fds);
	for (int i = 0; i < 8; i++)
		assert_true(next_from_engine(&hdr, back, sizeof(back), &fd));

	send_reply(RL_VMM_STATE_PUT, 0, "");
	assert_int_equal(rl_vm_state_put(vm, text, sizeof(text), &err), 0);
	assert_true(next_from_engine(&hdr, &st, sizeof(st), &fd));
	assert_int_equal(hdr.request, RL_VMM_STATE_PUT);
	assert_int_equal(st.size, sizeof(text));
	assert_int_equal(pread(fd, back, sizeof(back), 0), sizeof(text));
	assert_memory_equal(back, text, sizeof(text));
	close(fd);
	assert_int_equal(rl_vm_phase(vm), RL_VMM_READY);
	close(memfd);
	rl_vm_destroy(vm);
}

/* The only sure sign that a VMM can no longer run its guest is the end of its process. */
static void
death_of_the_process(void **state)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), go[2];
	struct rl_err err;
	struct rl_vm *vm;
	pid_t pid;
	char c;

	(void)state;
	snprintf(sun.sun_path, sizeof(sun.sun_path), "/tmp/test_vmm_chan.%d", getpid());
	unlink(sun.sun_path);
	assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		alarm(60);
		close(vmm.sock);
		vmm.sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(vmm.sock, (struct sockaddr *)&sun, sizeof(sun)) != 0)
			_exit(1);
		send_all();
		close(go[1]);
		if (read(go[0], &c, 1) < 0)
			_exit(2);
		close(vmm.sock); /* the socket goes, the process stays */
		for (;;)
			pause();
	}
	close(vmm.engine);
	vmm.engine = accept(fd, NULL, NULL);
	unlink(sun.sun_path);
	close(fd);
	assert_int_equal(do_register(SOON_NS, &vm, &err), 0);
	assert_int_equal(vm->pid, pid);
	assert_false(rl_vm_gone(vm));
	assert_int_equal(write(go[1], "x", 1), 1);
	for (int i = 0; i < 1000 && !rl_vm_gone(vm); i++)
		rl_sleep_ns(10 * RL_NS_PER_MS);
	assert_true(rl_vm_gone(vm));
	assert_false(rl_vm_dead(vm, 50));
	assert_int_equal(rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SHORT_NS, &err), -ECONNRESET);
	kill(pid, SIGKILL);
	assert_true(rl_vm_dead(vm, 10000));
	assert_int_equal(rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, SHORT_NS, &err), -ESRCH);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_true(rl_vm_dead(vm, 0));
	rl_vm_destroy(vm);
	close(go[0]);
	close(go[1]);
}

static void
phase_names(void **state)
{
	(void)state;
	assert_string_equal(rl_vm_phase_name(0), "unknown");
	assert_string_equal(rl_vm_phase_name(RL_VMM_RUNNING), "running");
	assert_string_equal(rl_vm_phase_name(RL_VMM_MOVED), "moved");
	assert_string_equal(rl_vm_phase_name(RL_VMM_MOVED + 1), "unknown");
	assert_string_equal(rl_vm_phase_name(UINT32_MAX), "unknown");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		VMM_TEST(calls),
		VMM_TEST(bad_replies),
		VMM_TEST(device_state),
		VMM_TEST(death_of_the_process),
		cmocka_unit_test(phase_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
