/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * RPC: every line is answered by one JSON-RPC 2.0 object or, when it is a notification, by nothing. The daemon is
 * started once, on a kernel-socket port of loopback; it has no VM, so migrations fail as soon as they start.
 */
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "control/daemon.h"
#include "control/rpc.h"
#include "fuzz.h"

static struct rl_daemon *daemon_;
static char dir[] = "/tmp/fuzz_rpc.XXXXXX";

static void
stop(void)
{
	rl_daemon_stop(daemon_);
	rmdir(dir);
}

static void
start(void)
{
	struct rl_err err = {0};
	struct rl_config cfg;
	int rc = -1;

	rl_log_set_level(RL_LOG_ERROR);
	FUZZ_CHECK(mkdtemp(dir) != NULL);
	rl_config_defaults(&cfg);
	snprintf(cfg.rpc_socket, sizeof(cfg.rpc_socket), "%s/rpc", dir);
	snprintf(cfg.vmm_socket, sizeof(cfg.vmm_socket), "%s/vmm", dir);
	snprintf(cfg.address, sizeof(cfg.address), "127.0.0.1");
	snprintf(cfg.tls, sizeof(cfg.tls), "insecure-lab");
	for (uint32_t i = 0; rc != 0 && i < 100; i++) {
		cfg.udp_port = 15000 + ((uint32_t)getpid() * 32 + i) % 15000;
		snprintf(cfg.listen, sizeof(cfg.listen), "127.0.0.1:%u", (uint32_t)cfg.udp_port);
		rc = rl_daemon_start(&cfg, &daemon_, &err);
	}
	FUZZ_CHECK(rc == 0);
	atexit(stop);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	json_t *reply, *error, *id;
	char *text;

	if (daemon_ == NULL)
		start();
	if (len > RL_RPC_MAX_LINE)
		return 0;
	reply = rl_rpc_handle(daemon_, (const char *)data, len);
	if (reply == NULL) {
		json_t *request = json_loadb((const char *)data, len, 0, NULL);

		FUZZ_CHECK(json_is_object(request) && json_object_get(request, "id") == NULL);
		json_decref(request);
		return 0;
	}
	error = json_object_get(reply, "error");
	id = json_object_get(reply, "id");
	FUZZ_CHECK(json_is_string(id) || json_is_number(id) || json_is_null(id));
	FUZZ_CHECK(strcmp(json_string_value(json_object_get(reply, "jsonrpc")), "2.0") == 0);
	FUZZ_CHECK((error == NULL) != (json_object_get(reply, "result") == NULL));
	FUZZ_CHECK(error == NULL || json_string_length(json_object_get(error, "message")) > 0);
	text = json_dumps(reply, JSON_COMPACT);
	FUZZ_CHECK(text != NULL && strchr(text, '\n') == NULL);
	free(text);
	json_decref(reply);
	return 0;
}
