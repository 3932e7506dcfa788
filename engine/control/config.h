/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_CONFIG_H
#define RL_CONTROL_CONFIG_H
/**
 * @file config.h
 * ramliftd's configuration: one table of keys makes the file's parser, the command line and --dump-config.
 * The file is in the INI format of DPDK's cfgfile library.
 *
 * Threads: [control], before the daemon starts.
 * Errors:  0 or -errno with cause and remedy; an unknown key names the nearest known one.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

#define RL_DEFAULT_PORT 7410u

struct rl_config {
	/* [daemon] */
	char rpc_socket[108];
	char vmm_socket[108];
	char listen[128];
	uint64_t workers;
	char cpus[128];
	char log_level[16];
	/* [port] */
	char uri[128];
	uint64_t udp_port;
	char address[64];
	uint64_t mtu;
	char eal[256];
	uint64_t drop_ppm;
	uint64_t drop_seed;
	/* [tls] */
	char tls[16]; /* x509, psk or insecure-lab */
	char tls_ca[256];
	char tls_cert[256];
	char tls_key[256];
	char tls_peers[256];
	char tls_psk_file[256];
	/* [migration] */
	uint64_t max_bandwidth; /* bytes/s, 0: unlimited */
	uint64_t downtime_limit_ms;
	char congestion_control[16];
};

void rl_config_defaults(struct rl_config *cfg);

/** Read @path over what is in @cfg. */
int rl_config_load(struct rl_config *cfg, const char *path, struct rl_err *err);

/** Set one key by its name, as `--key value` does. -ENOENT: no such key. */
int rl_config_set(struct rl_config *cfg, const char *key, const char *value, struct rl_err *err);

/** What is in force, as a file that rl_config_load() reads back. */
void rl_config_dump(const struct rl_config *cfg, FILE *out);

/** Are the values usable together? */
int rl_config_check(const struct rl_config *cfg, struct rl_err *err);

/** "--key VALUE  help" for every key. */
void rl_config_usage(FILE *out);

#endif /* RL_CONTROL_CONFIG_H */
