/* SPDX-License-Identifier: BSD-3-Clause */
/* The simulator's guest and VMM, see guest.h. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

#define RING_RESERVED 64u /* KVM stops a vCPU this many entries before its ring is full */

/* A memfd of @bytes that cannot shrink, mapped at *@map. Returns the fd or -errno. */
static int
memfd_map(const char *name, uint64_t bytes, void **map)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0) {
		*map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (*map != MAP_FAILED)
			return fd;
	}
	rc = -errno;
	close(fd);
	return rc;
}

static void
fill_page(struct guest *g, uint64_t page)
{
	uint8_t *p = g->mem + page * RL_PAGE_SIZE;

	for (uint32_t i = 0; i < RL_PAGE_SIZE; i += 8)
		rl_store64(p + i, rl_rand_next(&g->rand));
}

/* ---- KVM ---- */

static bool
slot_of(const struct guest *g, uint64_t page, uint32_t *slot, uint64_t *offset)
{
	uint64_t gpn = rl_ram_gpn(&g->ram, page);

	for (uint32_t i = 0; i < GUEST_SLOTS; i++) {
		const struct rl_vmm_slot *s = &g->kvm_slot[i];

		if (s->valid && gpn >= s->gpn && gpn - s->gpn < s->n_pages) {
			*slot = s->slot;
			*offset = gpn - s->gpn;
			return true;
		}
	}
	return false;
}

/* A write-protection fault. Returns false when the vCPU cannot go on now: ring full, or no memory there. */
static bool
kvm_log(struct guest *g, uint32_t vcpu, uint64_t page)
{
	struct guest_ring *ring = &g->ring[vcpu];
	struct rl_vmm_dirty_gfn *e;
	uint64_t offset;
	uint32_t slot;

	if (!slot_of(g, page, &slot, &offset))
		return false;
	if (g->logged[page])
		return true;
	if (g->opts.bitmap) {
		g->kvm_bits[page] = 1;
	} else {
		if (ring->pushed - ring->reset >= g->opts.ring_entries - RING_RESERVED)
			return false;
		e = &ring->gfn[ring->pushed++ & (g->opts.ring_entries - 1)];
		e->slot = slot;
		e->offset = offset;
		__atomic_store_n(&e->flags, RL_VMM_GFN_DIRTY, __ATOMIC_RELEASE);
	}
	g->logged[page] = 1;
	return true;
}

/* KVM_RESET_DIRTY_RINGS: harvested entries are free again, their pages write-protected. */
static int64_t
kvm_reset(struct guest *g)
{
	int64_t n = 0;

	for (uint32_t v = 0; v < GUEST_VCPUS; v++) {
		struct guest_ring *ring = &g->ring[v];

		for (; ring->reset < ring->pushed; ring->reset++, n++) {
			struct rl_vmm_dirty_gfn *e;
			uint64_t page;

			e = &ring->gfn[ring->reset & (g->opts.ring_entries - 1)];
			if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & RL_VMM_GFN_RESET))
				break;
			for (uint32_t i = 0; i < GUEST_SLOTS; i++)
				if (g->kvm_slot[i].valid && g->kvm_slot[i].slot == e->slot &&
				    e->offset < g->kvm_slot[i].n_pages &&
				    rl_ram_page(&g->ram, g->kvm_slot[i].gpn + e->offset, &page))
					g->logged[page] = 0;
			e->flags = 0;
		}
	}
	return n;
}

/* KVM_GET_DIRTY_LOG of every slot: copies, clears and write-protects. */
static void
kvm_sync_bitmap(struct guest *g)
{
	for (uint32_t i = 0; i < GUEST_SLOTS; i++) {
		const struct rl_vmm_slot *s = &g->kvm_slot[i];
		uint8_t *bits = (uint8_t *)g->shared + s->bitmap;
		uint64_t page;

		memset(bits, 0, RL_DIV_ROUND_UP(s->n_pages, 64) * 8);
		if (!s->valid || !rl_ram_page(&g->ram, s->gpn, &page))
			continue;
		for (uint64_t k = 0; k < s->n_pages; k++) {
			if (!g->kvm_bits[page + k])
				continue;
			bits[k / 8] |= (uint8_t)(1u << (k % 8));
			g->kvm_bits[page + k] = g->logged[page + k] = 0;
		}
	}
}

/* ---- the VMM ---- */

static void
door_serve(struct guest *g)
{
	int64_t result = 0;

	if (g->shared->door_cmd == RL_VMM_DOOR_RESET_RINGS)
		result = kvm_reset(g);
	else
		kvm_sync_bitmap(g);
	g->resets++;
	g->shared->door_result = result;
}

static void
door_run(struct guest *g, uint64_t now_ns)
{
	struct rl_vmm_shared *sh = g->shared;
	uint64_t req = __atomic_load_n(&sh->door_req, __ATOMIC_ACQUIRE), rung;

	if (g->door_due_ns == UINT64_MAX && req != sh->door_ack) {
		if (read(g->doorbell_fd, &rung, sizeof(rung)) != (ssize_t)sizeof(rung))
			return;
		g->door_due_ns = now_ns + rl_rand_below(&g->rand, g->opts.door_max_ns);
		if (g->opts.early_ack)
			__atomic_store_n(&sh->door_ack, req, __ATOMIC_RELEASE);
	}
	if (now_ns >= g->door_due_ns) {
		g->door_due_ns = UINT64_MAX;
		door_serve(g);
		__atomic_store_n(&sh->door_ack, req, __ATOMIC_RELEASE);
	}
}

/* Delete a slot; when the engine has drained the rings, add it again under another number. */
static void
drain_run(struct guest *g, uint64_t now_ns)
{
	struct rl_vmm_shared *sh = g->shared;
	struct rl_vmm_slot *s;
	uint64_t page;

	if (g->draining) {
		if (__atomic_load_n(&sh->drain_ack, __ATOMIC_ACQUIRE) != sh->drain_req)
			return;
		s = &g->kvm_slot[g->draining - 1];
		s->slot = (s->slot + GUEST_SLOTS) % (100 * GUEST_SLOTS);
		s->valid = 1;
		sh->slot[g->draining - 1] = *s;
		/* A new slot begins write-protected. */
		if (rl_ram_page(&g->ram, s->gpn, &page))
			memset(g->logged + page, 0, s->n_pages);
		g->draining = 0;
		g->drains++;
	}
	if (g->running && now_ns >= g->next_drain_ns) {
		g->draining = 1 + (uint32_t)rl_rand_below(&g->rand, GUEST_SLOTS);
		g->kvm_slot[g->draining - 1].valid = 0;
		__atomic_store_n(&sh->drain_req, sh->drain_req + 1, __ATOMIC_RELEASE);
		g->next_drain_ns = now_ns + g->opts.drain_every_ns;
	}
}

/* ---- the guest ---- */

static uint64_t
pick_page(struct guest *g)
{
	uint64_t n = g->ram.n_pages;

	if (g->opts.hot_pages > 0 && rl_rand_below(&g->rand, 8) > 0)
		return rl_rand_below(&g->rand, g->opts.hot_pages) * (n / g->opts.hot_pages);
	return rl_rand_below(&g->rand, n);
}

static void
guest_write(struct guest *g)
{
	uint32_t vcpu = (uint32_t)rl_rand_below(&g->rand, GUEST_VCPUS);
	uint64_t page = pick_page(g), kind = rl_rand_below(&g->rand, 8);
	uint8_t *p = g->mem + page * RL_PAGE_SIZE;

	if (!kvm_log(g, vcpu, page)) {
		g->stalls++;
		return;
	}
	if (kind == 0)
		memset(p, 0, RL_PAGE_SIZE);
	else if (kind == 1)
		fill_page(g, page);
	else
		rl_store64(p + rl_rand_below(&g->rand, RL_PAGE_SIZE / 8) * 8,
			   rl_rand_next(&g->rand));
	g->writes++;
}

uint64_t
guest_run(struct guest *g, uint64_t now_ns)
{
	uint64_t step_ns, next_ns;

	door_run(g, now_ns);
	if (g->opts.drain_every_ns)
		drain_run(g, now_ns);
	if (g->running && g->opts.writes_per_ms > 0) {
		step_ns = RL_NS_PER_MS / g->opts.writes_per_ms;
		for (; g->next_write_ns <= now_ns;
		     g->next_write_ns += 1 + rl_rand_below(&g->rand, 2 * step_ns))
			guest_write(g);
		next_ns = g->next_write_ns;
	} else {
		g->next_write_ns = now_ns;
		next_ns = UINT64_MAX;
	}
	return rl_min64(next_ns, g->door_due_ns);
}

/* ---- set up ---- */

static int
memory_init(struct guest *g, struct rl_err *err)
{
	uint64_t n = 0, page = 0;
	uint8_t *p;
	int rc;

	for (uint32_t i = 0; i < g->opts.n_regions; i++)
		n += g->opts.region_pages[i];
	/* One reservation, so the guest's memory is an array by page. */
	g->mem = mmap(NULL, n * RL_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->mem == MAP_FAILED)
		return rl_err_set(err, -errno, "cannot reserve guest memory");
	for (uint32_t i = 0; i < g->opts.n_regions; i++) {
		uint64_t bytes = g->opts.region_pages[i] * RL_PAGE_SIZE;
		int fd = memfd_create("sim-guest", MFD_CLOEXEC);

		if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 ||
		    mmap(g->mem + page * RL_PAGE_SIZE, bytes, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			return rl_err_set(err, -errno, "cannot make guest memory");
		rc = rl_ram_add(&g->ram,
				&(struct rl_region){.gpn = g->opts.region_gpn[i],
						    .n_pages = g->opts.region_pages[i],
						    .page_size = RL_PAGE_SIZE,
						    .fd = fd},
				err);
		if (rc != 0)
			return rc;
		page += g->opts.region_pages[i];
	}
	/* Zero pages come in stretches; a third of them was never touched. */
	for (page = 0; page < n;) {
		bool zero = rl_rand_below(&g->rand, 100) < g->opts.zero_percent;
		bool hole = rl_rand_below(&g->rand, 3) == 0;
		uint64_t end = rl_min64(n, page + 1 + rl_rand_below(&g->rand, 40));

		for (; page < end; page++) {
			p = g->mem + page * RL_PAGE_SIZE;
			if (!zero)
				fill_page(g, page);
			else if (!hole)
				memset(p, 0, RL_PAGE_SIZE);
		}
	}
	return rl_ram_map(&g->ram, false, err);
}

/* Three slots over two regions: the first region is split. */
static void
slots_init(struct guest *g)
{
	uint64_t half = g->opts.region_pages[0] / 2, offset = sizeof(*g->shared);

	g->kvm_slot[0] = (struct rl_vmm_slot){0, 1, g->opts.region_gpn[0], half, 0};
	g->kvm_slot[1] = (struct rl_vmm_slot){1, 1, g->opts.region_gpn[0] + half,
					      g->opts.region_pages[0] - half, 0};
	g->kvm_slot[2] =
		(struct rl_vmm_slot){2, 1, g->opts.region_gpn[1], g->opts.region_pages[1], 0};
	for (uint32_t i = 0; i < GUEST_SLOTS; i++) {
		g->kvm_slot[i].bitmap = offset;
		offset += RL_DIV_ROUND_UP(g->kvm_slot[i].n_pages, 64) * 8;
		g->shared->slot[i] = g->kvm_slot[i];
	}
	g->shared->magic = RL_VMM_SHARED_MAGIC;
	g->shared->n_slots = GUEST_SLOTS;
}

int
guest_init(struct guest *g, const struct guest_opts *opts, struct rl_err *err)
{
	uint64_t ring_bytes = opts->ring_entries * sizeof(struct rl_vmm_dirty_gfn);
	void *map;
	int rc;

	memset(g, 0, sizeof(*g));
	g->opts = *opts;
	g->rand.state = opts->seed;
	g->door_due_ns = UINT64_MAX;
	g->next_drain_ns = opts->drain_every_ns;
	rl_ram_init(&g->ram);
	rc = memory_init(g, err);
	if (rc != 0)
		return rc;
	g->logged = calloc(2, g->ram.n_pages);
	if (g->logged == NULL)
		return rl_err_set(err, -ENOMEM, "no memory");
	g->kvm_bits = g->logged + g->ram.n_pages;
	for (uint32_t v = 0; v < GUEST_VCPUS; v++) {
		g->ring[v].fd = memfd_map("sim-ring", ring_bytes, &map);
		if (g->ring[v].fd < 0)
			return rl_err_set(err, g->ring[v].fd, "cannot make a ring");
		g->ring[v].gfn = map;
	}
	g->shared_size = sizeof(*g->shared) + g->ram.n_pages / 8 + GUEST_SLOTS * 8;
	g->shared_size = RL_DIV_ROUND_UP(g->shared_size, RL_PAGE_SIZE) * RL_PAGE_SIZE;
	g->shared_fd = memfd_map("sim-shared", g->shared_size, &map);
	g->doorbell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (g->shared_fd < 0 || g->doorbell_fd < 0)
		return rl_err_set(err, -EMFILE, "cannot make the shared page");
	g->shared = map;
	slots_init(g);
	return 0;
}

void
guest_fini(struct guest *g)
{
	munmap(g->mem, g->ram.n_pages * RL_PAGE_SIZE);
	rl_ram_fini(&g->ram);
	free(g->logged);
	for (uint32_t v = 0; v < GUEST_VCPUS; v++) {
		munmap(g->ring[v].gfn, g->opts.ring_entries * sizeof(*g->ring[v].gfn));
		close(g->ring[v].fd);
	}
	munmap(g->shared, g->shared_size);
	close(g->shared_fd);
	close(g->doorbell_fd);
}

int
guest_open_dirty(struct guest *g, struct rl_bitmap *pending, struct rl_dirty **d,
		 struct rl_err *err)
{
	struct rl_dirty_ring_opts ring[GUEST_VCPUS];

	for (uint32_t v = 0; v < GUEST_VCPUS; v++)
		ring[v] = (struct rl_dirty_ring_opts){.fd = g->ring[v].fd,
						      .entries = g->opts.ring_entries};
	return rl_dirty_open(&(struct rl_dirty_opts){.bitmap = g->opts.bitmap,
						     .n_rings = g->opts.bitmap ? 0 : GUEST_VCPUS,
						     .ring = ring,
						     .shared_fd = g->shared_fd,
						     .shared_size = g->shared_size,
						     .doorbell_fd = g->doorbell_fd,
						     .ram = &g->ram,
						     .pending = pending},
			     d, err);
}
