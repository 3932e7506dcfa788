/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What sealing and opening a packet costs: the lane as the workers use it (header, replay window, AES-256-GCM by
 * libipsec-mb), OpenSSL's EVP beside it in the same run, and a memcpy as the floor. The reference of
 * `scripts/bench crypto`.
 *
 * usage: crypto [ROUNDS]
 * prints {"seal-1400":{"cycles":…,"gbps":…},…}: TSC cycles per packet and Gbit/s of packets on one core, the best of
 * ROUNDS (default 15) so that other work on the machine does not count
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include <openssl/evp.h>

#include "base/bytes.h"
#include "crypto/packet.h"

#define HDR     16u
#define TAG     16u
#define RING    512u /* packets, as many as lie in a NIC's ring */
#define MAX_LEN 3440u

static uint8_t ring[RING][(MAX_LEN + 63) / 64 * 64] __attribute__((aligned(64)));
static uint8_t staging[MAX_LEN];
static const uint8_t *volatile sink; /* keeps the compiler from leaving work out */

static struct rl_crypto *source, *target;
static uint64_t pn;
static EVP_CIPHER_CTX *evp_seal, *evp_open;

static void
seal_ring(size_t len)
{
	uint8_t epoch = rl_crypto_epoch(source, 1);

	for (uint32_t i = 0; i < RING; i++, pn++) {
		ring[i][1] = epoch;
		rl_store64(ring[i] + 8, pn);
		rl_crypto_seal(source, pn, ring[i], len - TAG);
	}
}

static void
open_ring(size_t len)
{
	for (uint32_t i = 0; i < RING; i++) {
		uint64_t n = rl_load64(ring[i] + 8);

		sink = NULL;
		if (rl_crypto_is_new(target, n))
			sink = rl_crypto_open(target, n, ring[i][1], ring[i], len, staging, 1);
		if (sink == NULL)
			abort();
	}
}

static void
evp_seal_ring(size_t len)
{
	int n;

	for (uint32_t i = 0; i < RING; i++, pn++) {
		uint8_t nonce[12] = {0};

		rl_store64(nonce + 4, pn);
		rl_store64(ring[i] + 8, pn);
		if (EVP_EncryptInit_ex2(evp_seal, NULL, NULL, nonce, NULL) != 1 ||
		    EVP_EncryptUpdate(evp_seal, NULL, &n, ring[i], HDR) != 1 ||
		    EVP_EncryptUpdate(evp_seal, ring[i] + HDR, &n, ring[i] + HDR,
				      (int)(len - HDR - TAG)) != 1 ||
		    EVP_EncryptFinal_ex(evp_seal, ring[i] + len - TAG, &n) != 1 ||
		    EVP_CIPHER_CTX_ctrl(evp_seal, EVP_CTRL_AEAD_GET_TAG, TAG,
					ring[i] + len - TAG) != 1)
			abort();
	}
}

static void
evp_open_ring(size_t len)
{
	int n;

	for (uint32_t i = 0; i < RING; i++) {
		uint8_t nonce[12] = {0};

		memcpy(nonce + 4, ring[i] + 8, 8);
		if (EVP_DecryptInit_ex2(evp_open, NULL, NULL, nonce, NULL) != 1 ||
		    EVP_DecryptUpdate(evp_open, NULL, &n, ring[i], HDR) != 1 ||
		    EVP_DecryptUpdate(evp_open, staging, &n, ring[i] + HDR,
				      (int)(len - HDR - TAG)) != 1 ||
		    EVP_CIPHER_CTX_ctrl(evp_open, EVP_CTRL_AEAD_SET_TAG, TAG,
					ring[i] + len - TAG) != 1 ||
		    EVP_DecryptFinal_ex(evp_open, staging, &n) != 1)
			abort();
	}
}

static void
copy_ring(size_t len)
{
	for (uint32_t i = 0; i < RING; i++) {
		memcpy(staging, ring[i] + HDR, len - HDR - TAG);
		sink = staging;
	}
}

static double
cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* ns of CPU time per packet of one ring, the least of @best so far and this one. */
static void
measure(void (*fn)(size_t), size_t len, double *best)
{
	double start = cpu_ns(), ns;

	fn(len);
	ns = (cpu_ns() - start) / RING;
	if (*best == 0 || ns < *best)
		*best = ns;
}

static double
tsc_per_ns(void)
{
	struct timespec a, b;
	uint64_t from = __rdtsc();

	clock_gettime(CLOCK_MONOTONIC, &a);
	do
		clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec < 50000000);
	return (double)(__rdtsc() - from) /
	       ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec));
}

static int
set_up(void)
{
	static const uint8_t secret[RL_SECRET_BYTES] = {1, 2, 3};
	struct rl_keys *keys;
	struct rl_err err;

	if (rl_keys_create(secret, &keys, &err) != 0) {
		fprintf(stderr, "crypto: %s\n", err.text);
		return -1;
	}
	evp_seal = EVP_CIPHER_CTX_new();
	evp_open = EVP_CIPHER_CTX_new();
	if (rl_crypto_create(keys, RL_CRYPTO_SOURCE, 0, &source) != 0 ||
	    rl_crypto_create(keys, RL_CRYPTO_TARGET, 0, &target) != 0 ||
	    EVP_EncryptInit_ex2(evp_seal, EVP_aes_256_gcm(), secret, NULL, NULL) != 1 ||
	    EVP_DecryptInit_ex2(evp_open, EVP_aes_256_gcm(), secret, NULL, NULL) != 1)
		return -1;
	return 0;
}

int
main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(size_t);
	} cases[] = {
		{"seal", seal_ring},         {"open", open_ring}, {"evp-seal", evp_seal_ring},
		{"evp-open", evp_open_ring}, {"copy", copy_ring},
	};
	static const size_t lens[] = {1400, MAX_LEN};
	const uint32_t n_cases = sizeof(cases) / sizeof(cases[0]);
	long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 15;
	double tsc, best[2][5] = {0};

	if (rounds < 1 || set_up() != 0)
		return 1;
	tsc = tsc_per_ns();
	/* All cases in turn, again and again: what disturbs the machine disturbs all alike. */
	for (long r = 0; r < 20 * rounds; r++)
		for (uint32_t l = 0; l < 2; l++)
			for (uint32_t i = 0; i < n_cases; i++)
				measure(cases[i].fn, lens[l], &best[l][i]);
	printf("{");
	for (uint32_t l = 0; l < 2; l++)
		for (uint32_t i = 0; i < n_cases; i++)
			printf("%s\"%s-%zu\":{\"cycles\":%.0f,\"gbps\":%.1f}", l + i ? "," : "",
			       cases[i].name, lens[l], best[l][i] * tsc,
			       (double)lens[l] * 8 / best[l][i]);
	printf("}\n");
	return 0;
}
