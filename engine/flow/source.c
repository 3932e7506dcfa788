/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The source turn, see source.h. One `state` word holds phase and events together with a sequence number that
 * grows whenever the session changes its mind. What a lane finds out ("everything collected", "my lane is
 * done") is noted with the sequence number it holds for, so nothing ever has to be reset.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/stats.h"
#include "flow/source_priv.h"
#include "wire/packet.h"

#define STATE_EVENTS  (RL_SOURCE_CONVERGED | RL_SOURCE_DRAINED | RL_SOURCE_FAILED)
#define STATE_FINAL   8u
#define STATE_SHIFT   8 /* the sequence number is above */

#define PAYLOAD_MIN   256u

#define JUDGE_NS      (250 * RL_NS_PER_US) /* filling levels are on cache lines that vCPUs write */
#define ROUND_END_NS  (50 * RL_NS_PER_US)  /* the same when there is nothing left to send */
#define COLLECT_NS    (300 * RL_NS_PER_US) /* each collection makes the guest fault again */
#define IDLE_NS       RL_NS_PER_MS         /* how late a half-full ring may be noticed */
#define FINAL_POLL_NS (20 * RL_NS_PER_US)

/* ---- events ---- */

/* Raise @event for the phase that @state shows, unless the session has moved on. */
static void
source_raise(struct rl_source *src, uint64_t state, uint64_t event)
{
	uint64_t old = __atomic_load_n(&src->state, __ATOMIC_RELAXED);

	do {
		if (old >> STATE_SHIFT != state >> STATE_SHIFT || (old & event))
			return;
	} while (!__atomic_compare_exchange_n(&src->state, &old, old | event, false,
					      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	/* A system call in a turn, but once per event. */
	eventfd_write(src->event_fd, 1);
}

/* A new sequence number: what was found out before holds no longer. */
static void
source_renew(struct rl_source *src, bool final)
{
	uint64_t old = __atomic_load_n(&src->state, __ATOMIC_RELAXED), next;

	do {
		next = ((old >> STATE_SHIFT) + 1) << STATE_SHIFT | (old & RL_SOURCE_FAILED);
		if (final)
			next |= STATE_FINAL;
	} while (!__atomic_compare_exchange_n(&src->state, &old, next, false, __ATOMIC_ACQ_REL,
					      __ATOMIC_RELAXED));
}

/* ---- the dirty source and convergence: lane 0 ---- */

/* Pages in flight, about: a zero run counts as little as it costs. */
static uint64_t
source_in_flight(const struct rl_source *src)
{
	uint64_t packets = 0;

	for (uint32_t i = 0; i < src->opts.n_lanes; i++)
		packets += rl_count_read(&src->lane[i].sender.st.in_flight);
	return RL_DIV_ROUND_UP(packets * src->opts.max_payload, RL_PAGE_SIZE);
}

static void
source_collect(struct rl_source *src, uint64_t now_ns)
{
	rl_dirty_collect(src->dirty, now_ns);
	src->rounds.collect_ns = now_ns;
}

/* The guest is paused: collect until a collection begun after that has left the rings empty. */
static void
source_final(struct rl_source *src, uint64_t state, uint64_t now_ns, uint64_t *wake_ns)
{
	struct source_rounds *r = &src->rounds;
	uint64_t seq = state >> STATE_SHIFT;
	struct rl_dirty *d = src->dirty;

	if (src->collected == seq)
		return;
	if (d != NULL) {
		*wake_ns = now_ns;
		if (rl_dirty_busy(d))
			return;
		if (r->begun != seq || rl_dirty_fill(d) > 0) {
			source_collect(src, now_ns);
			r->begun = seq;
			return;
		}
		rl_count_set(&r->fill, 0);
	}
	__atomic_store_n(&src->collected, seq, __ATOMIC_RELEASE);
}

/* Is what is left small enough? If a round is over and it is not, begin the next one. @fresh: a collection has
 * just finished. */
static bool
source_judge(struct rl_source *src, bool fresh, uint64_t now_ns, uint64_t *wake_ns)
{
	struct source_rounds *r = &src->rounds;
	uint64_t threshold = __atomic_load_n(&src->threshold, __ATOMIC_RELAXED);
	uint64_t pending = rl_bitmap_count(&src->pending), flying, fill = 0, due_ns;
	bool can_fill = rl_dirty_can_fill(src->dirty);

	/* Before everything was sent once, what is pending says it all. */
	if (rl_dirty_busy(src->dirty) || (pending > 0 && r->syncs == 1))
		return false;
	due_ns = rl_max64(r->collect_ns + COLLECT_NS, r->judged_ns + ROUND_END_NS);
	if (pending == 0 && now_ns < due_ns) {
		*wake_ns = rl_min64(*wake_ns, due_ns);
		if (can_fill || !fresh)
			return false;
	}
	if (can_fill) {
		if (pending > 0 && now_ns < r->judged_ns + JUDGE_NS)
			return false;
		fill = rl_dirty_fill(src->dirty);
		rl_count_set(&r->fill, fill);
		r->judged_ns = now_ns;
	}
	flying = source_in_flight(src);
	if ((can_fill || fresh) && pending + flying + fill <= threshold)
		return true;
	/* With little in the rings wait for ACKs instead: what the network queues now delays the last pages. */
	if (pending == 0 && now_ns >= due_ns &&
	    (can_fill ? fill > threshold : flying <= threshold)) {
		source_collect(src, now_ns);
		rl_count(&r->syncs, 1);
		*wake_ns = now_ns;
	}
	return false;
}

static void
source_drive(struct rl_source *src, uint64_t state, uint64_t now_ns, uint64_t *wake_ns)
{
	struct rl_dirty *d = src->dirty;
	bool fresh = false, converged;

	if (d != NULL) {
		fresh = rl_dirty_turn(d, now_ns);
		if (rl_unlikely(rl_dirty_error(d) != 0)) {
			__atomic_store_n(&src->error, rl_dirty_error(d), __ATOMIC_RELEASE);
			source_raise(src, state, RL_SOURCE_FAILED);
			return;
		}
		if (rl_dirty_busy(d))
			*wake_ns = now_ns;
	}
	if (state & STATE_FINAL) {
		source_final(src, state, now_ns, wake_ns);
	} else if (!(state & RL_SOURCE_CONVERGED)) {
		if (d != NULL)
			converged = source_judge(src, fresh, now_ns, wake_ns);
		else
			converged = rl_bitmap_count(&src->pending) == 0 && !src->lane[0].sending &&
				    source_in_flight(src) == 0;
		if (converged)
			source_raise(src, state, RL_SOURCE_CONVERGED);
	}
}

/* Only this lane's own losses could make its pages pending again: nothing in flight means done for good. */
static void
source_check_drained(struct rl_source *src, struct source_lane *lane, uint64_t state)
{
	uint64_t seq = state >> STATE_SHIFT;

	if (lane->done == seq || !lane->idle || rl_sender_in_flight(&lane->sender) > 0)
		return;
	/* Sequentially consistent, so of two lanes at least the later one sees both. */
	__atomic_store_n(&lane->done, seq, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < src->opts.n_lanes; i++)
		if (__atomic_load_n(&src->lane[i].done, __ATOMIC_SEQ_CST) != seq)
			return;
	source_raise(src, state, RL_SOURCE_DRAINED);
}

uint32_t
rl_source_turn(struct rl_source *src, uint32_t lane_index, uint64_t now_ns, uint64_t *wake_ns)
{
	struct source_lane *lane = &src->lane[lane_index];
	uint64_t state = __atomic_load_n(&src->state, __ATOMIC_ACQUIRE);
	bool final = state & STATE_FINAL, all_known = false, probe;
	uint32_t sent;

	rl_sender_hurry(&lane->sender, final);
	probe = rl_sender_on_time(&lane->sender, now_ns);
	if (lane_index == 0)
		source_drive(src, state, now_ns, wake_ns);
	/* Before the search for pending pages: what was collected is then among them. */
	if (final)
		all_known =
			__atomic_load_n(&src->collected, __ATOMIC_ACQUIRE) == state >> STATE_SHIFT;
	sent = rl_source_burst(src, lane_index, probe, final, now_ns, wake_ns);
	if (all_known)
		source_check_drained(src, lane, state);
	else
		*wake_ns = rl_min64(*wake_ns, now_ns + (final ? FINAL_POLL_NS : IDLE_NS));
	*wake_ns = rl_min64(*wake_ns, rl_sender_timer_ns(&lane->sender));

	rl_count(&lane->st.turns, 1);
	rl_count(&lane->st.busy_turns, sent > 0);
	return sent;
}

/* ---- ACKs ---- */

/* The one ACK record of a packet, perhaps among probes, as the sender wants it. */
static bool
source_read_ack(struct rl_record_cursor cur, struct rl_acked_range *range, struct rl_acked *acked)
{
	struct rl_record rec;
	uint64_t top;
	int rc;

	acked->n = 0;
	while ((rc = rl_record_next(&cur, &rec)) > 0) {
		if (rec.type == RL_RECORD_PROBE)
			continue;
		if (rec.type != RL_RECORD_ACK || acked->n > 0)
			return false;
		*acked = (struct rl_acked){
			.largest = rec.ack.largest,
			.floor = rec.ack.floor,
			.delay_ns = rec.ack.delay_us * RL_NS_PER_US,
			.credit = rec.ack.credit,
			.n = rec.ack.n,
			.range = range,
		};
		top = rec.ack.largest + 1;
		for (uint32_t i = 0; i < rec.ack.n; i++) {
			range[i].end = top - rec.ack.pair[i].gap;
			range[i].start = range[i].end - rec.ack.pair[i].len;
			top = range[i].start;
		}
	}
	return rc == 0 && acked->n > 0;
}

void
rl_source_rx(struct rl_source *src, uint32_t lane_index, const uint8_t *data, uint32_t len,
	     uint64_t now_ns)
{
	struct source_lane *lane = &src->lane[lane_index];
	struct rl_acked_range range[RL_WIRE_ACK_PAIRS];
	uint8_t staging[RL_NIC_MAX_PAYLOAD];
	struct rl_record_cursor cur;
	struct rl_packet_hdr h;
	struct rl_acked acked;

	if (len > RL_NIC_MAX_PAYLOAD || rl_packet_get_hdr(data, len, &h) != 0 ||
	    h.lane != lane_index)
		goto bad;
	/* A copy is not news. One that was overtaken may still be: the sender takes it. */
	if (!rl_crypto_is_new(lane->crypto, h.pn))
		return;
	cur.p = rl_crypto_open(lane->crypto, h.pn, h.flags & RL_WIRE_F_EPOCH, data, len, staging,
			       now_ns);
	if (cur.p == NULL)
		goto bad;
	cur.end = cur.p + len - RL_WIRE_MIN_BYTES;
	if (!source_read_ack(cur, range, &acked))
		goto bad;
	rl_sender_on_ack(&lane->sender, &acked, now_ns);
	return;
bad:
	rl_count(&lane->st.bad_packets, 1);
}

/* ---- control ---- */

static void
source_lost(void *ctx, const struct rl_run *run)
{
	rl_bitmap_set_range(ctx, run->first, run->n);
}

static int
source_check_opts(const struct rl_source_opts *o, struct rl_err *err)
{
	const struct rl_nic_info *info = rl_nic_info(o->nic);

	if (!rl_is_pow2(o->n_lanes) || o->n_lanes > RL_MAX_LANES || o->n_lanes > info->n_queues)
		return rl_err_set(
			err, -EINVAL,
			"%u lanes: need a power of two, at most %u and the port's %u queues",
			o->n_lanes, RL_MAX_LANES, info->n_queues);
	if (o->max_payload < PAYLOAD_MIN || o->max_payload > info->max_payload)
		return rl_err_set(
			err, -EINVAL,
			"packets of %u bytes: need %u to %u (the port's MTU); raise the MTU",
			o->max_payload, PAYLOAD_MIN, info->max_payload);
	if (rl_cc_find(o->cc) == NULL)
		return rl_err_set(err, -EINVAL,
				  "no congestion control '%.32s'; choose bbr, cubic or fixed",
				  o->cc);
	return 0;
}

int
rl_source_create(const struct rl_source_opts *opts, struct rl_source **out, struct rl_err *err)
{
	size_t size = sizeof(struct rl_source) + opts->n_lanes * sizeof(struct source_lane);
	struct rl_source *src;
	int rc;

	*out = NULL;
	rc = source_check_opts(opts, err);
	if (rc != 0)
		return rc;
	src = aligned_alloc(64, size);
	if (src == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for %u lanes", opts->n_lanes);
	memset(src, 0, size);
	src->opts = *opts;
	src->state = 1ull << STATE_SHIFT;
	src->threshold = opts->threshold_pages;
	rl_pacer_init(&src->pacer, opts->max_bandwidth);
	src->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (src->event_fd < 0) {
		rc = rl_err_set(err, -errno, "cannot create an eventfd: %s; raise RLIMIT_NOFILE",
				strerror(errno));
		free(src);
		return rc;
	}
	rc = rl_bitmap_init(&src->pending, opts->ram->n_pages);
	if (rc != 0)
		goto destroy;
	rc = -ENOMEM;
	src->version = calloc(opts->ram->n_pages, sizeof(*src->version));
	if (src->version == NULL)
		goto destroy;
	for (uint32_t i = 0; i < opts->n_lanes; i++) {
		rl_cursor_init(&src->lane[i].cursor, i, opts->n_lanes);
		rc = rl_crypto_create(opts->keys, RL_CRYPTO_SOURCE, (uint16_t)i,
				      &src->lane[i].crypto);
		if (rc != 0)
			goto destroy;
		rc = rl_sender_init(&src->lane[i].sender,
				    &(struct rl_sender_opts){
					    .credit = opts->credit,
					    .packet_bytes = opts->max_payload,
					    .cc = rl_cc_find(opts->cc),
					    .seed = (uint64_t)opts->receiver << 8 | i,
					    .lost = source_lost,
					    .lost_ctx = &src->pending,
				    });
		if (rc != 0)
			goto destroy;
	}
	*out = src;
	return 0;
destroy:
	rl_source_destroy(src);
	return rl_err_set(err, rc, "cannot track %llu pages of guest memory: %s; free some memory",
			  (unsigned long long)opts->ram->n_pages, strerror(-rc));
}

void
rl_source_destroy(struct rl_source *src)
{
	if (src == NULL)
		return;
	for (uint32_t i = 0; i < src->opts.n_lanes; i++) {
		rl_sender_fini(&src->lane[i].sender);
		rl_crypto_destroy(src->lane[i].crypto);
	}
	free(src->version);
	rl_bitmap_fini(&src->pending);
	close(src->event_fd);
	free(src);
}

struct rl_bitmap *
rl_source_pending(struct rl_source *src)
{
	return &src->pending;
}

static void
source_mark_extent(void *ctx, uint64_t page, uint64_t n)
{
	rl_bitmap_set_range(ctx, page, n);
}

void
rl_source_start(struct rl_source *src, struct rl_dirty *dirty)
{
	src->dirty = dirty;
	src->rounds.syncs = 1;
	rl_ram_extents(src->opts.ram, source_mark_extent, &src->pending);
	/* Holes are zero at the target from the start. */
	src->lane[0].st.duplicate_pages = src->opts.ram->n_pages - rl_bitmap_count(&src->pending);
}

void
rl_source_set_phase(struct rl_source *src, enum rl_source_phase phase)
{
	source_renew(src, phase == RL_SOURCE_FINAL);
}

void
rl_source_set_threshold(struct rl_source *src, uint64_t pages)
{
	bool final = __atomic_load_n(&src->state, __ATOMIC_RELAXED) & STATE_FINAL;

	if (__atomic_exchange_n(&src->threshold, pages, __ATOMIC_ACQ_REL) != pages && !final)
		source_renew(src, false);
}

void
rl_source_set_max_bandwidth(struct rl_source *src, uint64_t bytes_per_s)
{
	rl_pacer_set_rate(&src->pacer, bytes_per_s);
}

uint32_t
rl_source_events(const struct rl_source *src)
{
	return (uint32_t)__atomic_load_n(&src->state, __ATOMIC_ACQUIRE) & STATE_EVENTS;
}

int
rl_source_event_fd(const struct rl_source *src)
{
	return src->event_fd;
}

int
rl_source_error(const struct rl_source *src)
{
	return __atomic_load_n(&src->error, __ATOMIC_ACQUIRE);
}

static void
source_add_link(struct rl_sender_stats *sum, const struct rl_sender_stats *st)
{
	sum->packets += rl_count_read(&st->packets);
	sum->bytes += rl_count_read(&st->bytes);
	sum->acked += rl_count_read(&st->acked);
	sum->lost += rl_count_read(&st->lost);
	sum->spurious += rl_count_read(&st->spurious);
	sum->refused += rl_count_read(&st->refused);
	sum->ptos += rl_count_read(&st->ptos);
	sum->bad_acks += rl_count_read(&st->bad_acks);
	sum->in_flight += rl_count_read(&st->in_flight);
	sum->srtt_ns = rl_max64(sum->srtt_ns, rl_count_read(&st->srtt_ns));
	sum->window += rl_count_read(&st->window);
	sum->acked_bytes += rl_count_read(&st->acked_bytes);
	sum->pacing_rate += rl_count_read(&st->pacing_rate);
}

void
rl_source_progress(const struct rl_source *src, struct rl_source_progress *p)
{
	*p = (struct rl_source_progress){
		.pending_pages = rl_bitmap_count(&src->pending),
		.fill = rl_count_read(&src->rounds.fill),
		.dirty_sync_count = rl_count_read(&src->rounds.syncs),
	};
	for (uint32_t i = 0; i < src->opts.n_lanes; i++) {
		const struct source_lane *lane = &src->lane[i];

		p->normal_pages += rl_count_read(&lane->st.normal_pages);
		p->duplicate_pages += rl_count_read(&lane->st.duplicate_pages);
		p->bytes += rl_count_read(&lane->st.bytes);
		p->bad_packets += rl_count_read(&lane->st.bad_packets);
		source_add_link(&p->link, &lane->sender.st);
	}
	p->in_flight_packets = p->link.in_flight;
}
