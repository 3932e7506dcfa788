/* SPDX-License-Identifier: BSD-3-Clause */
/* AES-256-GCM by libipsec-mb, see aead.h. */
#include "crypto/aead.h"

#include <endian.h>
#include <string.h>

void
rl_aead_init(struct rl_aead *a, const struct IMB_MGR *mgr, const uint8_t key[RL_AEAD_KEY_BYTES],
	     const uint8_t iv[RL_AEAD_IV_BYTES])
{
	a->mgr = mgr;
	memcpy(a->iv, iv, RL_AEAD_IV_BYTES);
	IMB_AES256_GCM_PRE(mgr, key, &a->key);
}

static void
make_nonce(const struct rl_aead *a, uint64_t pn, uint8_t nonce[RL_AEAD_IV_BYTES])
{
	uint64_t low;

	memcpy(nonce, a->iv, 4);
	memcpy(&low, a->iv + 4, sizeof(low));
	low ^= htobe64(pn);
	memcpy(nonce + 4, &low, sizeof(low));
}

void
rl_aead_seal(const struct rl_aead *a, uint64_t pn, const uint8_t *aad, size_t aad_len, uint8_t *out,
	     const uint8_t *in, size_t len, uint8_t tag[RL_AEAD_TAG_BYTES])
{
	uint8_t nonce[RL_AEAD_IV_BYTES];
	struct gcm_context_data ctx;

	make_nonce(a, pn, nonce);
	IMB_AES256_GCM_ENC(a->mgr, &a->key, &ctx, out, in, len, nonce, aad, aad_len, tag,
			   RL_AEAD_TAG_BYTES);
}

bool
rl_aead_open(const struct rl_aead *a, uint64_t pn, const uint8_t *aad, size_t aad_len, uint8_t *out,
	     const uint8_t *in, size_t len, const uint8_t tag[RL_AEAD_TAG_BYTES])
{
	uint8_t nonce[RL_AEAD_IV_BYTES];
	struct gcm_context_data ctx;
	uint64_t want[2], got[2];

	make_nonce(a, pn, nonce);
	IMB_AES256_GCM_DEC(a->mgr, &a->key, &ctx, out, in, len, nonce, aad, aad_len,
			   (uint8_t *)want, RL_AEAD_TAG_BYTES);
	memcpy(got, tag, sizeof(got));
	/* All bits at once: how long it takes tells nothing about where a forged tag differs. */
	return ((want[0] ^ got[0]) | (want[1] ^ got[1])) == 0;
}
