/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data packets: packing and parsing, see packet.h for the layout.
 *
 * Offsets are written out here, once in the packer and once in the parser; the round trip of
 * tests/fuzz/fuzz_packet.c holds the two together.
 */
#include "wire/packet.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define VERSION      1u
#define RECORD_BYTES 4u /* what every record starts with */

_Static_assert(RL_WIRE_ACK_BYTES + 8 * RL_WIRE_ACK_PAIRS <= UINT16_MAX, "fits the length field");
_Static_assert(RL_WIRE_RAW_BYTES + RL_PAGE_SIZE <= UINT16_MAX, "fits the length field");

void
rl_packet_put_hdr(uint8_t *buf, const struct rl_packet_hdr *h)
{
	buf[0] = VERSION << 4 | RL_WIRE_TYPE_DATA;
	buf[1] = h->flags;
	rl_store16(buf + 2, h->lane);
	rl_store32(buf + 4, h->receiver);
	rl_store64(buf + 8, h->pn);
}

int
rl_packet_get_hdr(const uint8_t *buf, size_t len, struct rl_packet_hdr *h)
{
	if (len < RL_WIRE_MIN_BYTES)
		return -EMSGSIZE;
	if (buf[0] != (VERSION << 4 | RL_WIRE_TYPE_DATA))
		return -EPROTONOSUPPORT;
	if (buf[1] & ~RL_WIRE_F_ALL)
		return -EBADMSG;
	h->flags = buf[1];
	h->lane = rl_load16(buf + 2);
	h->receiver = rl_load32(buf + 4);
	h->pn = rl_load64(buf + 8);
	return 0;
}

/* Append a record of @len zero bytes with its start filled in; NULL when it does not fit. */
static uint8_t *
append(struct rl_packer *pk, enum rl_record_type type, uint32_t len)
{
	uint8_t *p = pk->buf + pk->len;

	if (len > pk->cap - pk->len)
		return NULL;
	memset(p, 0, len);
	p[0] = (uint8_t)type;
	rl_store16(p + 2, (uint16_t)len);
	pk->len += len;
	return p;
}

uint8_t *
rl_pack_raw(struct rl_packer *pk, uint64_t gpn, uint16_t version, uint16_t offset, uint16_t len)
{
	uint8_t *p = pk->buf + pk->len;

	assert(len > 0 && len <= rl_packer_room_raw(pk));
	assert(gpn <= RL_WIRE_GPN_MAX && offset + len <= (int)RL_PAGE_SIZE);
	p[0] = RL_RECORD_RAW;
	p[1] = 0;
	rl_store16(p + 2, (uint16_t)(RL_WIRE_RAW_BYTES + len));
	rl_store16(p + 4, version);
	rl_store16(p + 6, offset);
	rl_store64(p + 8, gpn);
	pk->len += RL_WIRE_RAW_BYTES + len;
	return p + RL_WIRE_RAW_BYTES;
}

bool
rl_pack_zero(struct rl_packer *pk, uint64_t gpn, uint16_t version, uint32_t count)
{
	uint8_t *p = append(pk, RL_RECORD_ZERO, RL_WIRE_ZERO_BYTES);

	if (!p)
		return false;
	assert(gpn <= RL_WIRE_GPN_MAX && count > 0 && count - 1 <= RL_WIRE_GPN_MAX - gpn);
	rl_store16(p + 4, version);
	rl_store64(p + 8, gpn);
	rl_store32(p + 16, count);
	return true;
}

bool
rl_pack_ack(struct rl_packer *pk, const struct rl_ack *ack)
{
	uint32_t left = pk->cap - pk->len, k;
	uint8_t *p;

	assert(ack->n >= 1 && ack->n <= RL_WIRE_ACK_PAIRS);
	if (left < RL_WIRE_ACK_BYTES + 8)
		return false;
	k = rl_min32(ack->n, (left - RL_WIRE_ACK_BYTES) / 8);
	p = append(pk, RL_RECORD_ACK, RL_WIRE_ACK_BYTES + 8 * k);
	rl_store16(p + 4, (uint16_t)k);
	rl_store64(p + 8, ack->largest);
	rl_store32(p + 16, ack->delay_us);
	rl_store32(p + 20, ack->credit);
	rl_store64(p + 24, ack->floor);
	p += RL_WIRE_ACK_BYTES;
	for (uint32_t i = 0; i < k; i++, p += 8) {
		rl_store32(p, ack->pair[i].gap);
		rl_store32(p + 4, ack->pair[i].len);
	}
	return true;
}

bool
rl_pack_floor(struct rl_packer *pk, uint64_t pn)
{
	uint8_t *p = append(pk, RL_RECORD_FLOOR, RL_WIRE_FLOOR_BYTES);

	if (!p)
		return false;
	rl_store64(p + 8, pn);
	return true;
}

bool
rl_pack_probe(struct rl_packer *pk)
{
	return append(pk, RL_RECORD_PROBE, RL_WIRE_PROBE_BYTES) != NULL;
}

/* The parsers below: @p holds a whole record of @len bytes. */

static int
parse_raw(const uint8_t *p, uint32_t len, struct rl_record *rec)
{
	if (len <= RL_WIRE_RAW_BYTES)
		return -EBADMSG;
	rec->raw.version = rl_load16(p + 4);
	rec->raw.offset = rl_load16(p + 6);
	rec->raw.gpn = rl_load64(p + 8);
	rec->raw.len = len - RL_WIRE_RAW_BYTES;
	rec->raw.data = p + RL_WIRE_RAW_BYTES;
	if (rec->raw.gpn > RL_WIRE_GPN_MAX || rec->raw.offset + rec->raw.len > RL_PAGE_SIZE)
		return -EBADMSG;
	return 1;
}

static int
parse_zero(const uint8_t *p, uint32_t len, struct rl_record *rec)
{
	if (len != RL_WIRE_ZERO_BYTES || rl_load16(p + 6) != 0 || rl_load32(p + 20) != 0)
		return -EBADMSG;
	rec->zero.version = rl_load16(p + 4);
	rec->zero.gpn = rl_load64(p + 8);
	rec->zero.count = rl_load32(p + 16);
	if (rec->zero.gpn > RL_WIRE_GPN_MAX || rec->zero.count == 0 ||
	    rec->zero.count - 1 > RL_WIRE_GPN_MAX - rec->zero.gpn)
		return -EBADMSG;
	return 1;
}

/* Read the pairs; the blocks they describe must not reach below packet number 0. */
static int
parse_pairs(const uint8_t *p, struct rl_ack *ack)
{
	uint64_t top = ack->largest; /* of the block that comes next, above its gap */

	for (uint32_t i = 0; i < ack->n; i++, p += 8) {
		uint32_t gap = rl_load32(p), len = rl_load32(p + 4);

		if ((i == 0) != (gap == 0) || len == 0)
			return -EBADMSG;
		if (gap > top || len - 1 > top - gap)
			return -EBADMSG;
		top -= gap;
		top -= len - 1;
		if (i + 1 < ack->n && top-- == 0)
			return -EBADMSG;
		ack->pair[i].gap = gap;
		ack->pair[i].len = len;
	}
	return 1;
}

static int
parse_ack(const uint8_t *p, uint32_t len, struct rl_record *rec)
{
	struct rl_ack *ack = &rec->ack;

	if (len < RL_WIRE_ACK_BYTES || rl_load16(p + 6) != 0)
		return -EBADMSG;
	ack->n = rl_load16(p + 4);
	if (ack->n < 1 || ack->n > RL_WIRE_ACK_PAIRS || len != RL_WIRE_ACK_BYTES + 8u * ack->n)
		return -EBADMSG;
	ack->largest = rl_load64(p + 8);
	ack->delay_us = rl_load32(p + 16);
	ack->credit = rl_load32(p + 20);
	ack->floor = rl_load64(p + 24);
	return parse_pairs(p + RL_WIRE_ACK_BYTES, ack);
}

static int
parse_floor(const uint8_t *p, uint32_t len, struct rl_record *rec)
{
	if (len != RL_WIRE_FLOOR_BYTES || rl_load32(p + 4) != 0)
		return -EBADMSG;
	rec->floor = rl_load64(p + 8);
	return 1;
}

static int
parse_probe(const uint8_t *p, uint32_t len)
{
	return len == RL_WIRE_PROBE_BYTES && rl_load32(p + 4) == 0 ? 1 : -EBADMSG;
}

int
rl_record_next(struct rl_record_cursor *cur, struct rl_record *rec)
{
	size_t left = (size_t)(cur->end - cur->p);
	const uint8_t *p = cur->p;
	uint32_t len;

	if (left == 0)
		return 0;
	if (left < RECORD_BYTES)
		return -EBADMSG;
	len = rl_load16(p + 2);
	if (p[1] != 0 || len < RECORD_BYTES || len > left)
		return -EBADMSG;
	cur->p += len;
	switch (p[0]) {
	case RL_RECORD_RAW:
		rec->type = RL_RECORD_RAW;
		return parse_raw(p, len, rec);
	case RL_RECORD_ZERO:
		rec->type = RL_RECORD_ZERO;
		return parse_zero(p, len, rec);
	case RL_RECORD_ACK:
		rec->type = RL_RECORD_ACK;
		return parse_ack(p, len, rec);
	case RL_RECORD_FLOOR:
		rec->type = RL_RECORD_FLOOR;
		return parse_floor(p, len, rec);
	case RL_RECORD_PROBE:
		rec->type = RL_RECORD_PROBE;
		return parse_probe(p, len);
	default:
		return -EBADMSG;
	}
}
