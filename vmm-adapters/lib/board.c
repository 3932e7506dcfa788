/* SPDX-License-Identifier: BSD-3-Clause */
/* The page shared with the engine: slot table, drain handshake, doorbell. */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_WAIT_NS  1000000000ll
#define DRAIN_SLEEP_NS 50000
#define BITMAP_ALIGN   64u
#define PAGE_BYTES     4096u

static uint64_t
bitmap_bytes(uint64_t n_pages)
{
	return (n_pages + BITMAP_ALIGN * 8 - 1) / (BITMAP_ALIGN * 8) * BITMAP_ALIGN;
}

static uint64_t *
bitmap_of(struct rl_vmm_board *b, const struct rl_vmm_slot *s)
{
	return (uint64_t *)(void *)((uint8_t *)b->page + s->bitmap);
}

void
rl_vmm_board_init(struct rl_vmm_board *b)
{
	memset(b, 0, sizeof(*b));
	b->fd = -1;
	b->doorbell = -1;
	pthread_mutex_init(&b->lock, NULL);
}

/* First fit among the bitmaps of the other slots. */
static int
place_bitmap(const struct rl_vmm_board *b, struct rl_vmm_slot *s)
{
	uint64_t bytes = bitmap_bytes(s->n_pages);
	uint64_t at = sizeof(struct rl_vmm_shared);
	bool moved;

	at = (at + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	do {
		moved = false;
		for (uint32_t i = 0; i < RL_VMM_MAX_SLOTS; i++) {
			const struct rl_vmm_slot *o = &b->slot[i];

			if (o->bitmap == 0 || at + bytes <= o->bitmap ||
			    at >= o->bitmap + bitmap_bytes(o->n_pages))
				continue;
			at = o->bitmap + bitmap_bytes(o->n_pages);
			moved = true;
		}
	} while (moved);
	if (at + bytes > b->size)
		return -ENOSPC;
	s->bitmap = at;
	return 0;
}

static int
publish(struct rl_vmm_board *b, uint32_t i)
{
	struct rl_vmm_slot *s = &b->slot[i];
	struct rl_vmm_slot *out = &b->page->slot[i];
	int err;

	if (b->bitmap) {
		err = place_bitmap(b, s);
		if (err != 0)
			return err;
		memset(bitmap_of(b, s), 0, bitmap_bytes(s->n_pages));
	}
	out->slot = s->slot;
	out->gpn = s->gpn;
	out->n_pages = s->n_pages;
	out->bitmap = s->bitmap;
	__atomic_store_n(&out->valid, 1, __ATOMIC_RELEASE);
	return 0;
}

static int
make_shared(struct rl_vmm_board *b)
{
	struct rl_vmm_shared *page;

	b->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (b->doorbell < 0)
		return -errno;
	b->fd = memfd_create("ramlift-vmm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (b->fd < 0 || ftruncate(b->fd, (off_t)b->size) != 0 ||
	    fcntl(b->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
		return -errno;
	page = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	if (page == MAP_FAILED)
		return -errno;
	page->magic = RL_VMM_SHARED_MAGIC;
	page->n_slots = RL_VMM_MAX_SLOTS;
	page->ring_full_exits = b->full;
	b->page = page;
	return 0;
}

int
rl_vmm_board_open(struct rl_vmm_board *b, bool bitmap, uint64_t n_pages)
{
	int err;

	b->bitmap = bitmap;
	b->size = (sizeof(struct rl_vmm_shared) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	if (bitmap)
		b->size += 2 * bitmap_bytes(n_pages) + RL_VMM_MAX_SLOTS * BITMAP_ALIGN;
	pthread_mutex_lock(&b->lock);
	err = make_shared(b);
	for (uint32_t i = 0; i < RL_VMM_MAX_SLOTS && err == 0; i++)
		if (b->slot[i].valid)
			err = publish(b, i);
	pthread_mutex_unlock(&b->lock);
	return err;
}

void
rl_vmm_board_fini(struct rl_vmm_board *b)
{
	if (b->page != NULL)
		munmap(b->page, b->size);
	if (b->fd >= 0)
		close(b->fd);
	if (b->doorbell >= 0)
		close(b->doorbell);
	pthread_mutex_destroy(&b->lock);
}

static uint32_t
find(const struct rl_vmm_board *b, uint32_t slot)
{
	uint32_t i = 0;

	while (i < RL_VMM_MAX_SLOTS && !(b->slot[i].valid && b->slot[i].slot == slot))
		i++;
	return i;
}

static uint32_t
find_free(const struct rl_vmm_board *b)
{
	uint32_t i = 0;

	while (i < RL_VMM_MAX_SLOTS && b->slot[i].valid)
		i++;
	return i;
}

int
rl_vmm_board_slot_add(struct rl_vmm_board *b, uint32_t slot, uint64_t gpn, uint64_t n_pages)
{
	uint32_t i;
	int err = 0;

	if (n_pages == 0 || n_pages > UINT64_MAX / PAGE_BYTES ||
	    gpn > UINT64_MAX / PAGE_BYTES - n_pages)
		return -EINVAL;
	pthread_mutex_lock(&b->lock);
	i = find_free(b);
	if (find(b, slot) != RL_VMM_MAX_SLOTS)
		err = -EEXIST;
	else if (i == RL_VMM_MAX_SLOTS)
		err = -ENOSPC;
	if (err == 0) {
		b->slot[i] = (struct rl_vmm_slot){
			.slot = slot, .valid = 1, .gpn = gpn, .n_pages = n_pages};
		if (b->page != NULL)
			err = publish(b, i);
		if (err != 0)
			memset(&b->slot[i], 0, sizeof(b->slot[i]));
	}
	pthread_mutex_unlock(&b->lock);
	return err;
}

static int64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* Entries of the old slot may be in the rings; an id used again would give them another meaning. */
static bool
drain(struct rl_vmm_board *b, const atomic_bool *logging)
{
	const struct timespec nap = {.tv_nsec = DRAIN_SLEEP_NS};
	int64_t deadline_ns = now_ns() + DRAIN_WAIT_NS;

	b->drain_req++;
	__atomic_store_n(&b->page->drain_req, b->drain_req, __ATOMIC_RELEASE);
	while (*logging) {
		if (__atomic_load_n(&b->page->drain_ack, __ATOMIC_ACQUIRE) >= b->drain_req)
			return true;
		if (now_ns() > deadline_ns)
			return false;
		nanosleep(&nap, NULL);
	}
	return true;
}

bool
rl_vmm_board_slot_delete(struct rl_vmm_board *b, uint32_t slot, const atomic_bool *logging)
{
	bool drained = true;
	uint32_t i;

	pthread_mutex_lock(&b->lock);
	i = find(b, slot);
	if (i == RL_VMM_MAX_SLOTS) {
		pthread_mutex_unlock(&b->lock);
		return true;
	}
	b->deleted[i] = true;
	/* KVM has thrown the slot's bitmap away, and with it what was dirty: all of it may be. */
	if (b->page != NULL && b->bitmap)
		memset(bitmap_of(b, &b->slot[i]), 0xff, bitmap_bytes(b->slot[i].n_pages));
	pthread_mutex_unlock(&b->lock);

	if (b->page != NULL)
		drained = drain(b, logging);

	pthread_mutex_lock(&b->lock);
	if (b->page != NULL)
		__atomic_store_n(&b->page->slot[i].valid, 0, __ATOMIC_RELEASE);
	memset(&b->slot[i], 0, sizeof(b->slot[i]));
	b->deleted[i] = false;
	pthread_mutex_unlock(&b->lock);
	return drained;
}

static int64_t
sync_bitmaps(struct rl_vmm_board *b, const struct rl_vmm_ops *ops, void *ctx)
{
	int err = 0;

	pthread_mutex_lock(&b->lock);
	for (uint32_t i = 0; i < RL_VMM_MAX_SLOTS && err == 0; i++)
		if (b->slot[i].valid && !b->deleted[i])
			err = ops->sync_bitmap(ctx, &b->slot[i], bitmap_of(b, &b->slot[i]));
	pthread_mutex_unlock(&b->lock);
	return err > 0 ? -EIO : err;
}

void
rl_vmm_board_answer(struct rl_vmm_board *b, const struct rl_vmm_ops *ops, void *ctx)
{
	struct rl_vmm_shared *page = b->page;
	int64_t result;
	uint64_t req;
	uint32_t cmd;

	while ((req = __atomic_load_n(&page->door_req, __ATOMIC_ACQUIRE)) != b->door_done) {
		cmd = __atomic_load_n(&page->door_cmd, __ATOMIC_RELAXED);
		if (cmd == RL_VMM_DOOR_RESET_RINGS && !b->bitmap)
			result = ops->reset_rings(ctx);
		else if (cmd == RL_VMM_DOOR_SYNC_BITMAP && b->bitmap)
			result = sync_bitmaps(b, ops, ctx);
		else
			result = -EINVAL;
		b->door_done = req;
		__atomic_store_n(&page->door_result, result, __ATOMIC_RELAXED);
		__atomic_store_n(&page->door_ack, req, __ATOMIC_RELEASE);
	}
}

void
rl_vmm_board_ring_full(struct rl_vmm_board *b)
{
	struct rl_vmm_shared *page = b->page;
	uint64_t n = atomic_fetch_add(&b->full, 1) + 1;

	if (page != NULL)
		__atomic_store_n(&page->ring_full_exits, n, __ATOMIC_RELAXED);
}
