/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zero pages, see zero.h.
 */
#include "codec/zero.h"

#include <isa-l/mem_routines.h>

#include "base/bytes.h"

bool
rl_page_is_zero(const uint8_t *page)
{
	/* ISA-L only reads, its prototype does not say so. */
	return isal_zero_detect((void *)(uintptr_t)page, RL_PAGE_SIZE) == 0;
}
