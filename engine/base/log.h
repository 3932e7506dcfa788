/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_LOG_H
#define RL_BASE_LOG_H
/**
 * @file log.h
 * One line per event to stderr: "LEVEL  text". Never called from a worker's turn.
 *
 * Threads: [any]; a line is one write(2).
 * Errors:  none; a line that cannot be written is dropped, one that is too long is cut. Control characters
 *          in the text become '?', so that no text can forge a line.
 *
 * ERROR ends a migration or the daemon, WARN degrades it, INFO once per phase, DEBUG for developers.
 */
enum rl_log_level { RL_LOG_ERROR = 0, RL_LOG_WARN = 1, RL_LOG_INFO = 2, RL_LOG_DEBUG = 3 };

/** Show this level and the graver ones. Default: INFO. */
void rl_log_set_level(enum rl_log_level level);

void rl_log(enum rl_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define rl_error(...) rl_log(RL_LOG_ERROR, __VA_ARGS__)
#define rl_warn(...)  rl_log(RL_LOG_WARN, __VA_ARGS__)
#define rl_info(...)  rl_log(RL_LOG_INFO, __VA_ARGS__)
#define rl_debug(...) rl_log(RL_LOG_DEBUG, __VA_ARGS__)

#endif /* RL_BASE_LOG_H */
