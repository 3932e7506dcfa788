/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CODEC_ZERO_H
#define RL_CODEC_ZERO_H
/**
 * @file zero.h
 * Is a page all zeros? ISA-L's mem_zero_detect, which picks the widest vectors of this CPU.
 *
 * Threads: [any], pure.
 */
#include <stdbool.h>
#include <stdint.h>

/** @page: 4096 readable bytes. */
bool rl_page_is_zero(const uint8_t *page);

#endif /* RL_CODEC_ZERO_H */
