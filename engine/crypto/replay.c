/* SPDX-License-Identifier: BSD-3-Clause */
/* The replay window, see replay.h. */
#include "crypto/replay.h"

#define WORDS (RL_REPLAY_BITS / 64)

bool
rl_replay_is_new(const struct rl_replay *r, uint64_t pn)
{
	if (pn >= r->next)
		return pn != UINT64_MAX; /* next would wrap */
	if (r->next - pn > RL_REPLAY_WINDOW)
		return false;
	return !(r->word[pn / 64 % WORDS] >> pn % 64 & 1);
}

void
rl_replay_note(struct rl_replay *r, uint64_t pn)
{
	uint64_t top = pn / 64;

	if (pn >= r->next) {
		/* The words between the highest so far and @pn still hold numbers of a lap ago. */
		uint64_t w = (r->next + 63) / 64;

		if (top >= w + WORDS)
			w = top - WORDS + 1;
		for (; w <= top; w++)
			r->word[w % WORDS] = 0;
		r->next = pn + 1;
	}
	r->word[top % WORDS] |= 1ull << pn % 64;
}
