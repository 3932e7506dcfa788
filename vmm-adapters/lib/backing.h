/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_VMM_BACKING_H
#define RL_VMM_BACKING_H
/**
 * @file backing.h
 * Memory for guest RAM that a VMM can share with ramliftd by file descriptor.
 *
 *   kind         what it is                                                page_size
 *   plain        memfd                                                     4 KiB
 *   thp          file on a tmpfs of its own with huge=always: 2 MiB        2 MiB
 *                folios whose pages can still be installed one by one
 *   hugetlb-2M   memfd of 2 MiB huge pages                                 2 MiB
 *   hugetlb-1G   memfd of 1 GiB huge pages                                 1 GiB
 *
 * Threads: [any].
 * Units:   bytes.
 * Errors:  0 or -errno; cause and remedy in `text`, RL_VMM_TEXT_BYTES long.
 */
#include <stdint.h>

/**
 * Make a file of @bytes zeros, sealed against shrinking where the kind can be. @page_size and @region_flags
 * are what struct rl_vmm_region wants (RL_VMM_REGION_ZEROED included); @fd is the caller's.
 * -EINVAL: no such kind, or @bytes is not whole pages of it; -ENOMEM: too few huge pages are free;
 * -EPERM: thp needs root.
 */
int rl_backing_open(const char *kind, uint64_t bytes, int *fd, uint32_t *page_size,
		    uint32_t *region_flags, char *text);

/**
 * Map all of it, shared and writable, at a multiple of @align (a power of two; at least the backing's page
 * size, and 2 MiB so that KVM can use large pages). Huge pages are reserved here. NULL and errno on failure.
 */
uint8_t *rl_backing_map(int fd, uint64_t bytes, uint32_t align);

#endif /* RL_VMM_BACKING_H */
