/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_ERR_H
#define RL_BASE_ERR_H
/**
 * @file err.h
 * The one error a failed control-path call leaves: its cause and its remedy, for a person.
 *
 * Threads: a struct rl_err belongs to the caller that passed it.
 * Units:   code is a negative errno.
 * Errors:  none of its own; text that does not fit is cut.
 */
#include <stdarg.h>

struct rl_err {
	int code;       /* 0, or the -errno of the failure */
	char text[384]; /* "cannot open X: no such file; create it with Y" */
};

/** Store @code and the formatted text; @err may be NULL. Returns @code, for `return rl_err_set(…)`. */
int rl_err_set(struct rl_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/** Put "what: " in front of the text that is there; @err is not NULL. Returns err's code. */
int rl_err_prefix(struct rl_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif /* RL_BASE_ERR_H */
