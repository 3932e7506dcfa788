/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The packet tag: CRC32C by its published vectors, and every damaged bit found.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/rand.h"
#include "crypto/packet.h"

static uint32_t
tag_of(const void *data, size_t len)
{
	uint8_t buf[256];

	memcpy(buf, data, len);
	memset(buf + len, 0xff, 16);
	rl_packet_close(buf, len);
	for (size_t i = 4; i < 16; i++)
		assert_int_equal(buf[len + i], 0);
	assert_true(rl_packet_open(buf, len + 16));
	return rl_load32(buf + len);
}

/* RFC 3720 appendix B.4, and the check value of the CRC catalogues. */
static void
test_vectors(void **state)
{
	static const uint8_t read_pdu[48] = {
		0x01, 0xc0, [16] = 0x14, [22] = 0x04, [27] = 0x14, [31] = 0x18, 0x28, [40] = 0x02,
	};
	uint8_t up[32], down[32], ones[32], zeros[32] = {0};

	(void)state;
	memset(ones, 0xff, sizeof(ones));
	for (uint8_t i = 0; i < 32; i++) {
		up[i] = i;
		down[i] = 31 - i;
	}
	assert_int_equal(tag_of("123456789", 9), 0xe3069283);
	assert_int_equal(tag_of(zeros, 32), 0x8a9136aa);
	assert_int_equal(tag_of(ones, 32), 0x62a8ab43);
	assert_int_equal(tag_of(up, 32), 0x46dd794e);
	assert_int_equal(tag_of(down, 32), 0x113fdb5c);
	assert_int_equal(tag_of(read_pdu, 48), 0xd9963a56);
	assert_int_equal(tag_of("", 0), 0);
}

static void
test_damage(void **state)
{
	struct rl_rand rand = {.state = 3};
	uint8_t buf[1500];

	(void)state;
	for (size_t i = 0; i < sizeof(buf) - 16; i++)
		buf[i] = (uint8_t)rl_rand_next(&rand);
	rl_packet_close(buf, sizeof(buf) - 16);
	assert_true(rl_packet_open(buf, sizeof(buf)));
	for (size_t bit = 0; bit < 8 * sizeof(buf);
	     bit++) { /* the tag's 12 zero bytes among them */
		buf[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		assert_false(rl_packet_open(buf, sizeof(buf)));
		buf[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	for (size_t len = 16; len < sizeof(buf); len++)
		assert_false(rl_packet_open(buf, len));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vectors),
		cmocka_unit_test(test_damage),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
