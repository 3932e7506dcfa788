/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors and the log.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/err.h"
#include "base/log.h"

static void
test_set(void **state)
{
	struct rl_err err = {0};

	(void)state;
	assert_int_equal(rl_err_set(&err, -ENOENT, "cannot open %s; create it", "/x"), -ENOENT);
	assert_int_equal(err.code, -ENOENT);
	assert_string_equal(err.text, "cannot open /x; create it");
	assert_int_equal(rl_err_set(NULL, -EIO, "%d", 1), -EIO);
}

static void
test_prefix(void **state)
{
	struct rl_err err;

	(void)state;
	rl_err_set(&err, -EIO, "disk");
	assert_int_equal(rl_err_prefix(&err, "vm %d", 7), -EIO);
	assert_string_equal(err.text, "vm 7: disk");
}

/* Text that does not fit is cut, whatever part of it it is. */
static void
test_cut(void **state)
{
	static struct rl_err err;
	char text[sizeof(err.text) + 10];

	(void)state;
	memset(text, 'a', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	rl_err_set(&err, -EIO, "%s", text);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	rl_err_prefix(&err, "head");
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	assert_memory_equal(err.text, "head: aaa", 9);

	for (size_t len = sizeof(err.text) - 5; len < sizeof(text); len++) {
		rl_err_set(&err, -EIO, "tail");
		rl_err_prefix(&err, "%.*s", (int)len, text);
		assert_in_range(strlen(err.text), sizeof(err.text) - 2, sizeof(err.text) - 1);
		assert_memory_equal(err.text, text, sizeof(err.text) - 5);
	}
}

/* What rl_log() writes to stderr. */
static size_t
capture(char *out, size_t size, enum rl_log_level level, const char *text)
{
	int fds[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_int_equal(pipe(fds), 0);
	assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
	rl_log(level, "vm=%s", text);
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	close(saved);
	close(fds[1]);
	n = read(fds[0], out, size - 1);
	close(fds[0]);
	assert_true(n >= 0);
	out[n] = '\0';
	return (size_t)n;
}

static void
test_log(void **state)
{
	char line[4096], text[3000];

	(void)state;
	errno = EAGAIN;
	capture(line, sizeof(line), RL_LOG_INFO, "a");
	assert_string_equal(line, "INFO   vm=a\n");
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(capture(line, sizeof(line), RL_LOG_DEBUG, "a"), 0);
	rl_log_set_level(RL_LOG_DEBUG);
	capture(line, sizeof(line), RL_LOG_DEBUG, "a");
	assert_string_equal(line, "DEBUG  vm=a\n");
	rl_log_set_level(RL_LOG_ERROR);
	assert_int_equal(capture(line, sizeof(line), RL_LOG_WARN, "a"), 0);

	capture(line, sizeof(line), RL_LOG_ERROR, "a\nERROR  \x1b[2Jforged");
	assert_string_equal(line, "ERROR  vm=a?ERROR  ?[2Jforged\n");

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(capture(line, sizeof(line), RL_LOG_ERROR, text), 1024);
	assert_int_equal(line[1023], '\n');
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_prefix),
		cmocka_unit_test(test_cut),
		cmocka_unit_test(test_log),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
