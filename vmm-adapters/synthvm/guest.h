/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_SYNTH_GUEST_H
#define RL_SYNTH_GUEST_H
/**
 * @file guest.h
 * The synthetic guest: threads in the place of vCPUs that write pages of guest memory, and a check that
 * knows what every page must hold.
 *
 * Guest memory is a table of generations (a u32 per page, in the first pages) and data pages. A write takes
 * the next generation of a page: content (content.h), then the table. vCPU i owns the pages p with
 * p % n_vcpus == i. First each vCPU writes all its pages once, then those in the working set, by pattern and
 * rate. The table migrates with the memory; the sum of all generations is also in the device state, so that a
 * page and its table entry cannot both be stale unnoticed.
 *
 * Threads: hold/release/check/writes [any]; save/load/reset while held; create/start/destroy exclusive.
 * Units:   pages of 4096 bytes; pages per second.
 * Errors:  0 or -errno; load has its reason in `text`, RL_VMM_TEXT_BYTES.
 */
#include "content.h"
#include "dirtylog.h"

#define RL_SYNTH_RATE_MAX   UINT64_MAX    /* as fast as they can */
#define RL_SYNTH_RATE_LIMIT 1000000000ull /* any other rate */

enum rl_synth_pattern {
	RL_SYNTH_SEQ = 0,
	RL_SYNTH_UNIFORM = 1,
	RL_SYNTH_HOT = 2, /* nine of ten writes go to a tenth of the working set */
	RL_SYNTH_N_PATTERNS = 3,
};

extern const char *const rl_synth_pattern_names[RL_SYNTH_N_PATTERNS];

struct rl_synth_work {
	enum rl_synth_content content;
	enum rl_synth_pattern pattern;
	uint64_t seed;
	uint64_t rate;              /* pages/s of all vCPUs; 0: idle */
	uint64_t working_set_pages; /* 0: all */
};

struct rl_synth_opts {
	uint8_t *ram; /* mapped, writable; the caller's */
	uint64_t n_pages;
	uint32_t n_vcpus;
	bool held; /* starts held once, as a target does */
	struct rl_synth_work work;
	struct rl_synth_log *log;     /* outlives the guest; n_vcpus rings */
	void (*ring_full)(void *ctx); /* a vCPU must wait for a reset */
	void *ctx;
};

struct rl_synth_verdict {
	uint64_t checked; /* pages */
	uint64_t wrong;
	char first[128]; /* what the first wrong one holds */
};

struct rl_synth_guest; /* opaque */

/** -EINVAL: memory too small for the table and a page per vCPU, or the working set larger than the rest. */
int rl_synth_create(const struct rl_synth_opts *opts, struct rl_synth_guest **guest);
/** Start the vCPU threads. */
int rl_synth_start(struct rl_synth_guest *g);
void rl_synth_destroy(struct rl_synth_guest *g);

/** Holds add up. When hold returns, no vCPU writes; each hold needs its release. */
void rl_synth_hold(struct rl_synth_guest *g);
void rl_synth_release(struct rl_synth_guest *g);

/** Compare all memory with what it must hold. Holds the guest meanwhile. */
void rl_synth_check(struct rl_synth_guest *g, struct rl_synth_verdict *v);

/** Pages written so far, here and where the guest came from. */
uint64_t rl_synth_writes(const struct rl_synth_guest *g);

/** Device state: into a new memfd, and back. What is loaded is checked first, in full. */
int rl_synth_save(struct rl_synth_guest *g, int *memfd, uint64_t *size);
int rl_synth_load(struct rl_synth_guest *g, int memfd, uint64_t size, char *text);
/** Forget what was loaded. */
void rl_synth_reset(struct rl_synth_guest *g);

#endif /* RL_SYNTH_GUEST_H */
