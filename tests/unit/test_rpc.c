/* SPDX-License-Identifier: BSD-3-Clause */
/* RPC: every method, every error of docs/rpc.md, hostile requests, lines in pieces, clients that do not read. */
#include "daemon_fixture.h"

/* ---- requests ---- */

static json_t *
handle(struct fixture *f, const char *text)
{
	return rl_rpc_handle(f->d, text, strlen(text));
}

/* The result of a good request; the caller's. */
static json_t *
call(struct fixture *f, const char *method, const char *params)
{
	char line[1024];
	json_t *reply, *result;

	snprintf(line, sizeof(line),
		 "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"%s\",\"params\":%s}", method, params);
	reply = handle(f, line);
	assert_non_null(reply);
	assert_int_equal(json_integer_value(json_object_get(reply, "id")), 7);
	assert_string_equal(json_string_value(json_object_get(reply, "jsonrpc")), "2.0");
	result = json_object_get(reply, "result");
	if (result == NULL)
		fail_msg("%s: %s", line, json_dumps(reply, 0));
	json_incref(result);
	json_decref(reply);
	return result;
}

static void
expect_error(json_t *reply, const char *line, int code, const char *name, const char *says)
{
	json_t *error = json_object_get(reply, "error");
	const char *text = json_string_value(json_object_get(error, "message"));
	const char *errno_name =
		json_string_value(json_object_get(json_object_get(error, "data"), "errno"));

	if (error == NULL || text == NULL || errno_name == NULL ||
	    json_object_get(reply, "result") != NULL)
		fail_msg("%s: not an error", line);
	if (json_integer_value(json_object_get(error, "code")) != code ||
	    strstr(text, says) == NULL || strcmp(errno_name, name) != 0)
		fail_msg("%s: %lld %s '%s'", line,
			 (long long)json_integer_value(json_object_get(error, "code")), errno_name,
			 text);
	json_decref(reply);
}

static void
refused(struct fixture *f, const char *method, const char *params, int code, const char *name,
	const char *says)
{
	char line[1024];

	snprintf(line, sizeof(line),
		 "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"%s\",\"params\":%s}", method, params);
	expect_error(handle(f, line), line, code, name, says);
}

static void
json_rpc(void **state)
{
	static const struct {
		const char *line;
		int code;
		const char *name, *says, *id;
	} bad[] = {
		{"", -32700, "EINVAL", "not JSON", "null"},
		{"{", -32700, "EINVAL", "not JSON", "null"},
		{"7", -32700, "EINVAL", "not JSON", "null"},
		{"{\"a\":\"\xff\"}", -32700, "EINVAL", "not JSON", "null"},
		{"[]", -32600, "EINVAL", "request", "null"},
		{"{}", -32600, "EINVAL", "request", "null"},
		{"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"list\"}]", -32600, "EINVAL",
		 "request", "null"},
		{"{\"id\":3,\"method\":\"list\"}", -32600, "EINVAL", "request", "3"},
		{"{\"jsonrpc\":\"1.0\",\"id\":3,\"method\":\"list\"}", -32600, "EINVAL", "request",
		 "3"},
		{"{\"jsonrpc\":2.0,\"id\":3,\"method\":\"list\"}", -32600, "EINVAL", "request",
		 "3"},
		{"{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":7}", -32600, "EINVAL", "request", "3"},
		{"{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"list\",\"params\":[]}", -32600,
		 "EINVAL", "request", "3"},
		{"{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"list\",\"params\":null}", -32600,
		 "EINVAL", "request", "3"},
		{"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"list\"}", -32600, "EINVAL", "'id'",
		 "null"},
		{"{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"list\"}", -32600, "EINVAL", "'id'",
		 "null"},
		{"{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"list\"}", -32600, "EINVAL", "'id'",
		 "null"},
		{"{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"lists\"}", -32601, "ENOSYS",
		 "'lists'", "\"x\""},
		{"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"\"}", -32601, "ENOSYS", "''",
		 "null"},
		/* Cut in the middle of a character. */
		{"{\"jsonrpc\":\"2.0\",\"id\":1.5,\"method\":\"x"
		 "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
		 "\xc3\xa4\xc3\xa4"
		 "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
		 "\xc3\xa4\xc3\xa4"
		 "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
		 "\xc3\xa4\"}",
		 -32601, "ENOSYS", "no method", "1.5"},
	};
	static const char *const silent[] = {
		"{\"jsonrpc\":\"2.0\",\"method\":\"list\"}",
		"{\"jsonrpc\":\"2.0\",\"method\":\"no-such\"}",
		"{\"jsonrpc\":\"2.0\",\"method\":\"migrate\",\"params\":{}}",
	};
	struct fixture *f = *state;
	json_t *stats;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		json_t *reply = handle(f, bad[i].line);
		char *id;

		assert_non_null(reply);
		id = json_dumps(json_object_get(reply, "id"), JSON_ENCODE_ANY);
		assert_string_equal(id, bad[i].id);
		free(id);
		expect_error(reply, bad[i].line, bad[i].code, bad[i].name, bad[i].says);
	}
	for (size_t i = 0; i < sizeof(silent) / sizeof(silent[0]); i++)
		assert_null(handle(f, silent[i]));
	stats = call(f, "stats", "{}");
	assert_int_equal(json_integer_value(json_object_get(stats, "rpc-errors")),
			 sizeof(bad) / sizeof(bad[0]) + 2);
	json_decref(stats);
}

static void
version_list_stats(void **state)
{
	static const char *const per_worker[] = {"turns",      "busy-turns",  "sleeps",
						 "rx-unknown", "handed-over", "cpu-ns",
						 "rx-packets", "tx-packets"};
	struct fixture *f = *state;
	json_t *j = call(f, "version", "{}"), *port, *worker;

	assert_string_equal(json_string_value(json_object_get(j, "version")), RAMLIFT_VERSION);
	assert_int_equal(json_integer_value(json_object_get(j, "wire")), RAMLIFT_WIRE_VERSION);
	assert_int_equal(json_integer_value(json_object_get(j, "vmm")), RAMLIFT_VMM_VERSION);
	json_decref(j);
	j = call(f, "list", "{}");
	assert_int_equal(json_array_size(json_object_get(j, "vms")), 0);
	assert_int_equal(json_array_size(json_object_get(j, "migrations")), 0);
	assert_true(json_is_array(json_object_get(j, "vms")));
	json_decref(j);
	j = call(f, "stats", "{\"ignored\":1}");
	port = json_object_get(j, "port");
	assert_string_equal(json_string_value(json_object_get(port, "uri")), "udp:");
	assert_string_equal(json_string_value(json_object_get(port, "address")), "127.0.0.1");
	assert_int_equal(json_integer_value(json_object_get(port, "udp-port")), f->d->cfg.udp_port);
	assert_int_equal(json_array_size(json_object_get(j, "workers")), 1);
	worker = json_array_get(json_object_get(j, "workers"), 0);
	for (size_t i = 0; i < sizeof(per_worker) / sizeof(per_worker[0]); i++)
		assert_true(json_is_integer(json_object_get(worker, per_worker[i])));
	json_decref(j);
}

static void
nothing_to_ask_about(void **state)
{
	static const char *const methods[] = {"query-migrate", "migrate-set-parameters",
					      "migrate-cancel", "migrate-recover"};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		refused(f, methods[i], "{}", -32000, "ENOENT", "no migration yet");
		refused(f, methods[i], "{\"id\":\"00000000-0000\"}", -32000, "ENOENT",
			"ramlift list");
		refused(f, methods[i], "{\"vm\":\"a\"}", -32000, "ENOENT", "no migration of 'a'");
		refused(f, methods[i], "{\"id\":5}", -32602, "EINVAL", "must be strings");
		refused(f, methods[i], "{\"vm\":null}", -32602, "EINVAL", "must be strings");
	}
}

static void
migrate_parameters(void **state)
{
	static const struct {
		const char *params, *says;
	} bad[] = {
		{"{}", "'vm' and 'to' are needed"},
		{"{\"vm\":\"a\"}", "'vm' and 'to'"},
		{"{\"vm\":1,\"to\":\"198.18.0.2\"}", "'vm' and 'to'"},
		{"{\"vm\":\"a\",\"to\":\"\"}", "198.18.0.2:7410"},
		{"{\"vm\":\"a\",\"to\":\"host\"}", "'host' is not ADDRESS"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2:0\"}", "is not ADDRESS"},
		{"{\"vm\":\"0123456789012345678901234567890123456789012345678901234567890123\","
		 "\"to\":\"198.18.0.2\"}",
		 "'vm' is too long"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"max-bandwidth\":-1}",
		 "'max-bandwidth' must be"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"max-bandwidth\":\"1G\"}",
		 "'max-bandwidth'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"max-bandwidth\":9223372036854775807}",
		 "'max-bandwidth'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"max-bandwidth\":1e9}", "'max-bandwidth'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"downtime-limit\":2000001}",
		 "'downtime-limit'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"timeout\":true}", "'timeout'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"timeout-strategy\":\"wait\"}",
		 "'timeout-strategy'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"timeout-strategy\":1}",
		 "'timeout-strategy'"},
		{"{\"vm\":\"a\",\"to\":\"198.18.0.2\",\"verify\":\"yes\"}", "'verify'"},
	};
	struct fixture *f = *state;
	json_t *j;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refused(f, "migrate", bad[i].params, -32602, "EINVAL", bad[i].says);
	j = call(f, "list", "{}");
	assert_int_equal(json_array_size(json_object_get(j, "migrations")), 0);
	json_decref(j);
}

/* The migration @params once it has ended; the caller's. */
static json_t *
wait_ended(struct fixture *f, const char *params)
{
	uint64_t end = rl_now_ns() + WAIT_NS;

	for (;;) {
		json_t *j = call(f, "query-migrate", params);
		const char *status = json_string_value(json_object_get(j, "status"));

		if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0 ||
		    strcmp(status, "completed") == 0)
			return j;
		if (rl_now_ns() > end)
			fail_msg("still %s", status);
		json_decref(j);
		rl_sleep_ns(RL_NS_PER_MS);
	}
}

static void
migration_of_nobody(void **state)
{
	static const char *const parts[] = {"ram", "dirty", "link", "parameters"};
	struct fixture *f = *state;
	char query[128];
	const char *id;
	json_t *j, *m, *param;

	j = call(f, "migrate",
		 "{\"vm\":\"ghost\",\"to\":\"127.0.0.1:1\",\"max-bandwidth\":1000000,\"timeout\":9,"
		 "\"timeout-strategy\":\"switchover\",\"verify\":true}");
	id = json_string_value(json_object_get(j, "id"));
	assert_int_equal(strlen(id), 36);
	snprintf(query, sizeof(query), "{\"id\":\"%s\"}", id);
	m = wait_ended(f, query);
	assert_string_equal(json_string_value(json_object_get(m, "id")), id);
	assert_string_equal(json_string_value(json_object_get(m, "status")), "failed");
	assert_string_equal(json_string_value(json_object_get(m, "role")), "source");
	assert_string_equal(json_string_value(json_object_get(m, "vm")), "ghost");
	assert_string_equal(json_string_value(json_object_get(m, "peer")), "127.0.0.1:1");
	assert_non_null(
		strstr(json_string_value(json_object_get(m, "error-desc")), "no VM named 'ghost'"));
	assert_true(json_is_null(json_object_get(m, "verified")));
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		assert_true(json_is_object(json_object_get(m, parts[i])));
	param = json_object_get(m, "parameters");
	assert_int_equal(json_integer_value(json_object_get(param, "max-bandwidth")), 1000000);
	assert_int_equal(json_integer_value(json_object_get(param, "downtime-limit")), 300);
	assert_int_equal(json_integer_value(json_object_get(param, "timeout")), 9);
	assert_string_equal(json_string_value(json_object_get(param, "timeout-strategy")),
			    "switchover");
	assert_true(json_is_true(json_object_get(param, "verify")));
	json_decref(m);

	refused(f, "migrate-cancel", query, -32000, "ESRCH", "has ended: failed");
	refused(f, "migrate-set-parameters", query, -32000, "ESRCH", "has ended");
	refused(f, "migrate-recover", query, -32000, "EALREADY", "nothing to recover");
	json_decref(j);
	/* By the beginning of its id, by VM, as the newest. */
	snprintf(query + 15, sizeof(query) - 15, "\"}");
	json_decref(wait_ended(f, query));
	json_decref(wait_ended(f, "{\"vm\":\"ghost\"}"));
	json_decref(wait_ended(f, "{}"));
	refused(f, "query-migrate", "{\"id\":\"\"}", -32000, "ENOENT", "no migration ''");
}

static void
ended_migrations_are_forgotten(void **state)
{
	struct fixture *f = *state;
	json_t *first = NULL, *j;
	char query[128];

	for (uint32_t i = 0; i < RL_SESSIONS_KEPT + 10; i++) {
		j = call(f, "migrate", "{\"vm\":\"ghost\",\"to\":\"127.0.0.1:1\"}");
		snprintf(query, sizeof(query), "{\"id\":\"%s\"}",
			 json_string_value(json_object_get(j, "id")));
		json_decref(wait_ended(f, query));
		if (first == NULL)
			first = j;
		else
			json_decref(j);
		/* `ended` is set a moment after the status. */
		rl_sleep_ns(RL_NS_PER_MS);
	}
	j = call(f, "list", "{}");
	assert_in_range(json_array_size(json_object_get(j, "migrations")), RL_SESSIONS_KEPT,
			RL_SESSIONS_KEPT + 1);
	json_decref(j);
	snprintf(query, sizeof(query), "{\"id\":\"%s\"}",
		 json_string_value(json_object_get(first, "id")));
	refused(f, "query-migrate", query, -32000, "ENOENT", "no migration");
	json_decref(first);
}

/* ---- over the socket ---- */

static void
lines(void **state)
{
	static const char version[] = "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"version\"}\n";
	static const char head[] = "{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"version\"";
	struct fixture *f = *state;
	char text[256], *big;
	json_t *j;
	int fd;

	/* In pieces, several at once, a notification and an empty line in between. */
	snprintf(text, sizeof(text), version, 1);
	for (size_t i = 0; i < strlen(text); i++)
		put(f->rpc, text + i, 1);
	j = get(f->rpc);
	assert_int_equal(json_integer_value(json_object_get(j, "id")), 1);
	json_decref(j);
	for (int i = 2; i < 6; i++) {
		snprintf(text, sizeof(text), version, i);
		put(f->rpc, text, strlen(text));
	}
	PUT(f->rpc, "{\"jsonrpc\":\"2.0\",\"method\":\"version\"}\n\n");
	for (int i = 2; i < 6; i++) {
		j = get(f->rpc);
		assert_int_equal(json_integer_value(json_object_get(j, "id")), i);
		json_decref(j);
	}
	expect_error(get(f->rpc), "an empty line", -32700, "EINVAL", "not JSON");

	/* A line too long is not collected for ever; others do not notice. */
	big = malloc(RL_RPC_MAX_LINE);
	assert_non_null(big);
	memset(big, ' ', RL_RPC_MAX_LINE);
	fd = connect_unix(f->d->cfg.rpc_socket);
	put(fd, big, RL_RPC_MAX_LINE);
	assert_null(get(fd));
	close(fd);
	memcpy(big, head, sizeof(head) - 1);
	big[RL_RPC_MAX_LINE - 2] = '}';
	big[RL_RPC_MAX_LINE - 1] = '\n';
	put(f->rpc, big, RL_RPC_MAX_LINE);
	j = get(f->rpc);
	assert_int_equal(json_integer_value(json_object_get(j, "id")), 9);
	json_decref(j);
	free(big);
	fd = connect_unix(f->d->cfg.rpc_socket);
	PUT(fd, "{\"jsonrpc\":");
	close(fd);
}

/* A client that asks and never reads is held back, and does not hold up the others. */
static void
client_that_does_not_read(void **state)
{
	static const char stats[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stats\"}\n";
	struct fixture *f = *state;
	int fd = connect_unix(f->d->cfg.rpc_socket), n = 0;
	json_t *j;

	while (send(fd, stats, sizeof(stats) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(stats) - 1)
		n++;
	put(f->rpc, stats, sizeof(stats) - 1);
	j = get(f->rpc);
	assert_non_null(json_object_get(j, "result"));
	json_decref(j);
	for (int i = 0; i < n; i++) {
		j = get(fd);
		assert_non_null(json_object_get(j, "result"));
		json_decref(j);
	}
	close(fd);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		IDLE(json_rpc),
		IDLE(version_list_stats),
		IDLE(nothing_to_ask_about),
		IDLE(migrate_parameters),
		IDLE(migration_of_nobody),
		IDLE(ended_migrations_are_forgotten),
		RUNNING(lines),
		RUNNING(client_that_does_not_read),
	};

	return cmocka_run_group_tests(tests, setup_all, teardown_all);
}
