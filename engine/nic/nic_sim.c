/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sim: two ports and the network between them, on a virtual clock. A packet passes loss, a bottleneck (rate
 * as virtual finish time, tail drop), delay and jitter; one heap orders all that are under way. The same seed
 * and the same calls give the same arrivals.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/stats.h"
#include "nic/port.h"
#include "nic/sim.h"

#define SIM_MTU      1500u
#define SIM_HEADERS  48u
#define SIM_PACKETS  65536u /* of a network: with the users, under way and in the rings */
#define SIM_RX_RING  4096u
#define SIM_PS_PER_S 1000000000000ull

struct sim_packet {
	struct sim_packet *next; /* in the free list or a ring */
	uint32_t len;
	uint16_t udp_port; /* destination */
	uint8_t to;        /* end */
	uint8_t data[RL_NIC_MAX_PAYLOAD];
};

struct sim_ring {
	struct sim_packet *head, **tail;
	uint32_t n;
};

struct sim_end {
	struct rl_nic *nic; /* NULL: not open */
	struct rl_sim *sim;
	struct sim_ring ring[RL_NIC_MAX_QUEUES];
};

struct sim_direction {
	struct rl_sim_link link;
	struct rl_sim_stats st;
	struct rl_rand rand;
	uint64_t busy_ps; /* when the bottleneck has sent all it accepted */
};

struct sim_event {
	uint64_t arrival_ns;
	uint64_t number; /* of equal arrivals the first sent comes first */
	struct sim_packet *packet;
};

struct rl_sim {
	struct rl_sim *next;
	char name[32];
	uint64_t now_ns;
	uint64_t n_events_ever;
	struct sim_end end[2];             /* a, b */
	struct sim_direction direction[2]; /* by destination */
	struct sim_packet *free_packets;
	uint32_t n_packets; /* allocated */
	uint32_t n_ready;   /* in the rings */
	uint32_t n_events;
	struct sim_event heap[SIM_PACKETS];
};

static struct rl_sim *sims; /* one thread, as sim.h says */

static struct rl_sim *
sim_find(const char *name, size_t len)
{
	struct rl_sim *sim = sims;

	while (sim != NULL && (strlen(sim->name) != len || memcmp(sim->name, name, len) != 0))
		sim = sim->next;
	return sim;
}

static bool
event_before(const struct sim_event *a, const struct sim_event *b)
{
	return a->arrival_ns != b->arrival_ns ? a->arrival_ns < b->arrival_ns
					      : a->number < b->number;
}

static void
heap_push(struct rl_sim *sim, uint64_t arrival_ns, struct sim_packet *packet)
{
	struct sim_event ev = {arrival_ns, sim->n_events_ever++, packet};
	uint32_t i = sim->n_events++;

	for (uint32_t up; i > 0 && event_before(&ev, &sim->heap[up = (i - 1) / 2]); i = up)
		sim->heap[i] = sim->heap[up];
	sim->heap[i] = ev;
}

static struct sim_packet *
heap_pop(struct rl_sim *sim)
{
	struct sim_packet *first = sim->heap[0].packet;
	struct sim_event last = sim->heap[--sim->n_events];
	uint32_t i = 0, child;

	for (; (child = 2 * i + 1) < sim->n_events; i = child) {
		if (child + 1 < sim->n_events &&
		    event_before(&sim->heap[child + 1], &sim->heap[child]))
			child++;
		if (!event_before(&sim->heap[child], &last))
			break;
		sim->heap[i] = sim->heap[child];
	}
	sim->heap[i] = last;
	return first;
}

static struct sim_packet *
packet_get(struct rl_sim *sim)
{
	struct sim_packet *p = sim->free_packets;

	if (p != NULL) {
		sim->free_packets = p->next;
	} else if (sim->n_packets < SIM_PACKETS) {
		p = malloc(sizeof(*p));
		sim->n_packets += p != NULL;
	}
	return p;
}

static void
packet_put(struct rl_sim *sim, struct sim_packet *p)
{
	p->next = sim->free_packets;
	sim->free_packets = p;
}

/* Move what has arrived by now into the rings of its queue, or drop it as a NIC would. */
static void
sim_arrive(struct rl_sim *sim)
{
	while (sim->n_events > 0 && sim->heap[0].arrival_ns <= sim->now_ns) {
		struct sim_packet *p = heap_pop(sim);
		struct sim_end *end = &sim->end[p->to];
		struct rl_sim_stats *st = &sim->direction[p->to].st;
		uint32_t queue;

		if (end->nic == NULL) {
			st->lost++;
			packet_put(sim, p);
			continue;
		}
		queue = (uint32_t)p->udp_port - end->nic->info.udp_port;
		if (queue >= end->nic->info.n_queues || p->len > end->nic->info.max_payload) {
			rl_count(&end->nic->queue[0].st.rx_foreign, 1);
			packet_put(sim, p);
		} else if (end->ring[queue].n == SIM_RX_RING) {
			st->queue_drops++;
			packet_put(sim, p);
		} else {
			struct sim_ring *ring = &end->ring[queue];

			p->next = NULL;
			*ring->tail = p;
			ring->tail = &p->next;
			ring->n++;
			sim->n_ready++;
		}
	}
}

/* Virtual finish time in the bottleneck; false: its queue is full. */
static bool
bottleneck_admit(struct sim_direction *dir, uint64_t now_ns, uint32_t len, uint64_t *departure_ns)
{
	uint64_t now_ps = now_ns * 1000, rate = dir->link.rate_bytes_per_s, backlog_bytes;

	*departure_ns = now_ns;
	if (rate == 0)
		return true;
	dir->busy_ps = rl_max64(dir->busy_ps, now_ps);
	backlog_bytes =
		(uint64_t)((unsigned __int128)(dir->busy_ps - now_ps) * rate / SIM_PS_PER_S);
	if (dir->link.queue_bytes != 0 && backlog_bytes + len > dir->link.queue_bytes)
		return false;
	dir->busy_ps += len * SIM_PS_PER_S / rate;
	*departure_ns = dir->busy_ps / 1000;
	return true;
}

static void
sim_fly(struct rl_sim *sim, struct sim_direction *dir, struct sim_packet *p, uint64_t departure_ns)
{
	uint64_t jitter = dir->link.jitter_ns;

	jitter = jitter != 0 ? rl_rand_below(&dir->rand, jitter + 1) : 0;
	heap_push(sim, departure_ns + dir->link.delay_ns + jitter, p);
}

/* One packet into the network, which owns it from here on. */
static void
sim_send(struct rl_sim *sim, struct sim_packet *p)
{
	struct sim_direction *dir = &sim->direction[p->to];
	struct sim_packet *twin;
	uint64_t departure_ns;

	dir->st.sent++;
	if (rl_rand_ppm(&dir->rand, dir->link.loss_ppm)) {
		dir->st.lost++;
		packet_put(sim, p);
		return;
	}
	if (!bottleneck_admit(dir, sim->now_ns, p->len, &departure_ns)) {
		dir->st.queue_drops++;
		packet_put(sim, p);
		return;
	}
	if (rl_rand_ppm(&dir->rand, dir->link.duplicate_ppm) && (twin = packet_get(sim)) != NULL) {
		dir->st.duplicated++;
		memcpy(twin, p, offsetof(struct sim_packet, data) + p->len);
		sim_fly(sim, dir, twin, departure_ns);
	}
	if (rl_rand_ppm(&dir->rand, dir->link.corrupt_ppm) && p->len > 0) {
		uint64_t bit = rl_rand_below(&dir->rand, (uint64_t)p->len * 8);

		dir->st.corrupted++;
		p->data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	sim_fly(sim, dir, p, departure_ns);
}

int
rl_sim_create(const char *name, uint64_t seed, const struct rl_sim_link *a_to_b,
	      const struct rl_sim_link *b_to_a, struct rl_sim **out)
{
	size_t len = strlen(name);
	struct rl_sim *sim;

	if (len == 0 || len >= sizeof(sim->name) || strchr(name, '/') != NULL)
		return -EINVAL;
	if (sim_find(name, len) != NULL)
		return -EEXIST;
	sim = calloc(1, sizeof(*sim));
	if (sim == NULL)
		return -ENOMEM;
	memcpy(sim->name, name, len);
	for (int e = 0; e < 2; e++) {
		sim->end[e].sim = sim;
		sim->direction[e].link = e == 1 ? *a_to_b : *b_to_a;
		sim->direction[e].rand.state = seed * 2 + (uint64_t)e;
		for (uint32_t k = 0; k < RL_NIC_MAX_QUEUES; k++)
			sim->end[e].ring[k].tail = &sim->end[e].ring[k].head;
	}
	sim->next = sims;
	sims = sim;
	*out = sim;
	return 0;
}

static struct sim_packet *
ring_pop(struct rl_sim *sim, struct sim_ring *ring)
{
	struct sim_packet *p = ring->head;

	if (p == NULL)
		return NULL;
	ring->head = p->next;
	if (ring->head == NULL)
		ring->tail = &ring->head;
	ring->n--;
	sim->n_ready--;
	return p;
}

static void
rings_empty(struct rl_sim *sim, struct sim_end *end)
{
	struct sim_packet *p;

	for (uint32_t k = 0; k < RL_NIC_MAX_QUEUES; k++) {
		while ((p = ring_pop(sim, &end->ring[k])) != NULL)
			packet_put(sim, p);
	}
}

void
rl_sim_destroy(struct rl_sim *sim)
{
	struct rl_sim **link = &sims;
	struct sim_packet *p;

	if (sim == NULL)
		return;
	assert(sim->end[0].nic == NULL && sim->end[1].nic == NULL);
	while (*link != sim)
		link = &(*link)->next;
	*link = sim->next;
	while (sim->n_events > 0)
		packet_put(sim, heap_pop(sim));
	while ((p = sim->free_packets) != NULL) {
		sim->free_packets = p->next;
		free(p);
	}
	free(sim);
}

void
rl_sim_set_link(struct rl_sim *sim, int to_b, const struct rl_sim_link *link)
{
	sim->direction[to_b != 0].link = *link;
}

void
rl_sim_set_now(struct rl_sim *sim, uint64_t now_ns)
{
	sim->now_ns = rl_max64(sim->now_ns, now_ns);
	sim_arrive(sim);
}

uint64_t
rl_sim_now(const struct rl_sim *sim)
{
	return sim->now_ns;
}

uint64_t
rl_sim_next_arrival(const struct rl_sim *sim)
{
	if (sim->n_ready > 0)
		return sim->now_ns;
	return sim->n_events > 0 ? sim->heap[0].arrival_ns : UINT64_MAX;
}

void
rl_sim_stats(const struct rl_sim *sim, int to_b, struct rl_sim_stats *st)
{
	*st = sim->direction[to_b != 0].st;
}

static int
sim_open(struct rl_nic *nic, const char *rest, struct rl_err *err)
{
	const char *slash = strchr(rest, '/');
	struct rl_sim *sim;
	struct sim_end *end;
	uint32_t mtu = nic->opts.mtu != 0 ? nic->opts.mtu : SIM_MTU;

	if (slash == NULL || (strcmp(slash, "/a") != 0 && strcmp(slash, "/b") != 0))
		return rl_err_set(
			err, -EINVAL,
			"sim:%.64s names no end of a network; write sim:NAME/a or sim:NAME/b",
			rest);
	sim = sim_find(rest, (size_t)(slash - rest));
	if (sim == NULL)
		return rl_err_set(
			err, -ENODEV,
			"there is no network '%.*s' in this process; make it with rl_sim_create()",
			(int)(slash - rest), rest);
	end = &sim->end[slash[1] == 'b'];
	if (end->nic != NULL)
		return rl_err_set(err, -EBUSY, "sim:%.64s is open already; close it first", rest);

	nic->info.max_payload = rl_min32(mtu - SIM_HEADERS, RL_NIC_MAX_PAYLOAD);
	nic->info.rx_ring = SIM_RX_RING;
	nic->priv = end;
	end->nic = nic;
	return 0;
}

static void
sim_close(struct rl_nic *nic)
{
	struct sim_end *end = nic->priv;

	rings_empty(end->sim, end);
	end->nic = NULL;
}

static int
sim_check(const struct rl_nic *nic, struct rl_err *err)
{
	(void)nic;
	(void)err;
	return 0; /* a link of this process is never down */
}

static int
sim_path_open(struct rl_nic *nic, struct rl_nic_path *path, struct rl_err *err)
{
	struct sim_end *end = nic->priv;
	struct rl_sim *sim = end->sim;

	(void)path;
	if (sim->end[end == &sim->end[0]].nic == NULL)
		return rl_err_set(err, -EHOSTUNREACH,
				  "the other end of network %s is not open; open it first",
				  sim->name);
	return 0;
}

static int
sim_path_refresh(struct rl_nic_path *path, struct rl_err *err)
{
	return sim_path_open(path->nic, path, err);
}

static void
sim_path_close(struct rl_nic_path *path)
{
	(void)path;
}

static struct rl_pkt
sim_lend(struct sim_packet *p, uint32_t len, uint32_t cap)
{
	return (struct rl_pkt){.data = p->data, .len = len, .cap = cap, .priv = p};
}

static uint32_t
sim_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct sim_end *end = nic->priv;
	struct sim_packet *p;
	uint32_t got;

	for (got = 0; got < n && (p = packet_get(end->sim)) != NULL; got++)
		pkts[got] = sim_lend(p, 0, nic->info.max_payload);
	rl_count(&nic->queue[queue].st.alloc_failed, n - got);
	return got;
}

static uint32_t
sim_tx_burst(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path,
	     struct rl_pkt *pkts, uint32_t n)
{
	struct sim_end *end = nic->priv;
	struct rl_sim *sim = end->sim;

	for (uint32_t i = 0; i < n; i++) {
		struct sim_packet *p = pkts[i].priv;

		assert(pkts[i].len <= pkts[i].cap);
		p->len = pkts[i].len;
		p->to = end == &sim->end[0];
		p->udp_port = (uint16_t)(path->peer.udp_port + queue);
		sim_send(sim, p);
	}
	return n;
}

static uint32_t
sim_rx_burst(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct sim_end *end = nic->priv;
	struct rl_sim *sim = end->sim;
	struct sim_packet *p;
	uint32_t got;

	sim_arrive(sim); /* packets without a delay are here already */
	for (got = 0; got < n && (p = ring_pop(sim, &end->ring[queue])) != NULL; got++)
		pkts[got] = sim_lend(p, p->len, p->len);
	sim->direction[end == &sim->end[1]].st.delivered += got;
	return got;
}

static void
sim_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	struct sim_end *end = nic->priv;

	(void)queue;
	for (uint32_t i = 0; i < n; i++)
		packet_put(end->sim, pkts[i].priv);
}

const struct rl_nic_ops rl_nic_sim_ops = {
	.scheme = "sim",
	.open = sim_open,
	.close = sim_close,
	.check = sim_check,
	.path_open = sim_path_open,
	.path_refresh = sim_path_refresh,
	.path_close = sim_path_close,
	.alloc = sim_alloc,
	.tx_burst = sim_tx_burst,
	.rx_burst = sim_rx_burst,
	.free = sim_free,
};
