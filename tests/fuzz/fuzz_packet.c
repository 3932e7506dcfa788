/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data packets: whatever the bytes, parsing stays inside them; what parses packs to the same bytes again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "wire/packet.h"

static bool
repack(struct rl_packer *pk, const struct rl_record *rec)
{
	switch (rec->type) {
	case RL_RECORD_RAW:
		memcpy(rl_pack_raw(pk, rec->raw.gpn, rec->raw.version, rec->raw.offset,
				   (uint16_t)rec->raw.len),
		       rec->raw.data, rec->raw.len);
		return true;
	case RL_RECORD_ZERO:
		return rl_pack_zero(pk, rec->zero.gpn, rec->zero.version, rec->zero.count);
	case RL_RECORD_ACK:
		return rl_pack_ack(pk, &rec->ack);
	case RL_RECORD_FLOOR:
		return rl_pack_floor(pk, rec->floor);
	case RL_RECORD_PROBE:
		return rl_pack_probe(pk);
	}
	return false;
}

static void
check_records(const uint8_t *data, size_t len)
{
	struct rl_packer pk = {.buf = malloc(len + 1), .cap = (uint32_t)len};
	struct rl_record_cursor cur = {data, data + len};
	struct rl_record rec;
	int rc;

	FUZZ_CHECK(pk.buf);
	while ((rc = rl_record_next(&cur, &rec)) == 1) {
		FUZZ_CHECK(repack(&pk, &rec));
		FUZZ_CHECK(cur.p - data == (ptrdiff_t)pk.len);
	}
	FUZZ_CHECK(rc == 0 ? pk.len == len : rc == -EBADMSG);
	FUZZ_CHECK(memcmp(pk.buf, data, pk.len) == 0);
	free(pk.buf);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct rl_packet_hdr h;
	uint8_t again[RL_WIRE_HDR_BYTES];
	int rc = rl_packet_get_hdr(data, len, &h);

	FUZZ_CHECK(rc == 0 || rc == -EMSGSIZE || rc == -EPROTONOSUPPORT || rc == -EBADMSG);
	if (rc)
		return 0;
	rl_packet_put_hdr(again, &h);
	FUZZ_CHECK(memcmp(again, data, sizeof(again)) == 0);
	check_records(data + RL_WIRE_HDR_BYTES, len - RL_WIRE_MIN_BYTES);
	return 0;
}
