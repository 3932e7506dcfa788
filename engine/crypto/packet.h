/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CRYPTO_PACKET_H
#define RL_CRYPTO_PACKET_H
/**
 * @file packet.h
 * Closing and opening the 16-byte tag of a data packet. The tag holds CRC32C (iSCSI, RFC 3720
 * appendix B.4) of header and records in its first 4 bytes, little-endian, and 12 zero bytes: it
 * detects damage, not an attacker; ramliftd says so when it starts.
 *
 * Threads: [any], pure functions.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Write the tag behind @len bytes (header and records); @buf has room for 16 more. */
void rl_packet_close(uint8_t *buf, size_t len);

/** Is the tag that ends the @len bytes right? @len >= 16. */
bool rl_packet_open(const uint8_t *buf, size_t len);

#endif /* RL_CRYPTO_PACKET_H */
