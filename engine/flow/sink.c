/* SPDX-License-Identifier: BSD-3-Clause */
/* The sink turn, see sink.h. A packet is walked twice: once to check every record, then to apply them, so a
 * malformed packet changes nothing. */
#include "flow/sink.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/stats.h"
#include "crypto/packet.h"
#include "memory/install.h"
#include "transport/receiver.h"
#include "wire/packet.h"

#define REFUSED_NS (10 * RL_NS_PER_US) /* the NIC was full: again after this */

struct sink_lane {
	struct rl_receiver receiver;
	struct rl_crypto *crypto;
	uint64_t next_pn;
	struct rl_sink_lane_stats st;
} __attribute__((aligned(64)));

struct rl_sink {
	struct rl_sink_opts opts;
	struct rl_install install;
	struct sink_lane lane[] __attribute__((aligned(64)));
};

/* Are pages [gpn, gpn + n) in one region and one stripe, and is that stripe @lane's? */
static bool
sink_owns(const struct rl_sink *sink, uint32_t lane, uint64_t gpn, uint64_t n)
{
	uint64_t page, stripe;

	if (!rl_ram_run(sink->opts.ram, gpn, n, &page))
		return false;
	stripe = page / RL_STRIPE_PAGES;
	return (page + n - 1) / RL_STRIPE_PAGES == stripe && stripe % sink->opts.n_lanes == lane;
}

static bool
sink_check_record(const struct rl_sink *sink, uint32_t lane, uint64_t pn,
		  const struct rl_record *rec)
{
	switch (rec->type) {
	case RL_RECORD_RAW:
		return sink_owns(sink, lane, rec->raw.gpn, 1);
	case RL_RECORD_ZERO:
		return sink_owns(sink, lane, rec->zero.gpn, rec->zero.count);
	case RL_RECORD_FLOOR:
		return rec->floor <= pn; /* the sender still waits for this very packet */
	case RL_RECORD_PROBE:
		return true;
	case RL_RECORD_ACK:
		break;
	}
	return false;
}

static bool
sink_check(const struct rl_sink *sink, uint32_t lane, uint64_t pn, struct rl_record_cursor cur)
{
	struct rl_record rec;
	int rc;

	while ((rc = rl_record_next(&cur, &rec)) > 0)
		if (!sink_check_record(sink, lane, pn, &rec))
			return false;
	return rc == 0;
}

/* Returns the highest floor that the packet names. */
static uint64_t
sink_apply(struct rl_sink *sink, uint32_t lane_index, struct rl_record_cursor cur)
{
	struct rl_sink_lane_stats *st = &sink->lane[lane_index].st;
	struct rl_install *in = &sink->install;
	struct rl_record rec;
	uint64_t floor = 0;
	int rc;

	while (rl_record_next(&cur, &rec) > 0) {
		switch (rec.type) {
		case RL_RECORD_RAW:
			rc = rl_install_raw(in, lane_index, rec.raw.gpn, rec.raw.version,
					    rec.raw.offset, rec.raw.data, rec.raw.len);
			rl_count(&st->raw_records, 1);
			break;
		case RL_RECORD_ZERO:
			rc = rl_install_zero(in, lane_index, rec.zero.gpn, rec.zero.count,
					     rec.zero.version);
			rl_count(&st->zero_records, 1);
			break;
		case RL_RECORD_FLOOR:
			floor = rl_max64(floor, rec.floor);
			continue;
		default:
			continue;
		}
		assert(rc >= 0); /* sink_check() has seen it */
		rl_count(&st->stale_records, rc == 0);
	}
	return floor;
}

void
rl_sink_rx(struct rl_sink *sink, uint32_t lane_index, const uint8_t *data, uint32_t len,
	   uint64_t now_ns)
{
	struct sink_lane *lane = &sink->lane[lane_index];
	uint8_t staging[RL_NIC_MAX_PAYLOAD];
	struct rl_record_cursor cur;
	struct rl_packet_hdr h;
	uint64_t floor;

	if (len > RL_NIC_MAX_PAYLOAD || rl_packet_get_hdr(data, len, &h) != 0 ||
	    h.lane != lane_index) {
		rl_count(&lane->st.bad_packets, 1);
		return;
	}
	if (!rl_crypto_is_new(lane->crypto, h.pn)) {
		rl_count(&lane->st.duplicates, 1);
		return;
	}
	cur.p = rl_crypto_open(lane->crypto, h.pn, h.flags & RL_WIRE_F_EPOCH, data, len, staging,
			       now_ns);
	if (cur.p == NULL) {
		rl_count(&lane->st.bad_packets, 1);
		return;
	}
	cur.end = cur.p + len - RL_WIRE_MIN_BYTES;
	if (!rl_receiver_is_new(&lane->receiver, h.pn)) {
		rl_count(&lane->st.duplicates, 1);
		return;
	}
	if (!sink_check(sink, lane_index, h.pn, cur)) {
		rl_count(&lane->st.bad_records, 1);
		return;
	}
	floor = sink_apply(sink, lane_index, cur);
	rl_receiver_add(&lane->receiver, h.pn, h.flags & RL_WIRE_F_ACK_NOW, now_ns);
	if (floor > 0)
		rl_receiver_floor(&lane->receiver, floor);
	rl_count(&lane->st.packets, 1);
	rl_count(&lane->st.bytes, len);
}

/* As many ranges as one ACK holds, from the highest down. */
static void
sink_build_ack(const struct rl_sink *sink, struct rl_receiver *r, uint64_t now_ns,
	       struct rl_ack *ack)
{
	uint64_t above = r->largest + 1;

	ack->largest = r->largest;
	ack->floor = r->floor;
	ack->credit = sink->opts.credit;
	ack->delay_us = (uint32_t)rl_min64(rl_receiver_acked(r, now_ns) / RL_NS_PER_US, UINT32_MAX);
	ack->n = 0;
	for (uint32_t i = r->got.n; i-- > 0 && ack->n < RL_WIRE_ACK_PAIRS;) {
		const struct rl_range *range = &r->got.r[i];
		uint64_t gap = above - range->end, n = range->end - range->start;

		if (gap > UINT32_MAX)
			break;
		ack->pair[ack->n].gap = (uint32_t)gap;
		ack->pair[ack->n++].len = (uint32_t)rl_min64(n, UINT32_MAX);
		if (n > UINT32_MAX)
			break;
		above = range->start;
	}
}

static uint32_t
sink_send_ack(struct rl_sink *sink, uint32_t lane_index, uint64_t now_ns)
{
	struct sink_lane *lane = &sink->lane[lane_index];
	struct rl_packer pk;
	struct rl_pkt pkt;
	struct rl_ack ack;

	if (rl_nic_alloc(sink->opts.nic, lane_index, &pkt, 1) == 0)
		return 0;
	sink_build_ack(sink, &lane->receiver, now_ns, &ack);
	pk = (struct rl_packer){.buf = pkt.data + RL_WIRE_HDR_BYTES,
				.cap = pkt.cap - RL_WIRE_MIN_BYTES};
	rl_pack_ack(&pk, &ack);
	rl_packet_put_hdr(pkt.data, &(struct rl_packet_hdr){
					    .flags = rl_crypto_epoch(lane->crypto, now_ns),
					    .lane = (uint16_t)lane_index,
					    .receiver = sink->opts.receiver,
					    .pn = lane->next_pn,
				    });
	rl_crypto_seal(lane->crypto, lane->next_pn++, pkt.data, RL_WIRE_HDR_BYTES + pk.len);
	pkt.len = RL_WIRE_MIN_BYTES + pk.len;
	if (rl_nic_tx_burst(sink->opts.nic, lane_index, sink->opts.path, &pkt, 1) == 0) {
		lane->receiver.ack_now = true; /* still due */
		return 0;
	}
	rl_count(&lane->st.acks, 1);
	return 1;
}

uint32_t
rl_sink_turn(struct rl_sink *sink, uint32_t lane_index, uint64_t now_ns, uint64_t *wake_ns)
{
	struct sink_lane *lane = &sink->lane[lane_index];
	uint32_t sent = 0;

	if (rl_receiver_ack_due(&lane->receiver, now_ns)) {
		sent = sink_send_ack(sink, lane_index, now_ns);
		if (sent == 0) {
			*wake_ns = rl_min64(*wake_ns, now_ns + REFUSED_NS);
			return 0;
		}
	}
	*wake_ns = rl_min64(*wake_ns, rl_receiver_timer_ns(&lane->receiver));
	return sent;
}

static void
free_lanes(struct rl_sink *sink)
{
	for (uint32_t i = 0; i < sink->opts.n_lanes; i++)
		rl_crypto_destroy(sink->lane[i].crypto);
	free(sink);
}

int
rl_sink_create(const struct rl_sink_opts *opts, struct rl_sink **out, struct rl_err *err)
{
	size_t size = sizeof(struct rl_sink) + opts->n_lanes * sizeof(struct sink_lane);
	uint32_t n_queues = rl_nic_info(opts->nic)->n_queues;
	struct rl_sink *sink;

	*out = NULL;
	if (!rl_is_pow2(opts->n_lanes) || opts->n_lanes > RL_MAX_LANES || opts->n_lanes > n_queues)
		return rl_err_set(
			err, -EINVAL,
			"%u lanes: need a power of two, at most %u and the port's %u queues",
			opts->n_lanes, RL_MAX_LANES, n_queues);
	sink = aligned_alloc(64, size);
	if (sink == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for %u lanes", opts->n_lanes);
	memset(sink, 0, size);
	sink->opts = *opts;
	for (uint32_t i = 0; i < opts->n_lanes; i++) {
		rl_receiver_init(&sink->lane[i].receiver);
		if (rl_crypto_create(opts->keys, RL_CRYPTO_TARGET, (uint16_t)i,
				     &sink->lane[i].crypto) != 0) {
			free_lanes(sink);
			return rl_err_set(err, -ENOMEM, "no memory for %u lanes", opts->n_lanes);
		}
	}
	if (rl_install_init(&sink->install, opts->ram, opts->n_lanes) != 0) {
		free_lanes(sink);
		return rl_err_set(err, -ENOMEM, "no memory to track %llu pages of guest memory",
				  (unsigned long long)opts->ram->n_pages);
	}
	*out = sink;
	return 0;
}

void
rl_sink_destroy(struct rl_sink *sink)
{
	if (sink == NULL)
		return;
	rl_install_fini(&sink->install);
	free_lanes(sink);
}

void
rl_sink_stats(const struct rl_sink *sink, struct rl_sink_lane_stats *st)
{
	*st = (struct rl_sink_lane_stats){0};
	for (uint32_t i = 0; i < sink->opts.n_lanes; i++) {
		const struct rl_sink_lane_stats *from = &sink->lane[i].st;

		st->packets += rl_count_read(&from->packets);
		st->bytes += rl_count_read(&from->bytes);
		st->raw_records += rl_count_read(&from->raw_records);
		st->zero_records += rl_count_read(&from->zero_records);
		st->stale_records += rl_count_read(&from->stale_records);
		st->bad_packets += rl_count_read(&from->bad_packets);
		st->bad_records += rl_count_read(&from->bad_records);
		st->duplicates += rl_count_read(&from->duplicates);
		st->acks += rl_count_read(&from->acks);
	}
}

const uint64_t *
rl_sink_touched(const struct rl_sink *sink)
{
	return sink->install.touched;
}
