/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty source: against a model of KVM's rings (dirty_model.h), step by step and at random, and against KVM
 * itself (dirty_kvm.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include <ramlift/vmm.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/rand.h"
#include "base/stats.h"
#include "memory/dirty.h"

#include "dirty_kvm.h"
#include "dirty_model.h"

/* ---- deterministic ---- */

/* DESIGN rule 1: between harvest and reset the guest writes without a new entry. */
static void
test_order(void **state)
{
	struct model *m = model_ready(4096);

	(void)state;
	guest_write(m, 0, 5);
	guest_write(m, 1, LOW_PAGES + 5);
	rl_dirty_collect(m->d, 1);
	for (int i = 0; i < 5; i++) {
		assert_false(model_turn(m));
		assert_int_equal(rl_bitmap_count(&m->pending), 0);
		copy_pending(m); /* a copy made now would miss the next write */
		guest_write(m, 0, 5);
	}
	assert_int_equal(m->ring[0].dirty, 1);
	assert_int_equal(m->ring[0].gfn[0].flags, RL_VMM_GFN_RESET);
	assert_true(rung(m));
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	assert_true(rl_bitmap_test(&m->pending, 5));
	assert_true(rl_bitmap_test(&m->pending, LOW_PAGES + 5));
	assert_int_equal(copy_pending(m), 2);
	check_shadow(m);

	/* Protected again: the next write is heard of. */
	guest_write(m, 1, 5);
	assert_int_equal(rl_dirty_fill(m->d), 1);
	finish(m);
	assert_int_equal(m->doors, 2);
	model_free(m);
}

static void
test_duplicates(void **state)
{
	struct model *m = model_ready(4096);
	const struct rl_dirty_stats *st = rl_dirty_stats(m->d);

	(void)state;
	m->emulated = true;
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t p = 100; p < 110; p++) {
			guest_write(m, 0, p);
			guest_write(m, 0, p);
		}
	collect(m);
	assert_int_equal(st->entries, 80);
	assert_int_equal(st->pages, 10);
	assert_int_equal(rl_bitmap_count(&m->pending), 10);
	assert_int_equal(st->collections, 1);
	finish(m);
	model_free(m);
}

/* An empty collection costs the VMM nothing. */
static void
test_empty(void **state)
{
	struct model *m = model_ready(4096);

	(void)state;
	collect(m);
	assert_int_equal(m->doors, 0);
	assert_false(model_turn(m));
	model_free(m);
}

static void
test_fill(void **state)
{
	static const uint32_t counts[] = {0,   1,    2,    3,    4,    5,    31,
					  500, 1023, 1024, 1025, 2048, 4031, 4095};
	struct model *m = model_ready(4096);

	(void)state;
	assert_true(rl_dirty_can_fill(m->d));
	guest_write(m, 0, 1);
	collect(m); /* now it knows where the ring is */
	for (uint32_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		for (uint32_t k = 0; k < counts[i]; k++)
			push_raw(m, 0, SLOT_LOW, k % LOW_PAGES);
		assert_int_equal(rl_dirty_fill(m->d), counts[i]);
		collect(m);
		assert_int_equal(rl_dirty_fill(m->d), 0);
	}
	assert_int_equal(rl_dirty_stats(m->d)->overflows, 0);
	/* One that was never seen: an estimate that misses less than 1/64. */
	for (uint32_t k = 0; k < 500; k++)
		push_raw(m, 1, SLOT_LOW, k);
	assert_in_range(rl_dirty_fill(m->d), 500 - 64, 500 + 64);
	model_free(m);
}

static void
test_pressure(void **state)
{
	struct model *m = model_ready(4096);

	(void)state;
	guest_write(m, 0, 1);
	collect(m);
	for (uint32_t k = 0; k < 2048; k++)
		guest_write(m, 0, 1000 + k);
	for (int i = 0; i < 100; i++)
		assert_false(model_turn(m));
	assert_false(rl_dirty_busy(m->d));
	guest_write(m, 0, 3500);
	assert_false(model_turn(m));
	assert_true(rl_dirty_busy(m->d) && rung(m));
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	assert_int_equal(rl_dirty_stats(m->d)->pressure, 1);
	assert_int_equal(rl_bitmap_count(&m->pending), 2050);

	/* A ring whose place is not known yet is found by looking round. */
	guest_write(m, 1, 2);
	for (int i = 0; i < 4096 && !rl_dirty_busy(m->d); i++)
		model_turn(m);
	assert_true(rl_dirty_busy(m->d));
	finish(m);
	model_free(m);
}

static void
test_slots(void **state)
{
	struct model *m = model_ready(4096);
	const struct rl_dirty_stats *st = rl_dirty_stats(m->d);

	(void)state;
	set_slot(m, 0, 20, 900, 200);              /* half of it in guest RAM */
	set_slot(m, 1, 21, UINT64_MAX - 10, 1000); /* wraps */
	set_slot(m, 127, 22, 0, UINT64_MAX);
	set_slot(m, 3, 23, 0, 0); /* free */
	push_raw(m, 0, SLOT_LOW, LOW_PAGES - 1);
	push_raw(m, 0, SLOT_LOW, LOW_PAGES); /* out of slot */
	push_raw(m, 0, SLOT_HIGH, 0);
	push_raw(m, 0, SLOT_HIGH, UINT64_MAX); /* out */
	push_raw(m, 0, 20, 0);
	push_raw(m, 0, 20, 100); /* out: in the hole */
	push_raw(m, 0, 21, 5);   /* out */
	push_raw(m, 0, 22, GPN_4G);
	push_raw(m, 0, 22, 1ull << 50); /* out */
	push_raw(m, 0, 23, 0);          /* unknown */
	push_raw(m, 0, 0xffffffff, 0);  /* unknown */
	push_raw(m, 0, SLOT_LOW, 1);
	collect(m);
	assert_int_equal(st->entries, 12);
	assert_int_equal(st->unknown_slot, 2);
	assert_int_equal(st->out_of_slot, 5);
	assert_int_equal(rl_bitmap_count(&m->pending), 4);
	assert_true(rl_bitmap_test(&m->pending, LOW_PAGES - 1));
	assert_true(rl_bitmap_test(&m->pending, LOW_PAGES));
	assert_true(rl_bitmap_test(&m->pending, 900));
	assert_true(rl_bitmap_test(&m->pending, 1));
	model_free(m);
}

/* The next entry is none that KVM writes. */
static void
test_garbage(void **state)
{
	static const uint32_t flags[] = {4, 5, 0xffffffff, RL_VMM_GFN_RESET, 3, 0x100};

	(void)state;
	for (uint32_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		struct model *m = model_ready(4096);

		guest_write(m, 0, 1);
		m->ring[0].gfn[1].flags = flags[i];
		rl_dirty_collect(m->d, 1);
		assert_false(model_turn(m));
		assert_int_equal(rl_dirty_error(m->d), -EPROTO);
		assert_false(rl_dirty_busy(m->d));
		rl_dirty_collect(m->d, 1);
		assert_false(rl_dirty_busy(m->d));
		model_free(m);
	}
}

static void
test_drain(void **state)
{
	struct model *m = model_ready(4096);

	(void)state;
	/* Idle: harvested and answered in one turn, pending only after the reset. */
	guest_write(m, 0, 17);
	m->shared->drain_req = 1;
	assert_false(model_turn(m));
	assert_int_equal(m->shared->drain_ack, 1);
	set_slot(m, 5, SLOT_LOW, GPN_4G + 500, 100); /* the id now means something else */
	assert_int_equal(rl_bitmap_count(&m->pending), 0);
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	assert_int_equal(rl_bitmap_count(&m->pending), 1);
	assert_true(rl_bitmap_test(&m->pending, 17));
	push_raw(m, 0, SLOT_LOW, 17);
	collect(m);
	assert_true(rl_bitmap_test(&m->pending, LOW_PAGES + 517));

	/* While KVM resets: the entries that came since the harvest go by the old table too. */
	copy_pending(m);
	set_slot(m, 5, SLOT_LOW, 0, LOW_PAGES);
	push_raw(m, 0, SLOT_LOW, 1);
	rl_dirty_collect(m->d, 1);
	model_turn(m);
	push_raw(m, 0, SLOT_LOW, 2);
	m->shared->drain_req = 2;
	model_turn(m);
	assert_int_equal(m->shared->drain_ack, 1);
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	assert_false(model_turn(m));
	assert_int_equal(m->shared->drain_ack, 2);
	set_slot(m, 5, SLOT_LOW, 0, 0);
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	assert_int_equal(rl_bitmap_count(&m->pending), 2);
	assert_true(rl_bitmap_test(&m->pending, 1) && rl_bitmap_test(&m->pending, 2));
	assert_int_equal(rl_dirty_stats(m->d)->unknown_slot, 0);
	assert_int_equal(rl_dirty_stats(m->d)->drains, 2);
	model_free(m);
}

static void
test_door_results(void **state)
{
	static const struct {
		int64_t result;
		int error;
	} cases[] = {{-EIO, -EIO}, {INT64_MIN, -EPROTO}, {0, -EPROTO}, {-EINTR, -EINTR}};
	struct model *m = model_ready(4096);

	(void)state;
	for (uint32_t p = 0; p < 1000; p++)
		guest_write(m, p % 2, p);
	rl_dirty_collect(m->d, 1);
	for (int i = 0; i < 200 && !model_turn(m); i++) { /* KVM stops early, and is interrupted */
		no_error(m);
		assert_int_equal(rl_bitmap_count(&m->pending), 0);
		if (i % 3 == 2 && rung(m))
			answer(m, -EINTR);
		else
			serve(m, 47);
	}
	assert_true(m->doors > 1000 / 47);
	assert_int_equal(rl_bitmap_count(&m->pending), 1000);
	finish(m);

	/* The VMM resets by itself: all are free although the sum is short. */
	guest_write(m, 0, 3);
	rl_dirty_collect(m->d, 1);
	model_turn(m);
	assert_int_equal(kernel_reset(m, UINT32_MAX), 1);
	serve(m, UINT32_MAX);
	assert_true(model_turn(m));
	finish(m);
	model_free(m);

	for (uint32_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		m = model_ready(4096);
		guest_write(m, 0, 1);
		rl_dirty_collect(m->d, 1);
		for (int k = 0; k < 100 && rl_dirty_error(m->d) == 0; k++) {
			assert_false(model_turn(m));
			if (rung(m))
				answer(m, cases[i].result);
		}
		assert_int_equal(rl_dirty_error(m->d), cases[i].error);
		assert_int_equal(rl_bitmap_count(&m->pending), 0);
		model_free(m);
	}
}

/* DESIGN rule 2. @lost entries overwritten, then the guest goes on. */
static void
overflow_by(uint32_t lost, uint32_t before)
{
	struct model *m = model_ready(4096);
	const struct rl_dirty_stats *st = rl_dirty_stats(m->d);

	m->emulated = true;
	for (uint32_t p = 0; p < PAGES; p++)
		*rl_ram_hva(&m->ram, p) = 1;
	rl_bitmap_set_range(&m->pending, 0, PAGES);
	copy_pending(m);
	for (uint32_t i = 0; i < before; i++)
		guest_write(m, 0, i);
	if (before > 0)
		collect(m);
	copy_pending(m);
	for (uint32_t i = 0; i < 4096 + lost; i++)
		guest_write(m, 0, (500 + i) % PAGES);
	guest_write(m, 1, 7);
	collect(m);
	assert_int_equal(st->overflows, 2);
	assert_int_equal(rl_bitmap_count(&m->pending), PAGES);
	assert_int_equal(used(&m->ring[0]), lost);
	copy_pending(m);
	check_shadow(m);

	/* The other ring has noticed nothing. */
	guest_write(m, 1, 8);
	assert_int_equal(rl_dirty_fill(m->d), 1);

	/* Until the log was started anew, any page may have been written unheard of. */
	guest_write(m, 0, 8);
	collect(m);
	assert_int_equal(copy_pending(m), PAGES);
	relog(m);
	collect(m);
	assert_int_equal(copy_pending(m), PAGES);

	for (uint32_t i = 0; i < 3; i++) { /* found again, over several times round */
		for (uint32_t k = 0; k < 900; k++)
			guest_write(m, 0, 3000 + k % 100);
		collect(m);
		assert_int_equal(copy_pending(m), 100);
		check_shadow(m);
		assert_int_equal(used(&m->ring[0]), 0);
	}
	assert_int_equal(st->overflows, 2);
	finish(m);
	model_free(m);
}

static void
test_overflow(void **state)
{
	static const uint32_t lost[] = {0, 1, 2, 24, 178, 1000, 1088, 3000}; /* more: test_stuck */

	(void)state;
	for (uint32_t i = 0; i < sizeof(lost) / sizeof(*lost); i++)
		overflow_by(lost[i], 100);
	/* Before the ring was seen at all. */
	overflow_by(0, 0);
	overflow_by(500, 0);
}

/* So many lost that KVM sees the ring full when all of it is free: the vCPU would stand still for ever. */
static void
test_stuck(void **state)
{
	static const uint32_t lost[] = {4096 - RESERVED, 4096, 12000};

	(void)state;
	for (uint32_t i = 0; i < sizeof(lost) / sizeof(*lost); i++) {
		struct model *m = model_ready(4096);

		m->emulated = true;
		for (uint32_t p = 0; p < PAGES; p++)
			*rl_ram_hva(&m->ram, p) = 1;
		guest_write(m, 0, 1);
		guest_write(m, 1, 1);
		collect(m);
		for (uint32_t k = 0; k < 4096 + lost[i]; k++)
			guest_write(m, 0, k % PAGES);
		collect(m);
		assert_true(soft_full(&m->ring[0]));
		for (int turns = 0; soft_full(&m->ring[0]); turns++) {
			m->shared->ring_full_exits++;
			model_turn(m);
			no_error(m);
			serve(m, UINT32_MAX);
			assert_true(turns < 200);
		}
		guest_write(m, 0, 1);
		finish(m);
		assert_int_equal(used(&m->ring[0]), 0);
		model_free(m);
	}
}

/* KVM pushes over entries that were harvested already but not reset. */
static void
test_overflow_late(void **state)
{
	static const uint32_t more[] = {1, 10, 500, 1088};

	(void)state;
	for (uint32_t i = 0; i < sizeof(more) / sizeof(*more); i++)
		for (uint32_t first = 0; first < 2; first++) {
			struct model *m = model_ready(8192); /* two turns to harvest */

			m->emulated = true;
			rl_bitmap_set_range(&m->pending, 0, PAGES);
			for (uint32_t p = 0; p < PAGES; p++)
				*rl_ram_hva(&m->ram, p) = 1;
			guest_write(m, 0, 9);
			collect(m);
			for (uint32_t k = 0; k < 8192 - 30; k++)
				guest_write(m, 0, k % PAGES);
			rl_dirty_collect(m->d, 1);
			model_turn(m);
			if (first == 1)
				while (!rung(m))
					model_turn(m);
			for (uint32_t k = 0; k < 30 + more[i]; k++)
				guest_write(m, 0, (k * 7) % PAGES);
			finish(m);
			assert_int_equal(rl_dirty_stats(m->d)->overflows, 2);
			guest_write(m, 0, 77);
			collect(m);
			assert_int_equal(used(&m->ring[0]), 0);
			finish(m);
			model_free(m);
		}
}

/* A new engine takes the rings over where the old one left them. */
static void
test_takeover(void **state)
{
	struct model *m = model_ready(4096);

	(void)state;
	m->emulated = true;
	for (uint32_t p = 0; p < PAGES; p++)
		*rl_ram_hva(&m->ram, p) = 1;
	rl_bitmap_set_range(&m->pending, 0, PAGES);
	/* All free, but not at entry 0. */
	for (uint32_t k = 0; k < 777; k++)
		guest_write(m, 0, k);
	finish(m);
	rl_dirty_close(m->d);
	model_open(m);
	guest_write(m, 0, 40);
	collect(m);
	assert_int_equal(rl_bitmap_count(&m->pending), 1);

	/* Some harvested and not reset, some not even harvested, round the end. */
	for (uint32_t k = 0; k < 1250; k++)
		guest_write(m, 0, k);
	rl_dirty_collect(m->d, 1);
	model_turn(m);
	for (uint32_t k = 0; k < 100; k++)
		guest_write(m, 0, 2000 + k);
	rl_dirty_close(m->d);
	model_open(m);
	rl_bitmap_set_range(&m->pending, 0, PAGES);
	collect(m);
	assert_int_equal(used(&m->ring[0]), 0);
	assert_int_equal(rl_dirty_stats(m->d)->entries, 100);
	finish(m);

	/* Lost. */
	for (uint32_t k = 0; k < 4096 + 333; k++)
		guest_write(m, 0, k % PAGES);
	collect(m);
	assert_int_equal(used(&m->ring[0]), 333);
	rl_dirty_close(m->d);
	model_open(m);
	guest_write(m, 0, 3);
	collect(m);
	assert_int_equal(used(&m->ring[0]), 0);
	assert_int_equal(rl_dirty_stats(m->d)->overflows, 0);
	finish(m);
	model_free(m);
}

/* ---- at random ---- */

static void
soak(uint64_t seed, uint64_t *overflows)
{
	struct model *m = model_ready(4096);
	struct rl_rand rnd = {.state = seed};
	uint32_t at_once = seed % 4 < 2 ? UINT32_MAX : 900;

	print_message("seed %lu\n", (unsigned long)seed);
	m->emulated = seed / 4 % 2;
	m->rnd = &rnd;
	m->batch[seed % 2] = 1 + (uint32_t)rl_rand_below(&rnd, seed % 8 < 4 ? 1088 : 12288);
	m->batch[1 - seed % 2] = RESERVED; /* two that overflow at once: see credit() */
	for (uint32_t p = 0; p < PAGES; p++)
		*rl_ram_hva(&m->ram, p) = 1;
	rl_bitmap_set_range(&m->pending, 0, PAGES);
	for (uint32_t i = 0; i < 3000; i++) {
		switch (rl_rand_below(&rnd, 8)) {
		case 0:
		case 1:
			guest_step(m);
			break;
		case 2:
			serve(m, (uint32_t)rl_rand_below(&rnd, at_once));
			model_turn(m);
			no_error(m);
			break;
		case 3:
			if (rl_rand_below(&rnd, 10) == 0)
				rl_dirty_collect(m->d, 1);
			break;
		case 4:
			copy_pending(m);
			break;
		case 5:
			if (rl_rand_below(&rnd, 10) == 0)
				relog(m);
			if (m->shared->drain_req == m->shared->drain_ack &&
			    rl_rand_below(&rnd, 10) == 0)
				m->shared->drain_req++;
			break;
		default:
			model_turn(m);
			no_error(m);
		}
	}
	m->rnd = NULL;
	finish(m);
	*overflows += rl_dirty_stats(m->d)->overflows;
	assert_int_equal(rl_dirty_stats(m->d)->unknown_slot, 0);
	model_free(m);
}

static void
test_soak(void **state)
{
	uint64_t overflows = 0;

	(void)state;
	for (uint64_t seed = 1; seed <= 100; seed++)
		soak(seed, &overflows);
	assert_true(overflows > 50);
}

/* ---- opening and closing ---- */

static void
refuse(struct model *m, int rc, const char *word)
{
	struct rl_dirty *d = NULL;
	struct rl_err err = {0};

	assert_int_equal(rl_dirty_open(&m->opts, &d, &err), rc);
	if (strstr(err.text, word) == NULL)
		fail_msg("no '%s' in: %s", word, err.text);
}

static void
test_refused(void **state)
{
	struct model *m = model_new(4096, sizeof(struct rl_vmm_shared));
	struct rl_bitmap small;
	int fd;

	(void)state;
	assert_int_equal(rl_bitmap_init(&small, PAGES - 1), 0);
	m->opts.pending = &small;
	refuse(m, -EINVAL, "pending set");
	m->opts.pending = &m->pending;
	rl_bitmap_fini(&small);

	m->opts.shared_size--;
	refuse(m, -EPROTO, "at least");
	m->opts.shared_size = 1 << 20;
	refuse(m, -EPROTO, "shorter");
	m->opts.shared_size = sizeof(struct rl_vmm_shared);
	fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	m->opts.shared_fd = fd;
	refuse(m, -EPROTO, "not sealed");
	m->opts.shared_fd = m->shared_fd;
	m->opts.doorbell_fd = fd;
	refuse(m, -EPROTO, "not an eventfd");
	m->opts.doorbell_fd = m->doorbell;

	m->shared->n_slots = RL_VMM_MAX_SLOTS + 1;
	refuse(m, -EPROTO, "129 slots");
	m->shared->n_slots = 1;
	m->shared->magic++;
	refuse(m, -EPROTO, "magic");
	m->shared->magic--;

	m->ring_opts[1].fd = fd;
	refuse(m, -EPROTO, "vCPU 1 is not sealed");
	m->ring_opts[1].fd = m->ring_fd;
	m->ring_opts[1].offset *= 2;
	refuse(m, -EPROTO, "shorter");
	m->ring_opts[1].offset = UINT64_MAX - 4095;
	refuse(m, -EPROTO, "vCPU 1");
	m->ring_opts[1].offset = 100;
	refuse(m, -EPROTO, "cannot map");
	m->ring_opts[1].offset = 0;
	m->ring_opts[1].entries = 1024;
	refuse(m, -EINVAL, "1024 entries");
	m->ring_opts[1].entries = 3000;
	refuse(m, -EINVAL, "3000 entries");
	m->ring_opts[1].entries = 131072;
	refuse(m, -EINVAL, "131072 entries");
	m->opts.n_rings = 0;
	refuse(m, -EINVAL, "0 dirty rings");
	m->opts.n_rings = RL_VMM_MAX_VCPUS + 1;
	refuse(m, -EINVAL, "257 dirty rings");
	close(fd);
	model_free(m);
}

static int
count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "memfd:dirty") != NULL;
	fclose(f);
	return n;
}

static void
test_close(void **state)
{
	struct model *m = model_new(4096, sizeof(struct rl_vmm_shared));
	int before = count_maps();

	(void)state;
	model_open(m);
	assert_true(count_maps() > before);
	rl_dirty_close(m->d);
	assert_int_equal(count_maps(), before);
	rl_dirty_close(NULL);
	m->d = NULL;
	model_free(m);
}

/* ---- the bitmap backend ---- */

static struct model *
bitmap_model(void)
{
	struct model *m = model_new(4096, 16384);

	m->opts.bitmap = true;
	m->opts.n_rings = 0;
	m->shared->slot[5].bitmap = 8192;
	m->shared->slot[9].bitmap = 12288;
	model_open(m);
	assert_false(rl_dirty_can_fill(m->d));
	assert_int_equal(rl_dirty_fill(m->d), 0);
	return m;
}

static void
set_bit(struct model *m, uint64_t offset, uint64_t bit)
{
	((uint8_t *)m->shared)[offset + bit / 8] |= (uint8_t)(1u << bit % 8);
}

static bool
bitmap_collect(struct model *m)
{
	rl_dirty_collect(m->d, 1);
	for (int i = 0; i < 300; i++) {
		if (model_turn(m))
			return true;
		if (!rung(m))
			continue;
		assert_int_equal(m->shared->door_cmd, RL_VMM_DOOR_SYNC_BITMAP);
		assert_int_equal(rl_bitmap_count(&m->pending), 0);
		answer(m, 0);
	}
	return false;
}

static void
test_bitmap(void **state)
{
	struct model *m = bitmap_model();
	const struct rl_dirty_stats *st = rl_dirty_stats(m->d);

	(void)state;
	set_bit(m, 8192, 0);
	set_bit(m, 8192, LOW_PAGES - 1);
	set_bit(m, 8192, LOW_PAGES); /* behind the end: none of the slot's */
	set_bit(m, 12288, 1);
	set_bit(m, 12288, PAGES - LOW_PAGES - 1);
	assert_true(bitmap_collect(m));
	assert_int_equal(rl_bitmap_count(&m->pending), 4);
	assert_true(rl_bitmap_test(&m->pending, 0) && rl_bitmap_test(&m->pending, LOW_PAGES - 1));
	assert_true(rl_bitmap_test(&m->pending, LOW_PAGES + 1));
	assert_true(rl_bitmap_test(&m->pending, PAGES - 1));
	assert_int_equal(st->entries, 4);
	assert_int_equal(st->pages, 4);
	copy_pending(m);

	/* A deleted slot: its bitmap says all; taken before the answer. */
	memset((uint8_t *)m->shared + 8192, 0xff, LOW_PAGES / 8);
	m->shared->drain_req = 7;
	assert_false(model_turn(m));
	assert_int_equal(m->shared->drain_ack, 0);
	assert_true(bitmap_collect(m));
	assert_int_equal(m->shared->drain_ack, 7);
	assert_int_equal(rl_bitmap_count(&m->pending), LOW_PAGES + 2);
	copy_pending(m);

	/* Half of the slot lies in the hole. */
	memset((uint8_t *)m->shared + 8192, 0, 8192);
	m->shared->slot[5].gpn = 500;
	set_bit(m, 8192, 499);
	set_bit(m, 8192, 500);
	assert_true(bitmap_collect(m));
	assert_int_equal(rl_bitmap_count(&m->pending), 1);
	assert_true(rl_bitmap_test(&m->pending, 999));
	assert_int_equal(st->out_of_slot, 1);
	model_free(m);
}

static void
test_bitmap_hostile(void **state)
{
	static const struct {
		uint64_t offset, n_pages;
	} bad[] = {{8193, 64},          {0, 64},           {4088, 64},
		   {16384, 1},          {16376, 65},       {8192, 0},
		   {8192, UINT64_MAX},  {8192, 8193 * 8},  {UINT64_MAX, 1},
		   {UINT64_MAX - 7, 1}, {8192, 1ull << 61}};

	(void)state;
	for (uint32_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct model *m = bitmap_model();

		m->shared->slot[5].bitmap = bad[i].offset;
		m->shared->slot[5].n_pages = bad[i].n_pages;
		assert_false(bitmap_collect(m));
		assert_int_equal(rl_dirty_error(m->d), -EPROTO);
		model_free(m);
	}
}

/* ---- KVM ---- */

static void
test_kvm_ring(void **state)
{
	const struct vm_opts o = {.writer = VM_RING3_INC, .ring_entries = 65536};
	struct rl_dirty_stats st;

	(void)state;
	copy_guest(&o, 0, &st);
}

static void
test_kvm_ring_small(void **state)
{
	const struct vm_opts o = {.writer = VM_RING3_INC, .ring_entries = 4096};
	struct rl_dirty_stats st;

	(void)state;
	copy_guest(&o, 2000, &st);
}

static void
test_kvm_ring_huge(void **state)
{
	const struct vm_opts o = {.writer = VM_RING3_INC, .huge = true, .ring_entries = 65536};
	struct rl_dirty_stats st;

	(void)state;
	copy_guest(&o, 0, &st);
}

static void
test_kvm_bitmap(void **state)
{
	const struct vm_opts o = {.writer = VM_RING3_INC};
	struct rl_dirty_stats st;

	(void)state;
	copy_guest(&o, 0, &st);
}

static void
test_kvm_overflow(void **state)
{
	const struct vm_opts o = {.writer = VM_RING0_STOS, .ring_entries = 4096};
	struct rl_dirty_stats st;

	(void)state;
	copy_guest(&o, 5000, &st);
	if (st.overflows == 0) {
		print_message("skipped: this KVM stops a vCPU before its ring overflows\n");
		skip();
	}
}

/* The VMM announces more entries than it enabled: an error, not SIGBUS. */
static void
test_kvm_ring_short(void **state)
{
	const struct vm_opts o = {.writer = VM_RING3_INC, .ring_entries = 4096};
	struct vm *v = vm_open(&o);
	struct rl_err err = {0};
	struct rl_dirty *d;

	(void)state;
	if (v == NULL)
		skip();
	v->ring.entries = 65536;
	assert_int_equal(rl_dirty_open(&v->opts, &d, &err), -EPROTO);
	assert_non_null(strstr(err.text, "fewer than 65536"));
	vm_close(v);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),         cmocka_unit_test(test_duplicates),
		cmocka_unit_test(test_empty),         cmocka_unit_test(test_fill),
		cmocka_unit_test(test_pressure),      cmocka_unit_test(test_slots),
		cmocka_unit_test(test_garbage),       cmocka_unit_test(test_drain),
		cmocka_unit_test(test_door_results),  cmocka_unit_test(test_overflow),
		cmocka_unit_test(test_stuck),         cmocka_unit_test(test_overflow_late),
		cmocka_unit_test(test_takeover),      cmocka_unit_test(test_soak),
		cmocka_unit_test(test_refused),       cmocka_unit_test(test_close),
		cmocka_unit_test(test_bitmap),        cmocka_unit_test(test_bitmap_hostile),
		cmocka_unit_test(test_kvm_ring),      cmocka_unit_test(test_kvm_ring_small),
		cmocka_unit_test(test_kvm_ring_huge), cmocka_unit_test(test_kvm_bitmap),
		cmocka_unit_test(test_kvm_overflow),  cmocka_unit_test(test_kvm_ring_short),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
