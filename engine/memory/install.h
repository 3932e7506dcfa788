/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_MEMORY_INSTALL_H
#define RL_MEMORY_INSTALL_H
/**
 * @file install.h
 * The target's guest memory: what arrives goes in, unless something newer is there (DESIGN rule 5).
 *
 * Every page has the version of the newest record seen, 16 bits compared as serial numbers (RFC 1982). A
 * fragment of that version or a newer one is written; an older one is stale. A page may for a while mix
 * fragments of two versions; the sender's rule "loss means pending" brings the rest. A zero run writes only to
 * pages that were written before: target memory starts out as zeros.
 *
 * Threads: rl_install_*() by the lane that owns the page's stripe (stripe % n_lanes; checked), many lanes at
 *          once; init/fini [control].
 * Units:   gpn, bytes.
 * Errors:  every argument comes from the wire: -EBADMSG for pages outside guest RAM, a run that leaves its
 *          region or stripe, or a stripe of another lane.
 */
#include <stdint.h>

#include "memory/ram.h"

struct rl_install {
	const struct rl_ram *ram;
	uint32_t n_lanes;
	uint16_t *version; /* by page */
	uint64_t *touched; /* bit per page: has been written, ever */
};

/** @ram is mapped writable and reads as zeros. -ENOMEM. */
int rl_install_init(struct rl_install *in, const struct rl_ram *ram, uint32_t n_lanes);
void rl_install_fini(struct rl_install *in);

/** Returns 1 when written, 0 when stale, -EBADMSG. */
int rl_install_raw(struct rl_install *in, uint32_t lane, uint64_t gpn, uint16_t version,
		   uint32_t offset, const uint8_t *data, uint32_t len);

/** Returns pages made zero (or found so), 0 when all were stale, -EBADMSG. */
int rl_install_zero(struct rl_install *in, uint32_t lane, uint64_t gpn, uint32_t count,
		    uint16_t version);

#endif /* RL_MEMORY_INSTALL_H */
