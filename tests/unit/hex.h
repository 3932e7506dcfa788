/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef TESTS_UNIT_HEX_H
#define TESTS_UNIT_HEX_H
/* Test vectors as their documents print them. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Returns the bytes that @text has. */
static inline size_t
hex(const char *text, uint8_t *out)
{
	size_t n = 0;
	unsigned int byte;

	while (sscanf(text + 2 * n, "%2x", &byte) == 1)
		out[n++] = (uint8_t)byte;
	return n;
}

#endif /* TESTS_UNIT_HEX_H */
