/* SPDX-License-Identifier: BSD-3-Clause */
/* Page contents of the synthetic guest, reproducible from seed, page and generation. */
#include "content.h"

#include <string.h>

#define WORDS      (RL_SYNTH_PAGE_BYTES / sizeof(uint64_t))
#define HEAD_WORDS 2u /* page number, generation */
#define N_CHANGES  12u

const char *const rl_synth_content_names[RL_SYNTH_N_CONTENTS] = {
	[RL_SYNTH_MIXED] = "mixed",
	[RL_SYNTH_RANDOM] = "random",
	[RL_SYNTH_ZERO] = "zero",
	[RL_SYNTH_TEXT] = "text",
};

/* Eight bytes each, as log lines have them. */
static const char lexicon[32][9] = {
	"error:  ", "warning ", "guest-01", "accepted",  "refused ", "network ", " 0x7f00 ",
	"memory  ", "session ", "started ", "stopped ",  "timeout ", "retrying", " [INFO] ",
	" [WARN] ", "packets ", "received", "sent to ",  "address ", "device  ", "storage ",
	"/var/log", "/usr/lib", "systemd ", "kernel: ",  "process ", "exited  ", "status=0",
	"queue=04", "latency ", "bytes   ", "\n2026-08",
};

uint64_t
rl_synth_rand(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t
mix(uint64_t a, uint64_t b)
{
	uint64_t state = a ^ b * 0xd6e8feb86659fd93ull;

	return rl_synth_rand(&state);
}

static void
fill_random(uint64_t *buf, uint64_t state)
{
	for (uint32_t i = HEAD_WORDS; i < WORDS; i++)
		buf[i] = rl_synth_rand(&state);
}

static void
fill_text(uint64_t *buf, uint64_t state)
{
	uint64_t r = 0;

	for (uint32_t i = HEAD_WORDS; i < WORDS; i++, r >>= 5) {
		if ((i - HEAD_WORDS) % 12 == 0)
			r = rl_synth_rand(&state);
		memcpy(&buf[i], lexicon[r & 31], sizeof(buf[i]));
	}
}

static void
fill_mixed(uint64_t *buf, uint64_t by_page, uint64_t by_generation)
{
	uint64_t state = by_generation;

	switch (by_page & 7) {
	case 0:
	case 1:
		fill_random(buf, by_generation);
		break;
	case 2:
	case 3:
	case 4:
		fill_text(buf, by_generation);
		break;
	default:
		fill_text(buf, by_page);
		for (uint32_t i = 0; i < N_CHANGES; i++) {
			uint64_t r = rl_synth_rand(&state);

			buf[HEAD_WORDS + r % (WORDS - HEAD_WORDS)] = r;
		}
	}
}

void
rl_synth_fill(uint64_t *buf, enum rl_synth_content content, uint64_t seed, uint64_t page,
	      uint32_t generation)
{
	uint64_t by_page = mix(seed, page);
	uint64_t by_generation = mix(by_page, generation);

	if (generation == 0 || content == RL_SYNTH_ZERO ||
	    (content == RL_SYNTH_MIXED && (by_generation & 15) == 0)) {
		memset(buf, 0, RL_SYNTH_PAGE_BYTES);
		return;
	}
	buf[0] = page;
	buf[1] = generation;
	if (content == RL_SYNTH_RANDOM)
		fill_random(buf, by_generation);
	else if (content == RL_SYNTH_TEXT)
		fill_text(buf, by_generation);
	else
		fill_mixed(buf, by_page, by_generation);
}
