/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The tag of a data packet: CRC32C by ISA-L, see packet.h.
 */
#include "crypto/packet.h"

#include <assert.h>
#include <isa-l/crc.h>
#include <limits.h>
#include <string.h>

#include "base/bytes.h"

#define TAG_BYTES 16u

static uint32_t
crc32c(const uint8_t *buf, size_t len)
{
	assert(len <= INT_MAX);
	/* ISA-L only reads, its prototype does not say so. */
	return ~crc32_iscsi((unsigned char *)(uintptr_t)buf, (int)len, ~0u);
}

void
rl_packet_close(uint8_t *buf, size_t len)
{
	memset(buf + len, 0, TAG_BYTES);
	rl_store32(buf + len, crc32c(buf, len));
}

bool
rl_packet_open(const uint8_t *buf, size_t len)
{
	static const uint8_t zeros[TAG_BYTES - 4];
	const uint8_t *tag = buf + len - TAG_BYTES;

	assert(len >= TAG_BYTES);
	return rl_load32(tag) == crc32c(buf, len - TAG_BYTES) &&
	       memcmp(tag + 4, zeros, sizeof(zeros)) == 0;
}
