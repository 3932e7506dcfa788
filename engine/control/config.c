/* SPDX-License-Identifier: BSD-3-Clause */
/* ramliftd's configuration: one table of keys, three uses (file, command line, dump). */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cfgfile.h>

#include "base/bytes.h"
#include "control/config.h"
#include "control/units.h"

enum key_type { KEY_TEXT, KEY_NUMBER, KEY_RATE, KEY_PERCENT };

struct key {
	const char *section;
	const char *name;
	enum key_type type;
	size_t offset;
	size_t size; /* KEY_TEXT: of the buffer */
	const char *def;
	const char *help;
};

#define TEXT(section, name, member, def, help)                                                     \
	{                                                                                          \
		section, name, KEY_TEXT, offsetof(struct rl_config, member),                       \
			sizeof(((struct rl_config *)0)->member), def, help                         \
	}
#define VALUE(section, name, type, member, def, help)                                              \
	{                                                                                          \
		section, name, type, offsetof(struct rl_config, member), 0, def, help              \
	}

static const struct key keys[] = {
	TEXT("daemon", "rpc-socket", rpc_socket, "/run/ramlift/rpc.sock",
	     "where ramlift talks to it"),
	TEXT("daemon", "vmm-socket", vmm_socket, "/run/ramlift/vmm.sock", "where VMMs connect"),
	TEXT("daemon", "listen", listen, "[::]:7410", "TCP address of the control channel"),
	VALUE("daemon", "workers", KEY_NUMBER, workers, "1",
	      "poll-mode workers, one NIC queue each"),
	TEXT("daemon", "cpus", cpus, "", "CPUs to pin workers to, e.g. 2,3; empty: not pinned"),
	TEXT("daemon", "log-level", log_level, "info", "error, warn, info or debug"),
	TEXT("port", "uri", uri, "udp:", "dpdk:DEVARGS or udp: (see pmd-config/)"),
	VALUE("port", "udp-port", KEY_NUMBER, udp_port, "7410",
	      "UDP port of worker 0; + k for worker k"),
	TEXT("port", "address", address, "", "local data address; empty: the interface's"),
	VALUE("port", "mtu", KEY_NUMBER, mtu, "0", "bytes; 0: the interface's"),
	TEXT("port", "eal", eal, "", "extra EAL arguments"),
	VALUE("port", "drop-percent", KEY_PERCENT, drop_ppm, "0",
	      "lab only: drop received packets"),
	VALUE("port", "drop-seed", KEY_NUMBER, drop_seed, "1", "lab only: seed of the drops"),
	TEXT("tls", "tls", tls, "x509", "x509, psk or insecure-lab, the same at both ends"),
	TEXT("tls", "tls-ca", tls_ca, "", "x509: the CA that signs peers' certificates, PEM"),
	TEXT("tls", "tls-cert", tls_cert, "", "x509: this host's certificate, PEM"),
	TEXT("tls", "tls-key", tls_key, "", "x509: its private key, PEM, mode 0600"),
	TEXT("tls", "tls-peers", tls_peers, "",
	     "x509: names of hosts to accept, a,b; *: all of the CA"),
	TEXT("tls", "tls-psk-file", tls_psk_file, "", "psk: 32 to 64 bytes in hex, mode 0600"),
	VALUE("migration", "max-bandwidth", KEY_RATE, max_bandwidth, "0",
	      "bytes/s with K, M, G suffixes; 0: no limit"),
	VALUE("migration", "downtime-limit", KEY_NUMBER, downtime_limit_ms, "300", "milliseconds"),
	TEXT("migration", "congestion-control", congestion_control, "fixed",
	     "fixed (a link of known rate), bbr or cubic (shared and long links)"),
};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static int
key_set(struct rl_config *cfg, const struct key *k, const char *value, struct rl_err *err)
{
	char *at = (char *)cfg + k->offset;
	uint64_t number;
	double percent;
	char *end;

	switch (k->type) {
	case KEY_TEXT:
		if (strlen(value) >= k->size)
			return rl_err_set(err, -ENAMETOOLONG, "%s: at most %zu characters", k->name,
					  k->size - 1);
		if (value[strcspn(value, "#\n\r")] != '\0') /* could not be written to a file */
			return rl_err_set(err, -EINVAL, "%s: '#' and line ends are not possible",
					  k->name);
		memset(at, 0, k->size);
		memcpy(at, value, strlen(value));
		return 0;
	case KEY_NUMBER:
	case KEY_RATE:
		if (rl_parse_size(value, &number) != 0)
			return rl_err_set(err, -EINVAL, "%s: '%s' is not a number", k->name, value);
		memcpy(at, &number, sizeof(number));
		return 0;
	case KEY_PERCENT:
		percent = strtod(value, &end);
		if (end == value || *end != '\0' || !(percent >= 0 && percent <= 100))
			return rl_err_set(err, -EINVAL, "%s: '%s' is not a percentage", k->name,
					  value);
		number = (uint64_t)(percent * 10000 + 0.5);
		memcpy(at, &number, sizeof(number));
		return 0;
	}
	return -EINVAL;
}

/* Characters that differ, roughly: good enough to name the key that was meant. */
static uint32_t
distance(const char *a, const char *b)
{
	uint32_t common = 0;
	size_t la = strlen(a), lb = strlen(b);

	for (const char *p = a; *p != '\0'; p++)
		if (strchr(b, *p) != NULL)
			common++;
	return (uint32_t)(la > lb ? la : lb) - rl_min32(common, (uint32_t)(la < lb ? la : lb));
}

static const struct key *
key_find(const char *section, const char *name, struct rl_err *err)
{
	const struct key *nearest = &keys[0];

	for (size_t i = 0; i < N_KEYS; i++) {
		if (strcmp(keys[i].name, name) == 0 &&
		    (section == NULL || strcmp(keys[i].section, section) == 0))
			return &keys[i];
		if (distance(name, keys[i].name) < distance(name, nearest->name))
			nearest = &keys[i];
	}
	rl_err_set(err, -ENOENT, "unknown key '%s'; did you mean '%s' in [%s]?", name,
		   nearest->name, nearest->section);
	return NULL;
}

void
rl_config_defaults(struct rl_config *cfg)
{
	memset(cfg, 0, sizeof(*cfg));
	for (size_t i = 0; i < N_KEYS; i++)
		key_set(cfg, &keys[i], keys[i].def, NULL);
}

int
rl_config_set(struct rl_config *cfg, const char *key, const char *value, struct rl_err *err)
{
	const struct key *k = key_find(NULL, key, err);

	return k != NULL ? key_set(cfg, k, value, err) : -ENOENT;
}

static int
load_section(struct rl_config *cfg, struct rte_cfgfile *file, int index, struct rl_err *err)
{
	struct rte_cfgfile_entry entry[64];
	char section[CFG_NAME_LEN];
	int n = rte_cfgfile_section_entries_by_index(file, index, section, entry, 64);
	bool known = false;

	for (size_t i = 0; i < N_KEYS; i++)
		known |= strcmp(keys[i].section, section) == 0;
	if (!known)
		return rl_err_set(err, -ENOENT,
				  "unknown section [%s]; known: [daemon] [port] [tls] [migration]",
				  section);
	if (rte_cfgfile_section_num_entries_by_index(file, section, index) > n)
		return rl_err_set(err, -E2BIG, "more than %d lines in [%s]", n, section);
	for (int i = 0; i < n; i++) {
		const struct key *k = key_find(section, entry[i].name, err);

		if (k == NULL)
			return -ENOENT;
		int rc = key_set(cfg, k, entry[i].value, err);

		if (rc != 0)
			return rc;
	}
	return 0;
}

/* The library passes over a line without '=', be it a typo or binary. */
static int
check_lines(const char *path, struct rl_err *err)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	int rc = 0;

	for (unsigned int n = 1; f != NULL && rc == 0 && getline(&line, &size, f) >= 0; n++) {
		const char *p = line + strspn(line, " \t\r\n");

		if (*p != '\0' && *p != '#' && *p != '[' && p[strcspn(p, "=#")] != '=')
			rc = rl_err_set(err, -EINVAL,
					"%s: line %u is neither [section] nor key = value", path,
					n);
	}
	if (f == NULL || ferror(f))
		rc = rl_err_set(err, -errno, "cannot read configuration %s: %s", path,
				strerror(errno));
	if (f != NULL)
		fclose(f);
	free(line);
	return rc;
}

int
rl_config_load(struct rl_config *cfg, const char *path, struct rl_err *err)
{
	const struct rte_cfgfile_parameters params = {.comment_character = '#'};
	struct rte_cfgfile *file;
	int n, rc = check_lines(path, err);

	if (rc != 0)
		return rc;
	file = rte_cfgfile_load_with_params(path, CFG_FLAG_EMPTY_VALUES, &params);
	if (file == NULL)
		return rl_err_set(
			err, -EINVAL,
			"%s: not a configuration file; see ramliftd --dump-config for one", path);
	n = rte_cfgfile_num_sections(file, NULL, 0);
	for (int i = 0; i < n && rc == 0; i++)
		rc = load_section(cfg, file, i, err);
	if (rc != 0 && err != NULL)
		rl_err_prefix(err, "%s", path);
	rte_cfgfile_close(file);
	return rc;
}

void
rl_config_dump(const struct rl_config *cfg, FILE *out)
{
	const char *section = "";
	uint64_t number;

	for (size_t i = 0; i < N_KEYS; i++) {
		const struct key *k = &keys[i];
		const char *at = (const char *)cfg + k->offset;

		if (strcmp(section, k->section) != 0)
			fprintf(out, "%s[%s]\n", i > 0 ? "\n" : "", k->section);
		section = k->section;
		fprintf(out, "# %s\n", k->help);
		memcpy(&number, at, k->type == KEY_TEXT ? 0 : sizeof(number));
		if (k->type == KEY_TEXT)
			fprintf(out, "%s = %s\n", k->name, at);
		else if (k->type == KEY_PERCENT)
			fprintf(out, "%s = %g\n", k->name, (double)number / 10000);
		else
			fprintf(out, "%s = %" PRIu64 "\n", k->name, number);
	}
}

void
rl_config_usage(FILE *out)
{
	for (size_t i = 0; i < N_KEYS; i++)
		fprintf(out, "  --%-15s VALUE  %s (default: %s)\n", keys[i].name, keys[i].help,
			keys[i].def[0] != '\0' ? keys[i].def : "none");
}

int
rl_config_check(const struct rl_config *cfg, struct rl_err *err)
{
	if (cfg->workers == 0 || cfg->workers > 64 || !rl_is_pow2(cfg->workers))
		return rl_err_set(err, -EINVAL, "workers: 1, 2, 4, … 64, not %" PRIu64,
				  cfg->workers);
	if (cfg->udp_port == 0 || cfg->udp_port + cfg->workers > 65536)
		return rl_err_set(err, -EINVAL, "udp-port: 1 to %" PRIu64, 65536 - cfg->workers);
	if (cfg->mtu > 65535)
		return rl_err_set(err, -EINVAL, "mtu: 0 (the interface's) to 65535 bytes");
	if (strcmp(cfg->congestion_control, "fixed") != 0 &&
	    strcmp(cfg->congestion_control, "bbr") != 0 &&
	    strcmp(cfg->congestion_control, "cubic") != 0)
		return rl_err_set(err, -EINVAL, "congestion-control '%s': fixed, bbr or cubic",
				  cfg->congestion_control);
	if (cfg->downtime_limit_ms == 0 || cfg->downtime_limit_ms > 2000000)
		return rl_err_set(err, -EINVAL, "downtime-limit: 1 to 2000000 ms");
	return 0;
}
