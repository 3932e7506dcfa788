/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes, addresses and endpoints as people write them. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "control/units.h"

static void
sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = {
		{"0", 0},
		{"1024", 1024},
		{"64K", 65536},
		{"1.5G", 3ull << 29},
		{"100M", 100ull << 20},
		{"2T", 2ull << 40},
		{"0.5K", 512},
		{"4503599627370496", 1ull << 52},
	};
	static const char *const bad[] = {"",      " 1",  "-1",   "+1",   "K",
					  "1KB",   "1k",  "1 K",  "1Q",   "nan",
					  "0x10z", "inf", "1e30", "1..5", "9000000T"};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t v = 77;

		assert_int_equal(rl_parse_size(good[i].text, &v), 0);
		assert_int_equal(v, good[i].value);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t v = 77;

		if (rl_parse_size(bad[i], &v) != -EINVAL)
			fail_msg("'%s' is a size", bad[i]);
		assert_int_equal(v, 77);
	}
}

static void
addresses(void **state)
{
	static const char *const good[] = {"198.18.0.1", "255.255.255.255", "fd00::1", "::"};
	static const char *const bad[] = {"198.18.0",  "198.18.0.1.2", "198.18.0.256",
					  "fd00:::1",  "host",         "fd00::1%eth0",
					  "[fd00::1]", " 198.18.0.1"};
	struct rl_ip ip;
	char text[RL_ENDPOINT_TEXT];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(rl_parse_ip(good[i], &ip), 0);
		assert_int_equal(ip.family, strchr(good[i], ':') != NULL ? AF_INET6 : AF_INET);
		rl_format_ip(&ip, text);
		assert_string_equal(text, good[i]);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rl_parse_ip(bad[i], &ip), -EINVAL);
	assert_int_equal(rl_parse_ip("", &ip), 0);
	assert_int_equal(ip.family, 0);
	rl_format_ip(&ip, text);
	assert_string_equal(text, "");
}

static void
endpoints(void **state)
{
	static const struct {
		const char *text, *again;
	} good[] = {
		{"198.18.0.1:80", "198.18.0.1:80"},
		{"198.18.0.1", "198.18.0.1:7410"},
		{"[fd00::1]:443", "[fd00::1]:443"},
		{"[fd00::1]", "[fd00::1]:7410"},
		{"fd00::1", "[fd00::1]:7410"},
		{"0.0.0.0:65535", "0.0.0.0:65535"},
		{"[::]:1", "[::]:1"},
		{"[::ffff:198.18.0.1]:9", "198.18.0.1:9"},
	};
	static const char *const bad[] = {
		"",
		":80",
		"198.18.0.1:",
		"198.18.0.1:0",
		"198.18.0.1:65536",
		"198.18.0.1:-1",
		"198.18.0.1:-18446744073709551611", /* 5 to strtoul() */
		"198.18.0.1: 80",
		"198.18.0.1:80x",
		"[fd00::1",
		"[fd00::1]80",
		"[]:80",
		"host:80",
		"fd00::1:zz",
		"1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd",
	};
	char text[RL_ENDPOINT_TEXT];
	struct sockaddr_storage ss;
	struct rl_err err;
	socklen_t len;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (rl_parse_endpoint(good[i].text, 7410, &ss, &len, &err) != 0)
			fail_msg("%s", err.text);
		rl_format_endpoint(&ss, text);
		assert_string_equal(text, good[i].again);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&err, 0, sizeof(err));
		if (rl_parse_endpoint(bad[i], 7410, &ss, &len, &err) != -EINVAL)
			fail_msg("'%s' is an endpoint", bad[i]);
		assert_non_null(strstr(err.text, "198.18.0.2:7410")); /* the remedy */
	}
}

/* A dual-stack listener sees IPv4 peers as ::ffff:a.b.c.d; their packets come from a.b.c.d. */
static void
mapped_addresses(void **state)
{
	struct sockaddr_storage ss = {0};
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;
	char text[RL_ENDPOINT_TEXT];
	struct rl_ip ip;

	(void)state;
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(7410);
	assert_int_equal(inet_pton(AF_INET6, "::ffff:198.18.0.7", &in6->sin6_addr), 1);
	rl_sockaddr_ip(&ss, &ip);
	assert_int_equal(ip.family, AF_INET);
	rl_format_ip(&ip, text);
	assert_string_equal(text, "198.18.0.7");
	rl_format_endpoint(&ss, text);
	assert_string_equal(text, "198.18.0.7:7410");
	ss.ss_family = AF_UNIX;
	rl_sockaddr_ip(&ss, &ip);
	assert_int_equal(ip.family, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(addresses),
		cmocka_unit_test(endpoints),
		cmocka_unit_test(mapped_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
