/* SPDX-License-Identifier: BSD-3-Clause */
/* ramliftd: the engine of one host. Parse, start, serve, stop; all else is asked for over its sockets. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <ramlift/version.h>

#include "base/log.h"
#include "control/config.h"
#include "control/daemon.h"

static void
usage(FILE *out)
{
	fprintf(out, "usage: ramliftd [--config FILE] [--KEY VALUE ...]\n"
		     "       ramliftd --dump-config | --version | --help\n\n"
		     "The migration engine of this host: VMMs connect to its vmm-socket, ramlift "
		     "to its\n"
		     "rpc-socket, other ramliftd to its TCP port and its NIC port.\n\n"
		     "  --config FILE          read FILE (--dump-config prints one); later options "
		     "win\n");
	fprintf(out,
		"  --insecure-lab         --tls insecure-lab: neither TLS nor sealed packets\n");
	rl_config_usage(out);
}

static int
parse(int argc, char **argv, struct rl_config *cfg, bool *dump, struct rl_err *err)
{
	for (int i = 1; i < argc; i++) {
		const char *key = argv[i];
		int rc;

		if (strcmp(key, "--dump-config") == 0) {
			*dump = true;
			continue;
		}
		if (strcmp(key, "--insecure-lab") == 0) {
			rc = rl_config_set(cfg, "tls", "insecure-lab", err);
			if (rc != 0)
				return rc;
			continue;
		}
		if (strncmp(key, "--", 2) != 0)
			return rl_err_set(err, -EINVAL, "'%s' is not an option; see --help", key);
		if (i + 1 == argc)
			return rl_err_set(err, -EINVAL, "%s needs a value", key);
		if (strcmp(key, "--config") == 0)
			rc = rl_config_load(cfg, argv[++i], err);
		else
			rc = rl_config_set(cfg, key + 2, argv[++i], err);
		if (rc != 0)
			return rc;
	}
	return rl_config_check(cfg, err);
}

static int
set_log_level(const char *name, struct rl_err *err)
{
	static const char *const names[] = {"error", "warn", "info", "debug"};

	for (int i = 0; i < 4; i++)
		if (strcmp(name, names[i]) == 0) {
			rl_log_set_level((enum rl_log_level)i);
			return 0;
		}
	return rl_err_set(err, -EINVAL, "log-level '%s': error, warn, info or debug", name);
}

static int
serve(const struct rl_config *cfg)
{
	struct rl_err err = {0};
	struct rl_daemon *d;
	sigset_t signals;
	int rc;

	/* Before any thread exists, so that only the control thread's signalfd sees them. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (rl_daemon_start(cfg, &d, &err) != 0) {
		rl_error("%s", err.text);
		return 1;
	}
	if (strcmp(cfg->tls, "insecure-lab") == 0)
		rl_warn("insecure-lab: nothing is encrypted and any peer is believed; CRC32C finds "
			"damage, not attackers");
	if (cfg->drop_ppm > 0)
		rl_warn("drop-percent is set: received packets are dropped on purpose");
	rl_info("ramliftd %s ready: port %s, control %s, VMMs %s, rpc %s", RAMLIFT_VERSION,
		rl_nic_info(d->nic)->uri, d->listen_text, cfg->vmm_socket, cfg->rpc_socket);
	rc = rl_daemon_run(d);
	rl_info("ramliftd stops");
	rl_daemon_stop(d);
	return rc == 0 ? 0 : 1;
}

int
main(int argc, char **argv)
{
	struct rl_err err = {0};
	struct rl_config cfg;
	bool dump = false;

	if (argc > 1 && strcmp(argv[1], "--help") == 0) {
		usage(stdout);
		return 0;
	}
	if (argc > 1 && strcmp(argv[1], "--version") == 0) {
		puts("ramliftd " RAMLIFT_VERSION);
		return 0;
	}
	rl_config_defaults(&cfg);
	if (parse(argc, argv, &cfg, &dump, &err) != 0 || set_log_level(cfg.log_level, &err) != 0) {
		fprintf(stderr, "ramliftd: %s\n", err.text);
		return 2;
	}
	if (dump) {
		rl_config_dump(&cfg, stdout);
		return 0;
	}
	return serve(&cfg);
}
