/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef SIM_GUEST_H
#define SIM_GUEST_H
/**
 * @file guest.h
 * A guest without a CPU: it writes to its memory at chosen moments of the virtual clock and logs the writes
 * exactly as KVM does, into dirty rings or a bitmap. A page is logged once, at its first write after a reset;
 * whatever is written between harvest and reset leaves no trace. The VMM's part (the doorbell, the slot
 * table) is played here too, late by a random delay.
 *
 * Threads: one. Units: virtual ns, pages.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/rand.h"
#include "memory/dirty.h"
#include "memory/ram.h"
#include "ramlift/vmm.h"

#define GUEST_VCPUS 2u
#define GUEST_SLOTS 3u

struct guest_opts {
	uint64_t seed;
	const uint64_t *region_gpn, *region_pages;
	uint32_t n_regions;
	uint32_t zero_percent;  /* of memory, at the start; a third of it as holes */
	uint32_t writes_per_ms; /* virtual; 0: the guest does not run */
	uint32_t hot_pages;     /* most writes go here; 0: everywhere alike */
	uint32_t ring_entries;
	uint64_t door_max_ns;    /* the doorbell is answered within */
	uint64_t drain_every_ns; /* a slot is deleted and added anew this often; 0: never */
	bool bitmap;
	bool early_ack; /* planted fault: the VMM answers first and resets later */
};

struct guest_ring {
	struct rl_vmm_dirty_gfn *gfn;
	int fd;
	uint64_t pushed, reset; /* entries ever */
};

struct guest {
	struct guest_opts opts;
	struct rl_rand rand;
	struct rl_ram ram; /* what the engine maps; read only there */
	uint8_t *mem;      /* the guest's own mapping, by page */
	uint8_t *logged;   /* by page: writable, so another write leaves no entry */
	uint8_t *kvm_bits; /* bitmap backend: by page */
	struct guest_ring ring[GUEST_VCPUS];
	struct rl_vmm_shared *shared;
	uint64_t shared_size;
	int shared_fd, doorbell_fd;
	struct rl_vmm_slot kvm_slot[GUEST_SLOTS]; /* KVM's truth; `valid` 0 while deleted */
	bool running;
	uint64_t next_write_ns;
	uint64_t door_due_ns; /* UINT64_MAX: nobody rang */
	uint64_t next_drain_ns;
	uint32_t draining; /* slot + 1 being deleted; 0: none */
	uint64_t writes, stalls, drains, resets;
};

int guest_init(struct guest *g, const struct guest_opts *opts, struct rl_err *err);
void guest_fini(struct guest *g);

/** Open the engine's dirty source on this guest. */
int guest_open_dirty(struct guest *g, struct rl_bitmap *pending, struct rl_dirty **d,
		     struct rl_err *err);

/** The guest and its VMM live until @now_ns. Returns when they want to be called next. */
uint64_t guest_run(struct guest *g, uint64_t now_ns);

#endif /* SIM_GUEST_H */
