/* SPDX-License-Identifier: BSD-3-Clause */
/* How ramlift prints what ramliftd answers. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/show.h"
#include "base/clock.h"

#define BAR_CELLS 30

static const char *
text(json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s != NULL ? s : "";
}

static int64_t
number(json_t *j, const char *key)
{
	return (int64_t)json_integer_value(json_object_get(j, key));
}

bool
rl_show_completed(json_t *m)
{
	return strcmp(text(m, "status"), "completed") == 0;
}

bool
rl_show_ended(json_t *m)
{
	return rl_show_completed(m) || strcmp(text(m, "status"), "failed") == 0 ||
	       strcmp(text(m, "status"), "cancelled") == 0;
}

void
rl_show_progress(json_t *m)
{
	static uint64_t last_ns;
	json_t *ram = json_object_get(m, "ram");
	bool terminal = isatty(STDERR_FILENO);
	uint64_t now = rl_now_ns();
	double total = (double)number(ram, "total"), left = (double)number(ram, "remaining");
	double done = total > 0 && left <= total ? 1 - left / total : 0;
	char bar[BAR_CELLS + 1];

	if (!terminal && now - last_ns < RL_NS_PER_S)
		return;
	last_ns = now;
	memset(bar, ' ', sizeof(bar));
	memset(bar, '=', (size_t)(done * BAR_CELLS));
	bar[BAR_CELLS] = '\0';
	fprintf(stderr,
		"%s%s %-7s [%s] %3.0f%%  sent %" PRId64 " MiB, left %" PRId64 " MiB, %.0f Mbit/s, "
		"dirty %" PRId64 " pages/s, round %" PRId64 "%s",
		terminal ? "\r" : "", text(m, "vm"), text(m, "status"), bar, done * 100,
		number(ram, "transferred") >> 20, number(ram, "remaining") >> 20,
		json_number_value(json_object_get(ram, "mbps")), number(ram, "dirty-pages-rate"),
		number(ram, "dirty-sync-count"), terminal ? "\033[K" : "\n");
	fflush(stderr);
}

void
rl_show_json(json_t *j)
{
	char *s = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY);

	puts(s != NULL ? s : "null");
	free(s);
}

void
rl_show_nothing(json_t *j)
{
	(void)j;
}

void
rl_show_result(json_t *m, bool json)
{
	json_t *ram = json_object_get(m, "ram"), *verified = json_object_get(m, "verified");

	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	if (json) {
		rl_show_json(m);
		if (text(m, "error-desc")[0] != '\0')
			fprintf(stderr, "ramlift: %s\n", text(m, "error-desc"));
		return;
	}
	if (!rl_show_completed(m)) {
		fprintf(stderr, "ramlift: migration of '%s' %s%s%s\n", text(m, "vm"),
			text(m, "status"), text(m, "error-desc")[0] != '\0' ? ": " : "",
			text(m, "error-desc"));
		return;
	}
	printf("'%s' runs at %s: total %" PRId64 " ms, downtime %" PRId64 " ms, %" PRId64
	       " MiB sent, "
	       "%" PRId64 " pages + %" PRId64 " zero, %" PRId64 " rounds%s\n",
	       text(m, "vm"), text(m, "peer"), number(m, "total-time"), number(m, "downtime"),
	       number(ram, "transferred") >> 20, number(ram, "normal"), number(ram, "duplicate"),
	       number(ram, "dirty-sync-count"), json_is_true(verified) ? ", verified" : "");
}

/* Every member, nested objects indented: as HMP's `info migrate` does. */
static void
show_object(json_t *j, int indent)
{
	const char *key;
	json_t *v;

	json_object_foreach(j, key, v)
	{
		if (json_is_object(v)) {
			printf("%*s%s:\n", indent, "", key);
			show_object(v, indent + 2);
			continue;
		}
		char *s = json_is_string(v)
				  ? NULL
				  : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));

		printf("%*s%s: %s\n", indent, "", key, s != NULL ? s : json_string_value(v));
		free(s);
	}
}

void
rl_show_migration(json_t *m)
{
	show_object(m, 0);
}

void
rl_show_list(json_t *list)
{
	json_t *item;
	size_t i;

	printf("%-20s %-10s %10s %9s %6s  %s\n", "VM", "PHASE", "MEMORY", "PAGE", "VCPUS", "LOG");
	json_array_foreach(json_object_get(list, "vms"), i, item) printf(
		"%-20s %-10s %6" PRId64 " MiB %5" PRId64 " KiB %6" PRId64 "  %s\n",
		text(item, "name"), text(item, "phase"), number(item, "memory-bytes") >> 20,
		number(item, "page-size") >> 10, number(item, "vcpus"), text(item, "backend"));
	printf("\n%-36s  %-20s %-6s %-10s %s\n", "MIGRATION", "VM", "ROLE", "STATUS", "PEER");
	json_array_foreach(json_object_get(list, "migrations"), i, item)
		printf("%-36s  %-20s %-6s %-10s %s\n", text(item, "id"), text(item, "vm"),
		       text(item, "role"), text(item, "status"), text(item, "peer"));
}

void
rl_show_stats(json_t *stats)
{
	json_t *workers = json_object_get(stats, "workers"), *item;
	size_t i;

	json_array_foreach(workers, i, item)
	{
		printf("worker %zu:\n", i);
		show_object(item, 2);
	}
	json_object_del(stats, "workers");
	show_object(stats, 0);
}
