/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CRYPTO_KEYS_H
#define RL_CRYPTO_KEYS_H
/**
 * @file keys.h
 * From the 32-byte master secret of a migration to the key of one lane, direction and epoch:
 *
 *   secret(lane, direction, 0) = Expand-Label(master, "ramlift data" or "ramlift ack", lane as u16, 32)
 *   key = Expand-Label(secret, "ramlift key", "", 32)     iv = Expand-Label(secret, "ramlift iv", "", 12)
 *   secret(…, epoch + 1) = Expand-Label(secret, "ramlift ku", "", 32)
 *
 * Expand-Label is HKDF-Expand-Label of RFC 8446 7.1 ("tls13 " included) with SHA-256; the lane is
 * little-endian. "data" is what the source sends, "ack" what the target sends. SHA-256 is libipsec-mb's, so
 * that a worker's turn can make the next epoch's key without allocating; the tests hold it against OpenSSL.
 *
 * Threads: create/destroy [control]; the others [any]: a struct rl_keys never changes.
 * Units:   bytes.
 * Errors:  create returns -ENOTSUP (this CPU cannot) or -ENOMEM, with @err.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RL_SECRET_BYTES 32u

struct rl_keys; /* opaque: the master secret, and what computes with it */
struct rl_aead;

int rl_keys_create(const uint8_t master[RL_SECRET_BYTES], struct rl_keys **keys,
		   struct rl_err *err);
/** Wipes it. After every struct rl_crypto made from it is gone; NULL is fine. */
void rl_keys_destroy(struct rl_keys *keys);

/* HKDF-Expand (RFC 5869 2.3). @info_len <= 128. */
void rl_keys_expand(const struct rl_keys *keys, const uint8_t secret[RL_SECRET_BYTES],
		    const uint8_t *info, size_t info_len, uint8_t *out, size_t len);

/* @label and @ctx at most 32 bytes each. */
void rl_keys_expand_label(const struct rl_keys *keys, const uint8_t secret[RL_SECRET_BYTES],
			  const char *label, const uint8_t *ctx, size_t ctx_len, uint8_t *out,
			  size_t len);

/** The first secret of a lane, for packets of the source (@data) or of the target. */
void rl_keys_lane(const struct rl_keys *keys, bool data, uint16_t lane,
		  uint8_t secret[RL_SECRET_BYTES]);

/** Make @aead from @secret and let @secret be the next epoch's. */
void rl_keys_step(const struct rl_keys *keys, uint8_t secret[RL_SECRET_BYTES],
		  struct rl_aead *aead);

#endif /* RL_CRYPTO_KEYS_H */
