/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Into the target's guest memory, unless something newer is there: see install.h.
 *
 * Versions and the touched bits need no atomics: a stripe's part of either array is written by one lane only,
 * and 512 bits are whole words.
 */
#include "memory/install.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"

int
rl_install_init(struct rl_install *in, const struct rl_ram *ram, uint32_t n_lanes)
{
	assert(ram->n_pages > 0 && n_lanes > 0);
	*in = (struct rl_install){.ram = ram, .n_lanes = n_lanes};
	in->version = calloc(ram->n_pages, sizeof(in->version[0]));
	in->touched = calloc(RL_DIV_ROUND_UP(ram->n_pages, 64), sizeof(in->touched[0]));
	if (!in->version || !in->touched) {
		rl_install_fini(in);
		return -ENOMEM;
	}
	return 0;
}

void
rl_install_fini(struct rl_install *in)
{
	free(in->version);
	free(in->touched);
	memset(in, 0, sizeof(*in));
}

/* Does @lane own all of these pages, in one region and one stripe? Then the first's page. */
static bool
admit(const struct rl_install *in, uint32_t lane, uint64_t gpn, uint32_t n, uint64_t *page)
{
	uint64_t stripe;

	if (n == 0 || n > RL_STRIPE_PAGES || !rl_ram_run(in->ram, gpn, n, page))
		return false;
	stripe = *page / RL_STRIPE_PAGES;
	return (*page + n - 1) / RL_STRIPE_PAGES == stripe && stripe % in->n_lanes == lane;
}

int
rl_install_raw(struct rl_install *in, uint32_t lane, uint64_t gpn, uint16_t version,
	       uint32_t offset, const uint8_t *data, uint32_t len)
{
	uint64_t page;

	if (!admit(in, lane, gpn, 1, &page) || len > RL_PAGE_SIZE || offset > RL_PAGE_SIZE - len)
		return -EBADMSG;
	if (rl_newer16(in->version[page], version))
		return 0;
	in->version[page] = version;
	in->touched[page / 64] |= 1ull << (page % 64);
	memcpy(rl_ram_hva(in->ram, page) + offset, data, len);
	return 1;
}

int
rl_install_zero(struct rl_install *in, uint32_t lane, uint64_t gpn, uint32_t count,
		uint16_t version)
{
	uint64_t first, n_zero = 0;

	if (!admit(in, lane, gpn, count, &first))
		return -EBADMSG;
	for (uint64_t page = first; page < first + count; page++) {
		const uint64_t *touched = &in->touched[page / 64];
		const uint64_t bit = 1ull << (page % 64);

		if (rl_newer16(in->version[page], version))
			continue;
		in->version[page] = version;
		n_zero++;
		if (*touched & bit)
			memset(rl_ram_hva(in->ram, page), 0, RL_PAGE_SIZE);
	}
	return (int)n_zero;
}
