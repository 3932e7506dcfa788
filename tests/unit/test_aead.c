/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * AES-256-GCM: the vectors of its specification, OpenSSL as the oracle for every length, and every damaged
 * bit refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <openssl/evp.h>

#include "base/rand.h"
#include "crypto/aead.h"
#include "hex.h"

#define MAX_BYTES 9000u

static IMB_MGR *mgr;

static void
fill(struct rl_rand *r, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rl_rand_next(r);
}

/* "The Galois/Counter Mode of Operation", McGrew and Viega 2005, appendix B, cases 13 to 16. */
static void
test_vectors(void **state)
{
	static const struct {
		const char *key, *iv, *plain, *aad, *sealed, *tag;
	} v[] = {
		{"0000000000000000000000000000000000000000000000000000000000000000",
		 "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
		{"0000000000000000000000000000000000000000000000000000000000000000",
		 "000000000000000000000000", "00000000000000000000000000000000", "",
		 "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
		{"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
		 "cafebabefacedbaddecaf888",
		 "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
		 "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
		 "",
		 "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
		 "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
		 "b094dac5d93471bdec1a502270e3cc6c"},
		{"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
		 "cafebabefacedbaddecaf888",
		 "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
		 "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
		 "feedfacedeadbeeffeedfacedeadbeefabaddad2",
		 "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
		 "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
		 "76fc6ece0f4e1768cddf8853bb2d551b"},
	};
	uint8_t key[32], iv[12], plain[64], aad[20], sealed[64], tag[16], out[64], got[16];

	(void)state;
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		size_t len = hex(v[i].plain, plain), aad_len = hex(v[i].aad, aad);
		struct rl_aead a;

		assert_int_equal(hex(v[i].key, key), 32);
		assert_int_equal(hex(v[i].iv, iv), 12);
		assert_int_equal(hex(v[i].sealed, sealed), len);
		assert_int_equal(hex(v[i].tag, tag), 16);
		rl_aead_init(&a, mgr, key, iv);
		rl_aead_seal(&a, 0, aad, aad_len, out, plain, len, got);
		assert_memory_equal(out, sealed, len);
		assert_memory_equal(got, tag, 16);
		memset(out, 0xee, sizeof(out));
		assert_true(rl_aead_open(&a, 0, aad, aad_len, out, sealed, len, tag));
		assert_memory_equal(out, plain, len);
		/* What is left of the packet number is in the IV's last 8 bytes, big-endian. */
		iv[11] ^= 0x21;
		iv[10] ^= 0x43;
		iv[4] ^= 0x65;
		rl_aead_init(&a, mgr, key, iv);
		rl_aead_seal(&a, 0x6500000000004321, aad, aad_len, out, plain, len, got);
		assert_memory_equal(got, tag, 16);
	}
}

static void
evp_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, uint8_t *out,
	 const uint8_t *in, size_t len, uint8_t *tag)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int n;

	assert_non_null(ctx);
	assert_int_equal(EVP_EncryptInit_ex2(ctx, EVP_aes_256_gcm(), key, nonce, NULL), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, NULL, &n, aad, 16), 1);
	if (len > 0)
		assert_int_equal(EVP_EncryptUpdate(ctx, out, &n, in, (int)len), 1);
	assert_int_equal(EVP_EncryptFinal_ex(ctx, out + len, &n), 1);
	assert_int_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag), 1);
	EVP_CIPHER_CTX_free(ctx);
}

/* Against OpenSSL: apart and in place, every length of the first kilobyte and then some, with no byte too many. */
static void
test_oracle(void **state)
{
	static uint8_t plain[MAX_BYTES], want[MAX_BYTES + 16], out[MAX_BYTES + 1];
	struct rl_rand r = {42};
	uint8_t key[32], iv[12], nonce[12], aad[16], want_tag[16], tag[16];
	struct rl_aead a;

	(void)state;
	for (size_t len = 0; len <= MAX_BYTES; len += len < 1100 ? 1 : 79) {
		uint64_t pn = rl_rand_next(&r);

		fill(&r, key, sizeof(key));
		fill(&r, iv, sizeof(iv));
		fill(&r, aad, sizeof(aad));
		fill(&r, plain, len);
		memcpy(nonce, iv, sizeof(iv));
		for (int i = 0; i < 8; i++)
			nonce[11 - i] ^= (uint8_t)(pn >> 8 * i);
		evp_seal(key, nonce, aad, want, plain, len, want_tag);

		rl_aead_init(&a, mgr, key, iv);
		out[len] = 0xee;
		rl_aead_seal(&a, pn, aad, sizeof(aad), out, plain, len, tag);
		assert_memory_equal(out, want, len);
		assert_memory_equal(tag, want_tag, 16);
		assert_int_equal(out[len], 0xee);
		memcpy(out, plain, len);
		rl_aead_seal(&a, pn, aad, sizeof(aad), out, out, len, tag);
		assert_memory_equal(out, want, len);
		assert_memory_equal(tag, want_tag, 16);

		memset(out, 0, len);
		assert_true(rl_aead_open(&a, pn, aad, sizeof(aad), out, want, len, want_tag));
		assert_memory_equal(out, plain, len);
		assert_int_equal(out[len], 0xee);
		assert_false(rl_aead_open(&a, pn ^ 1, aad, sizeof(aad), out, want, len, want_tag));
	}
}

/* Not one bit of header, records or tag can change. */
static void
test_damage(void **state)
{
	uint8_t key[32], iv[12], buf[16 + 100 + 16], out[100];
	struct rl_rand r = {7};
	struct rl_aead a;

	(void)state;
	fill(&r, key, sizeof(key));
	fill(&r, iv, sizeof(iv));
	fill(&r, buf, sizeof(buf));
	rl_aead_init(&a, mgr, key, iv);
	rl_aead_seal(&a, 9, buf, 16, buf + 16, buf + 16, 100, buf + 116);
	for (size_t bit = 0; bit < 8 * sizeof(buf); bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_false(rl_aead_open(&a, 9, buf, 16, out, buf + 16, 100, buf + 116));
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_true(rl_aead_open(&a, 9, buf, 16, out, buf + 16, 100, buf + 116));
	assert_false(rl_aead_open(&a, 9, buf, 16, out, buf + 16, 99, buf + 116));
	assert_false(rl_aead_open(&a, 9, buf, 15, out, buf + 16, 100, buf + 116));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vectors),
		cmocka_unit_test(test_oracle),
		cmocka_unit_test(test_damage),
	};
	IMB_ARCH arch;
	int rc;

	mgr = alloc_mb_mgr(0);
	if (mgr == NULL)
		return 1;
	init_mb_mgr_auto(mgr, &arch);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	free_mb_mgr(mgr);
	return rc;
}
