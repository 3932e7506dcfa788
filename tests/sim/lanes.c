/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Lanes on real threads: what crosses cores in rl_source (pending bits, pacer, phase, events) under load, made
 * for ThreadSanitizer. Each thread owns one lane of both ends and carries its packets itself, losing some.
 * The main thread is the session: it marks pages, changes phase, calls switch-overs off, and whenever the
 * source says "drained" it compares the memories and writes new ones, which nobody else may touch then.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"
#include "flow/sink.h"
#include "flow/source.h"
#include "nic/port.h"

#define N_LANES  4u
#define N_PAGES  6000ull
#define N_ROUNDS 60u
#define PAYLOAD  1452u
#define BUFFERS  256u
#define LOSS_PPM 50000u

/* One queue of both ports; only its thread touches it. */
struct wire {
	uint8_t *free[BUFFERS];
	struct rl_pkt flying[2][BUFFERS]; /* by sending end */
	uint32_t n_free, n_flying[2];
	struct rl_rand rand;
} __attribute__((aligned(64)));

struct lane {
	pthread_t thread;
	uint32_t index;
};

static struct wire wires[N_LANES];
static struct rl_nic *nics[2];
static struct rl_source *source;
static struct rl_sink *sink;
static struct rl_ram ram[2];
static uint8_t *guest;
static bool stop;

static uint32_t
wire_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct wire *w = &wires[queue];
	uint32_t i;

	(void)nic;
	for (i = 0; i < n && w->n_free > 0; i++)
		pkts[i] = (struct rl_pkt){.data = w->free[--w->n_free], .cap = PAYLOAD};
	return i;
}

static void
wire_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct wire *w = &wires[queue];

	(void)nic;
	for (uint32_t i = 0; i < n; i++)
		w->free[w->n_free++] = pkts[i].data;
}

static uint32_t
wire_tx(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path, struct rl_pkt *pkts,
	uint32_t n)
{
	struct wire *w = &wires[queue];
	uint32_t end = nic == nics[1];

	(void)path;
	for (uint32_t i = 0; i < n; i++) {
		if (rl_rand_ppm(&w->rand, LOSS_PPM))
			wire_free(nic, queue, &pkts[i], 1);
		else
			w->flying[end][w->n_flying[end]++] = pkts[i];
	}
	return n;
}

static const struct rl_nic_ops wire_ops = {
	.scheme = "wire", .alloc = wire_alloc, .free = wire_free, .tx_burst = wire_tx};

static void *
lane_main(void *arg)
{
	const struct lane *lane = arg;
	uint32_t k = lane->index, n;
	struct wire *w = &wires[k];

	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
		uint64_t now_ns = rl_now_ns(), wake_ns = UINT64_MAX;

		n = rl_source_turn(source, k, now_ns, &wake_ns);
		for (uint32_t i = 0; i < w->n_flying[0]; i++)
			rl_sink_rx(sink, k, w->flying[0][i].data, w->flying[0][i].len, now_ns);
		wire_free(nics[1], k, w->flying[0], w->n_flying[0]);
		w->n_flying[0] = 0;
		n += rl_sink_turn(sink, k, now_ns, &wake_ns);
		for (uint32_t i = 0; i < w->n_flying[1]; i++)
			rl_source_rx(source, k, w->flying[1][i].data, w->flying[1][i].len, now_ns);
		wire_free(nics[0], k, w->flying[1], w->n_flying[1]);
		w->n_flying[1] = 0;
		if (n == 0 && wake_ns > now_ns)
			rl_sleep_ns(20 * RL_NS_PER_US);
	}
	return NULL;
}

/* Wait for @event; false after 20 s. */
static bool
wait_for(uint32_t event)
{
	struct pollfd pfd = {.fd = rl_source_event_fd(source), .events = POLLIN};
	uint64_t end_ns = rl_now_ns() + 20 * RL_NS_PER_S;
	uint64_t n;

	while (!(rl_source_events(source) & event)) {
		if (rl_now_ns() > end_ns)
			return false;
		if (poll(&pfd, 1, 1000) > 0)
			eventfd_read(pfd.fd, &n);
	}
	return true;
}

static void
write_guest(struct rl_rand *r, uint64_t page)
{
	uint8_t *p = guest + page * RL_PAGE_SIZE;

	if (rl_rand_below(r, 3) == 0) {
		memset(p, 0, RL_PAGE_SIZE);
		return;
	}
	for (uint32_t i = 0; i < RL_PAGE_SIZE; i += 8)
		rl_store64(p + i, rl_rand_next(r));
}

/* One migration's worth of phases. Returns false when something was wrong. */
static bool
round_run(struct rl_rand *r)
{
	struct rl_bitmap *pending = rl_source_pending(source);
	struct rl_source_progress p;
	uint64_t page[1500];
	uint32_t n;

	rl_source_set_phase(source, RL_SOURCE_PRECOPY);
	rl_source_set_max_bandwidth(source, rl_rand_below(r, 2) * 400000000);
	if (rl_rand_below(r, 2) && !wait_for(RL_SOURCE_CONVERGED)) {
		printf("FAIL: not converged\n");
		return false;
	}
	for (n = (uint32_t)rl_rand_below(r, 2000); n > 0; n--)
		rl_bitmap_set(pending, rl_rand_below(r, N_PAGES));
	rl_source_set_threshold(source, rl_rand_below(r, 100));
	rl_source_set_phase(source, RL_SOURCE_FINAL);
	if (rl_rand_below(r, 3) == 0) {
		rl_source_set_phase(source, RL_SOURCE_PRECOPY);
		rl_bitmap_set_range(pending, rl_rand_below(r, N_PAGES - 100), 100);
		rl_source_set_phase(source, RL_SOURCE_FINAL);
	}
	if (!wait_for(RL_SOURCE_DRAINED)) {
		printf("FAIL: not drained\n");
		return false;
	}
	rl_source_progress(source, &p);
	if (p.pending_pages > 0 || p.in_flight_packets > 0) {
		printf("FAIL: drained too early\n");
		return false;
	}
	if (memcmp(guest, rl_ram_hva(&ram[1], 0), N_PAGES * RL_PAGE_SIZE) != 0) {
		printf("FAIL: the memories differ\n");
		return false;
	}
	/* Drained: nobody reads these pages before they are pending. */
	n = (uint32_t)rl_rand_below(r, 1500);
	for (uint32_t i = 0; i < n; i++)
		write_guest(r, page[i] = rl_rand_below(r, N_PAGES));
	for (uint32_t i = 0; i < n; i++)
		rl_bitmap_set(pending, page[i]);
	return true;
}

static void
set_up(struct rl_err *err)
{
	int rc = 0, fd;

	for (int e = 0; e < 2 && rc == 0; e++) {
		nics[e] = aligned_alloc(64, sizeof(struct rl_nic));
		memset(nics[e], 0, sizeof(struct rl_nic));
		nics[e]->ops = &wire_ops;
		nics[e]->info.n_queues = N_LANES;
		nics[e]->info.max_payload = PAYLOAD;
		rl_ram_init(&ram[e]);
		fd = memfd_create("lanes", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, N_PAGES * RL_PAGE_SIZE) != 0)
			abort();
		if (e == 0)
			guest = mmap(NULL, N_PAGES * RL_PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_SHARED, fd, 0);
		rc = rl_ram_add(&ram[e],
				&(struct rl_region){
					.n_pages = N_PAGES, .page_size = RL_PAGE_SIZE, .fd = fd},
				err);
		if (rc == 0)
			rc = rl_ram_map(&ram[e], e == 1, err);
	}
	if (rc == 0)
		rc = rl_source_create(&(struct rl_source_opts){.nic = nics[0],
							       .n_lanes = N_LANES,
							       .max_payload = PAYLOAD,
							       .credit = 200,
							       .ram = &ram[0]},
				      &source, err);
	if (rc == 0)
		rc = rl_sink_create(
			&(struct rl_sink_opts){
				.nic = nics[1], .n_lanes = N_LANES, .credit = 200, .ram = &ram[1]},
			&sink, err);
	if (rc != 0) {
		fprintf(stderr, "cannot set up: %s\n", err->text);
		exit(1);
	}
}

int
main(void)
{
	struct rl_rand r = {.state = 42};
	struct lane lane[N_LANES];
	struct rl_source_progress p;
	struct rl_err err;
	bool ok = true;

	set_up(&err);
	for (uint64_t page = 0; page < N_PAGES; page++)
		write_guest(&r, page);
	rl_source_start(source, NULL);
	for (uint32_t k = 0; k < N_LANES; k++) {
		wires[k].rand.state = k;
		while (wires[k].n_free < BUFFERS)
			wires[k].free[wires[k].n_free++] = malloc(PAYLOAD);
		lane[k].index = k;
		if (pthread_create(&lane[k].thread, NULL, lane_main, &lane[k]) != 0)
			abort();
	}
	for (uint32_t i = 0; i < N_ROUNDS && ok; i++)
		ok = round_run(&r);
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	for (uint32_t k = 0; k < N_LANES; k++) {
		pthread_join(lane[k].thread, NULL);
		ok &= wires[k].n_free == BUFFERS;
		while (wires[k].n_free > 0)
			free(wires[k].free[--wires[k].n_free]);
	}
	rl_source_progress(source, &p);
	printf("%u rounds, %llu packets, %llu lost\n", N_ROUNDS, (unsigned long long)p.link.packets,
	       (unsigned long long)p.link.lost);
	rl_source_destroy(source);
	rl_sink_destroy(sink);
	munmap(guest, N_PAGES * RL_PAGE_SIZE);
	for (int e = 0; e < 2; e++) {
		rl_ram_fini(&ram[e]);
		free(nics[e]);
	}
	return ok && p.link.lost > 0 ? 0 : 1;
}
