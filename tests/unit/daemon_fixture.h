/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TESTS_DAEMON_FIXTURE_H
#define RL_TESTS_DAEMON_FIXTURE_H
/**
 * @file daemon_fixture.h
 * A real daemon on loopback, with its sockets in a directory of the test's own: IDLE() tests have no control thread
 * and call it themselves, RUNNING() ones talk to it over its sockets.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include <ramlift/version.h>

#include "base/clock.h"
#include "base/log.h"
#include "control/daemon.h"
#include "control/peer.h"
#include "control/rpc.h"
#include "control/units.h"

#define WAIT_NS (20 * RL_NS_PER_S)

static char dir[] = "/tmp/test_rpc.XXXXXX";

struct fixture {
	struct rl_daemon *d;
	pthread_t loop;
	bool looping;
	int rpc; /* a client's connection */
};

static inline void
start_daemon(struct fixture *f, const char *listen, const char *address)
{
	static uint32_t next;
	struct rl_err err = {0};
	struct rl_config cfg;
	int rc = -EADDRINUSE;

	rl_config_defaults(&cfg);
	snprintf(cfg.rpc_socket, sizeof(cfg.rpc_socket), "%s/rpc", dir);
	snprintf(cfg.vmm_socket, sizeof(cfg.vmm_socket), "%s/vmm", dir);
	snprintf(cfg.address, sizeof(cfg.address), "%s", address);
	snprintf(cfg.tls, sizeof(cfg.tls), "insecure-lab"); /* the tests speak for themselves */
	for (int i = 0; i < 100 && rc == -EADDRINUSE; i++, next++) {
		cfg.udp_port = 15000 + ((uint32_t)getpid() * 32 + next) % 15000;
		snprintf(cfg.listen, sizeof(cfg.listen), "%s:%u", listen, (uint32_t)cfg.udp_port);
		rc = rl_daemon_start(&cfg, &f->d, &err);
	}
	if (rc != 0)
		fail_msg("%s", err.text);
}

static inline int
setup(void **state)
{
	static struct fixture f;

	f = (struct fixture){.rpc = -1};
	start_daemon(&f, "127.0.0.1", "127.0.0.1");
	*state = &f;
	return 0;
}

static inline void *
loop_main(void *arg)
{
	struct fixture *f = arg;

	rl_daemon_run(f->d);
	return NULL;
}

static inline int
connect_unix(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	return fd;
}

static inline int
setup_running(void **state)
{
	struct fixture *f;

	setup(state);
	f = *state;
	f->looping = pthread_create(&f->loop, NULL, loop_main, f) == 0;
	f->rpc = connect_unix(f->d->cfg.rpc_socket);
	return !f->looping;
}

static inline int
teardown(void **state)
{
	struct fixture *f = *state;
	sigset_t term;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (f->looping) {
		kill(getpid(), SIGTERM);
		pthread_join(f->loop, NULL);
		sigwaitinfo(&term, NULL); /* the daemon only looked at it */
	}
	rl_daemon_stop(f->d);
	if (f->rpc >= 0)
		close(f->rpc);
	return 0;
}

static inline void
put(int fd, const char *text, size_t n)
{
	while (n > 0) {
		ssize_t k = send(fd, text, n, MSG_NOSIGNAL);

		assert_true(k > 0);
		text += k;
		n -= (size_t)k;
	}
}

#define PUT(fd, literal) put(fd, literal, sizeof(literal) - 1)

/* The next line as JSON, or NULL when the daemon has closed. */
static inline json_t *
get(int fd)
{
	static char line[1 << 20];
	size_t n = 0;

	while (n < sizeof(line)) {
		if (rl_wait_readable(fd, -1, rl_now_ns() + WAIT_NS) != 0)
			fail_msg("no reply");
		if (recv(fd, line + n, 1, 0) != 1)
			return NULL;
		if (line[n] == '\n')
			return json_loadb(line, n, 0, NULL);
		n++;
	}
	return NULL;
}

static inline int
setup_all(void **state)
{
	sigset_t term;

	(void)state;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigaddset(&term, SIGINT);
	sigprocmask(SIG_BLOCK, &term, NULL);
	rl_log_set_level(RL_LOG_ERROR);
	return mkdtemp(dir) == NULL;
}

static inline int
teardown_all(void **state)
{
	(void)state;
	return rmdir(dir);
}

#define IDLE(f)    cmocka_unit_test_setup_teardown(f, setup, teardown)
#define RUNNING(f) cmocka_unit_test_setup_teardown(f, setup_running, teardown)

#endif /* RL_TESTS_DAEMON_FIXTURE_H */
