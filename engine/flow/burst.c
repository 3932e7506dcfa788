/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pending pages into packets. A run of pages is taken (its bits cleared) before the pages are read, so whatever
 * the guest writes from then on is pending again. Zero pages become runs; the others are copied straight into
 * the packet buffers, split wherever a packet ends, and the last one may go on in the next turn's packets.
 */
#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/stats.h"
#include "codec/zero.h"
#include "flow/source_priv.h"
#include "wire/packet.h"

#define TURN_PAGES   512u /* read per turn at most: zero pages fill no packets, but cost a scan */
#define FRAGMENT_MIN 64u  /* a page is not split for less than this */
/* A zero run raises a page's version by less than this: 500 lost in a row cannot confuse a compare. */
#define ZERO_AHEAD 64u
#define REFUSED_NS (10 * RL_NS_PER_US) /* the NIC was full: again after this */

/* A packet's runs always fit the sent-map: no record with new pages is smaller than a zero run. */
static_assert(RL_NIC_MAX_PAYLOAD / RL_WIRE_ZERO_BYTES + 2 <= RL_SENDER_MAX_RUNS, "runs per packet");

/* The packets of one turn. */
struct burst {
	struct rl_source *src;
	struct source_lane *lane;
	uint32_t lane_index;
	uint64_t now_ns;
	uint32_t n;    /* buffers */
	uint32_t open; /* the one being filled; those before it are closed and committed */
	uint32_t bytes;
	uint32_t scanned;
	uint32_t empty_len; /* records of the first packet that carry nothing */
	uint64_t floor;
	uint8_t epoch; /* of the key that seals it */
	struct rl_packer pk;
	struct { /* pages found zero, not yet a record; the open packet has room for it */
		uint64_t first, gpn;
		uint32_t n;
		uint16_t version;
	} zero;
	uint32_t end[RL_NIC_BURST]; /* bytes up to and including each closed packet */
	struct rl_pkt pkt[RL_NIC_BURST];
};

static void
burst_begin_packet(struct burst *b)
{
	const struct rl_pkt *pkt = &b->pkt[b->open];

	b->pk = (struct rl_packer){
		.buf = pkt->data + RL_WIRE_HDR_BYTES,
		.cap = rl_min32(pkt->cap, b->src->opts.max_payload) - RL_WIRE_MIN_BYTES,
	};
	rl_sender_begin(&b->lane->sender);
}

static void
burst_close_packet(struct burst *b, uint8_t flags)
{
	struct rl_sender *sender = &b->lane->sender;
	struct rl_pkt *pkt = &b->pkt[b->open];
	uint64_t pn = rl_sender_next_pn(sender);

	rl_packet_put_hdr(pkt->data, &(struct rl_packet_hdr){
					     .flags = flags | b->epoch,
					     .lane = (uint16_t)b->lane_index,
					     .receiver = b->src->opts.receiver,
					     .pn = pn,
				     });
	rl_crypto_seal(b->lane->crypto, pn, pkt->data, RL_WIRE_HDR_BYTES + b->pk.len);
	pkt->len = RL_WIRE_MIN_BYTES + b->pk.len;
	rl_sender_commit(sender, pkt->len, b->now_ns);
	if (b->open == 0)
		b->lane->floor = b->floor;
	b->bytes += pkt->len;
	b->end[b->open++] = b->bytes;
}

/* The open packet is full. Returns false, and leaves it open, when it is the last one. */
static bool
burst_next_packet(struct burst *b)
{
	if (b->open + 1 == b->n)
		return false;
	burst_close_packet(b, 0);
	burst_begin_packet(b);
	return true;
}

static void
burst_flush_zero(struct burst *b)
{
	if (b->zero.n == 0)
		return;
	rl_pack_zero(&b->pk, b->zero.gpn, b->zero.version, b->zero.n);
	rl_sender_carry(&b->lane->sender, b->zero.first, b->zero.n);
	b->zero.n = 0;
}

/* @page is zero. Returns false when no packet has room for it. */
static bool
burst_zero(struct burst *b, uint64_t page)
{
	uint64_t gpn = rl_ram_gpn(b->src->opts.ram, page);
	uint16_t *version = &b->src->version[page];
	uint16_t ahead = (uint16_t)(b->zero.version - *version);

	/* One record for neighbours of one stripe and one region, and none may see its version fall. */
	if (b->zero.n == 0 || page != b->zero.first + b->zero.n || page % RL_STRIPE_PAGES == 0 ||
	    gpn != b->zero.gpn + b->zero.n || ahead == 0 || ahead >= ZERO_AHEAD) {
		burst_flush_zero(b);
		if (b->pk.cap - b->pk.len < RL_WIRE_ZERO_BYTES && !burst_next_packet(b))
			return false;
		b->zero.first = page;
		b->zero.gpn = gpn;
		b->zero.version = (uint16_t)(*version + 1);
	}
	b->zero.n++;
	*version = b->zero.version;
	rl_count(&b->lane->st.duplicate_pages, 1);
	return true;
}

/* Go on with the page in progress. Returns false when the packets are full before its end. */
static bool
burst_raw(struct burst *b)
{
	const struct rl_ram *ram = b->src->opts.ram;
	struct source_lane *lane = b->lane;
	const uint8_t *hva = rl_ram_hva(ram, lane->page);
	uint64_t gpn = rl_ram_gpn(ram, lane->page);

	while (lane->offset < RL_PAGE_SIZE) {
		uint32_t left = RL_PAGE_SIZE - lane->offset;
		uint32_t len = rl_min32(left, rl_packer_room_raw(&b->pk));

		if (len < left && len < FRAGMENT_MIN) {
			if (!burst_next_packet(b))
				return false;
			continue;
		}
		memcpy(rl_pack_raw(&b->pk, gpn, lane->version, (uint16_t)lane->offset,
				   (uint16_t)len),
		       hva + lane->offset, len);
		rl_sender_carry(&lane->sender, lane->page, 1);
		lane->offset += len;
	}
	lane->sending = false;
	return true;
}

/* Returns false when no packet has room for any of @page. */
static bool
burst_page(struct burst *b, uint64_t page)
{
	struct source_lane *lane = b->lane;

	if (rl_page_is_zero(rl_ram_hva(b->src->opts.ram, page)))
		return burst_zero(b, page);
	burst_flush_zero(b);
	lane->page = page;
	lane->offset = 0;
	lane->version = ++b->src->version[page];
	lane->sending = true;
	rl_count(&lane->st.normal_pages, 1);
	burst_raw(b);
	return true;
}

/* Pages that the burst can still begin, about; 0: not a fragment fits. */
static uint32_t
burst_room(const struct burst *b)
{
	uint32_t left = rl_packer_room_raw(&b->pk);

	left += (b->n - b->open - 1) * (b->src->opts.max_payload - RL_WIRE_MIN_BYTES);
	if (left < FRAGMENT_MIN)
		return 0;
	return rl_min32(left / RL_PAGE_SIZE + 1, TURN_PAGES - b->scanned);
}

/* Fill the packets with pending pages; sets lane->idle when there are no more. */
static void
burst_fill(struct burst *b)
{
	struct rl_bitmap *pending = &b->src->pending;
	struct source_lane *lane = b->lane;
	struct rl_run run;
	uint32_t room;

	if (lane->sending && !burst_raw(b))
		return;
	while ((room = burst_room(b)) > 0) {
		/* Taken means clear: what the guest writes from here on is pending again. */
		if (!rl_bitmap_take_run(pending, &lane->cursor, room, &run)) {
			lane->idle = true;
			return;
		}
		b->scanned += run.n;
		while (run.n > 0 && !lane->sending && burst_page(b, run.first)) {
			run.first++;
			run.n--;
		}
		if (run.n > 0) {
			rl_bitmap_set_range(pending, run.first, run.n);
			lane->cursor.page = run.first;
			return;
		}
		if (lane->sending)
			return;
	}
}

/* FLOOR and PROBE come first in a burst. */
static void
burst_begin(struct burst *b, bool probe)
{
	burst_begin_packet(b);
	b->epoch = rl_crypto_epoch(b->lane->crypto, b->now_ns);
	b->floor = rl_sender_floor(&b->lane->sender);
	if (b->floor != b->lane->floor)
		rl_pack_floor(&b->pk, b->floor);
	b->empty_len = b->pk.len;
	if (probe)
		rl_pack_probe(&b->pk);
}

/* Close and hand over. Returns packets that the NIC took. */
static uint32_t
burst_send(struct burst *b, bool ack_now)
{
	struct rl_source *src = b->src;
	struct source_lane *lane = b->lane;
	uint32_t taken;

	burst_flush_zero(b);
	/* A FLOOR alone is not worth a packet: its ACK would move the floor again. */
	if (b->pk.len > (b->open == 0 ? b->empty_len : 0))
		burst_close_packet(b, ack_now ? RL_WIRE_F_ACK_NOW : 0);
	if (b->open < b->n)
		rl_nic_free(src->opts.nic, b->lane_index, b->pkt + b->open, b->n - b->open);
	if (b->open == 0)
		return 0;
	taken = rl_nic_tx_burst(src->opts.nic, b->lane_index, src->opts.path, b->pkt, b->open);
	if (rl_unlikely(taken < b->open)) {
		rl_sender_refused(&lane->sender, b->open - taken);
		/* The last packet held its beginning, so it is pending again anyway. */
		if (lane->sending)
			rl_bitmap_set(&src->pending, lane->page);
		lane->sending = false;
		lane->idle = false;
	}
	b->bytes = taken > 0 ? b->end[taken - 1] : 0;
	rl_count(&lane->st.bytes, b->bytes);
	return taken;
}

/* How many packets may go now: window and pacing of the lane, the migration's bandwidth. */
static uint32_t
burst_admit(struct rl_source *src, struct source_lane *lane, uint64_t now_ns, uint64_t *wake_ns)
{
	struct rl_sender *sender = &lane->sender;
	uint32_t room, want;

	lane->idle = !lane->sending && rl_bitmap_count(&src->pending) == 0;
	if (lane->idle) {
		rl_sender_app_limited(sender, now_ns);
		return 0;
	}
	room = rl_sender_admit(sender, RL_NIC_BURST, now_ns);
	if (room == 0) {
		if (rl_sender_room(sender) > 0)
			*wake_ns = rl_min64(*wake_ns, rl_sender_pacing_ns(sender, now_ns));
		return 0;
	}
	want = rl_pacer_admit(&src->pacer, room, src->opts.max_payload, now_ns);
	if (want == 0)
		*wake_ns = rl_min64(*wake_ns, rl_pacer_timer_ns(&src->pacer, now_ns));
	if (want < room)
		rl_sender_app_limited(sender, now_ns);
	return want;
}

uint32_t
rl_source_burst(struct rl_source *src, uint32_t lane_index, bool probe, bool final, uint64_t now_ns,
		uint64_t *wake_ns)
{
	struct source_lane *lane = &src->lane[lane_index];
	uint32_t want, taken;
	uint64_t budget;
	struct burst b;

	want = burst_admit(src, lane, now_ns, wake_ns);
	if (want == 0 && !probe)
		return 0;

	b.src = src;
	b.lane = lane;
	b.lane_index = lane_index;
	b.now_ns = now_ns;
	b.open = b.bytes = b.scanned = b.zero.n = 0;
	budget = (uint64_t)want * src->opts.max_payload;
	b.n = rl_nic_alloc(src->opts.nic, lane_index, b.pkt, want > 0 ? want : 1);
	if (b.n == 0) {
		rl_pacer_return(&src->pacer, budget);
		rl_sender_app_limited(&lane->sender, now_ns);
		*wake_ns = rl_min64(*wake_ns, now_ns + REFUSED_NS);
		return 0;
	}
	burst_begin(&b, probe);
	if (want > 0)
		burst_fill(&b);
	taken = burst_send(&b, probe || final || lane->idle);
	if (b.bytes < budget)
		rl_pacer_return(&src->pacer, budget - b.bytes);
	if (taken < b.open)
		*wake_ns = rl_min64(*wake_ns, now_ns + REFUSED_NS);
	else if (!lane->idle)
		*wake_ns = now_ns;
	return taken;
}
