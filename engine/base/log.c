/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log: one write(2) to stderr per line, see log.h.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 1024

static int shown = RL_LOG_INFO;

void
rl_log_set_level(enum rl_log_level level)
{
	__atomic_store_n(&shown, (int)level, __ATOMIC_RELAXED);
}

void
rl_log(enum rl_log_level level, const char *fmt, ...)
{
	static const char *const name[] = {"ERROR", "WARN ", "INFO ", "DEBUG"};
	char line[LINE_BYTES];
	int saved = errno, n;
	size_t len;
	va_list ap;

	if ((int)level > __atomic_load_n(&shown, __ATOMIC_RELAXED))
		return;
	n = snprintf(line, sizeof(line), "%s  ", name[level]);
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
	va_end(ap);

	/* Names in the text come from peers and VMMs: they must not forge a line or drive a terminal. */
	len = strlen(line);
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[len++] = '\n'; /* over the terminating zero: the line goes out by length */
	if (write(STDERR_FILENO, line, len) < 0) {
		/* Dropped: there is nowhere left to say so. */
	}
	errno = saved;
}
