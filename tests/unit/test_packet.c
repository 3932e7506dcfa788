/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packets byte by byte as the specification has them, and everything that it does not allow.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "wire/packet.h"

static void
test_hdr(void **state)
{
	static const uint8_t want[16] = {0x10, 0x06, 0x34, 0x12, 0x78, 0x56, 0x34, 0x12,
					 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01};
	struct rl_packet_hdr h = {RL_WIRE_F_ACK_NOW | 2, 0x1234, 0x12345678, 0x0102030405060708};
	struct rl_packet_hdr got;
	uint8_t buf[RL_WIRE_MIN_BYTES] = {0};

	(void)state;
	rl_packet_put_hdr(buf, &h);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(rl_packet_get_hdr(buf, sizeof(buf), &got), 0);
	assert_int_equal(got.flags, h.flags);
	assert_int_equal(got.lane, h.lane);
	assert_int_equal(got.receiver, h.receiver);
	assert_int_equal(got.pn, h.pn);

	assert_int_equal(rl_packet_get_hdr(buf, sizeof(buf) - 1, &got), -EMSGSIZE);
	assert_int_equal(rl_packet_get_hdr(NULL, 0, &got), -EMSGSIZE);
	for (int v = 0; v < 256; v++) {
		buf[0] = (uint8_t)v;
		assert_int_equal(rl_packet_get_hdr(buf, sizeof(buf), &got),
				 v == 0x10 ? 0 : -EPROTONOSUPPORT);
	}
	buf[0] = 0x10;
	for (int f = 0; f < 256; f++) {
		buf[1] = (uint8_t)f;
		assert_int_equal(rl_packet_get_hdr(buf, sizeof(buf), &got), f < 8 ? 0 : -EBADMSG);
	}
}

/* One record of each kind. */
static const uint8_t golden[] = {
	/* RAW, 3 bytes */
	1, 0, 19, 0, 0x22, 0x11, 0xfd, 0x0f, 6, 5, 4, 3, 2, 0, 0, 0, 'a', 'b', 'c',
	/* ZERO */
	2, 0, 24, 0, 0x22, 0x11, 0, 0, 6, 5, 4, 3, 2, 0, 0, 0, 0xff, 1, 0, 0, 0, 0, 0, 0,
	/* ACK, 2 pairs */
	3, 0, 48, 0, 2, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 4, 3, 2, 1, 0, 2, 0, 0, 9, 8, 7, 6, 5, 4,
	3, 2, 0, 0, 0, 0, 1, 1, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0,
	/* FLOOR */
	4, 0, 16, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
	/* PROBE */
	5, 0, 8, 0, 0, 0, 0, 0};

static const struct rl_ack golden_ack = {
	.largest = 0x0102030405060708,
	.floor = 0x0203040506070809,
	.delay_us = 0x01020304,
	.credit = 512,
	.n = 2,
	.pair = {{0, 0x101}, {5, 7}},
};

static void
test_pack(void **state)
{
	uint8_t buf[sizeof(golden)];
	struct rl_packer pk = {.buf = buf, .cap = sizeof(buf)};

	(void)state;
	memset(buf, 0xee, sizeof(buf));
	memcpy(rl_pack_raw(&pk, 0x203040506, 0x1122, 4093, 3), "abc", 3);
	assert_true(rl_pack_zero(&pk, 0x203040506, 0x1122, 511));
	assert_true(rl_pack_ack(&pk, &golden_ack));
	assert_true(rl_pack_floor(&pk, 0x0102030405060708));
	assert_true(rl_pack_probe(&pk));
	assert_int_equal(pk.len, sizeof(golden));
	assert_memory_equal(buf, golden, sizeof(golden));
	assert_false(rl_pack_probe(&pk));
}

static void
test_parse(void **state)
{
	struct rl_record_cursor cur = {golden, golden + sizeof(golden)};
	struct rl_record rec;

	(void)state;
	assert_int_equal(rl_record_next(&cur, &rec), 1);
	assert_int_equal(rec.type, RL_RECORD_RAW);
	assert_int_equal(rec.raw.gpn, 0x203040506);
	assert_int_equal(rec.raw.version, 0x1122);
	assert_int_equal(rec.raw.offset, 4093);
	assert_int_equal(rec.raw.len, 3);
	assert_ptr_equal(rec.raw.data, golden + 16);
	assert_int_equal(rl_record_next(&cur, &rec), 1);
	assert_int_equal(rec.type, RL_RECORD_ZERO);
	assert_int_equal(rec.zero.gpn, 0x203040506);
	assert_int_equal(rec.zero.version, 0x1122);
	assert_int_equal(rec.zero.count, 511);
	assert_int_equal(rl_record_next(&cur, &rec), 1);
	assert_int_equal(rec.type, RL_RECORD_ACK);
	assert_int_equal(rec.ack.largest, golden_ack.largest);
	assert_int_equal(rec.ack.floor, golden_ack.floor);
	assert_int_equal(rec.ack.delay_us, golden_ack.delay_us);
	assert_int_equal(rec.ack.credit, golden_ack.credit);
	assert_int_equal(rec.ack.n, 2);
	assert_memory_equal(rec.ack.pair, golden_ack.pair, 2 * sizeof(golden_ack.pair[0]));
	assert_int_equal(rl_record_next(&cur, &rec), 1);
	assert_int_equal(rec.type, RL_RECORD_FLOOR);
	assert_int_equal(rec.floor, 0x0102030405060708);
	assert_int_equal(rl_record_next(&cur, &rec), 1);
	assert_int_equal(rec.type, RL_RECORD_PROBE);
	assert_int_equal(rl_record_next(&cur, &rec), 0);
}

/* A packer never writes beyond its room, and a record that does not fit leaves no trace. */
static void
test_room(void **state)
{
	uint8_t buf[64];
	struct rl_packer pk = {.buf = buf};
	struct rl_ack ack = {.largest = 100, .n = 3, .pair = {{0, 1}, {1, 1}, {1, 1}}};

	(void)state;
	memset(buf, 0xee, sizeof(buf));
	for (pk.cap = 0; pk.cap < RL_WIRE_PROBE_BYTES; pk.cap++)
		assert_false(rl_pack_probe(&pk));
	for (; pk.cap < RL_WIRE_FLOOR_BYTES; pk.cap++)
		assert_false(rl_pack_floor(&pk, 1));
	assert_int_equal(rl_packer_room_raw(&pk), 0);
	for (; pk.cap < RL_WIRE_ZERO_BYTES; pk.cap++) {
		assert_false(rl_pack_zero(&pk, 1, 1, 1));
		assert_int_equal(rl_packer_room_raw(&pk), pk.cap - 16);
	}
	for (; pk.cap < RL_WIRE_ACK_BYTES + 8; pk.cap++)
		assert_false(rl_pack_ack(&pk, &ack));
	assert_int_equal(pk.len, 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0xee);

	for (; pk.cap < sizeof(buf); pk.cap++) {
		uint32_t k = rl_min32((pk.cap - 32) / 8, 3);

		pk.len = 0;
		assert_true(rl_pack_ack(&pk, &ack));
		assert_int_equal(pk.len, 32 + 8 * k);
		assert_int_equal(rl_load16(buf + 4), k);
		assert_int_equal(buf[pk.cap], 0xee);
	}
}

/* Parse one record of exactly @len bytes, in memory of its own so that ASan sees a byte too far. */
static int
parse(const uint8_t *record, size_t len, struct rl_record *rec)
{
	uint8_t *copy = malloc(len ? len : 1);
	struct rl_record_cursor cur = {copy, copy + len};
	int rc;

	assert_non_null(copy);
	memcpy(copy, record, len);
	rc = rl_record_next(&cur, rec);
	if (rc == 1)
		assert_ptr_equal(cur.p, copy + len);
	free(copy);
	return rc;
}

/* Every length but the right one, every type and flag but the known ones, every reserved byte. */
static void
check_record(uint8_t *record, size_t len, size_t reserved, size_t n_reserved)
{
	struct rl_record rec;
	uint8_t type = record[0];

	assert_int_equal(parse(record, len, &rec), 1);
	for (size_t cut = 1; cut < len; cut++)
		assert_int_equal(parse(record, cut, &rec), -EBADMSG);
	for (int v = 0; v < 256; v++) {
		if (v == RL_RECORD_RAW) /* most bytes make a RAW record */
			continue;
		record[0] = (uint8_t)v;
		assert_int_equal(parse(record, len, &rec), v == type ? 1 : -EBADMSG);
	}
	record[0] = type;
	for (int v = 1; v < 256; v++) {
		record[1] = (uint8_t)v;
		assert_int_equal(parse(record, len, &rec), -EBADMSG);
	}
	record[1] = 0;
	for (uint32_t v = 0; v < 65536; v++) {
		if (v == len || (type == RL_RECORD_RAW && v > RL_WIRE_RAW_BYTES && v < len))
			continue;
		rl_store16(record + 2, (uint16_t)v);
		assert_int_equal(parse(record, len, &rec), -EBADMSG);
	}
	rl_store16(record + 2, (uint16_t)len);
	for (size_t i = reserved; i < reserved + n_reserved; i++) {
		record[i] = 0x80;
		assert_int_equal(parse(record, len, &rec), -EBADMSG);
		record[i] = 0;
	}
	assert_int_equal(parse(record, len, &rec), 1);
}

static void
test_raw(void **state)
{
	uint8_t r[RL_WIRE_RAW_BYTES + RL_PAGE_SIZE + 1] = {RL_RECORD_RAW};
	struct rl_record rec;

	(void)state;
	rl_store16(r + 2, 20);
	check_record(r, 20, 0, 0);
	rl_store64(r + 8, RL_WIRE_GPN_MAX);
	assert_int_equal(parse(r, 20, &rec), 1);
	rl_store64(r + 8, RL_WIRE_GPN_MAX + 1);
	assert_int_equal(parse(r, 20, &rec), -EBADMSG);
	rl_store64(r + 8, 0);
	rl_store16(r + 6, 4092);
	assert_int_equal(parse(r, 20, &rec), 1);
	rl_store16(r + 6, 4093);
	assert_int_equal(parse(r, 20, &rec), -EBADMSG);
	rl_store16(r + 6, 65535);
	assert_int_equal(parse(r, 20, &rec), -EBADMSG);
	rl_store16(r + 6, 0);
	rl_store16(r + 2, RL_WIRE_RAW_BYTES + RL_PAGE_SIZE);
	assert_int_equal(parse(r, RL_WIRE_RAW_BYTES + RL_PAGE_SIZE, &rec), 1);
	rl_store16(r + 2, RL_WIRE_RAW_BYTES + RL_PAGE_SIZE + 1);
	assert_int_equal(parse(r, RL_WIRE_RAW_BYTES + RL_PAGE_SIZE + 1, &rec), -EBADMSG);
}

static void
test_zero(void **state)
{
	uint8_t r[RL_WIRE_ZERO_BYTES] = {RL_RECORD_ZERO, 0, RL_WIRE_ZERO_BYTES};
	struct rl_record rec;

	(void)state;
	rl_store32(r + 16, 1);
	check_record(r, sizeof(r), 6, 2);
	check_record(r, sizeof(r), 20, 4);
	rl_store32(r + 16, 0);
	assert_int_equal(parse(r, sizeof(r), &rec), -EBADMSG);
	rl_store64(r + 8, RL_WIRE_GPN_MAX - 9);
	rl_store32(r + 16, 10);
	assert_int_equal(parse(r, sizeof(r), &rec), 1);
	rl_store32(r + 16, 11);
	assert_int_equal(parse(r, sizeof(r), &rec), -EBADMSG);
	rl_store64(r + 8, UINT64_MAX);
	rl_store32(r + 16, 1);
	assert_int_equal(parse(r, sizeof(r), &rec), -EBADMSG);
}

static int
parse_ack(uint64_t largest, uint16_t k, const uint32_t (*pair)[2])
{
	uint8_t r[RL_WIRE_ACK_BYTES + 8 * (RL_WIRE_ACK_PAIRS + 1)] = {RL_RECORD_ACK};
	size_t len = RL_WIRE_ACK_BYTES + 8u * k;
	struct rl_record rec;

	rl_store16(r + 2, (uint16_t)len);
	rl_store16(r + 4, k);
	rl_store64(r + 8, largest);
	for (uint32_t i = 0; i < k; i++) {
		rl_store32(r + RL_WIRE_ACK_BYTES + 8 * i, pair[i][0]);
		rl_store32(r + RL_WIRE_ACK_BYTES + 8 * i + 4, pair[i][1]);
	}
	return parse(r, len, &rec);
}

static void
test_ack(void **state)
{
	uint8_t r[RL_WIRE_ACK_BYTES + 8] = {RL_RECORD_ACK, 0, RL_WIRE_ACK_BYTES + 8, 0, 1};
	uint32_t many[RL_WIRE_ACK_PAIRS + 1][2] = {{0, 1}};

	(void)state;
	rl_store32(r + RL_WIRE_ACK_BYTES + 4, 1);
	check_record(r, sizeof(r), 6, 2);
	r[4] = 2; /* more pairs than the length has, then none */
	assert_int_equal(parse(r, sizeof(r), &(struct rl_record){0}), -EBADMSG);
	assert_int_equal(parse_ack(9, 0, NULL), -EBADMSG);

#define PAIRS(...) (const uint32_t[][2]){__VA_ARGS__}
	assert_int_equal(parse_ack(9, 1, PAIRS({0, 10})), 1);
	assert_int_equal(parse_ack(9, 1, PAIRS({0, 11})), -EBADMSG);
	assert_int_equal(parse_ack(9, 1, PAIRS({0, 0})), -EBADMSG);
	assert_int_equal(parse_ack(9, 1, PAIRS({1, 1})), -EBADMSG);
	assert_int_equal(parse_ack(0, 1, PAIRS({0, 1})), 1);
	assert_int_equal(parse_ack(0, 1, PAIRS({0, UINT32_MAX})), -EBADMSG);
	assert_int_equal(parse_ack(UINT64_MAX, 1, PAIRS({0, UINT32_MAX})), 1);
	/* 9..5, 4..2 missing, 1..0 */
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {3, 2})), 1);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {3, 3})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {4, 1})), 1);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {5, 1})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {0, 2})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {3, 0})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 10}, {1, 1})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 9}, {1, 1})), -EBADMSG);
	assert_int_equal(parse_ack(9, 2, PAIRS({0, 5}, {UINT32_MAX, 1})), -EBADMSG);
#undef PAIRS
	for (uint32_t i = 1; i <= RL_WIRE_ACK_PAIRS; i++)
		many[i][0] = many[i][1] = 1;
	assert_int_equal(parse_ack(2 * (RL_WIRE_ACK_PAIRS - 1), RL_WIRE_ACK_PAIRS,
				   (const uint32_t(*)[2])many),
			 1);
	assert_int_equal(parse_ack(2 * (RL_WIRE_ACK_PAIRS - 1) - 1, RL_WIRE_ACK_PAIRS,
				   (const uint32_t(*)[2])many),
			 -EBADMSG);
	assert_int_equal(parse_ack(1000, RL_WIRE_ACK_PAIRS + 1, (const uint32_t(*)[2])many),
			 -EBADMSG);
}

static void
test_small(void **state)
{
	uint8_t floor[RL_WIRE_FLOOR_BYTES] = {RL_RECORD_FLOOR, 0, RL_WIRE_FLOOR_BYTES};
	uint8_t probe[RL_WIRE_PROBE_BYTES] = {RL_RECORD_PROBE, 0, RL_WIRE_PROBE_BYTES};

	(void)state;
	check_record(floor, sizeof(floor), 4, 4);
	check_record(probe, sizeof(probe), 4, 4);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hdr),   cmocka_unit_test(test_pack),
		cmocka_unit_test(test_parse), cmocka_unit_test(test_room),
		cmocka_unit_test(test_raw),   cmocka_unit_test(test_zero),
		cmocka_unit_test(test_ack),   cmocka_unit_test(test_small),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
