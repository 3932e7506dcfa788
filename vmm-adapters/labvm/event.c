/* SPDX-License-Identifier: BSD-3-Clause */
/* What labvm says about itself: one line per event on stderr. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "labvm.h"

int
refuse(char *text, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, RL_VMM_TEXT_BYTES, fmt, ap);
	va_end(ap);
	return err;
}

/* Control characters become '?', so that no text can forge a line; quotes are escaped for JSON. */
static void
clean(char *out, size_t size, const char *in, bool json)
{
	size_t n = 0;

	for (; *in && n + 2 < size; in++) {
		if (json && (*in == '"' || *in == '\\'))
			out[n++] = '\\';
		out[n++] = (unsigned char)*in < ' ' || *in == 0x7f ? '?' : *in;
	}
	out[n] = 0;
}

void
event(const struct labvm_opts *opts, const char *kind, const char *fmt, ...)
{
	char raw[512], text[1024], line[1280];
	va_list ap;
	int n;

	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	clean(text, sizeof(text), raw, opts->json);
	if (opts->json)
		n = snprintf(line, sizeof(line),
			     "{\"event\":\"%s\",\"name\":\"%s\",\"text\":\"%s\"}\n", kind,
			     opts->name, text);
	else
		n = snprintf(line, sizeof(line), "labvm%s%s: %s\n", *opts->name ? " " : "",
			     opts->name, text);
	if (n > 0 && (size_t)n < sizeof(line) && write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nobody reads it */
}
