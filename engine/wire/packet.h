/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_WIRE_PACKET_H
#define RL_WIRE_PACKET_H
/**
 * @file packet.h
 * Data packets: a 16-byte clear header, records, a 16-byte tag. docs/wire.md is the specification;
 * every offset and value here is fixed and never reused.
 *
 *   0  u8  version (high nibble, 1) and type (low nibble, 0 = data)
 *   1  u8  flags: bits 0-1 key epoch, bit 2 ack-now
 *   2  u16 lane
 *   4  u32 receiver index (which session at the receiver)
 *   8  u64 packet number
 *  16      records
 *  end-16  tag (crypto/packet.h)
 *
 * Every record starts with {u8 type, u8 flags = 0, u16 length of the whole record}; the length is a
 * multiple of 8 for all but RAW, so a record may start at any offset. Little-endian throughout; fields
 * written as 0 here are checked.
 *
 *   RAW   (1) 16 + n: u16 version, u16 offset in page, u64 gpn, n bytes (1..4096, within the page)
 *   ZERO  (2) 24: u16 version, u16 0, u64 gpn, u32 count (>= 1), u32 0
 *   ACK   (3) 32 + 8k: u16 k (>= 1), u16 0, u64 largest, u32 ack delay in us, u32 credit in packets,
 *             u64 floor: the packet number below which the receiver forgot everything, then k pairs
 *             {u32 packets not received, u32 packets received (>= 1)}: downwards from `largest`; the
 *             gap is 0 in the first pair and >= 1 in the others. k <= 64
 *   FLOOR (4) 16: u32 0, u64 packet number: the sender no longer waits for anything below it
 *   PROBE (5) 8: u32 0. Asks for an ACK (together with ack-now); carries nothing
 *
 * Threads: [any], pure functions. No I/O, no clock.
 * Errors:  parsers return -EBADMSG on any malformed byte and never read beyond the length given.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RL_WIRE_HDR_BYTES   16u
#define RL_WIRE_TAG_BYTES   16u
#define RL_WIRE_MIN_BYTES   (RL_WIRE_HDR_BYTES + RL_WIRE_TAG_BYTES)
#define RL_WIRE_TYPE_DATA   0u
#define RL_WIRE_F_EPOCH     0x03u
#define RL_WIRE_F_ACK_NOW   0x04u
#define RL_WIRE_F_ALL       (RL_WIRE_F_EPOCH | RL_WIRE_F_ACK_NOW)
#define RL_WIRE_GPN_MAX     ((1ull << 40) - 1) /* 52-bit guest-physical addresses */
#define RL_WIRE_ACK_PAIRS   64u                /* at most, in one ACK record */
#define RL_WIRE_RAW_BYTES   16u
#define RL_WIRE_ZERO_BYTES  24u
#define RL_WIRE_ACK_BYTES   32u
#define RL_WIRE_FLOOR_BYTES 16u
#define RL_WIRE_PROBE_BYTES 8u

enum rl_record_type {
	RL_RECORD_RAW = 1,
	RL_RECORD_ZERO = 2,
	RL_RECORD_ACK = 3,
	RL_RECORD_FLOOR = 4,
	RL_RECORD_PROBE = 5,
};

struct rl_packet_hdr {
	uint8_t flags;
	uint16_t lane;
	uint32_t receiver;
	uint64_t pn;
};

struct rl_ack {
	uint64_t largest;
	uint64_t floor; /* the receiver forgot everything below */
	uint32_t delay_us;
	uint32_t credit; /* packets that may be in flight at once */
	uint16_t n;      /* pairs, 1..RL_WIRE_ACK_PAIRS */
	struct {
		uint32_t gap; /* not received, above this block; 0 in the first pair */
		uint32_t len; /* received, >= 1 */
	} pair[RL_WIRE_ACK_PAIRS];
};

struct rl_record {
	enum rl_record_type type;
	union {
		struct {
			uint64_t gpn;
			uint16_t version;
			uint16_t offset;
			uint32_t len;
			const uint8_t *data; /* borrowed from the packet */
		} raw;
		struct {
			uint64_t gpn;
			uint32_t count;
			uint16_t version;
		} zero;
		struct rl_ack ack;
		uint64_t floor;
	};
};

/** Write the 16 bytes of @h at @buf. */
void rl_packet_put_hdr(uint8_t *buf, const struct rl_packet_hdr *h);

/**
 * Read and check the clear header of a packet of @len bytes (header, records and tag).
 * Returns 0, -EMSGSIZE (too short), -EPROTONOSUPPORT (another version or type), -EBADMSG (flags).
 */
int rl_packet_get_hdr(const uint8_t *buf, size_t len, struct rl_packet_hdr *h);

/* Builds the records of one packet; @buf and @cap cover the records only. */
struct rl_packer {
	uint8_t *buf;
	uint32_t cap; /* bytes that records may take */
	uint32_t len; /* bytes taken */
};

/**
 * Append a RAW record header for @len bytes of data (the caller has checked room with
 * rl_packer_room_raw()) and return where the data goes; the caller copies it there.
 */
uint8_t *rl_pack_raw(struct rl_packer *pk, uint64_t gpn, uint16_t version, uint16_t offset,
		     uint16_t len);

/** Data bytes that one more RAW record could carry now; 0 when not even its header fits. */
static inline uint32_t
rl_packer_room_raw(const struct rl_packer *pk)
{
	uint32_t left = pk->cap - pk->len;

	return left > RL_WIRE_RAW_BYTES ? left - RL_WIRE_RAW_BYTES : 0;
}

/* Each returns false, and changes nothing, when the record does not fit; an ACK loses the (oldest) pairs
 * that don't fit, one must. */
bool rl_pack_zero(struct rl_packer *pk, uint64_t gpn, uint16_t version, uint32_t count);
bool rl_pack_ack(struct rl_packer *pk, const struct rl_ack *ack);
bool rl_pack_floor(struct rl_packer *pk, uint64_t pn);
bool rl_pack_probe(struct rl_packer *pk);

/* Walks the records of one packet; @p..@end is the opened payload, hostile until checked here. */
struct rl_record_cursor {
	const uint8_t *p, *end;
};

/** Returns 1 and fills @rec, 0 at the end, -EBADMSG on anything that docs/wire.md does not allow. */
int rl_record_next(struct rl_record_cursor *cur, struct rl_record *rec);

#endif /* RL_WIRE_PACKET_H */
