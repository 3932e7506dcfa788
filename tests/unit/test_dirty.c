/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty source: against a model that does with rings in a memfd what Linux does (virt/kvm/dirty_ring.c,
 * with its two indices and no check for a full ring), and against KVM itself (dirty_kvm.h).
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

#define PAGES     4096u
#define LOW_PAGES 1000u /* then a hole, and the rest from 4 GiB on */
#define GPN_4G    (1ull << 20)
#define SLOT_LOW  7u
#define SLOT_HIGH 0x10003u /* in address space 1 */
#define RINGS     2u
#define RESERVED  64u

struct model_ring {
	struct rl_vmm_dirty_gfn *gfn;
	uint32_t entries, dirty, reset; /* KVM's two indices */
};

struct model {
	struct rl_ram ram;
	struct rl_bitmap pending;
	struct rl_cursor cursor;
	uint32_t shadow[PAGES];
	bool writable[PAGES]; /* KVM lets the guest write without an entry */
	bool emulated;        /* an entry for every write */
	int ring_fd, shared_fd, doorbell;
	struct model_ring ring[RINGS];
	struct rl_vmm_shared *shared;
	struct rl_dirty_ring_opts ring_opts[RINGS];
	struct rl_dirty_opts opts;
	struct rl_dirty *d;
	uint64_t doors;
};

static int
sealed_memfd(uint64_t bytes)
{
	int fd = memfd_create("dirty", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

static void *
map(int fd, uint64_t bytes, uint64_t offset)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

	assert_true(p != MAP_FAILED);
	return p;
}

static void
model_open(struct model *m)
{
	struct rl_err err = {0};

	if (rl_dirty_open(&m->opts, &m->d, &err) != 0)
		fail_msg("%s", err.text);
}

static void
set_slot(struct model *m, uint32_t i, uint32_t slot, uint64_t gpn, uint64_t n_pages)
{
	m->shared->slot[i] = (struct rl_vmm_slot){
		.slot = slot, .valid = n_pages > 0, .gpn = gpn, .n_pages = n_pages};
}

static struct model *
model_new(uint32_t entries, uint64_t shared_bytes)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t bytes = entries * sizeof(struct rl_vmm_dirty_gfn);
	struct rl_region r = {.page_size = 4096, .n_pages = LOW_PAGES};
	struct rl_err err = {0};

	assert_non_null(m);
	rl_ram_init(&m->ram);
	r.fd = sealed_memfd((uint64_t)PAGES * 4096);
	assert_int_equal(rl_ram_add(&m->ram, &r, &err), 0);
	r = (struct rl_region){.gpn = GPN_4G,
			       .n_pages = PAGES - LOW_PAGES,
			       .fd_offset = LOW_PAGES * 4096u,
			       .page_size = 4096,
			       .fd = dup(r.fd)};
	assert_int_equal(rl_ram_add(&m->ram, &r, &err), 0);
	assert_int_equal(rl_ram_map(&m->ram, true, &err), 0);
	assert_int_equal(rl_bitmap_init(&m->pending, PAGES), 0);
	rl_cursor_init(&m->cursor, 0, 1);

	m->shared_fd = sealed_memfd(shared_bytes);
	m->shared = map(m->shared_fd, shared_bytes, 0);
	m->shared->magic = RL_VMM_SHARED_MAGIC;
	m->shared->n_slots = RL_VMM_MAX_SLOTS;
	set_slot(m, 5, SLOT_LOW, 0, LOW_PAGES);
	set_slot(m, 9, SLOT_HIGH, GPN_4G, PAGES - LOW_PAGES);
	m->doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	m->ring_fd = sealed_memfd(RINGS * bytes);
	for (uint32_t i = 0; i < RINGS; i++) {
		m->ring[i].gfn = map(m->ring_fd, bytes, i * bytes);
		m->ring[i].entries = entries;
		m->ring_opts[i] = (struct rl_dirty_ring_opts){
			.fd = m->ring_fd, .offset = i * bytes, .entries = entries};
	}
	m->opts = (struct rl_dirty_opts){.n_rings = RINGS,
					 .ring = m->ring_opts,
					 .shared_fd = m->shared_fd,
					 .shared_size = shared_bytes,
					 .doorbell_fd = m->doorbell,
					 .ram = &m->ram,
					 .pending = &m->pending};
	return m;
}

static struct model *
model_ready(uint32_t entries)
{
	struct model *m = model_new(entries, sizeof(struct rl_vmm_shared));

	model_open(m);
	return m;
}

static void
model_free(struct model *m)
{
	rl_dirty_close(m->d);
	for (uint32_t i = 0; i < RINGS; i++)
		munmap(m->ring[i].gfn, m->ring[i].entries * sizeof(*m->ring[i].gfn));
	munmap(m->shared, m->opts.shared_size);
	/* Borrowed: still open. */
	assert_int_equal(close(m->ring_fd), 0);
	assert_int_equal(close(m->shared_fd), 0);
	assert_int_equal(close(m->doorbell), 0);
	rl_bitmap_fini(&m->pending);
	rl_ram_fini(&m->ram);
	free(m);
}

/* ---- the kernel's part ---- */

static void
push_raw(struct model *m, uint32_t ring, uint32_t slot, uint64_t offset)
{
	struct model_ring *r = &m->ring[ring];
	struct rl_vmm_dirty_gfn *gfn = &r->gfn[r->dirty++ % r->entries];

	gfn->slot = slot;
	gfn->offset = offset;
	__atomic_store_n(&gfn->flags, RL_VMM_GFN_DIRTY, __ATOMIC_RELEASE);
}

static void
guest_write(struct model *m, uint32_t ring, uint32_t page)
{
	uint32_t *word = (void *)rl_ram_hva(&m->ram, page);

	(*word)++;
	if (m->writable[page] && !m->emulated)
		return;
	m->writable[page] = true;
	if (page < LOW_PAGES)
		push_raw(m, ring, SLOT_LOW, page);
	else
		push_raw(m, ring, SLOT_HIGH, page - LOW_PAGES);
}

static uint32_t
used(const struct model_ring *r)
{
	return r->dirty - r->reset;
}

static bool
soft_full(const struct model_ring *r)
{
	return used(r) >= r->entries - RESERVED;
}

static int64_t
kernel_reset(struct model *m, uint32_t max)
{
	int64_t n = 0;

	for (uint32_t i = 0; i < RINGS; i++) {
		struct model_ring *r = &m->ring[i];

		for (; n < max; n++) {
			struct rl_vmm_dirty_gfn *gfn = &r->gfn[r->reset % r->entries];
			uint64_t page = gfn->offset + (gfn->slot == SLOT_LOW ? 0 : LOW_PAGES);

			if (!(gfn->flags & RL_VMM_GFN_RESET))
				break;
			if (page < PAGES)
				m->writable[page] = false;
			gfn->flags = 0;
			r->reset++;
		}
		/* Beyond its dirty index the vCPU would seem to have a full ring for ever. */
		assert_true((int32_t)used(r) >= 0);
	}
	return n;
}

static bool
rung(const struct model *m)
{
	return m->shared->door_req != m->shared->door_ack;
}

static void
answer(struct model *m, int64_t result)
{
	uint64_t n;

	assert_int_equal(read(m->doorbell, &n, sizeof(n)), sizeof(n));
	m->shared->door_result = result;
	__atomic_store_n(&m->shared->door_ack, m->shared->door_req, __ATOMIC_RELEASE);
	m->doors++;
}

static void
serve(struct model *m, uint32_t max)
{
	if (!rung(m))
		return;
	assert_int_equal(m->shared->door_cmd, RL_VMM_DOOR_RESET_RINGS);
	answer(m, kernel_reset(m, max));
}

/* LOG_STOP, LOG_START. */
static void
relog(struct model *m)
{
	uint64_t seen = rl_count_read(&rl_dirty_stats(m->d)->overflows);

	memset(m->writable, 0, sizeof(m->writable));
	rl_dirty_relogged(m->d, seen);
}

/* ---- the engine's part ---- */

static void
no_error(const struct model *m)
{
	assert_int_equal(rl_dirty_error(m->d), 0);
}

/* A whole collection. */
static void
collect(struct model *m)
{
	int turns = 0;

	rl_dirty_collect(m->d, 1);
	assert_true(rl_dirty_busy(m->d));
	while (!rl_dirty_turn(m->d, 1)) {
		no_error(m);
		serve(m, UINT32_MAX);
		assert_true(++turns < 100);
	}
	no_error(m);
	assert_false(rl_dirty_busy(m->d));
}

/* What a source does: the pending bit is cleared, then the page is read. */
static uint64_t
copy_pending(struct model *m)
{
	struct rl_run run;
	uint64_t n = 0;

	while (rl_bitmap_take_run(&m->pending, &m->cursor, 64, &run))
		for (uint32_t i = 0; i < run.n; i++, n++)
			m->shadow[run.first + i] =
				*(uint32_t *)(void *)rl_ram_hva(&m->ram, run.first + i);
	return n;
}

static void
check_shadow(const struct model *m)
{
	for (uint32_t p = 0; p < PAGES; p++)
		if (m->shadow[p] != *(const uint32_t *)(void *)rl_ram_hva(&m->ram, p))
			fail_msg("page %u: copied %u, the guest has %u", p, m->shadow[p],
				 *(const uint32_t *)(void *)rl_ram_hva(&m->ram, p));
}

/* The guest is stopped: the last collections and copies, as the source does them. */
static void
finish(struct model *m)
{
	int turns = 0;

	while (rl_dirty_busy(m->d)) {
		rl_dirty_turn(m->d, 1);
		no_error(m);
		serve(m, UINT32_MAX);
		assert_true(++turns < 200);
	}
	do
		collect(m);
	while (rl_dirty_fill(m->d) > 0);
	copy_pending(m);
	check_shadow(m);
}

/* ---- deterministic ---- */

/* DESIGN rule 1: between harvest and reset the guest writes without a new entry. */
static void
test_order(void **state)
{
	struct model *m = model_ready(2048);

	(void)state;
	guest_write(m, 0, 5);
	guest_write(m, 1, LOW_PAGES + 5);
	rl_dirty_collect(m->d, 1);
	for (int i = 0; i < 5; i++) {
		assert_false(rl_dirty_turn(m->d, 1));
		assert_int_equal(rl_bitmap_count(&m->pending), 0);
		copy_pending(m); /* a copy made now would miss the next write */
		guest_write(m, 0, 5);
	}
	assert_int_equal(m->ring[0].dirty, 1);
	assert_int_equal(m->ring[0].gfn[0].flags, RL_VMM_GFN_RESET);
	assert_true(rung(m));
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
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
	struct model *m = model_ready(2048);
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
	struct model *m = model_ready(2048);

	(void)state;
	collect(m);
	assert_int_equal(m->doors, 0);
	assert_false(rl_dirty_turn(m->d, 1));
	model_free(m);
}

static void
test_fill(void **state)
{
	static const uint32_t counts[] = {0, 1, 2, 3, 4, 5, 31, 500, 1023, 1024, 1025, 1983, 2047};
	struct model *m = model_ready(2048);

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
	assert_in_range(rl_dirty_fill(m->d), 500 - 32, 500 + 32);
	model_free(m);
}

static void
test_pressure(void **state)
{
	struct model *m = model_ready(2048);

	(void)state;
	guest_write(m, 0, 1);
	collect(m);
	for (uint32_t k = 0; k < 1024; k++)
		guest_write(m, 0, 1000 + k);
	for (int i = 0; i < 100; i++)
		assert_false(rl_dirty_turn(m->d, 1));
	assert_false(rl_dirty_busy(m->d));
	guest_write(m, 0, 3000);
	assert_false(rl_dirty_turn(m->d, 1));
	assert_true(rl_dirty_busy(m->d) && rung(m));
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
	assert_int_equal(rl_dirty_stats(m->d)->pressure, 1);
	assert_int_equal(rl_bitmap_count(&m->pending), 1026);

	/* A ring whose place is not known yet is found by looking round. */
	guest_write(m, 1, 2);
	for (int i = 0; i < 2048 && !rl_dirty_busy(m->d); i++)
		rl_dirty_turn(m->d, 1);
	assert_true(rl_dirty_busy(m->d));
	finish(m);
	model_free(m);
}

static void
test_slots(void **state)
{
	struct model *m = model_ready(2048);
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
		struct model *m = model_ready(2048);

		guest_write(m, 0, 1);
		m->ring[0].gfn[1].flags = flags[i];
		rl_dirty_collect(m->d, 1);
		assert_false(rl_dirty_turn(m->d, 1));
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
	struct model *m = model_ready(2048);

	(void)state;
	/* Idle: harvested and answered in one turn, pending only after the reset. */
	guest_write(m, 0, 17);
	m->shared->drain_req = 1;
	assert_false(rl_dirty_turn(m->d, 1));
	assert_int_equal(m->shared->drain_ack, 1);
	set_slot(m, 5, SLOT_LOW, GPN_4G + 500, 100); /* the id now means something else */
	assert_int_equal(rl_bitmap_count(&m->pending), 0);
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
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
	rl_dirty_turn(m->d, 1);
	push_raw(m, 0, SLOT_LOW, 2);
	m->shared->drain_req = 2;
	rl_dirty_turn(m->d, 1);
	assert_int_equal(m->shared->drain_ack, 1);
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
	assert_false(rl_dirty_turn(m->d, 1));
	assert_int_equal(m->shared->drain_ack, 2);
	set_slot(m, 5, SLOT_LOW, 0, 0);
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
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
	struct model *m = model_ready(2048);

	(void)state;
	for (uint32_t p = 0; p < 1000; p++)
		guest_write(m, p % 2, p);
	rl_dirty_collect(m->d, 1);
	for (int i = 0; i < 200 && !rl_dirty_turn(m->d, 1);
	     i++) { /* KVM stops early, and is interrupted */
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
	rl_dirty_turn(m->d, 1);
	assert_int_equal(kernel_reset(m, UINT32_MAX), 1);
	serve(m, UINT32_MAX);
	assert_true(rl_dirty_turn(m->d, 1));
	finish(m);
	model_free(m);

	for (uint32_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		m = model_ready(2048);
		guest_write(m, 0, 1);
		rl_dirty_collect(m->d, 1);
		for (int k = 0; k < 100 && rl_dirty_error(m->d) == 0; k++) {
			assert_false(rl_dirty_turn(m->d, 1));
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
	struct model *m = model_ready(2048);
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
	for (uint32_t i = 0; i < 2048 + lost; i++)
		guest_write(m, 0, 500 + i);
	guest_write(m, 1, 7);
	collect(m);
	assert_int_equal(st->overflows, 1);
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
	assert_int_equal(st->overflows, 1);
	finish(m);
	model_free(m);
}

static void
test_overflow(void **state)
{
	static const uint32_t lost[] = {0, 1, 2, 24, 178, 1000, 1024};

	(void)state;
	for (uint32_t i = 0; i < sizeof(lost) / sizeof(*lost); i++)
		overflow_by(lost[i], 100);
	/* Before the ring was seen at all. */
	overflow_by(0, 0);
	overflow_by(500, 0);
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
			rl_dirty_turn(m->d, 1);
			if (first == 1)
				while (!rung(m))
					rl_dirty_turn(m->d, 1);
			for (uint32_t k = 0; k < 30 + more[i]; k++)
				guest_write(m, 0, (k * 7) % PAGES);
			finish(m);
			assert_int_equal(rl_dirty_stats(m->d)->overflows, 1);
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
	struct model *m = model_ready(2048);

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
	rl_dirty_turn(m->d, 1);
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
	for (uint32_t k = 0; k < 2048 + 333; k++)
		guest_write(m, 0, k);
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
	struct model *m = model_ready(2048);
	struct rl_rand rnd = {.state = seed};
	bool patient = seed % 4 < 2; /* KVM resets all at once, but lets a vCPU push far beyond */
	uint32_t batch = 1 + (uint32_t)rl_rand_below(&rnd, patient ? 1088 : RESERVED);
	uint32_t left[RINGS] = {0};

	print_message("seed %lu\n", (unsigned long)seed);
	m->emulated = seed % 2;
	for (uint32_t p = 0; p < PAGES; p++)
		*rl_ram_hva(&m->ram, p) = 1;
	rl_bitmap_set_range(&m->pending, 0, PAGES);
	for (uint32_t i = 0; i < 3000; i++) {
		uint32_t ring = (uint32_t)rl_rand_below(&rnd, RINGS);
		uint32_t n = (uint32_t)rl_rand_below(&rnd, batch + 1);

		switch (rl_rand_below(&rnd, 8)) {
		case 0: /* a batch of writes that ends only when it is over, full ring or not */
		case 1:
			if (left[ring] == 0 && !soft_full(&m->ring[ring]))
				left[ring] = (uint32_t)rl_rand_below(&rnd, batch);
			n = rl_min32(n, left[ring]);
			for (left[ring] -= n; n > 0; n--)
				guest_write(m, ring, (uint32_t)rl_rand_below(&rnd, PAGES));
			break;
		case 2:
			/* Looked at before the ring comes round again: see dirty_ring_advance(). */
			serve(m, patient ? UINT32_MAX : 1 + (uint32_t)rl_rand_below(&rnd, 900));
			rl_dirty_turn(m->d, 1);
			no_error(m);
			break;
		case 3:
			if (rl_rand_below(&rnd, 10) == 0)
				rl_dirty_collect(m->d, 1);
			break;
		case 4:
			for (n = (uint32_t)rl_rand_below(&rnd, 5); n > 0; n--)
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
			rl_dirty_turn(m->d, 1);
			no_error(m);
		}
	}
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
	struct model *m = model_new(2048, sizeof(struct rl_vmm_shared));
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
	struct model *m = model_new(2048, sizeof(struct rl_vmm_shared));
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
	struct model *m = model_new(2048, 16384);

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
		if (rl_dirty_turn(m->d, 1))
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
	assert_false(rl_dirty_turn(m->d, 1));
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

struct copier {
	struct vm *v;
	struct rl_dirty *d;
	struct rl_cursor cursor;
	uint8_t *shadow;
	uint64_t copied;
};

static void
copier_copy(struct copier *c, uint32_t max)
{
	struct rl_run run;

	while (max > 0 && rl_bitmap_take_run(&c->v->pending, &c->cursor, max, &run)) {
		memcpy(c->shadow + run.first * 4096, rl_ram_hva(&c->v->ram, run.first),
		       run.n * 4096ul);
		c->copied += run.n;
		max -= run.n;
	}
}

static void
copier_turn(struct copier *c)
{
	rl_dirty_turn(c->d, rl_now_ns());
	if (rl_dirty_error(c->d) != 0) {
		vm_stop(c->v);
		vm_stop_door(c->v);
		fail_msg("dirty source: %s", strerror(-rl_dirty_error(c->d)));
	}
}

/* A migration to the same process: copy while the guest writes, stop it, copy the rest, compare. */
static void
copy_guest(const struct vm_opts *o, uint32_t pause_us, struct rl_dirty_stats *st)
{
	struct vm *v = vm_open(o);
	struct copier c = {.v = v};
	struct rl_err err = {0};
	uint64_t end_ns, next_ns = 0;

	if (v == NULL)
		skip();
	if (rl_dirty_open(&v->opts, &c.d, &err) != 0)
		fail_msg("%s", err.text);
	rl_cursor_init(&c.cursor, 0, 1);
	c.shadow = calloc(VM_PAGES, 4096);
	assert_non_null(c.shadow);
	rl_bitmap_set_range(&v->pending, 0, VM_PAGES);
	vm_run(v);
	end_ns = rl_now_ns() + RL_NS_PER_S;
	for (uint64_t now = rl_now_ns(); now < end_ns; now = rl_now_ns()) {
		copier_turn(&c);
		copier_copy(&c, 64);
		if (now > next_ns) {
			rl_dirty_collect(c.d, now);
			next_ns = now + 300 * RL_NS_PER_US;
			usleep(pause_us);
		}
	}
	vm_stop(v);
	while (rl_dirty_busy(c.d))
		copier_turn(&c);
	do {
		rl_dirty_collect(c.d, 0);
		while (rl_dirty_busy(c.d))
			copier_turn(&c);
	} while (rl_dirty_fill(c.d) > 0);
	copier_copy(&c, UINT32_MAX);
	vm_stop_door(v);
	for (uint64_t p = 0; p < VM_PAGES; p++)
		if (memcmp(c.shadow + p * 4096, v->mem + p * 4096, 4096) != 0)
			fail_msg("page %#lx differs", (unsigned long)p);
	*st = *rl_dirty_stats(c.d);
	print_message("%lu entries, %lu pages, %lu collections, %lu overflows, fill up to %lu, "
		      "%lu ring-full exits, %lu pages copied\n",
		      st->entries, st->pages, st->collections, st->overflows, st->max_fill,
		      v->shared->ring_full_exits, c.copied);
	assert_true(st->pages > 1000 && st->collections > 5);
	assert_int_equal(st->unknown_slot, 0);
	assert_int_equal(st->out_of_slot, 0);
	rl_dirty_close(c.d);
	free(c.shadow);
	vm_close(v);
}

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
	const struct vm_opts o = {.writer = VM_RING3_INC, .ring_entries = 2048};
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
	const struct vm_opts o = {.writer = VM_RING3_INC, .ring_entries = 2048};
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
		cmocka_unit_test(test_order),          cmocka_unit_test(test_duplicates),
		cmocka_unit_test(test_empty),          cmocka_unit_test(test_fill),
		cmocka_unit_test(test_pressure),       cmocka_unit_test(test_slots),
		cmocka_unit_test(test_garbage),        cmocka_unit_test(test_drain),
		cmocka_unit_test(test_door_results),   cmocka_unit_test(test_overflow),
		cmocka_unit_test(test_overflow_late),  cmocka_unit_test(test_takeover),
		cmocka_unit_test(test_soak),           cmocka_unit_test(test_refused),
		cmocka_unit_test(test_close),          cmocka_unit_test(test_bitmap),
		cmocka_unit_test(test_bitmap_hostile), cmocka_unit_test(test_kvm_ring),
		cmocka_unit_test(test_kvm_ring_small), cmocka_unit_test(test_kvm_ring_huge),
		cmocka_unit_test(test_kvm_bitmap),     cmocka_unit_test(test_kvm_overflow),
		cmocka_unit_test(test_kvm_ring_short),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
