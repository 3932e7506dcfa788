/* SPDX-License-Identifier: BSD-3-Clause */
/* Which congestion controls there are; see cc.h. */
#include "transport/cc.h"

#include <stddef.h>
#include <string.h>

static const struct rl_cc_ops *const all[] = {&rl_cc_bbr, &rl_cc_cubic, &rl_cc_fixed};

const struct rl_cc_ops *
rl_cc_find(const char *name)
{
	if (name == NULL)
		return all[0];
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
}

void
rl_cc_init(struct rl_cc *cc, const struct rl_cc_ops *ops, uint32_t mss, uint64_t seed)
{
	*cc = (struct rl_cc){.ops = ops, .mss = mss, .limit = UINT64_MAX, .rand.state = seed};
	ops->init(cc);
}
