/* SPDX-License-Identifier: BSD-3-Clause */
/* The key schedule, see keys.h. Whatever is secret on the stack is wiped before it is left. */
#include "crypto/keys.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "crypto/aead.h"

#define HASH_BYTES  32u
#define BLOCK_BYTES 64u
#define INFO_MAX    128u
#define LABEL_MAX   32u

static_assert(RL_SECRET_BYTES == HASH_BYTES, "a secret is a key of HMAC-SHA256");

struct rl_keys {
	struct IMB_MGR *mgr;
	uint8_t master[RL_SECRET_BYTES];
};

int
rl_keys_create(const uint8_t master[RL_SECRET_BYTES], struct rl_keys **out, struct rl_err *err)
{
	const uint64_t need = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ;
	struct rl_keys *keys = calloc(1, sizeof(*keys));
	IMB_ARCH arch;

	*out = NULL;
	if (keys == NULL)
		goto no_memory;
	keys->mgr = alloc_mb_mgr(0);
	if (keys->mgr == NULL)
		goto no_memory;
	if ((keys->mgr->features & need) != need) {
		rl_keys_destroy(keys);
		return rl_err_set(
			err, -ENOTSUP,
			"this CPU has no AES-NI and PCLMULQDQ, which sealing packets needs; "
			"expose them to this machine");
	}
	init_mb_mgr_auto(keys->mgr, &arch);
	memcpy(keys->master, master, RL_SECRET_BYTES);
	*out = keys;
	return 0;
no_memory:
	rl_keys_destroy(keys);
	return rl_err_set(err, -ENOMEM, "no memory for keys");
}

void
rl_keys_destroy(struct rl_keys *keys)
{
	if (keys == NULL)
		return;
	if (keys->mgr != NULL)
		free_mb_mgr(keys->mgr);
	explicit_bzero(keys, sizeof(*keys));
	free(keys);
}

/* HMAC-SHA256 (RFC 2104) of @msg_len bytes at @msg; the BLOCK_BYTES in front of them are ours to use. */
static void
hmac(const struct IMB_MGR *mgr, const uint8_t key[RL_SECRET_BYTES], uint8_t *msg, size_t msg_len,
     uint8_t out[HASH_BYTES])
{
	uint8_t outer[BLOCK_BYTES + HASH_BYTES];
	uint8_t *inner = msg - BLOCK_BYTES;

	memset(inner, 0x36, BLOCK_BYTES);
	memset(outer, 0x5c, BLOCK_BYTES);
	for (uint32_t i = 0; i < RL_SECRET_BYTES; i++) {
		inner[i] ^= key[i];
		outer[i] ^= key[i];
	}
	IMB_SHA256(mgr, inner, BLOCK_BYTES + msg_len, outer + BLOCK_BYTES);
	IMB_SHA256(mgr, outer, sizeof(outer), out);
	explicit_bzero(outer, sizeof(outer));
}

void
rl_keys_expand(const struct rl_keys *keys, const uint8_t secret[RL_SECRET_BYTES],
	       const uint8_t *info, size_t info_len, uint8_t *out, size_t len)
{
	uint8_t buf[BLOCK_BYTES + HASH_BYTES + INFO_MAX + 1], block[HASH_BYTES];
	uint8_t *msg = buf + BLOCK_BYTES;
	size_t prefix = 0; /* the block before, from the second on */

	assert(info_len <= INFO_MAX && len <= 255 * HASH_BYTES);
	for (uint8_t i = 1; len > 0; i++) {
		size_t n = rl_min64(len, HASH_BYTES);

		memcpy(msg, block, prefix);
		memcpy(msg + prefix, info, info_len);
		msg[prefix + info_len] = i;
		hmac(keys->mgr, secret, msg, prefix + info_len + 1, block);
		memcpy(out, block, n);
		out += n;
		len -= n;
		prefix = HASH_BYTES;
	}
	explicit_bzero(buf, sizeof(buf));
	explicit_bzero(block, sizeof(block));
}

void
rl_keys_expand_label(const struct rl_keys *keys, const uint8_t secret[RL_SECRET_BYTES],
		     const char *label, const uint8_t *ctx, size_t ctx_len, uint8_t *out,
		     size_t len)
{
	static const char prefix[] = {'t', 'l', 's', '1', '3', ' '};
	size_t label_len = strlen(label);
	uint8_t info[4 + sizeof(prefix) + 2 * LABEL_MAX], *p = info;

	assert(label_len <= LABEL_MAX && ctx_len <= LABEL_MAX && len <= UINT16_MAX);
	*p++ = (uint8_t)(len >> 8);
	*p++ = (uint8_t)len;
	*p++ = (uint8_t)(sizeof(prefix) + label_len);
	memcpy(p, prefix, sizeof(prefix));
	p += sizeof(prefix);
	memcpy(p, label, label_len);
	p += label_len;
	*p++ = (uint8_t)ctx_len;
	if (ctx_len > 0)
		memcpy(p, ctx, ctx_len);
	p += ctx_len;
	rl_keys_expand(keys, secret, info, (size_t)(p - info), out, len);
}

void
rl_keys_lane(const struct rl_keys *keys, bool data, uint16_t lane, uint8_t secret[RL_SECRET_BYTES])
{
	uint8_t ctx[2];

	rl_store16(ctx, lane);
	rl_keys_expand_label(keys, keys->master, data ? "ramlift data" : "ramlift ack", ctx,
			     sizeof(ctx), secret, RL_SECRET_BYTES);
}

void
rl_keys_step(const struct rl_keys *keys, uint8_t secret[RL_SECRET_BYTES], struct rl_aead *aead)
{
	uint8_t key[RL_AEAD_KEY_BYTES], iv[RL_AEAD_IV_BYTES], next[RL_SECRET_BYTES];

	rl_keys_expand_label(keys, secret, "ramlift key", NULL, 0, key, sizeof(key));
	rl_keys_expand_label(keys, secret, "ramlift iv", NULL, 0, iv, sizeof(iv));
	rl_keys_expand_label(keys, secret, "ramlift ku", NULL, 0, next, sizeof(next));
	rl_aead_init(aead, keys->mgr, key, iv);
	memcpy(secret, next, sizeof(next));
	explicit_bzero(key, sizeof(key));
	explicit_bzero(iv, sizeof(iv));
	explicit_bzero(next, sizeof(next));
}
