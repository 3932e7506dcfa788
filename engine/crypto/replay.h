/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CRYPTO_REPLAY_H
#define RL_CRYPTO_REPLAY_H
/**
 * @file replay.h
 * Which packet numbers were opened already: a ring of bits that never shifts (RFC 6479). Numbers left of the
 * window count as seen. Ask before the tag is checked, note after: a forged number must change nothing.
 *
 * Threads: the lane's owner. Units: packets.
 */
#include <stdbool.h>
#include <stdint.h>

#define RL_REPLAY_BITS 65536u
/* How far back is remembered for certain: the word of the newest is only partly in use. */
#define RL_REPLAY_WINDOW (RL_REPLAY_BITS - 64)

struct rl_replay {
	uint64_t next; /* above the highest number noted */
	uint64_t word[RL_REPLAY_BITS / 64];
};

/** May @pn be new? A struct of zeros has seen nothing. */
bool rl_replay_is_new(const struct rl_replay *r, uint64_t pn);

/** @pn, which is new, was opened. */
void rl_replay_note(struct rl_replay *r, uint64_t pn);

#endif /* RL_CRYPTO_REPLAY_H */
