/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The simulator: whole migrations on a virtual clock over bad networks.
 *
 *	sim [--scenario NAME] [--seed N] [--seeds N] [-v]
 *
 * Every scenario runs with several seeds; a failure prints the seed, and `sim --scenario X --seed N` repeats it.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "world.h"

#define MS     RL_NS_PER_MS
#define US     RL_NS_PER_US
#define GBIT_S 125000000ull

/* Not a multiple of a stripe, so one stripe lies across both. */
static const uint64_t region_gpn[] = {0, 0x100000};
static const uint64_t region_pages[] = {2900, 5292};

/* What must have happened, or the scenario tested nothing. */
enum {
	LOST = 1u << 0,
	DUPLICATES = 1u << 1,
	STALE = 1u << 2,
	REFUSED = 1u << 3,
	BAD = 1u << 4,
	PTO = 1u << 5,
	ROUNDS = 1u << 6,
	QUEUE_DROPS = 1u << 7,
	DRAINS = 1u << 8,
	PRESSURE = 1u << 9,
	CONVERGED = 1u << 10,
	SPURIOUS = 1u << 11,
	NO_LOSS = 1u << 12, /* and no page sent in vain */
	RATE = 1u << 13,    /* max_bandwidth held within 3 % */
};

struct scenario {
	const char *name;
	uint32_t must;
	bool caught; /* a fault was planted: the memories must differ, or we would see nothing */
	struct world_opts o;
};

#define WRITER(per_ms, hot)                                                                        \
	.guest = {.zero_percent = 30, .writes_per_ms = (per_ms), .hot_pages = (hot)}
#define LINK(...)                                                                                  \
	.data = {.rate_bytes_per_s = 10 * GBIT_S, .delay_ns = 100 * US, __VA_ARGS__},              \
	.acks = {.delay_ns = 100 * US, __VA_ARGS__}

/* clang-format off */
static const struct scenario scenarios[] = {
	{"still", NO_LOSS | CONVERGED, false, {LINK(), .guest = {.zero_percent = 30}}},
	{"clean", CONVERGED | ROUNDS, false, {LINK(), WRITER(50, 100)}},
	{"mtu-1500", CONVERGED | ROUNDS, false, {.mtu = 1500, LINK(), WRITER(50, 100)}},
	{"jumbo", CONVERGED | ROUNDS, false, {.mtu = 9000, LINK(), WRITER(50, 100)}},
	{"zero-heavy", CONVERGED | ROUNDS | LOST, false,
		{LINK(.loss_ppm = 20000), .cc = "fixed",
		 .guest = {.zero_percent = 92, .writes_per_ms = 200}}},
	{"loss-5", LOST | ROUNDS, false, {LINK(.loss_ppm = 50000), WRITER(50, 100)}},
	{"loss-30", LOST | SPURIOUS, false,
		{LINK(.loss_ppm = 300000, .jitter_ns = 400 * US), WRITER(20, 100)}},
	{"jitter", SPURIOUS, false, {LINK(.jitter_ns = 100 * US), WRITER(50, 50)}},
	{"reorder", SPURIOUS | STALE, false, {LINK(.jitter_ns = 2 * MS), .cc = "fixed", WRITER(100, 20)}},
	{"duplicate", DUPLICATES, false,
		{LINK(.duplicate_ppm = 200000, .jitter_ns = 50 * US), WRITER(50, 100)}},
	{"corrupt", BAD | LOST, false, {LINK(.corrupt_ppm = 10000), WRITER(50, 100)}},
	{"everything", BAD | LOST | DUPLICATES | SPURIOUS | REFUSED, false,
		{LINK(.jitter_ns = MS, .loss_ppm = 50000, .duplicate_ppm = 20000, .corrupt_ppm = 10000),
		 .refuse_ppm = 50000, .alloc_fail_ppm = 50000, .abort_once = true, WRITER(100, 50)}},
	{"wan", ROUNDS | CONVERGED | QUEUE_DROPS, false,
		{.data = {.delay_ns = 50 * MS, .rate_bytes_per_s = GBIT_S, .queue_bytes = 1 << 20},
		 .acks.delay_ns = 50 * MS, .credit = 8192, .threshold_pages = 100, .cc = "fixed",
		 .patience_ns = 5000 * MS, WRITER(1, 100)}},
	{"wan-bbr", ROUNDS | CONVERGED | LOST, false,
		{.data = {.delay_ns = 50 * MS, .rate_bytes_per_s = GBIT_S, .queue_bytes = 1 << 20,
			  .loss_ppm = 1000},
		 .acks = {.delay_ns = 50 * MS, .loss_ppm = 1000}, .credit = 8192, .threshold_pages = 100,
		 .patience_ns = 5000 * MS, WRITER(1, 100)}},
	{"wan-cubic", ROUNDS | CONVERGED | QUEUE_DROPS, false,
		{.data = {.delay_ns = 5 * MS, .rate_bytes_per_s = GBIT_S, .queue_bytes = 1 << 20},
		 .acks.delay_ns = 5 * MS, .credit = 8192, .threshold_pages = 100, .cc = "cubic",
		 .patience_ns = 5000 * MS, WRITER(1, 100)}},
	{"blackout", LOST | PTO, false,
		{LINK(), .blackout_ns = 2000 * MS, .patience_ns = 4000 * MS, WRITER(5, 100)}},
	{"refusing-nic", REFUSED | ROUNDS, false,
		{LINK(), .refuse_ppm = 300000, .alloc_fail_ppm = 200000, WRITER(50, 100)}},
	{"stalling-sink", QUEUE_DROPS | LOST, false,
		{.mtu = 1500, .data.delay_ns = 20 * US, .acks.delay_ns = 20 * US, .credit = 16384,
		 .stall_ns = 20 * MS, .threshold_pages = 20, .patience_ns = 300 * MS, .cc = "fixed",
		 WRITER(200, 0)}},
	{"busy-guest", PRESSURE, false,
		{LINK(), .threshold_pages = 20, .patience_ns = 50 * MS, WRITER(1000, 0)}},
	{"hot-guest", ROUNDS | CONVERGED, false, {LINK(), .threshold_pages = 200, WRITER(1000, 64)}},
	{"small-rings", PRESSURE, false,
		{LINK(), .patience_ns = 100 * MS,
		 .guest = {.zero_percent = 30, .writes_per_ms = 300, .ring_entries = 2048}}},
	{"slow-doorbell", ROUNDS, false,
		{LINK(.loss_ppm = 10000), .patience_ns = 100 * MS,
		 .guest = {.zero_percent = 30, .writes_per_ms = 200, .hot_pages = 40,
			   .door_max_ns = 10 * MS}}},
	{"paced", RATE, false,
		{LINK(), .max_bandwidth = GBIT_S, .guest = {.zero_percent = 0, .writes_per_ms = 1}}},
	{"paced-loss", RATE | LOST, false,
		{.mtu = 9000, .data = {.delay_ns = 100 * US, .loss_ppm = 50000},
		 .acks.delay_ns = 100 * US, .max_bandwidth = 10 * GBIT_S, .refuse_ppm = 50000,
		 .cc = "fixed",
		 .guest = {.zero_percent = 0, .writes_per_ms = 1}}},
	{"bitmap", ROUNDS | CONVERGED, false,
		{LINK(.loss_ppm = 20000),
		 .guest = {.zero_percent = 30, .writes_per_ms = 100, .hot_pages = 50, .bitmap = true}}},
	{"bitmap-quiet", CONVERGED, false,
		{LINK(), .threshold_pages = 4,
		 .guest = {.zero_percent = 30, .writes_per_ms = 1, .bitmap = true}}},
	{"slot-drain", DRAINS, false,
		{LINK(.loss_ppm = 20000), .patience_ns = 100 * MS,
		 .guest = {.zero_percent = 30, .writes_per_ms = 100, .hot_pages = 200,
			   .drain_every_ns = 700 * US}}},
	{"aborted-switchover", ROUNDS, false,
		{LINK(.loss_ppm = 20000), .abort_once = true, WRITER(100, 100)}},
	{"aborted-bitmap", ROUNDS, false,
		{LINK(.loss_ppm = 20000), .abort_once = true,
		 .guest = {.zero_percent = 30, .writes_per_ms = 200, .bitmap = true}}},
	{"planted-early-reset-answer", 0, true,
		{LINK(), .patience_ns = 60 * MS, .threshold_pages = 1,
		 .guest = {.zero_percent = 0, .writes_per_ms = 500, .hot_pages = 64,
			   .door_max_ns = 3 * MS, .early_ack = true}}},
};
/* clang-format on */

#define N_SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

static struct world_opts
with_defaults(const struct world_opts *from, uint64_t seed, uint32_t n_lanes)
{
	struct world_opts o = *from;

	o.seed = seed;
	o.n_lanes = n_lanes;
	o.mtu = o.mtu ? o.mtu : 3506;
	o.credit = o.credit ? o.credit : 2048;
	o.threshold_pages = o.threshold_pages ? o.threshold_pages : 100;
	o.patience_ns = o.patience_ns ? o.patience_ns : 500 * MS;
	o.guest.seed = seed * 31 + 7;
	o.guest.region_gpn = region_gpn;
	o.guest.region_pages = region_pages;
	o.guest.n_regions = 2;
	o.guest.ring_entries = o.guest.ring_entries ? o.guest.ring_entries : 4096;
	o.guest.door_max_ns = o.guest.door_max_ns ? o.guest.door_max_ns : 200 * US;
	return o;
}

static bool
check_must(const struct scenario *s, const struct world_opts *o, const struct world_result *r,
	   char *why, uint32_t why_bytes)
{
	const struct rl_sender_stats *l = &r->source.link;
	uint64_t rate = r->first_pass_rate, max = o->max_bandwidth;
	const struct {
		uint32_t must;
		bool holds;
		const char *what;
	} check[] = {
		{LOST, l->lost > 0, "packets lost"},
		{DUPLICATES, r->sink.duplicates > 0, "duplicates at the sink"},
		{STALE, r->sink.stale_records > 0, "stale records at the sink"},
		{REFUSED, l->refused > 0, "packets refused"},
		{BAD, r->sink.bad_packets > 0 && r->source.bad_packets > 0, "bad packets"},
		{PTO, l->ptos > 0, "probe timeouts"},
		{ROUNDS, r->source.dirty_sync_count > 1, "a second round"},
		{QUEUE_DROPS, r->net.queue_drops > 0, "packets dropped in a queue"},
		{DRAINS, r->guest_drains > 1 && r->dirty.drains > 1, "drained slots"},
		{PRESSURE, r->dirty.pressure > 0, "a half-full ring"},
		{CONVERGED, r->converged_ns > 0, "convergence"},
		{SPURIOUS, l->spurious > 0, "spurious losses"},
		{NO_LOSS,
		 l->lost == 0 && r->sink.stale_records == 0 &&
			 r->source.normal_pages + r->source.duplicate_pages ==
				 region_pages[0] + region_pages[1],
		 "every page sent once and nothing lost"},
		{RATE, rate > max - max * 3 / 100 && rate < max + max * 3 / 100, "the rate held"},
	};

	for (uint32_t i = 0; i < sizeof(check) / sizeof(check[0]); i++) {
		if ((s->must & check[i].must) && !check[i].holds) {
			snprintf(why, why_bytes, "expected %s (rate %" PRIu64 " B/s)",
				 check[i].what, rate);
			return false;
		}
	}
	return true;
}

static void
print_result(const struct world_result *r)
{
	const struct rl_sender_stats *l = &r->source.link;

	printf("    packets %" PRIu64 " lost %" PRIu64 " spurious %" PRIu64 " refused %" PRIu64
	       " ptos %" PRIu64 " bytes %" PRIu64 " queue drops %" PRIu64 "\n"
	       "    pages %" PRIu64 " + %" PRIu64 " zero, rounds %" PRIu64 ", collections %" PRIu64
	       " (pressure %" PRIu64 "), drains %" PRIu64 ", guest writes %" PRIu64 "\n"
	       "    stale %" PRIu64 " duplicates %" PRIu64 " bad %" PRIu64 " acks %" PRIu64
	       "; converged %.3f ms, drained %.3f ms, downtime %.3f ms, rate %.1f MB/s, %" PRIu64
	       " steps\n",
	       l->packets, l->lost, l->spurious, l->refused, l->ptos, r->source.bytes,
	       r->net.queue_drops, r->source.normal_pages, r->source.duplicate_pages,
	       r->source.dirty_sync_count, r->dirty.collections, r->dirty.pressure, r->dirty.drains,
	       r->guest_writes, r->sink.stale_records, r->sink.duplicates, r->sink.bad_packets,
	       r->sink.acks, (double)r->converged_ns / 1e6, (double)r->drained_ns / 1e6,
	       (double)r->downtime_ns / 1e6, (double)r->first_pass_rate / 1e6, r->steps);
}

/* Returns whether all held. */
static bool
run_one(const struct scenario *s, uint64_t seed, bool verbose)
{
	struct world_opts o = with_defaults(&s->o, seed, seed % 2 ? 1 : 4);
	struct world_result r;
	char why[256] = "";
	bool ok = world_run(&o, &r, why, sizeof(why));

	if (s->caught)
		ok = !ok && strstr(why, "pages differ") != NULL;
	else if (ok)
		ok = check_must(s, &o, &r, why, sizeof(why));
	if (!ok)
		printf("FAIL %s: %s\n     again: sim --scenario %s --seed %" PRIu64 "\n", s->name,
		       s->caught ? "the planted fault was not noticed" : why, s->name, seed);
	else if (verbose)
		printf("ok   %s, seed %" PRIu64 "%s%s\n", s->name, seed, s->caught ? ": " : "",
		       why);
	if (verbose)
		print_result(&r);
	fflush(stdout);
	return ok;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {{"scenario", required_argument, NULL, 's'},
						{"seed", required_argument, NULL, 'n'},
						{"seeds", required_argument, NULL, 'c'},
						{NULL, 0, NULL, 0}};
	uint64_t first = 1, n_seeds = 4, failed = 0, run = 0;
	const char *only = NULL;
	bool verbose = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "v", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			only = optarg;
			break;
		case 'n':
			first = strtoull(optarg, NULL, 0);
			n_seeds = 1;
			verbose = true;
			break;
		case 'c':
			n_seeds = strtoull(optarg, NULL, 0);
			break;
		case 'v':
			verbose = true;
			break;
		default:
			fprintf(stderr,
				"usage: sim [--scenario NAME] [--seed N] [--seeds N] [-v]\n");
			return 2;
		}
	}
	for (uint32_t i = 0; i < N_SCENARIOS; i++) {
		if (only != NULL && strcmp(only, scenarios[i].name) != 0)
			continue;
		for (uint64_t seed = first; seed < first + n_seeds; seed++, run++)
			failed += !run_one(&scenarios[i], seed, verbose);
		if (!verbose)
			printf("%s: %" PRIu64 " seeds\n", scenarios[i].name, n_seeds);
	}
	if (run == 0) {
		fprintf(stderr, "no scenario '%s'; sim -v names them all\n", only);
		return 2;
	}
	printf("%" PRIu64 " runs, %" PRIu64 " failed\n", run, failed);
	return failed > 0;
}
