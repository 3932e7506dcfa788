/* SPDX-License-Identifier: BSD-3-Clause */
/* ramlift: the command line. One table of commands; each is a few RPC calls and a way to print them. */
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ramlift/version.h>

#include "app/doctor.h"
#include "app/rpc_client.h"
#include "app/show.h"
#include "base/clock.h"
#include "control/units.h"

#define DEFAULT_RPC "/run/ramlift/rpc.sock"

struct options {
	const char *rpc;
	bool json, verify, detach;
	const char *to, *strategy, *decide;
	const char *rate, *downtime_ms, *timeout_s;
	int argc; /* what is left: names and ids */
	char **argv;
};

struct command {
	const char *name;
	const char *args;
	const char *help;
	int (*fn)(struct rl_rpc_client *c, const struct options *o, struct rl_err *err);
	bool alone; /* needs no ramliftd */
};

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int sig)
{
	(void)sig;
	interrupted = 1;
}

static int
put_number(json_t *params, const char *key, const char *text, uint64_t scale, struct rl_err *err)
{
	uint64_t v;

	if (text == NULL)
		return 0;
	if (rl_parse_size(text, &v) != 0)
		return rl_err_set(err, -EINVAL, "--%s: '%s' is not a number", key, text);
	json_object_set_new(params, key, json_integer((json_int_t)(v * scale)));
	return 0;
}

static int
put_parameters(json_t *params, const struct options *o, struct rl_err *err)
{
	int rc = put_number(params, "max-bandwidth", o->rate, 1, err);

	if (rc == 0)
		rc = put_number(params, "downtime-limit", o->downtime_ms, 1, err);
	if (rc == 0)
		rc = put_number(params, "timeout", o->timeout_s, 1, err);
	if (o->strategy != NULL)
		json_object_set_new(params, "timeout-strategy", json_string(o->strategy));
	return rc;
}

/* HOST[:PORT] -> numeric, so that the engine never waits for a name server. */
static int
resolve(const char *to, char *text, struct rl_err *err)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *ai = NULL;
	struct sockaddr_storage ss;
	socklen_t len;
	char host[256];
	const char *colon = strchr(to, ':');
	size_t n = colon != NULL ? (size_t)(colon - to) : strlen(to);
	int rc;

	if (rl_parse_endpoint(to, 7410, &ss, &len, NULL) == 0) {
		rl_format_endpoint(&ss, text);
		return 0;
	}
	if (n == 0 || n >= sizeof(host))
		return rl_err_set(err, -EINVAL, "--to %s: not HOST[:PORT]", to);
	memcpy(host, to, n);
	host[n] = '\0';
	rc = getaddrinfo(host, colon != NULL ? colon + 1 : "7410", &hints, &ai);
	if (rc != 0)
		return rl_err_set(err, -EHOSTUNREACH, "--to %s: %s", to, gai_strerror(rc));
	memset(&ss, 0, sizeof(ss));
	memcpy(&ss, ai->ai_addr, ai->ai_addrlen);
	rl_format_endpoint(&ss, text);
	freeaddrinfo(ai);
	return 0;
}

/* Show a migration until it has ended. Ctrl-C cancels it. Returns the exit status. */
static int
follow(struct rl_rpc_client *c, const char *id, bool json, struct rl_err *err)
{
	bool cancelled = false;

	signal(SIGINT, on_interrupt);
	signal(SIGTERM, on_interrupt);
	for (;;) {
		json_t *j = NULL, *ignored = NULL;
		bool ended;
		int rc = rl_rpc_call(c, "query-migrate", json_pack("{ss}", "id", id), &j, err);

		if (rc != 0)
			return rc;
		ended = rl_show_ended(j);
		if (ended) {
			bool ok = rl_show_completed(j);

			rl_show_result(j, json);
			json_decref(j);
			return ok ? 0 : 1;
		}
		rl_show_progress(j);
		json_decref(j);
		if (interrupted && !cancelled) {
			cancelled = true;
			rc = rl_rpc_call(c, "migrate-cancel", json_pack("{ss}", "id", id), &ignored,
					 err);
			if (rc != 0)
				fprintf(stderr, "ramlift: %s\n", err->text);
			json_decref(ignored);
		}
		rl_sleep_ns(100 * RL_NS_PER_MS);
	}
}

static int
cmd_migrate(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	char peer[RL_ENDPOINT_TEXT];
	json_t *params, *j = NULL;
	const char *id;
	int rc;

	if (o->argc != 1 || o->to == NULL)
		return rl_err_set(err, -EINVAL, "usage: ramlift migrate VM --to HOST[:PORT]");
	rc = resolve(o->to, peer, err);
	if (rc != 0)
		return rc;
	params = json_pack("{ss ss sb}", "vm", o->argv[0], "to", peer, "verify", o->verify);
	rc = put_parameters(params, o, err);
	if (rc != 0) {
		json_decref(params);
		return rc;
	}
	rc = rl_rpc_call(c, "migrate", params, &j, err);
	if (rc != 0)
		return rc;
	id = json_string_value(json_object_get(j, "id"));
	if (o->detach)
		puts(id);
	else
		rc = follow(c, id, o->json, err);
	json_decref(j);
	return rc;
}

/* "id" or "vm" from the one argument that a command may have. */
static json_t *
which(const struct options *o)
{
	if (o->argc == 0)
		return json_object();
	return json_pack("{ss}", strlen(o->argv[0]) == 36 ? "id" : "vm", o->argv[0]);
}

static int
call_and_show(struct rl_rpc_client *c, const char *method, json_t *params, bool json,
	      void (*show)(json_t *j), struct rl_err *err)
{
	json_t *j = NULL;
	int rc = rl_rpc_call(c, method, params, &j, err);

	if (rc != 0)
		return rc;
	if (json || show == NULL)
		rl_show_json(j);
	else
		show(j);
	json_decref(j);
	return 0;
}

static int
cmd_status(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	return call_and_show(c, "query-migrate", which(o), o->json, rl_show_migration, err);
}

static int
cmd_list(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	return call_and_show(c, "list", NULL, o->json, rl_show_list, err);
}

static int
cmd_cancel(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	return call_and_show(c, "migrate-cancel", which(o), o->json, rl_show_nothing, err);
}

static int
cmd_recover(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	json_t *params = which(o);

	if (o->decide != NULL)
		json_object_set_new(params, "decide", json_string(o->decide));
	return call_and_show(c, "migrate-recover", params, o->json, NULL, err);
}

static int
cmd_set(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	json_t *params = which(o);
	int rc = put_parameters(params, o, err);

	if (rc != 0) {
		json_decref(params);
		return rc;
	}
	return call_and_show(c, "migrate-set-parameters", params, o->json, NULL, err);
}

static int
cmd_stats(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	return call_and_show(c, "stats", NULL, o->json, rl_show_stats, err);
}

static int
cmd_doctor(struct rl_rpc_client *c, const struct options *o, struct rl_err *err)
{
	(void)c;
	(void)err;
	return rl_doctor(o->rpc, o->json);
}

static const struct command commands[] = {
	{"migrate", "VM --to HOST[:PORT]", "move a running VM, live", cmd_migrate, false},
	{"status", "[VM|ID]", "the newest migration, or that one", cmd_status, false},
	{"list", "", "VMs and migrations of this host", cmd_list, false},
	{"cancel", "[VM|ID]", "give a migration up; the guest stays at the source", cmd_cancel,
	 false},
	{"set", "[VM|ID]", "change limits of a running migration", cmd_set, false},
	{"recover", "[VM|ID]", "a migration in doubt: how it stands, or decide it", cmd_recover,
	 false},
	{"stats", "", "counters of port and workers", cmd_stats, false},
	{"doctor", "", "what this host has and lacks", cmd_doctor, true},
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void
usage(FILE *out)
{
	fputs("usage: ramlift COMMAND [options]\n\n", out);
	for (size_t i = 0; i < N_COMMANDS; i++)
		fprintf(out, "  %-8s %-21s %s\n", commands[i].name, commands[i].args,
			commands[i].help);
	fputs("\n  --to HOST[:PORT]           the target's ramliftd (default port 7410)\n"
	      "  --max-bandwidth BYTES/S    with K, M, G; 0 = no limit\n"
	      "  --downtime-limit MS        longest pause to plan for (default 300)\n"
	      "  --timeout S                give pre-copy that long\n"
	      "  --decide WHAT              recover: end the doubt by order, when the other host "
	      "is lost\n"
	      "                             for good: resume (the guest runs here) or discard\n"
	      "  --timeout-strategy WHAT    then: cancel (default) or switchover\n"
	      "  --verify                   compare digests of all guest memory at the pause\n"
	      "  --detach                   don't wait; print the migration's id\n"
	      "  --json                     JSON on stdout\n"
	      "  --rpc PATH                 ramliftd's socket (default " DEFAULT_RPC ")\n"
	      "  --version, --help\n\n"
	      "Commands may be shortened as long as they are unambiguous.\n"
	      "Exit status: 0 done, 1 it failed, 2 wrong usage.\n",
	      out);
}

static const struct command *
find_command(const char *name)
{
	const struct command *found = NULL;

	for (size_t i = 0; i < N_COMMANDS; i++) {
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
		if (strncmp(commands[i].name, name, strlen(name)) == 0) {
			if (found != NULL)
				return NULL;
			found = &commands[i];
		}
	}
	return found;
}

static int
parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{"to", required_argument, NULL, 't'},
		{"max-bandwidth", required_argument, NULL, 'b'},
		{"downtime-limit", required_argument, NULL, 'd'},
		{"timeout", required_argument, NULL, 'T'},
		{"timeout-strategy", required_argument, NULL, 's'},
		{"decide", required_argument, NULL, 'R'},
		{"rpc", required_argument, NULL, 'r'},
		{"verify", no_argument, NULL, 'v'},
		{"detach", no_argument, NULL, 'D'},
		{"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	int ch;

	while ((ch = getopt_long(argc, argv, "h", longs, NULL)) != -1)
		switch (ch) {
		case 't':
			o->to = optarg;
			break;
		case 'b':
			o->rate = optarg;
			break;
		case 'd':
			o->downtime_ms = optarg;
			break;
		case 'T':
			o->timeout_s = optarg;
			break;
		case 's':
			o->strategy = optarg;
			break;
		case 'R':
			o->decide = optarg;
			break;
		case 'r':
			o->rpc = optarg;
			break;
		case 'v':
			o->verify = true;
			break;
		case 'D':
			o->detach = true;
			break;
		case 'j':
			o->json = true;
			break;
		case 'V':
			puts("ramlift " RAMLIFT_VERSION);
			exit(0);
		case 'h':
			usage(stdout);
			exit(0);
		default:
			return -EINVAL;
		}
	o->argc = argc - optind;
	o->argv = argv + optind;
	return 0;
}

int
main(int argc, char **argv)
{
	struct options o = {.rpc = getenv("RAMLIFT_RPC") != NULL ? getenv("RAMLIFT_RPC")
								 : DEFAULT_RPC};
	struct rl_rpc_client c = {.fd = -1};
	const struct command *cmd;
	struct rl_err err = {0};
	int rc;

	if (parse(argc, argv, &o) != 0)
		return 2;
	if (o.argc == 0) {
		usage(stderr);
		return 2;
	}
	cmd = find_command(o.argv[0]);
	if (cmd == NULL) {
		fprintf(stderr, "ramlift: '%s' is not a command; see ramlift --help\n", o.argv[0]);
		return 2;
	}
	o.argc--;
	o.argv++;
	rc = cmd->alone ? 0 : rl_rpc_connect(&c, o.rpc, &err);
	if (rc == 0)
		rc = cmd->fn(&c, &o, &err);
	rl_rpc_disconnect(&c);
	if (rc >= 0)
		return rc;
	fprintf(stderr, "ramlift: %s\n", err.text);
	return rc == -EINVAL ? 2 : 1;
}
