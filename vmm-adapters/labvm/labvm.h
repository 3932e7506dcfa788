/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LABVM_H
#define LABVM_H
/**
 * @file labvm.h
 * labvm: a small KVM VMM, the reference for libramlift-vmm. RAM, vCPUs with an in-kernel interrupt
 * controller and timer, COM1, an exit port; nothing that writes guest memory by itself.
 *
 * Threads: main: serial input, memslot changes, the end. One per vCPU: KVM_RUN and port I/O. The library's two:
 *          the operations in adapter.c. Whoever needs all vCPUs still takes vm_hold(), and gives vm_release().
 * Units:   bytes, gpa; gpn is gpa >> 12.
 * Errors:  0 or -errno, cause and remedy in `text` (RL_VMM_TEXT_BYTES).
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

#include "ramlift-vmm.h"

#include "serial.h"
#include "uart.h"

#define LABVM_MAX_VCPUS   64u
#define LABVM_MAX_LOADS   16u
#define LABVM_MAX_REGIONS 2u
#define LABVM_MAX_MSRS    512u
#define LABVM_MAX_CPUID   256u
#define LABVM_LOW_BYTES   (3ull << 30) /* RAM below the hole for devices */
#define LABVM_HIGH_GPA    (4ull << 30)

/* Exit status; what a guest wrote to port 0xf4 gives odd ones, (value << 1) | 1. */
#define LABVM_EXIT_OK      0
#define LABVM_EXIT_FAILED  2
#define LABVM_EXIT_CRASHED 4

struct labvm_load {
	const char *path;
	uint64_t gpa;
};

struct labvm_opts {
	const char *name, *backing, *kernel, *append, *serial, *engine;
	uint64_t memory_bytes;
	uint32_t n_vcpus;
	uint32_t ring_entries;
	uint32_t n_loads;
	struct labvm_load load[LABVM_MAX_LOADS];
	bool incoming, bitmap, json;
};

struct labvm_region {
	struct rl_vmm_region desc;
	uint64_t bytes;
	uint8_t *hva;
	int fd;
};

struct labvm_slot {
	uint32_t id;
	uint64_t gpa, bytes;
	uint8_t *hva;
};

struct vm;

/* What KVM_GET_SUPPORTED_CPUID and its like need: a flexible array with room. */
struct cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[LABVM_MAX_CPUID];
};

struct msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[LABVM_MAX_MSRS];
};

struct vcpu {
	/* set at create, then constant */
	struct vm *vm;
	uint32_t index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;

	struct cpuid cpuid; /* what the guest is shown; a loaded state replaces it */

	/* its thread */
	bool unfinished; /* the last exit's instruction ends only in the next KVM_RUN */
};

struct vm {
	/* set at create, then constant */
	const struct labvm_opts *opts;
	int kvm_fd, fd;
	uint32_t run_bytes, xsave_bytes, tsc_khz;
	uint32_t n_regions, n_vcpus, n_msrs;
	struct labvm_region region[LABVM_MAX_REGIONS];
	struct vcpu vcpu[LABVM_MAX_VCPUS];
	struct cpuid cpuid;                 /* what this host supports */
	uint32_t msr_index[LABVM_MAX_MSRS]; /* those that can be read */
	struct rl_vmm *rl;                  /* NULL in tests without the library */

	/* memslots: slot[0] never changes, slot[1] is the lab device's; under slot_lock */
	pthread_mutex_t slot_lock;
	struct labvm_slot slot[2];
	bool logging;

	/* holding vCPUs; under run_lock, holds also read without */
	pthread_mutex_t run_lock;
	pthread_cond_t parked_cond, go_cond, hold_cond;
	atomic_uint holds;
	uint32_t n_parked;
	bool quitting;

	/* devices, with locks of their own */
	struct uart uart;
	struct serial serial;

	/* the end and the lab device: any thread asks, main does */
	int wake_fd;
	atomic_bool leaving;
	atomic_int exit_status;
	atomic_bool want_reslot;
	atomic_uint reslots;
};

/* event.c */

/** One line on stderr: "labvm NAME: text", or JSON. [any] */
void event(const struct labvm_opts *opts, const char *kind, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/** Say why in @text; returns @err. */
int refuse(char *text, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* vm.c */

/** RAM, memslots, interrupt controller, vCPUs that wait. Registers nothing with the library. */
int vm_create(struct vm *vm, const struct labvm_opts *opts, char *text);
void vm_destroy(struct vm *vm);
/** Publish memslots, then tell KVM of them. Once, after vm->rl is set. */
int vm_add_slots(struct vm *vm, char *text);
/** KVM_MEM_LOG_DIRTY_PAGES on all slots, or on none. */
int vm_log_dirty(struct vm *vm, bool on, char *text);
/** Delete slot[1] and add it again under another id, while every vCPU is held. [main] */
int vm_reslot(struct vm *vm, char *text);
/** Guest RAM at [gpa, gpa + bytes), or NULL. */
uint8_t *vm_ram(const struct vm *vm, uint64_t gpa, uint64_t bytes);
/** End the program with @status, once. [any] */
void vm_leave(struct vm *vm, int status);

/* vcpu.c */
int vcpu_create(struct vm *vm, uint32_t index, char *text);
/** Start the threads; they wait while somebody holds. */
int vcpu_start_all(struct vm *vm, char *text);
void vcpu_stop_all(struct vm *vm);
/** Return when no vCPU is in KVM_RUN and no port I/O is half done; holds nest. Not by a vCPU's thread. */
void vm_hold(struct vm *vm);
void vm_release(struct vm *vm);

/* pio.c */

/** KVM_EXIT_IO: do it. */
void pio(struct vcpu *vcpu);
void vm_set_uart_irq(struct vm *vm, bool level);

/* boot.c */

/** Load the kernel and the raw files into RAM and set the first vCPU's registers to its entry. */
int boot_load(struct vm *vm, char *text);

/* state.c */

/** All state but RAM into a new memfd. The vCPUs are held. */
int state_save(struct vm *vm, int *memfd, uint64_t *bytes, char *text);
/** The reverse, of hostile bytes: nothing is set before all of it was checked. The vCPUs never ran. */
int state_load(struct vm *vm, int memfd, uint64_t bytes, char *text);

/* adapter.c */

/** Tell libramlift-vmm all about the VM (vm->rl); the vCPUs exist, the memslots do not. */
int adapter_create(struct vm *vm, char *text);

#endif /* LABVM_H */
