/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_RPC_H
#define RL_CONTROL_RPC_H
/**
 * @file rpc.h
 * JSON-RPC 2.0 for ramlift and others (docs/rpc.md). Requests are answered at once; what takes time is a
 * session.
 *
 * Threads: the control thread.
 * Errors:  become JSON-RPC errors; never returned.
 */
#include <stddef.h>

#include <jansson.h>

struct rl_daemon;

#define RL_RPC_MAX_LINE 65536u

/** Answer one request of @len bytes. Returns the reply (new reference), or NULL for a notification. */
json_t *rl_rpc_handle(struct rl_daemon *d, const char *line, size_t len);

#endif /* RL_CONTROL_RPC_H */
