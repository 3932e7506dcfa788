/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_MEMORY_PROBE_H
#define RL_MEMORY_PROBE_H
/**
 * @file probe.h
 * What this kernel offers to move guests with; for `ramlift doctor`.
 *
 * Threads: [any]. Nothing is changed.
 * Errors:  0, or -errno: why it is missing (-ENOENT no device, -EACCES, -EOPNOTSUPP an old kernel).
 */
#include <stdint.h>

/** /dev/kvm can be opened. */
int rl_probe_kvm(void);

/** KVM's dirty ring: the most entries per vCPU. */
int rl_probe_dirty_ring(uint32_t *entries);

/** userfaultfd with missing and minor faults on shmem and hugetlbfs. */
int rl_probe_userfaultfd(void);

/** Hugepages of @page_bytes: total and free. -ENOENT: this size doesn't exist here. */
int rl_probe_hugepages(uint64_t page_bytes, uint64_t *total, uint64_t *free_pages);

#endif /* RL_MEMORY_PROBE_H */
