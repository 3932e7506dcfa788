/* SPDX-License-Identifier: BSD-3-Clause */
/* ramliftd as hostile peers see it, where it sends packets to, and whose sockets it takes over when it starts. */
#include "daemon_fixture.h"

/* ---- the control channel's other end ---- */

static struct rl_peer
connect_peer(struct fixture *f)
{
	struct rl_peer p = {.fd = -1, .cancel_fd = -1};
	struct sockaddr_storage to;
	struct rl_err err = {0};
	socklen_t len;

	assert_int_equal(rl_parse_endpoint(f->d->cfg.listen, 0, &to, &len, &err), 0);
	if (rl_peer_connect(&p, &to, len, rl_now_ns() + WAIT_NS, &err) != 0)
		fail_msg("%s", err.text);
	return p;
}

#define UUID "11111111-2222-4333-8444-555555555555"
#define PORT                                                                                       \
	"\"port\":{\"address\":\"127.0.0.1\",\"udp-port\":9,\"mac\":\"00:00:00:00:00:00\",\"max-"  \
	"payload\":1400,\"credit\":64}"

static void
hostile_peers(void **state)
{
	static const struct {
		const char *json, *says;
	} bad[] = {
		{"{\"type\":\"commit\",\"wire\":1}", "unexpected 'commit'"},
		{"{\"type\":\"hello\"}", "wire version 0"},
		{"{\"type\":\"hello\",\"wire\":2,\"version\":\"9.9\"}",
		 "ramlift 9.9) speaks wire version 2"},
		{"{\"type\":\"hello\",\"wire\":\"1\"}", "wire version 0"},
		{"{\"type\":\"hello\",\"wire\":1}", "malformed hello"},
		{"{\"type\":\"hello\",\"wire\":1,\"session\":\"x\",\"vm\":\"a\"}",
		 "malformed hello"},
		{"{\"type\":\"hello\",\"wire\":1,\"session\":\"" UUID "\",\"vm\":"
		 "\"0123456789012345678901234567890123456789012345678901234567890123\"}",
		 "malformed hello"},
		{"{\"type\":\"hello\",\"wire\":1,\"session\":\"" UUID "\",\"vm\":\"a\",\"lanes\":3,"
		 "\"receiver\":1}",
		 "malformed hello"},
	};
	struct fixture *f = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	json_t *stats;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct rl_peer p = connect_peer(f);

		assert_int_equal(rl_peer_send(&p, json_loads(bad[i].json, 0, NULL), NULL, 0,
					      rl_now_ns() + WAIT_NS, &err),
				 0);
		if (rl_peer_recv(&p, &m, rl_now_ns() + WAIT_NS, &err) != -EREMOTEIO ||
		    strstr(err.text, bad[i].says) == NULL)
			fail_msg("%s: %s", bad[i].json, err.text);
		assert_int_equal(rl_peer_recv(&p, &m, rl_now_ns() + WAIT_NS, &err), -ECONNRESET);
		rl_peer_close(&p);
	}
	/* Data before anything was agreed on is refused by its header. */
	struct rl_peer p = connect_peer(f);

	assert_int_equal(rl_peer_send(&p, json_pack("{ss}", "type", "hello"), "x", 1,
				      rl_now_ns() + WAIT_NS, &err),
			 0);
	assert_int_equal(rl_peer_recv(&p, &m, rl_now_ns() + WAIT_NS, &err), -EREMOTEIO);
	rl_peer_close(&p);
	PUT(f->rpc, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stats\"}\n");
	stats = get(f->rpc);
	/* The one with a session is that session's failure, not a refused peer. */
	assert_int_equal(json_integer_value(
				 json_object_get(json_object_get(stats, "result"), "peer-refused")),
			 sizeof(bad) / sizeof(bad[0]));
	json_decref(stats);
}

/* Ask about @uuid, or give it up: the state in the answer. */
static void
expect_outcome(struct fixture *f, const char *type, const char *uuid, const char *answer)
{
	struct rl_peer p = connect_peer(f);
	struct rl_peer_msg m;
	struct rl_err err = {0};

	assert_int_equal(rl_peer_send(&p,
				      json_pack("{ss si ss}", "type", type, "wire",
						RAMLIFT_WIRE_VERSION, "session", uuid),
				      NULL, 0, rl_now_ns() + WAIT_NS, &err),
			 0);
	if (rl_peer_expect(&p, "outcome", &m, rl_now_ns() + WAIT_NS, &err) != 0)
		fail_msg("%s", err.text);
	assert_string_equal(json_string_value(json_object_get(m.json, "state")), answer);
	rl_peer_msg_free(&m);
	rl_peer_close(&p);
}

/* A migration for a VM that is not here fails, is remembered, and its id cannot be used again. */
static void
outcomes(void **state)
{
	static const char hello[] =
		"{\"type\":\"hello\",\"wire\":1,\"session\":\"" UUID
		"\",\"vm\":\"ghost\",\"lanes\":1,\"receiver\":1,\"regions\":[]," PORT "}";
	struct fixture *f = *state;
	struct rl_peer_msg m;
	struct rl_err err;

	expect_outcome(f, "outcome", UUID, "unknown");
	expect_outcome(f, "abort", UUID, "unknown");
	for (int i = 0; i < 2; i++) {
		struct rl_peer p = connect_peer(f);

		assert_int_equal(rl_peer_send(&p, json_loads(hello, 0, NULL), NULL, 0,
					      rl_now_ns() + WAIT_NS, &err),
				 0);
		assert_int_equal(rl_peer_recv(&p, &m, rl_now_ns() + WAIT_NS, &err), -EREMOTEIO);
		assert_non_null(
			strstr(err.text, i == 0 ? "no VM named 'ghost'" : "known here already"));
		assert_int_equal(rl_peer_recv(&p, &m, rl_now_ns() + WAIT_NS, &err), -ECONNRESET);
		rl_peer_close(&p);
	}
	expect_outcome(f, "outcome", UUID, "aborted");
	expect_outcome(f, "abort", UUID, "aborted");
}

/* ---- where packets are to go ---- */

static void
from_address(const char *text, struct sockaddr_storage *ss)
{
	memset(ss, 0, sizeof(*ss));
	if (strchr(text, ':') != NULL) {
		ss->ss_family = AF_INET6;
		assert_int_equal(inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)ss)->sin6_addr),
				 1);
	} else {
		ss->ss_family = AF_INET;
		assert_int_equal(inet_pton(AF_INET, text, &((struct sockaddr_in *)ss)->sin_addr),
				 1);
	}
}

/* A wildcard port has no address of its own: its packets come from where its TCP connection comes from. */
static void
wildcard_port(void **state)
{
	static const char *const from[][2] = {
		{"198.18.0.7", "198.18.0.7"},
		{"fd00::7", "fd00::7"},
		{"::ffff:198.18.0.7", "198.18.0.7"}, /* IPv4 through a dual-stack listener */
		{"::1", "::1"},
	};
	struct fixture f = {.rpc = -1}, *of = *state;
	struct rl_nic_peer peer;
	uint32_t payload, credit;
	struct sockaddr_storage ss;
	char text[RL_ENDPOINT_TEXT];
	struct rl_err err = {0};
	json_t *j;

	teardown(state);
	start_daemon(&f, "[::]", "");
	j = rl_daemon_port_json(f.d);
	assert_string_equal(json_string_value(json_object_get(j, "address")), "");
	for (size_t i = 0; i < sizeof(from) / sizeof(from[0]); i++) {
		struct rl_nic_path *path;

		from_address(from[i][0], &ss);
		if (rl_daemon_port_parse(j, &ss, &peer, &payload, &credit, &err) != 0)
			fail_msg("%s", err.text);
		rl_format_ip(&peer.address, text);
		assert_string_equal(text, from[i][1]);
		assert_int_equal(peer.udp_port, f.d->cfg.udp_port);
		assert_int_equal(payload, rl_nic_info(f.d->nic)->max_payload);
		assert_int_equal(credit, rl_nic_info(f.d->nic)->rx_ring);
		if (strcmp(from[i][0], "::1") == 0) { /* and such a peer can be sent to */
			assert_int_equal(rl_nic_path_open(f.d->nic, &peer, &path, &err), 0);
			rl_nic_path_close(path);
		}
	}
	from_address("::ffff:127.0.0.1", &ss);
	assert_int_equal(rl_daemon_port_parse(j, &ss, &peer, &payload, &credit, &err), 0);
	struct rl_nic_path *path;

	assert_int_equal(rl_nic_path_open(f.d->nic, &peer, &path, &err), 0);
	rl_nic_path_close(path);
	json_decref(j);
	rl_daemon_stop(f.d);
	start_daemon(of, "127.0.0.1", "127.0.0.1");
}

static void
port_descriptions(void **state)
{
	static const char *const bad[] = {
		"{}",
		"[]",
		"{\"address\":1,\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":64}",
		"{\"address\":\"x\",\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":64}",
		"{\"address\":\"\",\"udp-port\":0,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":64}",
		"{\"address\":\"\",\"udp-port\":65536,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":1}",
		"{\"address\":\"\",\"udp-port\":9,\"mac\":\"0:0:0\",\"max-payload\":1400,"
		"\"credit\":64}",
		"{\"address\":\"\",\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":511,"
		"\"credit\":64}",
		"{\"address\":\"\",\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":9000,"
		"\"credit\":64}",
		"{\"address\":\"\",\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":0}",
		"{\"address\":\"\",\"udp-port\":9,\"mac\":\"0:0:0:0:0:0\",\"max-payload\":1400,"
		"\"credit\":-1}",
	};
	struct fixture *f = *state;
	struct sockaddr_storage ss;
	struct rl_nic_peer peer;
	uint32_t payload, credit;
	struct rl_err err;
	char text[RL_ENDPOINT_TEXT];
	json_t *j;

	from_address("198.18.0.7", &ss);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		j = json_loads(bad[i], 0, NULL);
		assert_non_null(j);
		assert_int_equal(rl_daemon_port_parse(j, &ss, &peer, &payload, &credit, &err),
				 -EPROTO);
		json_decref(j);
	}
	assert_int_equal(rl_daemon_port_parse(NULL, &ss, &peer, &payload, &credit, &err), -EPROTO);
	j = rl_daemon_port_json(f->d); /* one with an address: that one holds */
	assert_int_equal(rl_daemon_port_parse(j, &ss, &peer, &payload, &credit, &err), 0);
	rl_format_ip(&peer.address, text);
	assert_string_equal(text, "127.0.0.1");
	json_decref(j);
}

/* ---- starting ---- */

static void
sockets_of_others(void **state)
{
	struct fixture *f = *state;
	struct rl_config cfg = f->d->cfg;
	struct rl_err err = {0};
	struct rl_daemon *d;
	FILE *file;

	assert_int_equal(rl_daemon_start(&cfg, &d, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "another ramliftd answers there"));
	assert_null(d);
	close(connect_unix(f->d->cfg.rpc_socket)); /* the first one was not disturbed */

	/* A file that is not a socket is not ours to remove. */
	snprintf(cfg.rpc_socket, sizeof(cfg.rpc_socket), "%s/file", dir);
	file = fopen(cfg.rpc_socket, "w");
	assert_non_null(file);
	fclose(file);
	assert_int_equal(rl_daemon_start(&cfg, &d, &err), -EADDRINUSE);
	assert_int_equal(access(cfg.rpc_socket, F_OK), 0);
	unlink(cfg.rpc_socket);

	/* The listening address is taken: nothing is left behind, and it says what to set. */
	snprintf(cfg.rpc_socket, sizeof(cfg.rpc_socket), "%s/rpc2", dir);
	snprintf(cfg.vmm_socket, sizeof(cfg.vmm_socket), "%s/vmm2", dir);
	assert_int_equal(rl_daemon_start(&cfg, &d, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "--listen"));
	assert_int_equal(access(cfg.rpc_socket, F_OK), -1);
	assert_int_equal(access(cfg.vmm_socket, F_OK), -1);
}

/* What a ramliftd that was killed left behind is replaced. */
static void
stale_sockets(void **state)
{
	struct fixture *f = *state;
	struct rl_config cfg = f->d->cfg;
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct rl_err err = {0};

	rl_daemon_stop(f->d);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s/rpc", dir);
	assert_int_equal(bind(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	close(fd);
	if (rl_daemon_start(&cfg, &f->d, &err) != 0)
		fail_msg("%s", err.text);
	close(connect_unix(cfg.rpc_socket));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		RUNNING(hostile_peers),  RUNNING(outcomes),       IDLE(wildcard_port),
		IDLE(port_descriptions), IDLE(sockets_of_others), IDLE(stale_sockets),
	};

	return cmocka_run_group_tests(tests, setup_all, teardown_all);
}
