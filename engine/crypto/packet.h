/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CRYPTO_PACKET_H
#define RL_CRYPTO_PACKET_H
/**
 * @file packet.h
 * Sealing and opening data packets. A packet is a clear header of 16 bytes, which the tag covers, then
 * records, then a tag of 16 bytes. With keys, records are encrypted and the tag is AES-256-GCM's. Without
 * (the insecure lab), records are in clear and the tag holds CRC32C (iSCSI, RFC 3720 appendix B.4) of header
 * and records in its first 4 bytes, little-endian, and 12 zero bytes: it finds damage, not an attacker.
 *
 * Key update: the source moves to the next epoch after RL_EPOCH_PACKETS packets or RL_EPOCH_NS, once it has
 * opened a packet of the current one; the target follows with the first packet of the new epoch that it
 * opens. So neither end is ever more than one epoch behind. Packets of the epoch before are opened for
 * RL_EPOCH_KEEP_NS more. The header says only the epoch's low two bits: a forged one costs one failed open.
 *
 * Threads: create/destroy [control]; the others by the lane's owner. rl_packet_*() [any], pure.
 * Units:   bytes, packets, ns.
 * Errors:  create returns -ENOMEM. What cannot be opened is for the caller to count and drop.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/keys.h"

#define RL_EPOCH_PACKETS (1ull << 25) /* RFC 9001 B.1.1 would allow 2^25.9 for packets of 9 KB */
#define RL_EPOCH_NS      120000000000ull
#define RL_EPOCH_KEEP_NS 3000000000ull /* 3 probe timeouts of a path of 333 ms, RFC 9002 6.2.2 */

struct rl_crypto; /* opaque: one end of one lane, both directions */

enum rl_crypto_role { RL_CRYPTO_SOURCE, RL_CRYPTO_TARGET };

/** @keys outlives it; NULL: the insecure lab. */
int rl_crypto_create(const struct rl_keys *keys, enum rl_crypto_role role, uint16_t lane,
		     struct rl_crypto **crypto);
/** Wipes it; NULL is fine. */
void rl_crypto_destroy(struct rl_crypto *c);

/** The epoch bits for the headers of what is sealed from now on. Updates the key if it is time: once per turn. */
uint8_t rl_crypto_epoch(struct rl_crypto *c, uint64_t now_ns);

/**
 * Seal in place: @len bytes of header and records, with room for the tag behind them. @pn is never used
 * twice, and the header holds what rl_crypto_epoch() said last.
 */
void rl_crypto_seal(struct rl_crypto *c, uint64_t pn, uint8_t *packet, size_t len);

/** Can packet number @pn be new? Ask before opening: it costs nothing. */
bool rl_crypto_is_new(const struct rl_crypto *c, uint64_t pn);

/**
 * Open a packet of @len >= 32 bytes with header fields @pn (which is new) and @epoch bits. Returns its
 * len - 32 bytes of records, in @staging (as many bytes, the caller's) or still in @packet; NULL when the
 * tag is wrong, and then nothing has changed.
 */
const uint8_t *rl_crypto_open(struct rl_crypto *c, uint64_t pn, uint8_t epoch,
			      const uint8_t *packet, size_t len, uint8_t *staging, uint64_t now_ns);

/** The tag of the insecure lab: write it behind @len bytes; @buf has room for 16 more. */
void rl_packet_close(uint8_t *buf, size_t len);

/** Is the tag that ends the @len bytes right? @len >= 16. */
bool rl_packet_open(const uint8_t *buf, size_t len);

#endif /* RL_CRYPTO_PACKET_H */
