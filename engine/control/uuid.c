/* SPDX-License-Identifier: BSD-3-Clause */
/* UUIDs of migrations. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "control/uuid.h"

void
rl_uuid_make(uint8_t uuid[16])
{
	if (getrandom(uuid, 16, 0) != 16)
		abort(); /* cannot happen for 16 bytes once the kernel's pool is up */
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

void
rl_uuid_format(const uint8_t u[16], char text[37])
{
	snprintf(text, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
		 u[13], u[14], u[15]);
}

int
rl_uuid_parse(const char *text, uint8_t uuid[16])
{
	static const char hex[] = "0123456789abcdef";

	if (strlen(text) != 36)
		return -EINVAL;
	for (int i = 0, at = 0; i < 16; i++) {
		const char *hi, *lo;

		if (at == 8 || at == 13 || at == 18 || at == 23)
			if (text[at++] != '-')
				return -EINVAL;
		hi = strchr(hex, text[at]);
		lo = strchr(hex, text[at + 1]);
		if (hi == NULL || lo == NULL)
			return -EINVAL;
		uuid[i] = (uint8_t)((hi - hex) << 4 | (lo - hex));
		at += 2;
	}
	return 0;
}
