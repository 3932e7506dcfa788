/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TEST_DIRTY_MODEL_H
#define RL_TEST_DIRTY_MODEL_H
/**
 * @file dirty_model.h
 * For test_dirty.c: rings in a memfd, and a model that does with them what Linux does (virt/kvm/dirty_ring.c):
 * two indices, no look at the filling level when an entry is pushed. The test serves the doorbell itself.
 *
 * Threads: one.
 * Errors:  fail the test.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <ramlift/vmm.h>

#include "base/clock.h"
#include "base/rand.h"
#include "base/stats.h"
#include "memory/dirty.h"

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
	uint64_t now_ns;

	/* a guest that writes at random, also while KVM resets */
	struct rl_rand *rnd;   /* NULL: it does not */
	uint32_t batch[RINGS]; /* at most as many writes until the filling level is looked at */
	uint32_t left[RINGS];
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

/* A vCPU leaves its batch of writes only when that is over, full ring or not. */
static void
guest_step(struct model *m)
{
	uint32_t ring = (uint32_t)rl_rand_below(m->rnd, RINGS);
	uint32_t n = (uint32_t)rl_rand_below(m->rnd, m->batch[ring]);

	if (m->left[ring] == 0 && soft_full(&m->ring[ring]))
		m->shared->ring_full_exits++;
	if (m->left[ring] == 0 && !soft_full(&m->ring[ring]))
		m->left[ring] = 1 + (uint32_t)rl_rand_below(m->rnd, m->batch[ring]);
	n = rl_min32(n, m->left[ring]);
	for (m->left[ring] -= n; n > 0; n--)
		guest_write(m, ring, (uint32_t)rl_rand_below(m->rnd, PAGES));
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
			if (m->rnd != NULL && rl_rand_below(m->rnd, 1000) == 0)
				guest_step(m);
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

static bool
model_turn(struct model *m)
{
	m->now_ns += RL_NS_PER_MS;
	return rl_dirty_turn(m->d, m->now_ns);
}

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
	while (!model_turn(m)) {
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
		model_turn(m);
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

#endif /* RL_TEST_DIRTY_MODEL_H */
