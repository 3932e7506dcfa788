/* SPDX-License-Identifier: BSD-3-Clause */
/* One simulated migration, see world.h. */
#include "world.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "crypto/packet.h"
#include "nic/port.h"
#include "wire/packet.h"

#define UDP_PORT    7411u
#define PACKET_NS   300u                /* what a worker needs to send or take one */
#define TURN_NS     200u                /* what an empty turn costs */
#define END_NS      (120 * RL_NS_PER_S) /* nothing takes longer */
#define BLACKOUT_AT (10 * RL_NS_PER_MS)
#define SLEEP_NS    (30 * RL_NS_PER_US) /* a worker sleeps no longer */
#define STALL_EVERY (1 * RL_NS_PER_MS)
#define AFTER_NS    (20 * RL_NS_PER_MS) /* how long to watch a drained source */

/* A port whose bursts are refused and whose buffers run out, by chance; counts the buffers that are out. */
struct port {
	struct rl_nic *nic;
	struct rl_nic_path *path;
	int64_t out; /* buffers lent and not given back */
	struct rl_nic_ops ops;
};

struct world {
	const struct world_opts *opts;
	struct world_result *res;
	char *why;
	uint32_t why_bytes;
	bool failed;
	struct rl_rand rand;
	struct rl_sim *sim;
	struct port a, b;
	struct guest guest;
	struct rl_ram target;
	struct rl_source *source;
	struct rl_sink *sink;
	struct rl_dirty *dirty;
	struct rl_keys *keys; /* NULL: packets are not sealed */
	struct { /* opens what the source's port is given, and what reaches the sink's */
		struct rl_crypto *lane[RL_MAX_LANES];
		uint8_t staging[RL_NIC_MAX_PAYLOAD];
	} eye[2];
	uint16_t *sent;   /* by page: version of the last one packed */
	uint16_t *newest; /* by page: of what the sink has taken */
	struct {
		uint64_t packet;  /* the last packet with something not stale for this page, */
		uint16_t version; /* and which */
	} * seen;
	uint64_t packet;
	uint8_t *before; /* the target's pages that a stale record names, before it */
	uint64_t now_ns, stalled_until_ns;
	enum { PRECOPY, FINAL, DRAINED, DONE } phase;
	bool aborted;
	uint64_t phase_ns;
	uint64_t rate_bytes, rate_ns; /* when measuring the first pass began */
	uint64_t drained_packets;
};

static struct world *world; /* of the ports' operations */

static void __attribute__((format(printf, 2, 3))) fail(struct world *w, const char *fmt, ...)
{
	va_list ap;

	if (w->failed)
		return;
	w->failed = true;
	va_start(ap, fmt);
	vsnprintf(w->why, w->why_bytes, fmt, ap);
	va_end(ap);
}

/* ---- ports ---- */

static struct port *
port_of(const struct rl_nic *nic)
{
	return nic == world->a.nic ? &world->a : &world->b;
}

static uint32_t
port_alloc(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	if (rl_rand_ppm(&world->rand, world->opts->alloc_fail_ppm))
		n = (uint32_t)rl_rand_below(&world->rand, n);
	n = rl_nic_sim_ops.alloc(nic, queue, pkts, n);
	port_of(nic)->out += n;
	return n;
}

static void
port_free(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	port_of(nic)->out -= n;
	rl_nic_sim_ops.free(nic, queue, pkts, n);
}

static void observe_tx(struct world *w, const struct rl_pkt *pkt);

static uint32_t
port_tx(struct rl_nic *nic, uint32_t queue, const struct rl_nic_path *path, struct rl_pkt *pkts,
	uint32_t n)
{
	uint32_t take = n;

	for (uint32_t i = 0; nic == world->a.nic && i < n; i++)
		observe_tx(world, &pkts[i]);
	if (rl_rand_ppm(&world->rand, world->opts->refuse_ppm))
		take = (uint32_t)rl_rand_below(&world->rand, n);
	port_free(nic, queue, pkts + take, n - take);
	port_of(nic)->out -= take;
	return rl_nic_sim_ops.tx_burst(nic, queue, path, pkts, take);
}

static uint32_t
port_rx(struct rl_nic *nic, uint32_t queue, struct rl_pkt *pkts, uint32_t n)
{
	n = rl_nic_sim_ops.rx_burst(nic, queue, pkts, n);
	port_of(nic)->out += n;
	return n;
}

static int
port_open(struct world *w, struct port *p, const char *uri, struct rl_err *err)
{
	int rc = rl_nic_open(uri,
			     &(struct rl_nic_opts){.n_queues = w->opts->n_lanes,
						   .udp_port = UDP_PORT,
						   .mtu = w->opts->mtu},
			     &p->nic, err);

	if (rc != 0)
		return rc;
	p->ops = rl_nic_sim_ops;
	p->ops.alloc = port_alloc;
	p->ops.free = port_free;
	p->ops.tx_burst = port_tx;
	p->ops.rx_burst = port_rx;
	p->nic->ops = &p->ops;
	return 0;
}

/* ---- newer wins ---- */

enum { AT_SOURCE, AT_SINK };

/* The records of @pkt as the target will read them. Returns false when it is damaged or was there before. */
static bool
look(struct world *w, uint32_t at, const struct rl_pkt *pkt, struct rl_record_cursor *cur)
{
	struct rl_packet_hdr h;
	struct rl_crypto *c;

	if (rl_packet_get_hdr(pkt->data, pkt->len, &h) != 0 || h.lane >= w->opts->n_lanes)
		return false;
	c = w->eye[at].lane[h.lane];
	if (!rl_crypto_is_new(c, h.pn))
		return false;
	cur->p = rl_crypto_open(c, h.pn, h.flags & RL_WIRE_F_EPOCH, pkt->data, pkt->len,
				w->eye[at].staging, w->now_ns);
	if (cur->p == NULL)
		return false;
	cur->end = cur->p + pkt->len - RL_WIRE_MIN_BYTES;
	return true;
}

static uint8_t *
target_page(struct world *w, uint64_t gpn, uint64_t *page)
{
	return rl_ram_page(&w->target, gpn, page) ? rl_ram_hva(&w->target, *page) : NULL;
}

/* The pages that @rec names, one after another; returns how many. */
static uint32_t
record_pages(const struct rl_record *rec, uint64_t *gpn, uint16_t *version)
{
	if (rec->type == RL_RECORD_RAW) {
		*gpn = rec->raw.gpn;
		*version = rec->raw.version;
		return 1;
	}
	if (rec->type == RL_RECORD_ZERO) {
		*gpn = rec->zero.gpn;
		*version = rec->zero.version;
		return rec->zero.count;
	}
	return 0;
}

/* What the source packs: each sending of a page under a newer version, and no packet without content. */
static void
observe_tx(struct world *w, const struct rl_pkt *pkt)
{
	struct rl_record_cursor cur;
	struct rl_record rec;
	uint64_t gpn = 0, page;
	uint16_t version = 0;
	bool content = false;

	if (!look(w, AT_SOURCE, pkt, &cur)) {
		fail(w, "a packet was sent that cannot be opened");
		return;
	}
	while (rl_record_next(&cur, &rec) > 0) {
		uint32_t n = record_pages(&rec, &gpn, &version);
		bool more = rec.type == RL_RECORD_RAW && rec.raw.offset > 0;

		content |= n > 0 || rec.type == RL_RECORD_PROBE;
		for (uint32_t i = 0; i < n; i++) {
			if (!rl_ram_page(&w->guest.ram, gpn + i, &page))
				fail(w, "gpn %llu is no RAM", (unsigned long long)gpn + i);
			else if (more ? version != w->sent[page]
				      : !rl_newer16(version, w->sent[page]))
				fail(w, "page %llu sent with version %u after %u",
				     (unsigned long long)page, version, w->sent[page]);
			else
				w->sent[page] = version;
		}
	}
	if (!content)
		fail(w, "a packet without content was sent");
}

/* Walk a good packet before (@after false) and after the sink has seen it. */
static void
observe(struct world *w, struct rl_record_cursor cur, bool applied, bool after)
{
	static const uint8_t zeros[RL_PAGE_SIZE];
	uint8_t *keep = w->before;
	struct rl_record rec;
	uint64_t gpn = 0, page;
	uint16_t version = 0;

	while (rl_record_next(&cur, &rec) > 0) {
		uint32_t n = record_pages(&rec, &gpn, &version);

		for (uint32_t i = 0; i < n; i++) {
			uint8_t *hva = target_page(w, gpn + i, &page);

			if (hva == NULL) {
				fail(w, "the source sent gpn %llu, which is no RAM",
				     (unsigned long long)gpn + i);
			} else if (rl_newer16(w->newest[page], version)) {
				if (!after)
					memcpy(keep, hva, RL_PAGE_SIZE);
				else if (w->seen[page].packet != w->packet &&
					 memcmp(keep, hva, RL_PAGE_SIZE) != 0)
					fail(w, "page %llu: version %u overwrote %u",
					     (unsigned long long)page, version, w->newest[page]);
				keep += RL_PAGE_SIZE;
			} else if (!after) {
				/* One packet may end one version of a page and begin the next. */
				w->seen[page].packet = w->packet;
				w->seen[page].version = version;
			} else if (applied) {
				w->newest[page] = version;
				if (version != w->seen[page].version)
					continue;
				if (rec.type == RL_RECORD_RAW ? memcmp(hva + rec.raw.offset,
								       rec.raw.data, rec.raw.len)
							      : memcmp(hva, zeros, RL_PAGE_SIZE))
					fail(w, "page %llu: version %u did not take effect",
					     (unsigned long long)page, version);
			}
		}
	}
}

static void
sink_rx(struct world *w, uint32_t lane, const struct rl_pkt *pkt)
{
	struct rl_sink_lane_stats st;
	struct rl_record_cursor cur;
	bool good = look(w, AT_SINK, pkt, &cur);
	uint64_t packets;

	rl_sink_stats(w->sink, &st);
	packets = st.packets;
	w->packet++;
	if (good)
		observe(w, cur, false, false);
	rl_sink_rx(w->sink, lane, pkt->data, pkt->len, w->now_ns);
	rl_sink_stats(w->sink, &st);
	if (good)
		observe(w, cur, st.packets > packets, true);
	else if (st.packets > packets)
		fail(w, "the sink took a damaged packet, or one twice");
}

/* ---- turns ---- */

static uint32_t
sink_step(struct world *w, uint32_t lane, uint64_t *wake_ns)
{
	struct rl_pkt pkts[RL_NIC_BURST];
	uint32_t n = rl_nic_rx_burst(w->b.nic, lane, pkts, RL_NIC_BURST);

	for (uint32_t i = 0; i < n; i++)
		sink_rx(w, lane, &pkts[i]);
	rl_nic_free(w->b.nic, lane, pkts, n);
	return n + rl_sink_turn(w->sink, lane, w->now_ns, wake_ns);
}

static uint32_t
source_step(struct world *w, uint32_t lane, uint64_t *wake_ns)
{
	struct rl_pkt pkts[RL_NIC_BURST];
	uint32_t n = rl_nic_rx_burst(w->a.nic, lane, pkts, RL_NIC_BURST);

	for (uint32_t i = 0; i < n; i++)
		rl_source_rx(w->source, lane, pkts[i].data, pkts[i].len, w->now_ns);
	rl_nic_free(w->a.nic, lane, pkts, n);
	return n + rl_source_turn(w->source, lane, w->now_ns, wake_ns);
}

static void
blackout_step(struct world *w, uint64_t *wake_ns)
{
	const struct world_opts *o = w->opts;
	uint64_t end_ns = BLACKOUT_AT + o->blackout_ns;
	struct rl_sim_link data = o->data, acks = o->acks;

	if (o->blackout_ns == 0)
		return;
	if (w->now_ns >= BLACKOUT_AT && w->now_ns < end_ns)
		data.loss_ppm = acks.loss_ppm = 1000000;
	rl_sim_set_link(w->sim, 1, &data);
	rl_sim_set_link(w->sim, 0, &acks);
	if (w->now_ns < BLACKOUT_AT)
		*wake_ns = rl_min64(*wake_ns, BLACKOUT_AT);
	else if (w->now_ns < end_ns)
		*wake_ns = rl_min64(*wake_ns, end_ns);
}

/* Everybody gets a turn, in an order that changes. Then the clock moves on. */
static void
world_step(struct world *w)
{
	uint64_t wake_ns = w->now_ns + SLEEP_NS, next_ns;
	uint32_t start = (uint32_t)rl_rand_below(&w->rand, w->opts->n_lanes), work = 0;

	blackout_step(w, &wake_ns);
	wake_ns = rl_min64(wake_ns, guest_run(&w->guest, w->now_ns));
	if (w->opts->stall_ns && w->now_ns > w->stalled_until_ns + STALL_EVERY)
		w->stalled_until_ns = w->now_ns + w->opts->stall_ns;
	for (uint32_t i = 0; i < w->opts->n_lanes; i++) {
		uint32_t lane = (start + i) % w->opts->n_lanes;

		work += source_step(w, lane, &wake_ns);
		if (w->now_ns >= w->stalled_until_ns)
			work += sink_step(w, lane, &wake_ns);
	}
	/* Packets that lie in the ring of a stalled sink are no event. */
	next_ns = rl_sim_next_arrival(w->sim);
	if (w->now_ns < w->stalled_until_ns && next_ns <= w->now_ns)
		next_ns = w->stalled_until_ns;
	next_ns = rl_min64(next_ns, wake_ns);
	if (work > 0)
		next_ns = rl_min64(next_ns, w->now_ns + TURN_NS);
	/* Lanes run side by side. */
	w->now_ns = rl_max64(next_ns, w->now_ns + TURN_NS + work * PACKET_NS / w->opts->n_lanes);
	rl_sim_set_now(w->sim, w->now_ns);
	w->res->steps++;
}

/* ---- the session's part ---- */

static void
measure_rate(struct world *w)
{
	struct rl_source_progress p;

	if (w->phase != PRECOPY || w->res->first_pass_rate || w->now_ns < 2 * RL_NS_PER_MS)
		return;
	rl_source_progress(w->source, &p);
	if (w->rate_ns == 0) {
		w->rate_ns = w->now_ns;
		w->rate_bytes = p.bytes;
	} else if (p.pending_pages < 64 || p.dirty_sync_count > 1) {
		w->res->first_pass_rate =
			(p.bytes - w->rate_bytes) * RL_NS_PER_S / (w->now_ns - w->rate_ns);
	}
}

static void
pause_guest(struct world *w)
{
	w->guest.running = false;
	rl_source_set_phase(w->source, RL_SOURCE_FINAL);
	w->phase = FINAL;
	w->phase_ns = w->now_ns;
}

static void
session_step(struct world *w)
{
	uint32_t events = rl_source_events(w->source);
	struct rl_source_progress p;

	if (events & RL_SOURCE_FAILED)
		fail(w, "the source failed: %s", strerror(-rl_source_error(w->source)));
	switch (w->phase) {
	case PRECOPY:
		if (events & RL_SOURCE_CONVERGED)
			w->res->converged_ns = w->now_ns;
		if ((events & RL_SOURCE_CONVERGED) ||
		    w->now_ns - w->phase_ns > w->opts->patience_ns)
			pause_guest(w);
		break;
	case FINAL:
		if (w->opts->abort_once && !w->aborted &&
		    w->now_ns > w->phase_ns + 100 * RL_NS_PER_US) {
			rl_source_set_phase(w->source, RL_SOURCE_PRECOPY);
			w->guest.running = w->opts->guest.writes_per_ms > 0;
			w->aborted = true;
			w->phase = PRECOPY;
			w->phase_ns = w->now_ns;
		} else if (events & RL_SOURCE_DRAINED) {
			w->res->drained_ns = w->now_ns;
			w->res->downtime_ns = w->now_ns - w->phase_ns;
			rl_source_progress(w->source, &p);
			w->drained_packets = p.link.packets;
			if (p.pending_pages > 0 || p.in_flight_packets > 0)
				fail(w, "drained with %llu pages pending, %llu packets in flight",
				     (unsigned long long)p.pending_pages,
				     (unsigned long long)p.in_flight_packets);
			w->phase = DRAINED;
		}
		break;
	case DRAINED:
		if (w->now_ns > w->res->drained_ns + AFTER_NS)
			w->phase = DONE;
		break;
	case DONE:
		break;
	}
}

static void
compare_memory(struct world *w)
{
	uint64_t wrong = 0, first = 0;

	for (uint64_t page = 0; page < w->target.n_pages; page++)
		if (memcmp(w->guest.mem + page * RL_PAGE_SIZE, rl_ram_hva(&w->target, page),
			   RL_PAGE_SIZE) != 0 &&
		    wrong++ == 0)
			first = page;
	if (wrong > 0)
		fail(w, "%llu pages differ, the first is %llu", (unsigned long long)wrong,
		     (unsigned long long)first);
}

static void
check_end(struct world *w)
{
	struct world_result *r = w->res;
	const struct rl_sender_stats *l = &r->source.link;
	uint64_t raised = 0;

	compare_memory(w);
	if (l->packets != w->drained_packets)
		fail(w, "%llu packets were sent after drained",
		     (unsigned long long)(l->packets - w->drained_packets));
	if (l->packets != l->acked + l->lost + l->refused + l->in_flight)
		fail(w, "packets are not acked + lost + refused + in flight");
	if (w->a.out != 0 || w->b.out != 0)
		fail(w, "%lld and %lld packet buffers did not come back", (long long)w->a.out,
		     (long long)w->b.out);
	if (r->sink.bad_records != 0)
		fail(w, "the sink found %llu packets malformed",
		     (unsigned long long)r->sink.bad_records);
	if (eventfd_read(rl_source_event_fd(w->source), &raised) != 0 || raised > 4)
		fail(w, "the event fd was written %llu times", (unsigned long long)raised);
}

/* ---- set up ---- */

static int
target_init(struct world *w, struct rl_err *err)
{
	rl_ram_init(&w->target);
	for (uint32_t i = 0; i < w->guest.ram.n; i++) {
		struct rl_region r = {.gpn = w->guest.ram.region[i].gpn,
				      .n_pages = w->guest.ram.region[i].n_pages,
				      .page_size = RL_PAGE_SIZE,
				      .zeroed = true};
		int rc;

		r.fd = memfd_create("sim-target", MFD_CLOEXEC);
		if (r.fd < 0 || ftruncate(r.fd, (off_t)(r.n_pages * RL_PAGE_SIZE)) != 0)
			return rl_err_set(err, -ENOMEM, "cannot make the target's memory");
		rc = rl_ram_add(&w->target, &r, err);
		if (rc != 0)
			return rc;
	}
	w->newest = calloc(w->target.n_pages, sizeof(*w->newest));
	w->sent = calloc(w->target.n_pages, sizeof(*w->sent));
	w->seen = calloc(w->target.n_pages, sizeof(*w->seen));
	/* No packet names more pages than this: zero runs stay in a stripe, a packet has 370 of them at most. */
	w->before = mmap(NULL, (370ull * 512) * RL_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (w->newest == NULL || w->sent == NULL || w->seen == NULL || w->before == MAP_FAILED)
		return rl_err_set(err, -ENOMEM, "no memory");
	return rl_ram_map(&w->target, true, err);
}

static int
network_init(struct world *w, struct rl_err *err)
{
	struct rl_nic_peer peer = {.address = {.family = AF_INET, .addr = {198, 18, 0, 1}},
				   .udp_port = UDP_PORT};
	int rc;

	rc = rl_sim_create("sim", w->opts->seed, &w->opts->data, &w->opts->acks, &w->sim);
	if (rc != 0)
		return rl_err_set(err, rc, "cannot make the network");
	rc = port_open(w, &w->a, "sim:sim/a", err);
	if (rc == 0)
		rc = port_open(w, &w->b, "sim:sim/b", err);
	if (rc == 0)
		rc = rl_nic_path_open(w->a.nic, &peer, &w->a.path, err);
	if (rc == 0)
		rc = rl_nic_path_open(w->b.nic, &peer, &w->b.path, err);
	return rc;
}

/* Every other seed seals its packets. */
static int
keys_init(struct world *w, struct rl_err *err)
{
	const uint8_t master[RL_SECRET_BYTES] = {(uint8_t)w->opts->seed};
	int rc = w->opts->seed & 1 ? rl_keys_create(master, &w->keys, err) : 0;

	for (uint32_t i = 0; i < 2 * w->opts->n_lanes && rc == 0; i++)
		rc = rl_crypto_create(w->keys, RL_CRYPTO_TARGET, (uint16_t)(i / 2),
				      &w->eye[i & 1].lane[i / 2]);
	return rc;
}

static int
flow_init(struct world *w, struct rl_err *err)
{
	const struct world_opts *o = w->opts;
	int rc = keys_init(w, err);

	if (rc != 0)
		return rc;
	rc = rl_sink_create(&(struct rl_sink_opts){.nic = w->b.nic,
						   .path = w->b.path,
						   .keys = w->keys,
						   .n_lanes = o->n_lanes,
						   .receiver = 1,
						   .credit = o->credit,
						   .ram = &w->target},
			    &w->sink, err);
	if (rc != 0)
		return rc;
	rc = rl_source_create(
		&(struct rl_source_opts){.nic = w->a.nic,
					 .path = w->a.path,
					 .keys = w->keys,
					 .n_lanes = o->n_lanes,
					 .receiver = 2,
					 .max_payload = rl_nic_info(w->a.nic)->max_payload,
					 .credit = o->credit,
					 .ram = &w->guest.ram,
					 .max_bandwidth = o->max_bandwidth,
					 .threshold_pages = o->threshold_pages,
					 .cc = o->cc},
		&w->source, err);
	if (rc != 0)
		return rc;
	if (o->guest.writes_per_ms > 0)
		rc = guest_open_dirty(&w->guest, rl_source_pending(w->source), &w->dirty, err);
	if (rc == 0)
		rl_source_start(w->source, w->dirty);
	w->guest.running = o->guest.writes_per_ms > 0;
	return rc;
}

static void
world_fini(struct world *w)
{
	rl_source_destroy(w->source);
	rl_sink_destroy(w->sink);
	for (uint32_t i = 0; i < 2 * w->opts->n_lanes; i++)
		rl_crypto_destroy(w->eye[i & 1].lane[i / 2]);
	rl_keys_destroy(w->keys);
	if (w->dirty != NULL)
		rl_dirty_close(w->dirty);
	rl_nic_path_close(w->a.path);
	rl_nic_path_close(w->b.path);
	rl_nic_close(w->a.nic);
	rl_nic_close(w->b.nic);
	rl_sim_destroy(w->sim);
	guest_fini(&w->guest);
	rl_ram_fini(&w->target);
	free(w->newest);
	free(w->sent);
	free(w->seen);
	munmap(w->before, (370ull * 512) * RL_PAGE_SIZE);
}

bool
world_run(const struct world_opts *opts, struct world_result *res, char *why, uint32_t why_bytes)
{
	struct world w = {.opts = opts, .res = res, .why = why, .why_bytes = why_bytes};
	struct rl_err err;

	world = &w;
	memset(res, 0, sizeof(*res));
	w.rand.state = opts->seed ^ 0x5157;
	if (guest_init(&w.guest, &opts->guest, &err) != 0 || network_init(&w, &err) != 0 ||
	    target_init(&w, &err) != 0 || flow_init(&w, &err) != 0) {
		/* Leaves what was made: the program ends now. */
		fail(&w, "cannot set up: %s", err.text);
		return false;
	}
	while (w.phase != DONE && !w.failed) {
		world_step(&w);
		session_step(&w);
		measure_rate(&w);
		if (w.now_ns > END_NS)
			fail(&w, "not finished after %llu s",
			     (unsigned long long)(END_NS / RL_NS_PER_S));
	}
	rl_source_progress(w.source, &res->source);
	rl_sink_stats(w.sink, &res->sink);
	rl_sim_stats(w.sim, 1, &res->net);
	if (w.dirty != NULL)
		res->dirty = *rl_dirty_stats(w.dirty);
	res->guest_writes = w.guest.writes;
	res->guest_drains = w.guest.drains;
	if (!w.failed)
		check_end(&w);
	world_fini(&w);
	return !w.failed;
}
