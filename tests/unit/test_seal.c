/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Both ends of a lane: what one seals only the other opens, once; keys move on under loss and reordering;
 * forged epoch bits change nothing; no secret stays behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <malloc.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/rand.h"
#include "crypto/aead.h"
#include "crypto/packet.h"

#define HDR     16u
#define RECORDS 40u
#define PACKET  (HDR + RECORDS + 16u)
#define RING    512u

struct end {
	struct rl_crypto *c;
	uint64_t pn;
	uint64_t opened, refused;
};

struct sealed {
	uint8_t buf[PACKET];
};

static const uint8_t master[32] = {9, 8, 7};
static struct rl_keys *keys;
static struct end source, target;

static int
setup(void **state)
{
	struct rl_err err;

	(void)state;
	assert_int_equal(rl_keys_create(master, &keys, &err), 0);
	memset(&source, 0, sizeof(source));
	memset(&target, 0, sizeof(target));
	assert_int_equal(rl_crypto_create(keys, RL_CRYPTO_SOURCE, 3, &source.c), 0);
	assert_int_equal(rl_crypto_create(keys, RL_CRYPTO_TARGET, 3, &target.c), 0);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	rl_crypto_destroy(source.c);
	rl_crypto_destroy(target.c);
	rl_keys_destroy(keys);
	return 0;
}

/* Epoch and packet number where the wire has them; the records follow from the number. */
static struct sealed
seal(struct end *from, uint64_t now_ns)
{
	struct sealed p = {{0x10, rl_crypto_epoch(from->c, now_ns)}};
	uint64_t pn = from->pn++;

	rl_store64(p.buf + 8, pn);
	for (uint32_t i = 0; i < RECORDS; i++)
		p.buf[HDR + i] = (uint8_t)(pn * 31 + i);
	rl_crypto_seal(from->c, pn, p.buf, HDR + RECORDS);
	return p;
}

static bool
take(struct end *to, const struct sealed *p, uint64_t now_ns)
{
	uint64_t pn = rl_load64(p->buf + 8);
	uint8_t staging[RECORDS];
	const uint8_t *records = NULL;

	if (rl_crypto_is_new(to->c, pn))
		records = rl_crypto_open(to->c, pn, p->buf[1] & 3, p->buf, PACKET, staging, now_ns);
	if (records == NULL) {
		to->refused++;
		return false;
	}
	for (uint32_t i = 0; i < RECORDS; i++)
		assert_int_equal(records[i], (uint8_t)(pn * 31 + i));
	to->opened++;
	return true;
}

static uint8_t
epoch_of(const struct sealed *p)
{
	return p->buf[1] & 3;
}

static void
test_once(void **state)
{
	struct rl_crypto *other_lane, *other_keys;
	struct sealed p = seal(&source, 1), back = seal(&target, 1), bad;
	struct end stranger = {0};
	uint8_t secret[32] = {1};
	struct rl_keys *k;
	struct rl_err err;

	(void)state;
	/* The records are not to be seen, and no bit can change. */
	for (uint32_t i = 0; i < RECORDS; i++)
		if (p.buf[HDR + i] != (uint8_t)i)
			goto hidden;
	fail();
hidden:
	for (uint32_t bit = 0; bit < PACKET * 8; bit++) {
		bad = p;
		bad.buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_false(take(&target, &bad, 1));
	}
	/* Neither an own packet sent back, nor another lane or migration. */
	assert_false(take(&source, &p, 1));
	assert_int_equal(rl_crypto_create(keys, RL_CRYPTO_TARGET, 4, &other_lane), 0);
	stranger.c = other_lane;
	assert_false(take(&stranger, &p, 1));
	assert_int_equal(rl_keys_create(secret, &k, &err), 0);
	assert_int_equal(rl_crypto_create(k, RL_CRYPTO_TARGET, 3, &other_keys), 0);
	stranger.c = other_keys;
	assert_false(take(&stranger, &p, 1));

	assert_true(take(&target, &p, 1));
	assert_false(take(&target, &p, 1));
	assert_true(take(&source, &back, 1));
	assert_false(take(&source, &back, 1));
	rl_crypto_destroy(other_lane);
	rl_crypto_destroy(other_keys);
	rl_keys_destroy(k);
}

/* The source moves on by time only once the target has answered in the current epoch, and the target follows. */
static void
test_update(void **state)
{
	uint64_t now = 1;
	struct sealed p, old, ack;

	(void)state;
	for (uint32_t e = 0; e < 9; e++) {
		old = seal(&source, now);
		assert_int_equal(epoch_of(&old), e & 3);
		now += RL_EPOCH_NS - 1;
		p = seal(&source, now);
		assert_int_equal(epoch_of(&p), e & 3);
		assert_true(take(&target, &p, now));
		ack = seal(&target, now);
		assert_int_equal(epoch_of(&ack), e & 3);
		now++;
		assert_true(take(&source, &ack, now));
		p = seal(&source, now);
		assert_int_equal(epoch_of(&p), (e + 1) & 3);
		assert_true(take(&target, &p, now));
		/* One of the epoch before, late: in time, then too late. */
		if (e & 1)
			assert_true(take(&target, &old, now + RL_EPOCH_KEEP_NS - 1));
		else
			assert_false(take(&target, &old, now + RL_EPOCH_KEEP_NS));
		ack = seal(&target, now);
		assert_int_equal(epoch_of(&ack), (e + 1) & 3);
		/* Unanswered in this epoch: no further one, however long it takes. */
		p = seal(&source, now + 10 * RL_EPOCH_NS);
		assert_int_equal(epoch_of(&p), (e + 1) & 3);
		assert_true(take(&source, &ack, now));
	}
}

/* 2^25 packets in one epoch, and not one more once the target has answered. */
static void
test_packet_limit(void **state)
{
	struct sealed p = {{0x10}};

	(void)state;
	for (uint64_t i = 0; i < RL_EPOCH_PACKETS; i++) {
		if (i % 65536 == 0)
			assert_int_equal(rl_crypto_epoch(source.c, 1), 0);
		rl_crypto_seal(source.c, i, p.buf, HDR);
	}
	source.pn = RL_EPOCH_PACKETS;
	p = seal(&source, 1);
	assert_int_equal(epoch_of(&p), 1);
	assert_true(take(&target, &p, 1));
	p = seal(&target, 1);
	assert_int_equal(epoch_of(&p), 1);
	assert_true(take(&source, &p, 1));
}

/* Every value of the epoch bits on every kind of packet, damaged or not, in each epoch: no state moves. */
static void
test_forged_epoch(void **state)
{
	uint64_t now = 1;
	struct sealed p, bad, ack;

	(void)state;
	for (uint32_t e = 0; e < 6; e++) {
		p = seal(&source, now);
		for (uint32_t bits = 0; bits < 4; bits++) {
			bad = p;
			bad.buf[1] = (uint8_t)bits;
			if (bits == epoch_of(&p))
				bad.buf[PACKET - 1] ^= 1;
			for (uint32_t i = 0; i < 3; i++)
				assert_false(take(&target, &bad, now));
		}
		ack = seal(&target, now);
		assert_int_equal(epoch_of(&ack), e & 3); /* did not follow the forged ones */
		assert_true(take(&target, &p, now));
		ack = seal(&target, now);
		assert_int_equal(epoch_of(&ack), e & 3);
		assert_true(take(&source, &ack, now));
		now += RL_EPOCH_NS;
		p = seal(&source, now);
		assert_int_equal(epoch_of(&p), (e + 1) & 3);
		bad = p;
		bad.buf[HDR] ^= 1;
		assert_false(take(&target, &bad, now));
		assert_true(take(&target, &p, now));
		ack = seal(&target, now);
		assert_true(take(&source, &ack, now));
	}
}

/*
 * Both directions lose, hold back and repeat packets while the clock jumps from update to update. Whatever was
 * held back for less than RL_EPOCH_KEEP_NS must open exactly once, for either end.
 */
static void
test_lossy(void **state)
{
	static struct sealed ring[2][RING];
	static bool used[2][RING];
	struct end *end[2] = {&source, &target};
	struct rl_rand r = {5};
	uint64_t now = 1, opened = 0, expected = 0, replays = 0;
	uint32_t epochs = 0, last = 0;

	(void)state;
	memset(used, 0, sizeof(used));
	for (uint32_t step = 0; step < 200000; step++) {
		uint32_t side = rl_rand_next(&r) & 1, slot = (uint32_t)rl_rand_below(&r, RING);
		struct end *from = end[side], *to = end[!side];

		/* About 2 s pass while the ring turns over once; an epoch is 120 s. */
		now += rl_rand_below(&r, 4000000);
		if (step % 20000 ==
		    19999) { /* silence: what is on its way arrives much too late, or never */
			memset(used, 0, sizeof(used));
			now += RL_EPOCH_NS;
		}
		if (used[side][slot]) { /* arrives, one in ten times twice */
			if (take(to, &ring[side][slot], now))
				opened++;
			expected++;
			if (rl_rand_below(&r, 10) == 0) {
				assert_false(take(to, &ring[side][slot], now));
				replays++;
			}
		}
		ring[side][slot] = seal(from, now);
		used[side][slot] = rl_rand_below(&r, 100) < 70; /* else it is lost */
		if (side == 0 && epoch_of(&ring[0][slot]) != last) {
			last = epoch_of(&ring[0][slot]);
			epochs++;
		}
	}
	assert_true(epochs >= 5);
	assert_true(replays > 1000);
	/* Late ones are lost ones; few may be, and only for being late. */
	assert_true(opened <= expected && expected - opened < expected / 200);
}

/* Linked with --wrap=free: what is watched must be blank when it is freed. */
void __real_free(void *p);
void __wrap_free(void *p);

static void *watched[2];
static uint32_t freed_blank;

void
__wrap_free(void *p)
{
	for (uint32_t i = 0; i < 2; i++)
		if (p != NULL && p == watched[i]) {
			const uint8_t *at = p;
			size_t n = malloc_usable_size(p);

			/* What malloc() adds at the end is not ours. */
			if (n > 64)
				n -= n % 64;
			while (n > 0 && at[n - 1] == 0)
				n--;
			freed_blank += n == 0;
			watched[i] = NULL;
		}
	__real_free(p);
}

/* No secret and no key of an epoch that is over can be found, and nothing at all once it is freed. */
static void
test_wiped(void **state)
{
	enum { EPOCHS = 4 };
	uint8_t secret[EPOCHS + 3][32], key[EPOCHS][32];
	struct rl_aead aead;
	const uint8_t *at = (const uint8_t *)target.c;
	size_t size = malloc_usable_size(target.c);
	uint64_t now = 1;
	struct sealed p, ack;

	(void)state;
	rl_keys_lane(keys, true, 3, secret[0]);
	for (uint32_t e = 0; e < EPOCHS + 2; e++) {
		memcpy(secret[e + 1], secret[e], 32);
		rl_keys_step(keys, secret[e + 1], &aead);
		if (e < EPOCHS)
			memcpy(key[e], &aead.key, 32); /* an expanded key begins with the key */
	}
	assert_non_null(memmem(at, size, key[0], 32));
	for (uint32_t e = 0; e < EPOCHS; e++) {
		p = seal(&source, now);
		assert_int_equal(epoch_of(&p), e);
		assert_true(take(&target, &p, now));
		ack = seal(&target, now);
		assert_true(take(&source, &ack, now));
		p = seal(&source, now);
		assert_true(take(&target, &p, now + RL_EPOCH_KEEP_NS));
		assert_non_null(memmem(at, size, key[e], 32));
		for (uint32_t old = 0; old < e; old++)
			assert_null(memmem(at, size, key[old], 32));
		for (uint32_t old = 0; old <= e + 1; old++)
			assert_null(memmem(at, size, secret[old], 32));
		assert_non_null(memmem(at, size, secret[e + 2], 32));
		now += RL_EPOCH_NS;
	}
	watched[0] = target.c;
	watched[1] = keys;
	freed_blank = 0;
	rl_crypto_destroy(target.c);
	target.c = NULL;
	rl_crypto_destroy(source.c);
	source.c = NULL;
	rl_keys_destroy(keys);
	keys = NULL;
	assert_int_equal(freed_blank, 2);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_once, setup, teardown),
		cmocka_unit_test_setup_teardown(test_update, setup, teardown),
		cmocka_unit_test_setup_teardown(test_packet_limit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forged_epoch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lossy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wiped, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
