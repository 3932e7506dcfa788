/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Long links on a virtual clock: how the congestion controllers use and share them.
 *
 *	wan [--scenario NAME] [--seed N] [--seeds N]
 *
 * Each scenario gives every flow a share of the link that it has to get, as a mean after its start-up.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "flows.h"

#define MS     RL_NS_PER_MS
#define MBIT_S 125000ull

struct scenario {
	const char *name;
	uint64_t rate, rtt_ns, jitter_ns;
	uint32_t queue_percent; /* of the bandwidth-delay product */
	uint32_t loss_ppm;
	uint64_t from_ns, until_ns; /* what counts */
	const char *cc[FLOWS_MAX];
	uint64_t start_ns[FLOWS_MAX];
	uint32_t least[FLOWS_MAX], most[FLOWS_MAX]; /* percent of the link */
	uint32_t most_lost;                         /* percent of the packets sent; 0: whatever */
};

/* clang-format off */
static const struct scenario scenarios[] = {
	{"bbr-deep-queue", 200 * MBIT_S, 40 * MS, 0, 400, 0, 4000 * MS, 12000 * MS, {"bbr"}, {0}, {93}, {100}, 1},
	{"bbr-shallow-queue", 200 * MBIT_S, 40 * MS, 0, 15, 0, 4000 * MS, 12000 * MS, {"bbr"}, {0}, {90}, {100}, 1},
	{"bbr-loss", 200 * MBIT_S, 40 * MS, 0, 100, 10000, 4000 * MS, 24000 * MS, {"bbr"}, {0}, {80}, {100}, 3},
	{"bbr-reordering", 200 * MBIT_S, 4 * MS, 8 * MS, 400, 0, 4000 * MS, 12000 * MS,
		{"bbr"}, {0}, {90}, {100}, 1},
	{"bbr-some-reordering", 200 * MBIT_S, 40 * MS, 5 * MS, 100, 0, 4000 * MS, 12000 * MS,
		{"bbr"}, {0}, {93}, {100}, 1},
	{"bbr-long", 100 * MBIT_S, 300 * MS, 0, 100, 1000, 8000 * MS, 20000 * MS, {"bbr"}, {0}, {90}, {100}, 3},
	{"cubic-clean", 200 * MBIT_S, 40 * MS, 0, 100, 0, 4000 * MS, 12000 * MS, {"cubic"}, {0}, {93}, {100}, 3},
	{"cubic-reordering", 200 * MBIT_S, 40 * MS, 5 * MS, 200, 0, 4000 * MS, 12000 * MS,
		{"cubic"}, {0}, {90}, {100}, 3},
	{"bbr-bbr", 200 * MBIT_S, 40 * MS, 0, 100, 0, 20000 * MS, 80000 * MS,
		{"bbr", "bbr"}, {0, 3000 * MS}, {30, 30}, {70, 70}, 0},
	{"bbr-bbr-loss", 200 * MBIT_S, 40 * MS, 0, 100, 1000, 20000 * MS, 80000 * MS,
		{"bbr", "bbr"}, {0, 3000 * MS}, {30, 30}, {70, 70}, 0},
	{"bbr-cubic", 200 * MBIT_S, 40 * MS, 0, 100, 0, 10000 * MS, 50000 * MS,
		{"bbr", "cubic"}, {0, 0}, {10, 20}, {80, 90}, 0},
	{"bbr-cubic-deep-queue", 200 * MBIT_S, 40 * MS, 0, 300, 0, 10000 * MS, 50000 * MS,
		{"bbr", "cubic"}, {0, 0}, {10, 20}, {80, 90}, 0},
	{"cubic-cubic", 200 * MBIT_S, 40 * MS, 0, 100, 0, 20000 * MS, 60000 * MS,
		{"cubic", "cubic"}, {0, 3000 * MS}, {25, 25}, {75, 75}, 0},
};
/* clang-format on */

#define N_SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

static bool
check_lost(const struct scenario *s, const struct flows *f, uint32_t i)
{
	struct rl_source_progress p;

	flows_progress(f, i, &p);
	printf(" lost %.2f %%, %.2f %% spuriously;",
	       100.0 * (double)p.link.lost / (double)p.link.packets,
	       100.0 * (double)p.link.spurious / (double)p.link.packets);
	return s->most_lost == 0 || p.link.lost * 100 <= p.link.packets * s->most_lost;
}

/* Returns whether all held. */
static bool
run_one(const struct scenario *s, uint64_t seed)
{
	struct flows_opts o = {
		.seed = seed,
		.mtu = 1500,
		.data = {.delay_ns = s->rtt_ns / 2,
			 .jitter_ns = s->jitter_ns,
			 .rate_bytes_per_s = s->rate,
			 .queue_bytes = s->rate * (s->rtt_ns / MS) / 1000 * s->queue_percent / 100,
			 .loss_ppm = s->loss_ppm},
		.acks = {.delay_ns = s->rtt_ns / 2, .loss_ppm = s->loss_ppm},
		.credit = 65536,
		.n = s->cc[1] != NULL ? 2 : 1,
		.cc = {s->cc[0], s->cc[1]},
		.start_ns = {s->start_ns[0], s->start_ns[1]},
		.pages = 1024,
	};
	struct flows *f = flows_open(&o);
	uint64_t before[FLOWS_MAX] = {0};
	bool ok = true;

	flows_run(f, s->from_ns);
	for (uint32_t i = 0; i < o.n; i++)
		before[i] = flows_arrived(f, i);
	flows_run(f, s->until_ns);
	printf("%s, seed %" PRIu64 ":", s->name, seed);
	for (uint32_t i = 0; i < o.n; i++) {
		uint64_t could = s->rate * ((s->until_ns - s->from_ns) / MS) / 1000;
		double percent = 100.0 * (double)(flows_arrived(f, i) - before[i]) / (double)could;

		printf(" %s %.1f %% (%u to %u),", s->cc[i], percent, s->least[i], s->most[i]);
		ok &= percent >= s->least[i] && percent <= s->most[i] + 0.5;
		ok &= check_lost(s, f, i);
	}
	for (uint32_t i = 0; i < o.n && ok; i++)
		ok = flows_stop_round(f, i, 500) > 0;
	printf(" %s\n", ok ? "ok" : "FAIL");
	fflush(stdout);
	flows_close(f);
	return ok;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {{"scenario", required_argument, NULL, 's'},
						{"seed", required_argument, NULL, 'n'},
						{"seeds", required_argument, NULL, 'c'},
						{NULL, 0, NULL, 0}};
	uint64_t first = 1, n_seeds = 2, failed = 0, run = 0;
	const char *only = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			only = optarg;
			break;
		case 'n':
			first = strtoull(optarg, NULL, 0);
			n_seeds = 1;
			break;
		case 'c':
			n_seeds = strtoull(optarg, NULL, 0);
			break;
		default:
			fprintf(stderr, "usage: wan [--scenario NAME] [--seed N] [--seeds N]\n");
			return 2;
		}
	}
	for (uint32_t i = 0; i < N_SCENARIOS; i++) {
		if (only != NULL && strcmp(only, scenarios[i].name) != 0)
			continue;
		for (uint64_t seed = first; seed < first + n_seeds; seed++, run++)
			failed += !run_one(&scenarios[i], seed);
	}
	printf("%" PRIu64 " runs, %" PRIu64 " failed\n", run, failed);
	return run == 0 ? 2 : failed > 0;
}
