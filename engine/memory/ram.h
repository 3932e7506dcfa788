/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_MEMORY_RAM_H
#define RL_MEMORY_RAM_H
/**
 * @file ram.h
 * Guest RAM as the engine maps it: regions of a memfd, tmpfs or hugetlbfs file.
 *
 * Two page numbers: `gpn` is guest-physical address >> 12 (on the wire, in the VMM socket); `page` counts
 * 4 KiB pages over all regions in ascending gpn order without the holes between them: [0, ram.n_pages).
 * Bitmaps, versions and the sent-map go by `page`.
 *
 * Threads: add/map/unmap [control], exclusive; the rest [any].
 * Units:   pages of 4096 bytes, whatever the backing.
 * Errors:  0 or -errno with cause and remedy in @err.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define RL_RAM_MAX_REGIONS 16u

struct rl_region {
	uint64_t gpn;
	uint64_t n_pages;
	uint64_t page;      /* number of its first page in [0, ram.n_pages) */
	uint64_t fd_offset; /* bytes */
	uint32_t page_size; /* of the backing */
	bool hugetlb, thp;
	bool zeroed;  /* reads as zeros: nothing was ever written */
	int fd;       /* owned */
	uint8_t *hva; /* mapped: not NULL */
};

struct rl_ram {
	uint32_t n;
	uint64_t n_pages;
	struct rl_region region[RL_RAM_MAX_REGIONS]; /* ascending gpn, disjoint */
};

void rl_ram_init(struct rl_ram *ram);

/**
 * Add a region; takes ownership of @fd in any case. Checks: whole pages, no overlap, inside the 40-bit gpn
 * space, offset and length multiples of page_size, the file is long enough (fstat). -EINVAL, -ENOSPC.
 */
int rl_ram_add(struct rl_ram *ram, const struct rl_region *r, struct rl_err *err);

/** Map all regions, 2 MiB-aligned, shared. @writable: as a target. -ENOMEM, -EACCES. */
int rl_ram_map(struct rl_ram *ram, bool writable, struct rl_err *err);
void rl_ram_unmap(struct rl_ram *ram);
/** Unmap and close everything. */
void rl_ram_fini(struct rl_ram *ram);

/** Make all of it read as zeros again (hole punching, or memset where that is refused). */
int rl_ram_discard(struct rl_ram *ram, struct rl_err *err);

/** gpn -> page; false when no region has it. */
bool rl_ram_page(const struct rl_ram *ram, uint64_t gpn, uint64_t *page);

/** Pages [gpn, gpn + n) all in one region? Then the first's page. */
bool rl_ram_run(const struct rl_ram *ram, uint64_t gpn, uint64_t n, uint64_t *page);

/** page -> gpn and address; @page < n_pages. */
uint64_t rl_ram_gpn(const struct rl_ram *ram, uint64_t page);
uint8_t *rl_ram_hva(const struct rl_ram *ram, uint64_t page);

/**
 * Call @fn for every extent of pages that may hold data; what lies between reads as zeros and has no memory
 * (SEEK_DATA/SEEK_HOLE; all of it where the file system can't tell). Does not touch the memory.
 */
void rl_ram_extents(const struct rl_ram *ram, void (*fn)(void *ctx, uint64_t page, uint64_t n),
		    void *ctx);

/**
 * Digest of each block of 512 pages (the last one may be shorter): the sum modulo 2^64 over its non-zero
 * pages of mix(CRC-64/ECMA of the page, gpn). Holes cost nothing. @digest has RL_RAM_BLOCKS(ram) entries.
 * @touched: bit per page, 0 = known to be zeros and not to be looked at (reading a hole of hugetlbfs would fill
 * it); NULL: look at all. Only meaningful while nobody writes.
 */
#define RL_RAM_BLOCKS(ram) (((ram)->n_pages + 511) / 512)
void rl_ram_digest(const struct rl_ram *ram, const uint64_t *touched, uint64_t *digest);

#endif /* RL_MEMORY_RAM_H */
