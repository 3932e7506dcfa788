/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration: one table behind file, command line and dump; a file that is wrong is refused by line or key. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "control/config.h"

static char path[64];

static int
make_file(void **state)
{
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "/tmp/test_config.XXXXXX");
	fd = mkstemp(path);
	if (fd >= 0)
		close(fd);
	return fd < 0;
}

static int
remove_file(void **state)
{
	(void)state;
	return unlink(path);
}

static void
put_file(const char *text, size_t bytes)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, bytes, f), bytes);
	assert_int_equal(fclose(f), 0);
}

static int
load(const char *text, struct rl_config *cfg, struct rl_err *err)
{
	put_file(text, strlen(text));
	memset(err, 0, sizeof(*err));
	rl_config_defaults(cfg);
	return rl_config_load(cfg, path, err);
}

static void
defaults(void **state)
{
	struct rl_config cfg;
	struct rl_err err;

	(void)state;
	rl_config_defaults(&cfg);
	assert_string_equal(cfg.rpc_socket, "/run/ramlift/rpc.sock");
	assert_string_equal(cfg.vmm_socket, "/run/ramlift/vmm.sock");
	assert_string_equal(cfg.listen, "[::]:7410");
	assert_string_equal(cfg.uri, "udp:");
	assert_int_equal(cfg.udp_port, RL_DEFAULT_PORT);
	assert_int_equal(cfg.workers, 1);
	assert_int_equal(cfg.max_bandwidth, 0);
	assert_int_equal(cfg.downtime_limit_ms, 300);
	assert_int_equal(cfg.drop_ppm, 0);
	assert_int_equal(rl_config_check(&cfg, &err), 0);
}

static void
values(void **state)
{
	static const struct {
		const char *key, *value;
		size_t at;
		uint64_t number;
	} good[] = {
		{"max-bandwidth", "1.5G", offsetof(struct rl_config, max_bandwidth), 3ull << 29},
		{"max-bandwidth", "125000000", offsetof(struct rl_config, max_bandwidth),
		 125000000},
		{"drop-percent", "0.1", offsetof(struct rl_config, drop_ppm), 1000},
		{"drop-percent", "100", offsetof(struct rl_config, drop_ppm), 1000000},
		{"drop-percent", "0.0001", offsetof(struct rl_config, drop_ppm), 1},
		{"workers", "4", offsetof(struct rl_config, workers), 4},
		{"downtime-limit", "30", offsetof(struct rl_config, downtime_limit_ms), 30},
	};
	static const struct {
		const char *key, *value;
		int code;
	} bad[] = {
		{"max-bandwidth", "fast", -EINVAL},
		{"max-bandwidth", "-1", -EINVAL},
		{"max-bandwidth", "", -EINVAL},
		{"drop-percent", "101", -EINVAL},
		{"drop-percent", "-0.1", -EINVAL},
		{"drop-percent", "nan", -EINVAL},
		{"drop-percent", "1%", -EINVAL},
		{"drop-percent", "", -EINVAL},
		{"workers", "two", -EINVAL},
		{"uri", "udp:#1", -EINVAL},
		{"uri", "udp:\n[daemon]", -EINVAL},
		{"log-level", "0123456789abcdef", -ENAMETOOLONG},
	};
	struct rl_config cfg, before;
	struct rl_err err;

	(void)state;
	rl_config_defaults(&cfg);
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t number;

		assert_int_equal(rl_config_set(&cfg, good[i].key, good[i].value, &err), 0);
		memcpy(&number, (const char *)&cfg + good[i].at, sizeof(number));
		assert_int_equal(number, good[i].number);
	}
	before = cfg;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int rc = rl_config_set(&cfg, bad[i].key, bad[i].value, &err);

		if (rc != bad[i].code)
			fail_msg("%s = '%s': %d", bad[i].key, bad[i].value, rc);
		assert_non_null(strstr(err.text, bad[i].key));
		assert_memory_equal(&cfg, &before, sizeof(cfg));
	}
}

static void
unknown_keys_name_the_nearest(void **state)
{
	static const struct {
		const char *typed, *meant;
	} cases[] = {
		{"max-bandwith", "max-bandwidth"}, {"worker", "workers"},
		{"udpport", "udp-port"},           {"downtime_limit", "downtime-limit"},
		{"rpc-sock", "rpc-socket"},        {"loglevel", "log-level"},
	};
	struct rl_config cfg;
	struct rl_err err;

	(void)state;
	rl_config_defaults(&cfg);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char want[64];

		snprintf(want, sizeof(want), "did you mean '%s'", cases[i].meant);
		assert_int_equal(rl_config_set(&cfg, cases[i].typed, "1", &err), -ENOENT);
		if (strstr(err.text, want) == NULL)
			fail_msg("%s: %s", cases[i].typed, err.text);
	}
}

/* What --dump-config prints is a file that says the same. */
static void
dump_and_load(void **state)
{
	static const char *const set[][2] = {
		{"rpc-socket", "/tmp/a b.sock"},
		{"listen", "198.18.0.1:99"},
		{"workers", "8"},
		{"cpus", "0,1,2,3"},
		{"uri", "dpdk:net_af_xdp,iface=veth0"},
		{"udp-port", "12345"},
		{"address", "fd00::1"},
		{"mtu", "9000"},
		{"drop-percent", "0.25"},
		{"drop-seed", "18014398509481984"},
		{"max-bandwidth", "1.5G"},
		{"downtime-limit", "42"},
		{"eal", "-l 0 --no-huge"},
		{"tls", "psk"},
		{"tls-psk-file", "/etc/ramlift/psk"},
		{"tls-peers", "alpha,beta"},
	};
	struct rl_config cfg, back;
	struct rl_err err = {0};
	FILE *f = fopen(path, "w");

	(void)state;
	rl_config_defaults(&cfg);
	for (size_t i = 0; i < sizeof(set) / sizeof(set[0]); i++)
		assert_int_equal(rl_config_set(&cfg, set[i][0], set[i][1], &err), 0);
	assert_non_null(f);
	rl_config_dump(&cfg, f);
	fclose(f);
	rl_config_defaults(&back);
	if (rl_config_load(&back, path, &err) != 0)
		fail_msg("%s", err.text);
	assert_memory_equal(&cfg, &back, sizeof(cfg));
}

static void
files(void **state)
{
	struct rl_config cfg;
	struct rl_err err;

	(void)state;
	assert_int_equal(load("# all of it\n[port]\nuri = udp: # here\n  mtu=1500  \n\n[daemon]\n"
			      "workers = 2\n[port]\nudp-port = 9\n",
			      &cfg, &err),
			 0);
	assert_string_equal(cfg.uri, "udp:");
	assert_int_equal(cfg.mtu, 1500);
	assert_int_equal(cfg.workers, 2);
	assert_int_equal(cfg.udp_port, 9); /* also from the second [port] */
	assert_int_equal(load("", &cfg, &err), 0);
	assert_int_equal(load("[daemon]\ncpus =\n", &cfg, &err), 0);
}

static void
hostile_files(void **state)
{
	static const struct {
		const char *text, *says;
		int code;
	} bad[] = {
		{"workers = 1\n", "not a configuration file", -EINVAL},
		{"[daemon\nworkers = 1\n", "not a configuration file", -EINVAL},
		{"[daemon]\nworkers 1\n", "line 2", -EINVAL},
		{"[daemon]\nworkers = x\n", "workers", -EINVAL},
		{"[daemon]\nwrokers = 1\n", "did you mean 'workers' in [daemon]", -ENOENT},
		{"[port]\nworkers = 1\n", "workers", -ENOENT},
		{"[ports]\nmtu = 1\n", "unknown section [ports]", -ENOENT},
		{"[]\nmtu = 1\n", "unknown section []", -ENOENT},
		{"[port]\nmtu = 1500\n[daemon]\n= 3\n", "unknown key ''", -ENOENT},
	};
	struct rl_config cfg;
	struct rl_err err = {0};
	char big[8192];
	size_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (load(bad[i].text, &cfg, &err) != bad[i].code ||
		    strstr(err.text, bad[i].says) == NULL)
			fail_msg("%zu: %d %s", i, err.code, err.text);
		assert_non_null(strstr(err.text, path));
	}
	/* More lines than the table takes must not hide what comes after them. */
	n = (size_t)snprintf(big, sizeof(big), "[port]\n");
	for (int i = 0; i < 70; i++)
		n += (size_t)snprintf(big + n, sizeof(big) - n, "mtu = 1500\n");
	assert_int_equal(load(big, &cfg, &err), -E2BIG);
	/* A line without end, binary, a directory, nothing at all. */
	memset(big, 'x', sizeof(big));
	memcpy(big, "[port]\nuri = ", 13);
	put_file(big, sizeof(big));
	assert_true(rl_config_load(&cfg, path, &err) < 0);
	for (size_t i = 0; i < sizeof(big); i++)
		big[i] = (char)(i * 37 >> 2);
	put_file(big, sizeof(big));
	assert_true(rl_config_load(&cfg, path, &err) < 0);
	assert_int_equal(rl_config_load(&cfg, "/tmp", &err), -EISDIR);
	assert_int_equal(rl_config_load(&cfg, "/nonexistent/ramlift.conf", &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/ramlift.conf"));
}

static void
checks(void **state)
{
	static const char *const bad[][2] = {
		{"workers", "0"},      {"workers", "3"},        {"workers", "128"},
		{"udp-port", "0"},     {"udp-port", "65536"},   {"udp-port", "8E"},
		{"mtu", "4294968796"}, {"downtime-limit", "0"}, {"downtime-limit", "2000001"},
	};
	struct rl_config cfg;
	struct rl_err err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		rl_config_defaults(&cfg);
		if (rl_config_set(&cfg, bad[i][0], bad[i][1], &err) == 0)
			assert_int_equal(rl_config_check(&cfg, &err), -EINVAL);
		assert_non_null(strstr(err.text, bad[i][0]));
	}
	rl_config_defaults(&cfg);
	cfg.workers = 64;
	cfg.udp_port = 65536 - 64;
	assert_int_equal(rl_config_check(&cfg, &err), 0);
	cfg.udp_port++;
	assert_int_equal(rl_config_check(&cfg, &err), -EINVAL);
}

/* Every key that the dump shows is one that --help explains. */
static void
usage_has_all_keys(void **state)
{
	char *usage = NULL, *dump = NULL, *line, *save = NULL;
	size_t usage_bytes, dump_bytes;
	FILE *f = open_memstream(&usage, &usage_bytes);
	struct rl_config cfg;
	int keys = 0;

	(void)state;
	rl_config_usage(f);
	fclose(f);
	f = open_memstream(&dump, &dump_bytes);
	rl_config_defaults(&cfg);
	rl_config_dump(&cfg, f);
	fclose(f);
	for (line = strtok_r(dump, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
		char option[64];

		if (line[0] == '#' || line[0] == '[')
			continue;
		snprintf(option, sizeof(option), "--%.*s ", (int)strcspn(line, " "), line);
		assert_non_null(strstr(usage, option));
		keys++;
	}
	assert_int_equal(keys, 22);
	free(usage);
	free(dump);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults),
		cmocka_unit_test(values),
		cmocka_unit_test(unknown_keys_name_the_nearest),
		cmocka_unit_test(dump_and_load),
		cmocka_unit_test(files),
		cmocka_unit_test(hostile_files),
		cmocka_unit_test(checks),
		cmocka_unit_test(usage_has_all_keys),
	};

	return cmocka_run_group_tests(tests, make_file, remove_file);
}
