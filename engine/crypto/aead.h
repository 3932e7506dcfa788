/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CRYPTO_AEAD_H
#define RL_CRYPTO_AEAD_H
/**
 * @file aead.h
 * AES-256-GCM (NIST SP 800-38D) by libipsec-mb's direct functions. The nonce is the key's IV xor the packet
 * number, big-endian in its last 8 bytes, as in TLS 1.3 and QUIC (RFC 8446 5.3, RFC 9001 5.3). Inside
 * crypto/, its tests and its benchmark only.
 *
 * Threads: a struct rl_aead may be read by many at once; nothing here writes to it but init.
 * Units:   bytes.
 * Errors:  none; what may fail is in keys.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <intel-ipsec-mb.h>

#define RL_AEAD_KEY_BYTES 32u
#define RL_AEAD_IV_BYTES  12u
#define RL_AEAD_TAG_BYTES 16u

struct rl_aead {
	struct gcm_key_data key __attribute__((aligned(64))); /* expanded */
	const struct IMB_MGR *mgr;
	uint8_t iv[RL_AEAD_IV_BYTES];
};

void rl_aead_init(struct rl_aead *a, const struct IMB_MGR *mgr,
		  const uint8_t key[RL_AEAD_KEY_BYTES], const uint8_t iv[RL_AEAD_IV_BYTES]);

/** Encrypt @len bytes of @in to @out (the same or apart) and write the tag. */
void rl_aead_seal(const struct rl_aead *a, uint64_t pn, const uint8_t *aad, size_t aad_len,
		  uint8_t *out, const uint8_t *in, size_t len, uint8_t tag[RL_AEAD_TAG_BYTES]);

/** Decrypt @len bytes of @in to @out. What is in @out means nothing unless this returns true. */
bool rl_aead_open(const struct rl_aead *a, uint64_t pn, const uint8_t *aad, size_t aad_len,
		  uint8_t *out, const uint8_t *in, size_t len,
		  const uint8_t tag[RL_AEAD_TAG_BYTES]);

#endif /* RL_CRYPTO_AEAD_H */
