/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data packets sealed and opened, see packet.h. The receiving side has a key per value of the two epoch bits:
 * the epoch before, the current one and the next, made in advance; the fourth is always empty. A move to the
 * next epoch therefore needs no decision before a packet has opened.
 */
#include "crypto/packet.h"

#include <assert.h>
#include <errno.h>
#include <isa-l/crc.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "crypto/aead.h"
#include "crypto/replay.h"

#define HDR_BYTES  16u
#define EPOCH_MASK 3u

struct rl_crypto {
	struct {
		struct rl_aead aead;
		uint8_t secret[RL_SECRET_BYTES]; /* of the next epoch */
		uint64_t epoch;
		uint64_t packets;  /* sealed in this epoch */
		uint64_t since_ns; /* when it began; 0: not yet */
	} tx;
	struct {
		struct rl_aead aead[4];          /* by epoch & EPOCH_MASK */
		uint8_t secret[RL_SECRET_BYTES]; /* of the epoch after the next */
		uint64_t epoch;
		uint64_t forget_ns; /* when the key of the epoch before is wiped */
	} rx;
	struct rl_replay replay;
	const struct rl_keys *keys; /* NULL: insecure lab */
	enum rl_crypto_role role;
};

int
rl_crypto_create(const struct rl_keys *keys, enum rl_crypto_role role, uint16_t lane,
		 struct rl_crypto **out)
{
	size_t size = RL_DIV_ROUND_UP(sizeof(struct rl_crypto), 64) * 64;
	struct rl_crypto *c = aligned_alloc(64, size);

	*out = c;
	if (c == NULL)
		return -ENOMEM;
	memset(c, 0, size);
	c->keys = keys;
	c->role = role;
	c->rx.forget_ns = UINT64_MAX;
	if (keys != NULL) {
		rl_keys_lane(keys, role == RL_CRYPTO_SOURCE, lane, c->tx.secret);
		rl_keys_step(keys, c->tx.secret, &c->tx.aead);
		rl_keys_lane(keys, role == RL_CRYPTO_TARGET, lane, c->rx.secret);
		rl_keys_step(keys, c->rx.secret, &c->rx.aead[0]);
		rl_keys_step(keys, c->rx.secret, &c->rx.aead[1]);
	}
	return 0;
}

void
rl_crypto_destroy(struct rl_crypto *c)
{
	if (c == NULL)
		return;
	explicit_bzero(c, sizeof(*c));
	free(c);
}

/* ---- sealing ---- */

static bool
update_is_due(struct rl_crypto *c, uint64_t now_ns)
{
	if (c->role == RL_CRYPTO_TARGET)
		return c->rx.epoch != c->tx.epoch;
	if (c->tx.since_ns == 0)
		c->tx.since_ns = now_ns;
	/* The target is there, too: a packet of this epoch came back. */
	return c->rx.epoch == c->tx.epoch &&
	       (c->tx.packets >= RL_EPOCH_PACKETS || now_ns - c->tx.since_ns >= RL_EPOCH_NS);
}

uint8_t
rl_crypto_epoch(struct rl_crypto *c, uint64_t now_ns)
{
	if (c->keys != NULL && rl_unlikely(update_is_due(c, now_ns))) {
		rl_keys_step(c->keys, c->tx.secret, &c->tx.aead);
		c->tx.epoch++;
		c->tx.packets = 0;
		c->tx.since_ns = now_ns;
	}
	return c->tx.epoch & EPOCH_MASK;
}

void
rl_crypto_seal(struct rl_crypto *c, uint64_t pn, uint8_t *packet, size_t len)
{
	assert(len >= HDR_BYTES);
	if (c->keys == NULL) {
		rl_packet_close(packet, len);
		return;
	}
	rl_aead_seal(&c->tx.aead, pn, packet, HDR_BYTES, packet + HDR_BYTES, packet + HDR_BYTES,
		     len - HDR_BYTES, packet + len);
	c->tx.packets++;
}

/* ---- opening ---- */

bool
rl_crypto_is_new(const struct rl_crypto *c, uint64_t pn)
{
	return rl_replay_is_new(&c->replay, pn);
}

/* The packet that has just opened is the first of the next epoch. */
static void
rx_advance(struct rl_crypto *c, uint64_t now_ns)
{
	c->rx.epoch++;
	explicit_bzero(&c->rx.aead[(c->rx.epoch + 2) & EPOCH_MASK], sizeof(c->rx.aead[0]));
	rl_keys_step(c->keys, c->rx.secret, &c->rx.aead[(c->rx.epoch + 1) & EPOCH_MASK]);
	c->rx.forget_ns = now_ns + RL_EPOCH_KEEP_NS;
}

static bool
open_sealed(struct rl_crypto *c, uint64_t pn, uint8_t epoch, const uint8_t *packet, size_t len,
	    uint8_t *staging, uint64_t now_ns)
{
	const struct rl_aead *aead = &c->rx.aead[epoch & EPOCH_MASK];
	size_t n = len - HDR_BYTES - RL_AEAD_TAG_BYTES;

	if (rl_unlikely(now_ns >= c->rx.forget_ns)) {
		explicit_bzero(&c->rx.aead[(c->rx.epoch - 1) & EPOCH_MASK], sizeof(c->rx.aead[0]));
		c->rx.forget_ns = UINT64_MAX;
	}
	if (aead->mgr == NULL) /* no key for these bits now */
		return false;
	if (!rl_aead_open(aead, pn, packet, HDR_BYTES, staging, packet + HDR_BYTES, n,
			  packet + len - RL_AEAD_TAG_BYTES))
		return false;
	if (rl_unlikely(((c->rx.epoch + 1) & EPOCH_MASK) == epoch))
		rx_advance(c, now_ns);
	return true;
}

const uint8_t *
rl_crypto_open(struct rl_crypto *c, uint64_t pn, uint8_t epoch, const uint8_t *packet, size_t len,
	       uint8_t *staging, uint64_t now_ns)
{
	const uint8_t *records = staging;

	assert(len >= HDR_BYTES + RL_AEAD_TAG_BYTES && epoch <= EPOCH_MASK);
	if (c->keys == NULL) {
		if (epoch != 0 || !rl_packet_open(packet, len))
			return NULL;
		records = packet + HDR_BYTES;
	} else if (!open_sealed(c, pn, epoch, packet, len, staging, now_ns)) {
		return NULL;
	}
	rl_replay_note(&c->replay, pn);
	return records;
}

/* ---- the insecure lab's tag ---- */

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
	memset(buf + len, 0, RL_AEAD_TAG_BYTES);
	rl_store32(buf + len, crc32c(buf, len));
}

bool
rl_packet_open(const uint8_t *buf, size_t len)
{
	static const uint8_t zeros[RL_AEAD_TAG_BYTES - 4];
	const uint8_t *tag = buf + len - RL_AEAD_TAG_BYTES;

	assert(len >= RL_AEAD_TAG_BYTES);
	return rl_load32(tag) == crc32c(buf, len - RL_AEAD_TAG_BYTES) &&
	       memcmp(tag + 4, zeros, sizeof(zeros)) == 0;
}
