/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The key schedule: HKDF by the vectors of RFC 5869, Expand-Label by those of RFC 8448 and RFC 9001, both
 * against OpenSSL, and no two lanes, directions or epochs with a key in common.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "base/bytes.h"
#include "base/rand.h"
#include "crypto/aead.h"
#include "crypto/keys.h"
#include "hex.h"

static const uint8_t master[32] = {1, 2, 3};

static struct rl_keys *
make_keys(const uint8_t *secret)
{
	struct rl_keys *keys;
	struct rl_err err;

	assert_int_equal(rl_keys_create(secret, &keys, &err), 0);
	return keys;
}

/* RFC 5869, A.1 and A.3: SHA-256, with and without info. */
static void
test_rfc5869(void **state)
{
	static const struct {
		const char *prk, *info, *okm;
	} v[] = {
		{"077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
		 "f0f1f2f3f4f5f6f7f8f9",
		 "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
		 "34007208d5b887185865"},
		{"19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04", "",
		 "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
		 "9d201395faa4b61a96c8"},
	};
	struct rl_keys *keys = make_keys(master);
	uint8_t prk[32], info[16], okm[64], got[64];

	(void)state;
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		size_t info_len = hex(v[i].info, info), len = hex(v[i].okm, okm);

		assert_int_equal(hex(v[i].prk, prk), 32);
		assert_int_equal(len, 42);
		rl_keys_expand(keys, prk, info, info_len, got, len);
		assert_memory_equal(got, okm, len);
	}
	rl_keys_destroy(keys);
}

/* RFC 8448 section 3 ("derived" of the early secret; write keys of the handshake), RFC 9001 A.5. */
static void
test_expand_label(void **state)
{
	static const struct {
		const char *secret, *label, *ctx, *out;
	} v[] = {
		{"33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a", "derived",
		 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		 "6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba"},
		{"b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38", "key", "",
		 "3fce516009c21727d0f2e4e86ee403bc"},
		{"b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38", "iv", "",
		 "5d313eb2671276ee13000b30"},
		{"9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b", "quic key", "",
		 "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"},
		{"9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b", "quic iv", "",
		 "e0459b3474bdd0e44a41c144"},
		{"9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b", "quic ku", "",
		 "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"},
	};
	struct rl_keys *keys = make_keys(master);
	uint8_t secret[32], ctx[32], want[32], got[32];

	(void)state;
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		size_t ctx_len = hex(v[i].ctx, ctx), len = hex(v[i].out, want);

		assert_int_equal(hex(v[i].secret, secret), 32);
		assert_true(len > 0);
		rl_keys_expand_label(keys, secret, v[i].label, ctx, ctx_len, got, len);
		assert_memory_equal(got, want, len);
	}
	rl_keys_destroy(keys);
}

static void
evp_expand(const uint8_t *secret, uint8_t *info, size_t info_len, uint8_t *out, size_t len)
{
	int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
	char digest[] = "SHA256";
	uint8_t key[32];
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, key, sizeof(key)),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, info_len),
		OSSL_PARAM_construct_end(),
	};
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);

	memcpy(key, secret, sizeof(key));
	assert_int_equal(EVP_KDF_derive(ctx, out, len, params), 1);
	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
}

static void
test_oracle(void **state)
{
	struct rl_keys *keys = make_keys(master);
	struct rl_rand r = {3};
	uint8_t secret[32], info[128], want[320], got[321];

	(void)state;
	for (size_t info_len = 0; info_len <= sizeof(info); info_len++) {
		size_t len = 1 + rl_rand_next(&r) % sizeof(want);

		for (size_t i = 0; i < sizeof(secret); i++)
			secret[i] = (uint8_t)rl_rand_next(&r);
		for (size_t i = 0; i < info_len; i++)
			info[i] = (uint8_t)rl_rand_next(&r);
		evp_expand(secret, info, info_len, want, len);
		got[len] = 0xee;
		rl_keys_expand(keys, secret, info, info_len, got, len);
		assert_memory_equal(got, want, len);
		assert_int_equal(got[len], 0xee);
	}
	rl_keys_destroy(keys);
}

static int
compare(const void *a, const void *b)
{
	return memcmp(a, b, 32);
}

/* Master secrets, lanes, directions and epochs: all secrets differ, and both ends find the same. */
static void
test_lanes(void **state)
{
	enum { MASTERS = 2, LANES = 64, EPOCHS = 4, N = MASTERS * LANES * 2 * EPOCHS };
	static uint8_t all[N][32];
	uint8_t other[32], secret[32], again[32];
	struct rl_aead a, b;
	uint32_t n = 0;

	(void)state;
	memcpy(other, master, 32);
	other[31] ^= 1;
	for (uint32_t m = 0; m < MASTERS; m++) {
		struct rl_keys *here = make_keys(m ? other : master);
		struct rl_keys *there = make_keys(m ? other : master);

		for (uint32_t i = 0; i < 2 * LANES; i++) {
			rl_keys_lane(here, i & 1, (uint16_t)(i / 2), secret);
			rl_keys_lane(there, i & 1, (uint16_t)(i / 2), again);
			for (uint32_t e = 0; e < EPOCHS; e++) {
				memcpy(all[n++], secret, 32);
				rl_keys_step(here, secret, &a);
				rl_keys_step(there, again, &b);
				assert_memory_equal(secret, again, 32);
				assert_memory_equal(&a.key, &b.key, sizeof(a.key));
				assert_memory_equal(a.iv, b.iv, sizeof(a.iv));
			}
		}
		rl_keys_destroy(here);
		rl_keys_destroy(there);
	}
	qsort(all, N, 32, compare);
	for (uint32_t i = 1; i < N; i++)
		assert_memory_not_equal(all[i - 1], all[i], 32);
}

/* What docs/wire.md says, written out: key and IV of lane 0x0102's second epoch, by OpenSSL alone. */
static void
test_schedule(void **state)
{
	uint8_t lane_info[] = "\x00\x20\x12tls13 ramlift data\x02\x02\x01";
	uint8_t ku_info[] = "\x00\x20\x10tls13 ramlift ku";
	uint8_t key_info[] = "\x00\x20\x11tls13 ramlift key";
	uint8_t iv_info[] = "\x00\x0c\x10tls13 ramlift iv";
	uint8_t s0[32], s1[32], key[32], iv[12], secret[32], text[48], want[48], got[48], tag[16],
		want_tag[16];
	struct rl_keys *keys = make_keys(master);
	struct rl_aead a, oracle;
	IMB_MGR *mgr = alloc_mb_mgr(0);
	IMB_ARCH arch;

	(void)state;
	init_mb_mgr_auto(mgr, &arch);
	evp_expand(master, lane_info, sizeof(lane_info) - 1, s0, 32);
	evp_expand(s0, ku_info, sizeof(ku_info), s1, 32);
	evp_expand(s1, key_info, sizeof(key_info), key, 32);
	evp_expand(s1, iv_info, sizeof(iv_info), iv, 12);

	rl_keys_lane(keys, true, 0x0102, secret);
	assert_memory_equal(secret, s0, 32);
	rl_keys_step(keys, secret, &a);
	assert_memory_equal(secret, s1, 32);
	rl_keys_step(keys, secret, &a);

	memset(text, 0x5a, sizeof(text));
	rl_aead_init(&oracle, mgr, key, iv);
	rl_aead_seal(&oracle, 77, text, 16, want, text, sizeof(text), want_tag);
	rl_aead_seal(&a, 77, text, 16, got, text, sizeof(text), tag);
	assert_memory_equal(got, want, sizeof(text));
	assert_memory_equal(tag, want_tag, 16);
	free_mb_mgr(mgr);
	rl_keys_destroy(keys);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rfc5869),  cmocka_unit_test(test_expand_label),
		cmocka_unit_test(test_oracle),   cmocka_unit_test(test_lanes),
		cmocka_unit_test(test_schedule),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
