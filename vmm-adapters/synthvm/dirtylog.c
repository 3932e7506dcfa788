/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty rings of KVM's layout and rules, filled by threads instead of vCPUs. */
#include "dirtylog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t *
stripe_of(struct rl_synth_log *log, uint64_t page)
{
	return &log->stripe[page % RL_SYNTH_STRIPES];
}

static size_t
ring_bytes(const struct rl_synth_log *log)
{
	return log->entries * sizeof(struct rl_vmm_dirty_gfn);
}

int
rl_synth_log_init(struct rl_synth_log *log, uint64_t n_pages, uint32_t n_rings, uint32_t entries)
{
	struct rl_vmm_dirty_gfn *rings;
	size_t bytes;
	int err = -ENOMEM;

	memset(log, 0, sizeof(*log));
	log->n_pages = n_pages;
	log->n_rings = n_rings;
	log->entries = entries;
	bytes = n_rings * ring_bytes(log);
	log->ring = calloc(n_rings, sizeof(*log->ring));
	log->writable = calloc(n_pages, 1);
	if (log->ring == NULL || log->writable == NULL)
		goto free_all;
	log->fd = memfd_create("dirty-rings", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (log->fd < 0 || ftruncate(log->fd, (off_t)bytes) != 0 ||
	    fcntl(log->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
		err = -errno;
		goto close_fd;
	}
	rings = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
	if (rings == MAP_FAILED) {
		err = -errno;
		goto close_fd;
	}
	for (uint32_t i = 0; i < n_rings; i++)
		log->ring[i].gfn = rings + (size_t)i * entries;
	for (uint32_t i = 0; i < RL_SYNTH_STRIPES; i++)
		pthread_mutex_init(&log->stripe[i], NULL);
	return 0;

close_fd:
	if (log->fd >= 0)
		close(log->fd);
free_all:
	free(log->ring);
	free(log->writable);
	return err;
}

void
rl_synth_log_fini(struct rl_synth_log *log)
{
	munmap(log->ring[0].gfn, log->n_rings * ring_bytes(log));
	close(log->fd);
	for (uint32_t i = 0; i < RL_SYNTH_STRIPES; i++)
		pthread_mutex_destroy(&log->stripe[i]);
	free(log->ring);
	free(log->writable);
}

void
rl_synth_log_start(struct rl_synth_log *log)
{
	/* A store that still saw "off" holds its stripe's lock; past all of them there is none left. */
	log->on = true;
	for (uint64_t s = 0; s < RL_SYNTH_STRIPES; s++) {
		pthread_mutex_lock(&log->stripe[s]);
		for (uint64_t page = s; page < log->n_pages; page += RL_SYNTH_STRIPES)
			log->writable[page] = 0;
		pthread_mutex_unlock(&log->stripe[s]);
	}
}

void
rl_synth_log_stop(struct rl_synth_log *log)
{
	log->on = false;
}

bool
rl_synth_log_full(const struct rl_synth_log *log, uint32_t vcpu)
{
	const struct rl_synth_ring *r = &log->ring[vcpu];

	return log->on && r->dirty_index - r->reset_index >= log->entries - RL_SYNTH_RING_RESERVE;
}

static void
push(const struct rl_synth_log *log, struct rl_synth_ring *r, uint64_t page)
{
	struct rl_vmm_dirty_gfn *g = &r->gfn[r->dirty_index % log->entries];

	g->slot = 0;
	g->offset = page;
	__atomic_store_n(&g->flags, RL_VMM_GFN_DIRTY, __ATOMIC_RELEASE);
	r->dirty_index++;
}

void
rl_synth_log_begin(struct rl_synth_log *log, uint32_t vcpu, uint64_t page)
{
	pthread_mutex_lock(stripe_of(log, page));
	if (log->on && !log->writable[page]) {
		push(log, &log->ring[vcpu], page);
		log->writable[page] = 1;
	}
}

void
rl_synth_log_end(struct rl_synth_log *log, uint64_t page)
{
	pthread_mutex_unlock(stripe_of(log, page));
}

static void
protect(struct rl_synth_log *log, uint64_t page)
{
	if (page >= log->n_pages)
		return;
	pthread_mutex_lock(stripe_of(log, page));
	log->writable[page] = 0;
	pthread_mutex_unlock(stripe_of(log, page));
}

int64_t
rl_synth_log_reset(struct rl_synth_log *log)
{
	int64_t n = 0;

	for (uint32_t i = 0; i < log->n_rings; i++) {
		struct rl_synth_ring *r = &log->ring[i];

		/* Once round at most, whatever the engine writes meanwhile. */
		for (uint32_t k = 0; k < log->entries; k++, n++) {
			struct rl_vmm_dirty_gfn *g = &r->gfn[r->reset_index % log->entries];

			if ((__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) & RL_VMM_GFN_RESET) == 0)
				break;
			protect(log, __atomic_load_n(&g->offset, __ATOMIC_RELAXED));
			__atomic_store_n(&g->flags, 0, __ATOMIC_RELEASE);
			r->reset_index++;
		}
	}
	return n;
}
