/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_BASE_BYTES_H
#define RL_BASE_BYTES_H
/**
 * @file bytes.h
 * Little-endian loads and stores at any alignment, small arithmetic, branch hints.
 *
 * Threads: [any], pure functions.
 */
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define RL_PAGE_SHIFT         12
#define RL_PAGE_SIZE          4096u

#define rl_likely(x)          __builtin_expect(!!(x), 1)
#define rl_unlikely(x)        __builtin_expect(!!(x), 0)

#define RL_DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))

static inline uint16_t
rl_load16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

static inline uint32_t
rl_load32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static inline uint64_t
rl_load64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static inline void
rl_store16(void *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void
rl_store32(void *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void
rl_store64(void *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint32_t
rl_min32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
rl_min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
rl_max64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline bool
rl_is_pow2(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

/* Serial-number comparison of 16-bit versions (RFC 1982): is @a newer than @b? */
static inline bool
rl_newer16(uint16_t a, uint16_t b)
{
	return (int16_t)(uint16_t)(a - b) > 0;
}

#endif /* RL_BASE_BYTES_H */
