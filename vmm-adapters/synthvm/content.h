/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_SYNTH_CONTENT_H
#define RL_SYNTH_CONTENT_H
/**
 * @file content.h
 * What a page of the synthetic guest holds: a function of (content, seed, page, generation) and nothing
 * else, so that whoever knows these can check every byte.
 *
 *   random  fill that does not compress
 *   zero    zeros
 *   text    words; compresses about 3 to 1
 *   mixed   by page: random, text, or text of which a generation changes a few words; and every 16th
 *           generation of a page, about, is all zeros
 *
 * A page that is not all zeros begins with its page number and generation.
 *
 * Threads: [any], pure functions. Units: pages of 4096 bytes; generation 0: never written, zeros.
 */
#include <stdint.h>

#define RL_SYNTH_PAGE_BYTES 4096u

enum rl_synth_content {
	RL_SYNTH_MIXED = 0,
	RL_SYNTH_RANDOM = 1,
	RL_SYNTH_ZERO = 2,
	RL_SYNTH_TEXT = 3,
	RL_SYNTH_N_CONTENTS = 4,
};

extern const char *const rl_synth_content_names[RL_SYNTH_N_CONTENTS];

/** Splitmix64. Not for keys. */
uint64_t rl_synth_rand(uint64_t *state);

/** Write all RL_SYNTH_PAGE_BYTES of @buf, 8-byte aligned. */
void rl_synth_fill(uint64_t *buf, enum rl_synth_content content, uint64_t seed, uint64_t page,
		   uint32_t generation);

#endif /* RL_SYNTH_CONTENT_H */
