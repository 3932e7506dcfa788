/* SPDX-License-Identifier: BSD-3-Clause */
/* UUIDs: version and variant, text and back, everything else refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "control/uuid.h"

static void
made_ones(void **state)
{
	uint8_t a[16], b[16], back[16];
	char text[37];

	(void)state;
	rl_uuid_make(b);
	for (int i = 0; i < 100; i++) {
		rl_uuid_make(a);
		assert_int_equal(a[6] >> 4, 4);
		assert_int_equal(a[8] >> 6, 2);
		assert_memory_not_equal(a, b, 16);
		rl_uuid_format(a, text);
		assert_int_equal(strlen(text), 36);
		assert_int_equal(rl_uuid_parse(text, back), 0);
		assert_memory_equal(a, back, 16);
		memcpy(b, a, 16);
	}
}

static void
known_text(void **state)
{
	static const uint8_t uuid[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
					 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
	uint8_t back[16];
	char text[37];

	(void)state;
	rl_uuid_format(uuid, text);
	assert_string_equal(text, "00112233-4455-6677-8899-aabbccddeeff");
	assert_int_equal(rl_uuid_parse(text, back), 0);
	assert_memory_equal(uuid, back, 16);
}

static void
hostile_text(void **state)
{
	static const char *const bad[] = {
		"",
		"00112233-4455-6677-8899-aabbccddeef",
		"00112233-4455-6677-8899-aabbccddeeff0",
		"00112233+4455-6677-8899-aabbccddeeff",
		"0011223-34455-6677-8899-aabbccddeeff",
		"00112233-4455-6677-8899-aabbccddeefg",
		"00112233-4455-6677-8899-aabbccddee f",
		"------------------------------------",
		"001122334455667788990011223344556677",
	};
	uint8_t uuid[16];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rl_uuid_parse(bad[i], uuid), -EINVAL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(made_ones),
		cmocka_unit_test(known_text),
		cmocka_unit_test(hostile_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
