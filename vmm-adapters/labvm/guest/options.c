/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guest's command line: key=value words after the kernel's name. A later word wins, so that what the
 * VMM puts in front are defaults.
 */
#include "guest.h"

struct config config = {
	.pattern = PATTERN_SEQ,
	.content = CONTENT_MIXED,
	.check = CHECK_CONTINUOUS,
	.ws = {25, true},
	.rate = 10000,
	.seed = 1,
	.report_ms = 1000,
	.ring = 3,
	.cpus = 1,
};

static const char *const patterns[] = {"seq", "random", "hot", "rewrite", 0};
static const char *const contents[] = {"zero", "random", "text", "sparse", "mixed", 0};
static const char *const checks[] = {"end", "pass", "continuous", 0};

static bool
same(const char *text, uint32_t len, const char *name)
{
	uint32_t i = 0;

	while (i < len && name[i] && text[i] == name[i])
		i++;
	return i == len && !name[i];
}

static bool
one_of(const char *text, uint32_t len, const char *const *names, uint32_t *value)
{
	for (uint32_t i = 0; names[i]; i++) {
		if (same(text, len, names[i])) {
			*value = i;
			return true;
		}
	}
	return false;
}

/* Digits, at most 2^53; @used says how many characters they were. */
static bool
digits(const char *text, uint32_t len, uint64_t *value, uint32_t *used)
{
	uint32_t i = 0;
	uint64_t sum = 0;

	while (i < len && text[i] >= '0' && text[i] <= '9') {
		sum = sum * 10 + (uint64_t)(text[i++] - '0');
		if (sum >> 53)
			return false;
	}
	*value = sum;
	*used = i;
	return i > 0;
}

static bool
number(const char *text, uint32_t len, uint64_t max, uint64_t *value)
{
	uint32_t used;

	return digits(text, len, value, &used) && used == len && *value <= max;
}

static bool
number32(const char *text, uint32_t len, uint32_t max, uint32_t *value)
{
	uint64_t wide;

	if (!number(text, len, max, &wide))
		return false;
	*value = (uint32_t)wide;
	return true;
}

static bool
amount(const char *text, uint32_t len, struct amount *out)
{
	uint32_t used;

	if (!digits(text, len, &out->value, &used))
		return false;
	out->percent = len == used + 1 && text[used] == '%';
	if (out->percent)
		return out->value <= 100;
	if (len == used)
		return true;
	if (len != used + 1 || out->value >> 33)
		return false;
	switch (text[used]) {
	case 'K':
		out->value <<= 10;
		return true;
	case 'M':
		out->value <<= 20;
		return true;
	case 'G':
		out->value <<= 30;
		return true;
	}
	return false;
}

static bool
rate(const char *text, uint32_t len)
{
	if (same(text, len, "max")) {
		config.rate = 0;
		return true;
	}
	return number(text, len, 1000000000, &config.rate) && config.rate;
}

static bool
option(const char *key, uint32_t key_len, const char *value, uint32_t len)
{
	uint32_t choice;

	if (same(key, key_len, "pattern") && one_of(value, len, patterns, &choice)) {
		config.pattern = (enum pattern)choice;
		return true;
	}
	if (same(key, key_len, "content") && one_of(value, len, contents, &choice)) {
		config.content = (enum content)choice;
		return true;
	}
	if (same(key, key_len, "check") && one_of(value, len, checks, &choice)) {
		config.check = (enum check)choice;
		return true;
	}
	if (same(key, key_len, "ring") && number32(value, len, 3, &config.ring))
		return config.ring == 0 || config.ring == 3;
	if (same(key, key_len, "cpus") && number32(value, len, MAX_CPUS, &config.cpus))
		return config.cpus > 0;
	if (same(key, key_len, "report") && number32(value, len, 3600000, &config.report_ms))
		return config.report_ms > 0;
	return (same(key, key_len, "ws") && amount(value, len, &config.ws)) ||
	       (same(key, key_len, "cold") && amount(value, len, &config.cold)) ||
	       (same(key, key_len, "rate") && rate(value, len)) ||
	       (same(key, key_len, "seed") && number(value, len, UINT64_MAX, &config.seed)) ||
	       (same(key, key_len, "slots") && number32(value, len, 3600000, &config.slots_ms)) ||
	       (same(key, key_len, "time") && number32(value, len, 86400, &config.time_s)) ||
	       (same(key, key_len, "tsc_khz") && number(value, len, 100000000, &config.tsc_khz));
}

static void
refuse(const char *word, uint32_t len)
{
	char copy[64];
	uint32_t i;

	for (i = 0; i < len && i < sizeof(copy) - 1; i++)
		copy[i] = word[i];
	copy[i] = 0;
	put("guest: bad option ");
	put(copy);
	put(": see labvm(1)");
	end_line();
	quit(EXIT_USAGE);
}

void
options_parse(const char *text)
{
	while (*text && *text != ' ') /* the kernel's name */
		text++;
	while (*text) {
		uint32_t len = 0, eq = 0;

		while (*text == ' ')
			text++;
		while (text[len] && text[len] != ' ') {
			if (text[len] == '=' && !eq)
				eq = len;
			len++;
		}
		if (len && (!eq || !option(text, eq, text + eq + 1, len - eq - 1)))
			refuse(text, len);
		text += len;
	}
}
