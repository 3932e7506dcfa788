/* SPDX-License-Identifier: BSD-3-Clause */
/* Migrations that share a link, see flows.h. */
#include "flows.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"
#include "wire/packet.h"

#define UDP_PORT 7411u
#define TURN_NS  1000u /* of a worker */
#define STOP_MAX (60 * RL_NS_PER_S)
#define SLEEP_NS (30 * RL_NS_PER_US) /* a worker sleeps no longer */

struct flow {
	struct rl_ram ram[2]; /* at the source, at the target */
	uint8_t *guest;
	struct rl_source *source;
	struct rl_sink *sink;
	bool full; /* are there always pages to send? */
};

struct flows {
	struct flows_opts opts;
	struct rl_sim *sim;
	struct rl_nic *nic[2];
	struct rl_nic_path *path[2];
	struct flow flow[FLOWS_MAX];
	uint64_t now_ns;
};

static void
must(int rc, const struct rl_err *err)
{
	if (rc == 0)
		return;
	fprintf(stderr, "flows: cannot set up: %s\n", err->text);
	exit(1);
}

/* ---- turns ---- */

/* Receiver indexes differ between runs: congestion control draws its random waits from them. */
static uint32_t
receiver_of(const struct flows *f, uint32_t i)
{
	return (uint32_t)f->opts.seed * FLOWS_MAX + i;
}

static struct flow *
flow_of(struct flows *f, const struct rl_pkt *pkt)
{
	struct rl_packet_hdr h;

	if (rl_packet_get_hdr(pkt->data, pkt->len, &h) != 0 || h.receiver % FLOWS_MAX >= f->opts.n)
		return NULL;
	return &f->flow[h.receiver % FLOWS_MAX];
}

static uint32_t
receive(struct flows *f, int end)
{
	struct rl_pkt pkts[RL_NIC_BURST];
	uint32_t n = rl_nic_rx_burst(f->nic[end], 0, pkts, RL_NIC_BURST);

	for (uint32_t i = 0; i < n; i++) {
		struct flow *flow = flow_of(f, &pkts[i]);

		if (flow != NULL && end == 0)
			rl_source_rx(flow->source, 0, pkts[i].data, pkts[i].len, f->now_ns);
		else if (flow != NULL)
			rl_sink_rx(flow->sink, 0, pkts[i].data, pkts[i].len, f->now_ns);
	}
	rl_nic_free(f->nic[end], 0, pkts, n);
	return n;
}

static void
flows_step(struct flows *f, uint64_t until_ns)
{
	uint64_t wake_ns = f->now_ns + SLEEP_NS, next_ns;
	uint32_t work = receive(f, 0) + receive(f, 1);

	for (uint32_t i = 0; i < f->opts.n; i++) {
		struct flow *flow = &f->flow[i];
		struct rl_bitmap *pending = rl_source_pending(flow->source);

		if (f->now_ns < f->opts.start_ns[i])
			continue;
		if (flow->full && rl_bitmap_count(pending) < f->opts.pages / 2)
			rl_bitmap_set_range(pending, 0, f->opts.pages);
		work += rl_source_turn(flow->source, 0, f->now_ns, &wake_ns);
		work += rl_sink_turn(flow->sink, 0, f->now_ns, &wake_ns);
	}
	next_ns = rl_min64(rl_sim_next_arrival(f->sim), wake_ns);
	if (work > 0)
		next_ns = f->now_ns;
	f->now_ns = rl_min64(rl_max64(next_ns, f->now_ns + TURN_NS), until_ns);
	rl_sim_set_now(f->sim, f->now_ns);
}

void
flows_run(struct flows *f, uint64_t until_ns)
{
	while (f->now_ns < until_ns)
		flows_step(f, until_ns);
}

/* ---- what the scenarios ask ---- */

void
flows_set_rate(struct flows *f, uint64_t bytes_per_s)
{
	f->opts.data.rate_bytes_per_s = bytes_per_s;
	rl_sim_set_link(f->sim, 1, &f->opts.data);
}

uint64_t
flows_arrived(const struct flows *f, uint32_t i)
{
	struct rl_sink_lane_stats st;

	rl_sink_stats(f->flow[i].sink, &st);
	return st.bytes;
}

void
flows_progress(const struct flows *f, uint32_t i, struct rl_source_progress *p)
{
	rl_source_progress(f->flow[i].source, p);
}

static bool
run_until(struct flows *f, struct rl_source *source, uint32_t event)
{
	uint64_t end_ns = f->now_ns + STOP_MAX;

	while (!(rl_source_events(source) & event) && f->now_ns < end_ns)
		flows_step(f, end_ns);
	return rl_source_events(source) & event;
}

uint64_t
flows_stop_round(struct flows *f, uint32_t i, uint32_t pages)
{
	struct flow *flow = &f->flow[i];
	uint64_t start_ns;

	flow->full = false;
	if (!run_until(f, flow->source, RL_SOURCE_CONVERGED))
		return 0;
	start_ns = f->now_ns;
	rl_bitmap_set_range(rl_source_pending(flow->source), 0, pages);
	rl_source_set_phase(flow->source, RL_SOURCE_FINAL);
	if (!run_until(f, flow->source, RL_SOURCE_DRAINED) ||
	    memcmp(flow->guest, rl_ram_hva(&flow->ram[1], 0), f->opts.pages * RL_PAGE_SIZE) != 0)
		return 0;
	return f->now_ns - start_ns;
}

/* ---- set up ---- */

static void
flow_memory(struct flow *flow, uint32_t pages, uint64_t seed)
{
	struct rl_rand r = {.state = seed};
	struct rl_err err;

	for (int end = 0; end < 2; end++) {
		int fd = memfd_create("flows", MFD_CLOEXEC);

		if (fd < 0 || ftruncate(fd, (off_t)pages * RL_PAGE_SIZE) != 0)
			abort();
		if (end == 0)
			flow->guest = mmap(NULL, (size_t)pages * RL_PAGE_SIZE,
					   PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		rl_ram_init(&flow->ram[end]);
		must(rl_ram_add(&flow->ram[end],
				&(struct rl_region){
					.n_pages = pages, .page_size = RL_PAGE_SIZE, .fd = fd},
				&err),
		     &err);
		if (end == 0) /* nothing is zero, so every page takes its room in a packet */
			for (uint64_t i = 0; i < (uint64_t)pages * RL_PAGE_SIZE; i += RL_PAGE_SIZE)
				rl_store64(flow->guest + i, rl_rand_next(&r) | 1);
		must(rl_ram_map(&flow->ram[end], end == 1, &err), &err);
	}
}

static void
flow_open(struct flows *f, uint32_t i)
{
	const struct flows_opts *o = &f->opts;
	struct flow *flow = &f->flow[i];
	struct rl_err err;

	flow_memory(flow, o->pages, o->seed + i);
	flow->full = true;
	must(rl_sink_create(&(struct rl_sink_opts){.nic = f->nic[1],
						   .path = f->path[1],
						   .n_lanes = 1,
						   .receiver = receiver_of(f, i),
						   .credit = o->credit,
						   .ram = &flow->ram[1]},
			    &flow->sink, &err),
	     &err);
	must(rl_source_create(
		     &(struct rl_source_opts){.nic = f->nic[0],
					      .path = f->path[0],
					      .n_lanes = 1,
					      .receiver = receiver_of(f, i),
					      .max_payload = rl_nic_info(f->nic[0])->max_payload,
					      .credit = o->credit,
					      .ram = &flow->ram[0],
					      .cc = o->cc[i]},
		     &flow->source, &err),
	     &err);
	rl_source_start(flow->source, NULL);
}

struct flows *
flows_open(const struct flows_opts *opts)
{
	struct rl_nic_peer peer = {.address = {.family = AF_INET, .addr = {198, 18, 0, 1}},
				   .udp_port = UDP_PORT};
	static const char *const uri[2] = {"sim:flows/a", "sim:flows/b"};
	struct flows *f = calloc(1, sizeof(*f));
	struct rl_err err = {.text = "the network"};

	if (f == NULL)
		abort();
	f->opts = *opts;
	must(rl_sim_create("flows", opts->seed, &opts->data, &opts->acks, &f->sim), &err);
	for (int end = 0; end < 2; end++)
		must(rl_nic_open(uri[end],
				 &(struct rl_nic_opts){
					 .n_queues = 1, .udp_port = UDP_PORT, .mtu = opts->mtu},
				 &f->nic[end], &err),
		     &err);
	for (int end = 0; end < 2; end++)
		must(rl_nic_path_open(f->nic[end], &peer, &f->path[end], &err), &err);
	for (uint32_t i = 0; i < opts->n; i++)
		flow_open(f, i);
	return f;
}

void
flows_close(struct flows *f)
{
	for (uint32_t i = 0; i < f->opts.n; i++) {
		struct flow *flow = &f->flow[i];

		rl_source_destroy(flow->source);
		rl_sink_destroy(flow->sink);
		munmap(flow->guest, (size_t)f->opts.pages * RL_PAGE_SIZE);
		rl_ram_fini(&flow->ram[0]);
		rl_ram_fini(&flow->ram[1]);
	}
	for (int end = 0; end < 2; end++) {
		rl_nic_path_close(f->path[end]);
		rl_nic_close(f->nic[end]);
	}
	rl_sim_destroy(f->sim);
	free(f);
}
