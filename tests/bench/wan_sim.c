/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wan_sim: what share of a long, lossy link a migration gets, on a virtual clock with the real source and sink.
 *
 *	wan_sim [--cell NAME] [--cc NAME] [--seed N] [--seconds N] [--trace]
 *
 * Prints lines of JSON: the share of the link that the flow got once it had started (the last three quarters of the
 * run), which has a goal, and that of the whole run. Lost packets take no capacity, so a little more than the goal could be had.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "flows.h"

#define MS          RL_NS_PER_MS
#define GBIT_S      125000000ull
#define STOP_WANTED 10000u /* packets */

enum kind { STEADY, DROP, STOP };

struct cell {
	const char *name;
	enum kind kind;
	uint64_t rate, rtt_ns;
	uint32_t loss_ppm;
	uint32_t mtu;
};

static const struct cell cells[] = {
	{"1g-50ms-loss0", STEADY, GBIT_S, 50 * MS, 0, 1500},
	{"1g-50ms-loss0.1", STEADY, GBIT_S, 50 * MS, 1000, 1500},
	{"1g-50ms-loss1", STEADY, GBIT_S, 50 * MS, 10000, 1500},
	{"1g-150ms-loss0", STEADY, GBIT_S, 150 * MS, 0, 1500},
	{"1g-150ms-loss0.1", STEADY, GBIT_S, 150 * MS, 1000, 1500},
	{"1g-150ms-loss1", STEADY, GBIT_S, 150 * MS, 10000, 1500},
	{"10g-100ms-loss0", STEADY, 10 * GBIT_S, 100 * MS, 0, 9000},
	{"1g-50ms-drop", DROP, GBIT_S, 50 * MS, 0, 1500},
	{"1g-50ms-stop", STOP, GBIT_S, 50 * MS, 1000, 1500},
};

struct run {
	const struct cell *cell;
	const char *cc;
	uint64_t seed, seconds;
	bool trace;
};

static double
share(uint64_t bytes, uint64_t rate, uint64_t ns)
{
	return (double)bytes / ((double)rate * (double)ns / 1e9);
}

static void
trace(const struct flows *f, uint64_t now_ns)
{
	static uint64_t last;
	struct rl_source_progress p;

	flows_progress(f, 0, &p);
	fprintf(stderr,
		"%7.1f ms  arrived %6.1f Mbit/s  pacing %7.1f Mbit/s  window %6llu  in flight "
		"%6llu  srtt "
		"%6.1f ms  lost %llu\n",
		(double)now_ns / 1e6, (double)(flows_arrived(f, 0) - last) * 8 / 1e5,
		(double)p.link.pacing_rate * 8 / 1e6, (unsigned long long)p.link.window,
		(unsigned long long)p.in_flight_packets, (double)p.link.srtt_ns / 1e6,
		(unsigned long long)p.link.lost);
	last = flows_arrived(f, 0);
}

/* Bytes that arrive until @until_ns. */
static uint64_t
run_until(const struct run *r, struct flows *f, uint64_t *now_ns, uint64_t until_ns)
{
	uint64_t before = flows_arrived(f, 0);

	while (*now_ns < until_ns) {
		*now_ns = r->trace ? rl_min64(until_ns, *now_ns + 100 * MS) : until_ns;
		flows_run(f, *now_ns);
		if (r->trace)
			trace(f, *now_ns);
	}
	return flows_arrived(f, 0) - before;
}

static void
result(const struct run *r, const char *figure, double value, double goal)
{
	printf("{\"cell\":\"%s\",\"cc\":\"%s\",\"seed\":%llu,\"figure\":\"%s\",\"value\":%.4f,"
	       "\"goal\":%.4f}\n",
	       r->cell->name, r->cc, (unsigned long long)r->seed, figure, value, goal);
	fflush(stdout);
}

static void
steady(const struct run *r, struct flows *f)
{
	uint64_t end_ns = r->seconds * RL_NS_PER_S, quarter_ns = end_ns / 4, now_ns = 0, first,
		 rest;
	double goal = 0.93 * (1 - r->cell->loss_ppm / 1e6);

	first = run_until(r, f, &now_ns, quarter_ns);
	rest = run_until(r, f, &now_ns, end_ns);
	result(r, "share", share(rest, r->cell->rate, end_ns - quarter_ns), goal);
	result(r, "share-from-start", share(first + rest, r->cell->rate, end_ns), 0);
}

/* A third of the time at the full rate, at a quarter of it, at the full rate again. */
static void
drop(const struct run *r, struct flows *f)
{
	uint64_t third_ns = r->seconds * RL_NS_PER_S / 3, now_ns = 0, bytes;

	run_until(r, f, &now_ns, third_ns);
	flows_set_rate(f, r->cell->rate / 4);
	bytes = run_until(r, f, &now_ns, 2 * third_ns);
	result(r, "share-low", share(bytes, r->cell->rate / 4, third_ns), 0.9);
	flows_set_rate(f, r->cell->rate);
	bytes = run_until(r, f, &now_ns, 3 * third_ns);
	result(r, "share-recovered", share(bytes, r->cell->rate, third_ns), 0.7);
}

/* How long the last 10,000 packets take, compared to sending them without loss and waiting for the ACK. */
static void
stop(const struct run *r, struct flows *f, uint32_t payload)
{
	uint64_t now_ns = 0, ns, ideal_ns;
	uint32_t pages = (uint32_t)((uint64_t)STOP_WANTED * payload / RL_PAGE_SIZE);

	run_until(r, f, &now_ns, r->seconds * RL_NS_PER_S / 4);
	ns = flows_stop_round(f, 0, pages);
	ideal_ns = (uint64_t)STOP_WANTED * payload * RL_NS_PER_S / r->cell->rate + r->cell->rtt_ns;
	result(r, "stop-ms", (double)ns / 1e6, 0);
	result(r, "stop-ideal/stop", ns > 0 ? (double)ideal_ns / (double)ns : 0, 0);
}

static void
run(const struct run *r)
{
	const struct cell *c = r->cell;
	uint64_t bdp = c->rate * (c->rtt_ns / MS) / 1000;
	uint32_t payload = c->mtu - 48;
	struct flows_opts o = {
		.seed = r->seed,
		.mtu = c->mtu,
		.data = {.delay_ns = c->rtt_ns / 2,
			 .rate_bytes_per_s = c->rate,
			 .queue_bytes = bdp,
			 .loss_ppm = c->loss_ppm},
		.acks = {.delay_ns = c->rtt_ns / 2, .loss_ppm = c->loss_ppm},
		.credit = 65536,
		.n = 1,
		.cc = {r->cc},
		.pages = 4096,
	};
	struct flows *f = flows_open(&o);

	if (c->kind == STEADY)
		steady(r, f);
	else if (c->kind == DROP)
		drop(r, f);
	else
		stop(r, f, payload);
	flows_close(f);
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{"cell", required_argument, NULL, 'c'}, {"cc", required_argument, NULL, 'a'},
		{"seed", required_argument, NULL, 's'}, {"seconds", required_argument, NULL, 'n'},
		{"trace", no_argument, NULL, 't'},      {NULL, 0, NULL, 0}};
	struct run r = {.cc = "bbr", .seed = 1, .seconds = 20};
	const char *only = NULL;
	uint32_t n = 0;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'c':
			only = optarg;
			break;
		case 'a':
			r.cc = optarg;
			break;
		case 's':
			r.seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			r.seconds = strtoull(optarg, NULL, 0);
			break;
		case 't':
			r.trace = true;
			break;
		default:
			fprintf(stderr, "usage: wan_sim [--cell NAME] [--cc bbr|cubic|fixed] "
					"[--seed N] [--seconds N] [--trace]\n");
			return 2;
		}
	}
	for (size_t i = 0; i < sizeof(cells) / sizeof(cells[0]); i++) {
		if (only != NULL && strcmp(only, cells[i].name) != 0)
			continue;
		r.cell = &cells[i];
		run(&r);
		n++;
	}
	return n > 0 ? 0 : 2;
}
