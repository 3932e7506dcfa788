/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_APP_RPC_CLIENT_H
#define RL_APP_RPC_CLIENT_H
/**
 * @file rpc_client.h
 * Blocking JSON-RPC calls to ramliftd over its unix socket.
 *
 * Threads: one per connection.
 * Errors:  0 or -errno with cause and remedy; an error of the engine's keeps its text.
 */
#include <jansson.h>

#include "base/err.h"

struct rl_rpc_client {
	int fd;
	int next_id;
};

int rl_rpc_connect(struct rl_rpc_client *c, const char *path, struct rl_err *err);
void rl_rpc_disconnect(struct rl_rpc_client *c);

/** Takes @params (may be NULL); *result is the caller's. */
int rl_rpc_call(struct rl_rpc_client *c, const char *method, json_t *params, json_t **result,
		struct rl_err *err);

#endif /* RL_APP_RPC_CLIENT_H */
