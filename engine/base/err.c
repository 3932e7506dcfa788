/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One error: code and text, see err.h.
 */
#include "base/err.h"

#include <stdio.h>
#include <string.h>

int
rl_err_set(struct rl_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	return code;
}

int
rl_err_prefix(struct rl_err *err, const char *fmt, ...)
{
	char old[sizeof(err->text)];
	va_list ap;
	size_t n;

	memcpy(old, err->text, sizeof(old));
	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	n = strlen(err->text);
	if (n + 2 < sizeof(old)) {
		memcpy(err->text + n, ": ", 2);
		memcpy(err->text + n + 2, old, sizeof(old) - n - 2);
		err->text[sizeof(old) - 1] = '\0';
	}
	return err->code;
}
