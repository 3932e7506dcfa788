/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_APP_SHOW_H
#define RL_APP_SHOW_H
/**
 * @file show.h
 * How ramlift prints what ramliftd answers (docs/rpc.md). Results go to stdout, progress to stderr: a bar on a
 * terminal, a line a second elsewhere.
 *
 * Threads: main. Errors: none; a missing member prints as 0 or "".
 */
#include <stdbool.h>

#include <jansson.h>

bool rl_show_ended(json_t *migration);
bool rl_show_completed(json_t *migration);

void rl_show_progress(json_t *migration);
/** The end of a migration: a summary, or with @json the whole object on one line. */
void rl_show_result(json_t *migration, bool json);

void rl_show_migration(json_t *migration);
void rl_show_list(json_t *list);
void rl_show_stats(json_t *stats);
void rl_show_json(json_t *j);
void rl_show_nothing(json_t *j);

#endif /* RL_APP_SHOW_H */
