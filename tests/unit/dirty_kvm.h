/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TEST_DIRTY_KVM_H
#define RL_TEST_DIRTY_KVM_H
/**
 * @file dirty_kvm.h
 * A VMM of a hundred lines for test_dirty.c: one vCPU that writes memory as fast as it can, and a doorbell
 * thread. The test's thread is the engine.
 *
 * Threads: vm_open/vm_run/vm_stop/vm_close by the test; vCPU and doorbell have one each.
 * Errors:  vm_open returns NULL after a message that names what is missing; all else fails the test.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/memfd.h>

#include <ramlift/vmm.h>

#include "base/clock.h"
#include "memory/dirty.h"

#define VM_BYTES      (32ull << 20)
#define VM_PAGES      (VM_BYTES / 4096)
#define VM_GPN        (1ull << 20) /* where the region lies; the guest sees it at 0 */
#define VM_FIRST      (1ull << 20) /* bytes; writers start here */
#define VM_RING3_BASE (1ull << 46)
#define VM_BITMAP     8192u /* offset in the shared memory */

enum vm_writer { VM_RING3_INC, VM_RING0_STOS };

struct vm_opts {
	enum vm_writer writer;
	bool huge;
	uint32_t ring_entries; /* 0: bitmap */
};

struct vm {
	int kvm, vm, vcpu, doorbell, shared_fd;
	struct kvm_run *run;
	size_t run_bytes;
	uint8_t *mem;
	struct rl_vmm_shared *shared;
	pthread_t vcpu_thread, door_thread;
	atomic_bool stop_vcpu, vcpu_gone, stop_door;
	int bad_exit;

	struct rl_ram ram;
	struct rl_bitmap pending;
	struct rl_dirty_ring_opts ring;
	struct rl_dirty_opts opts;
};

static void
vm_kick(int sig)
{
	(void)sig;
}

static void *
vm_vcpu(void *arg)
{
	struct vm *v = arg;

	while (!v->stop_vcpu && v->bad_exit == 0) {
		if (ioctl(v->vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				v->bad_exit = errno;
		} else if (v->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			v->shared->ring_full_exits++;
			usleep(100);
		} else if (v->run->exit_reason != KVM_EXIT_IO) {
			v->bad_exit = (int)v->run->exit_reason;
		}
	}
	v->vcpu_gone = true;
	return NULL;
}

static int64_t
vm_sync(struct vm *v, uint64_t *bits)
{
	struct kvm_dirty_log get = {.slot = 0, .dirty_bitmap = bits};
	struct kvm_clear_dirty_log clear = {.slot = 0, .num_pages = VM_PAGES, .dirty_bitmap = bits};

	if (ioctl(v->vm, KVM_GET_DIRTY_LOG, &get) != 0 ||
	    ioctl(v->vm, KVM_CLEAR_DIRTY_LOG, &clear) != 0)
		return -errno;
	return 0;
}

static void *
vm_door(void *arg)
{
	struct vm *v = arg;
	struct pollfd p = {.fd = v->doorbell, .events = POLLIN};

	while (!v->stop_door) {
		uint64_t req, n;
		int64_t rc;

		if (poll(&p, 1, 20) <= 0 || read(v->doorbell, &n, sizeof(n)) != sizeof(n))
			continue;
		req = __atomic_load_n(&v->shared->door_req, __ATOMIC_ACQUIRE);
		if (v->shared->door_cmd == RL_VMM_DOOR_RESET_RINGS)
			rc = ioctl(v->vm, KVM_RESET_DIRTY_RINGS, 0);
		else
			rc = vm_sync(v, (void *)((uint8_t *)v->shared + VM_BITMAP));
		v->shared->door_result = rc < 0 ? -errno : rc;
		__atomic_store_n(&v->shared->door_ack, req, __ATOMIC_RELEASE);
	}
	return NULL;
}

static struct kvm_segment
vm_segment(bool code, bool ring3)
{
	return (struct kvm_segment){.limit = ring3 ? 0xfffff : 0xffffffff,
				    .selector = ring3 ? (code ? 0x33 : 0x2b) : (code ? 8 : 16),
				    .present = 1,
				    .type = code ? 11 : 3,
				    .dpl = ring3 ? 3 : 0,
				    .db = !(code && ring3),
				    .s = 1,
				    .l = code && ring3,
				    .g = 1};
}

/* 64-bit, ring 3: native everywhere. inc qword at each page, then count the pass. */
static void
vm_boot_ring3(struct vm *v, struct kvm_sregs *s, struct kvm_regs *g)
{
	static const uint8_t code[] = {0x48, 0x89, 0xdf, /* mov rdi,rbx */
				       0x48, 0x89, 0xca, /* mov rdx,rcx */
				       0x48, 0xff, 0x07, /* inc qword [rdi] */
				       0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /* add rdi,4096 */
				       0x48, 0xff, 0xca,                         /* dec rdx */
				       0x75, 0xf1,                               /* jnz */
				       0x49, 0xff, 0xc0,                         /* inc r8 */
				       0x4d, 0x89, 0x01,                         /* mov [r9],r8 */
				       0xeb, 0xe3};                              /* jmp */
	uint64_t *pml4 = (void *)(v->mem + 0x2000), *pdp = (void *)(v->mem + 0x3000),
		 *pd = (void *)(v->mem + 0x4000);

	memcpy(v->mem + 0x1000, code, sizeof(code));
	pml4[VM_RING3_BASE >> 39 & 511] = 0x3007;
	pdp[VM_RING3_BASE >> 30 & 511] = 0x4007;
	for (uint64_t i = 0; i < VM_BYTES >> 21; i++)
		pd[i] = i << 21 | 0xe7;
	s->cr3 = 0x2000;
	s->cr4 = 0x20;
	s->cr0 = 0x80050033;
	s->efer = 0xd01;
	g->rip = VM_RING3_BASE + 0x1000;
	g->rsp = VM_RING3_BASE + 0x8000;
	g->rbx = VM_RING3_BASE + VM_FIRST;
	g->rcx = (VM_BYTES - VM_FIRST) / 4096;
	g->r9 = VM_RING3_BASE + 0x9000;
}

/* 32-bit, ring 0: emulated under PVM, with an entry per store. rep stosl over all, with the next value. */
static void
vm_boot_ring0(struct vm *v, struct kvm_sregs *s, struct kvm_regs *g)
{
	static const uint8_t code[] = {0x8b, 0x3d, 0x00, 0x20, 0x00, 0x00, /* mov edi,[0x2000] */
				       0x8b, 0x0d, 0x04, 0x20, 0x00, 0x00, /* mov ecx,[0x2004] */
				       0xfc, 0xf3, 0xab,                   /* cld; rep stosl */
				       0x40,                               /* inc eax */
				       0xe6, 0x10,                         /* out 0x10,al */
				       0xeb, 0xec};                        /* jmp */
	uint32_t *param = (void *)(v->mem + 0x2000);

	memcpy(v->mem + 0x1000, code, sizeof(code));
	param[0] = VM_FIRST;
	param[1] = (256 << 10) / 4;
	s->cr0 |= 1;
	g->rip = 0x1000;
	g->rax = 0x02020202;
}

static bool
vm_boot(struct vm *v, enum vm_writer writer)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[200];
	} cpuid = {.head = {.nent = 200}};
	bool ring3 = writer == VM_RING3_INC;
	struct kvm_regs g = {.rflags = 2};
	struct kvm_sregs s;

	if (ioctl(v->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) != 0 ||
	    ioctl(v->vcpu, KVM_SET_CPUID2, &cpuid) != 0 || ioctl(v->vcpu, KVM_GET_SREGS, &s) != 0)
		return false;
	s.cs = vm_segment(true, ring3);
	s.ss = s.ds = s.es = s.fs = s.gs = vm_segment(false, ring3);
	memset(&s.ldt, 0, sizeof(s.ldt));
	if (ring3)
		vm_boot_ring3(v, &s, &g);
	else
		vm_boot_ring0(v, &s, &g);
	return ioctl(v->vcpu, KVM_SET_SREGS, &s) == 0 && ioctl(v->vcpu, KVM_SET_REGS, &g) == 0;
}

static void
vm_close(struct vm *v)
{
	if (v->run)
		munmap(v->run, v->run_bytes);
	if (v->shared)
		munmap(v->shared, v->opts.shared_size);
	rl_bitmap_fini(&v->pending);
	if (v->mem)
		munmap(v->mem, VM_BYTES);
	rl_ram_fini(&v->ram);
	for (int *fd = &v->kvm; fd <= &v->shared_fd; fd++)
		if (*fd >= 0)
			close(*fd);
	free(v);
}

static const char *
vm_memory(struct vm *v, bool huge)
{
	struct rl_region r = {
		.gpn = VM_GPN, .n_pages = VM_PAGES, .page_size = huge ? 2 << 20 : 4096};
	uint64_t shared_bytes = VM_BITMAP + VM_PAGES / 8;
	struct rl_err err;

	r.fd = memfd_create("guest", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	if (r.fd < 0 || ftruncate(r.fd, (off_t)VM_BYTES) != 0)
		return "memory for the guest";
	v->mem = mmap(NULL, VM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0);
	if (v->mem == MAP_FAILED) {
		v->mem = NULL;
		close(r.fd);
		return "16 free hugetlb pages of 2 MiB (vm.nr_hugepages)";
	}
	memset(v->mem, 1, VM_BYTES);
	memset(v->mem, 0, VM_FIRST);
	if (rl_ram_add(&v->ram, &r, &err) != 0 || rl_ram_map(&v->ram, false, &err) != 0 ||
	    rl_bitmap_init(&v->pending, VM_PAGES) != 0)
		return "memory for the engine";

	v->shared_fd = memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	v->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (v->shared_fd < 0 || ftruncate(v->shared_fd, (off_t)shared_bytes) != 0 ||
	    fcntl(v->shared_fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
		return "a sealed memfd";
	v->opts.shared_size = shared_bytes;
	v->shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->shared_fd, 0);
	if (v->shared == MAP_FAILED)
		return "a mapping";
	v->shared->magic = RL_VMM_SHARED_MAGIC;
	v->shared->n_slots = 1;
	v->shared->slot[0] = (struct rl_vmm_slot){
		.slot = 0, .valid = 1, .gpn = VM_GPN, .n_pages = VM_PAGES, .bitmap = VM_BITMAP};
	return NULL;
}

static const char *
vm_create(struct vm *v, const struct vm_opts *o)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
				     .args = {o->ring_entries * sizeof(struct kvm_dirty_gfn)}};
	struct kvm_userspace_memory_region slot = {.flags = KVM_MEM_LOG_DIRTY_PAGES,
						   .memory_size = VM_BYTES};

	v->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (v->kvm < 0)
		return "/dev/kvm";
	v->vm = ioctl(v->kvm, KVM_CREATE_VM, 0);
	if (v->vm < 0)
		return "KVM_CREATE_VM";
	if (o->ring_entries == 0)
		cap = (struct kvm_enable_cap){.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
					      .args = {1}};
	if (ioctl(v->vm, KVM_ENABLE_CAP, &cap) != 0)
		return o->ring_entries == 0 ? "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"
					    : "KVM_CAP_DIRTY_LOG_RING_ACQ_REL";
	slot.userspace_addr = (uintptr_t)v->mem;
	if (ioctl(v->vm, KVM_SET_USER_MEMORY_REGION, &slot) != 0)
		return "KVM_SET_USER_MEMORY_REGION";
	v->vcpu = ioctl(v->vm, KVM_CREATE_VCPU, 0);
	v->run_bytes = (size_t)ioctl(v->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	v->run = mmap(NULL, v->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->vcpu, 0);
	if (v->run == MAP_FAILED)
		return "a vCPU";
	return vm_boot(v, o->writer) ? NULL : "this kind of vCPU";
}

static struct vm *
vm_open(const struct vm_opts *o)
{
	struct vm *v = calloc(1, sizeof(*v));
	const char *missing;

	assert_non_null(v);
	for (int *fd = &v->kvm; fd <= &v->shared_fd; fd++)
		*fd = -1;
	rl_ram_init(&v->ram);
	missing = vm_memory(v, o->huge);
	if (!missing)
		missing = vm_create(v, o);
	if (missing) {
		print_message("skipped: no %s here\n", missing);
		vm_close(v);
		return NULL;
	}
	v->ring = (struct rl_dirty_ring_opts){.fd = v->vcpu,
					      .offset = KVM_DIRTY_LOG_PAGE_OFFSET * 4096,
					      .entries = o->ring_entries};
	v->opts.bitmap = o->ring_entries == 0;
	v->opts.n_rings = o->ring_entries > 0;
	v->opts.ring = &v->ring;
	v->opts.shared_fd = v->shared_fd;
	v->opts.doorbell_fd = v->doorbell;
	v->opts.ram = &v->ram;
	v->opts.pending = &v->pending;
	return v;
}

static void
vm_run(struct vm *v)
{
	struct sigaction sa = {.sa_handler = vm_kick};

	sigaction(SIGUSR1, &sa, NULL);
	assert_int_equal(pthread_create(&v->door_thread, NULL, vm_door, v), 0);
	assert_int_equal(pthread_create(&v->vcpu_thread, NULL, vm_vcpu, v), 0);
}

/* The guest stands still; the doorbell goes on. */
static void
vm_stop(struct vm *v)
{
	v->stop_vcpu = true;
	while (!v->vcpu_gone) {
		v->run->immediate_exit = 1;
		pthread_kill(v->vcpu_thread, SIGUSR1);
		usleep(1000);
	}
	pthread_join(v->vcpu_thread, NULL);
	assert_int_equal(v->bad_exit, 0);
}

static void
vm_stop_door(struct vm *v)
{
	v->stop_door = true;
	pthread_join(v->door_thread, NULL);
}

/* ---- the engine ---- */

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
	uint64_t end_ns, next_ns = 0, digest[2][VM_PAGES / 512];
	bool half = false;

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
		if (!half && now > end_ns - RL_NS_PER_S / 4) {
			rl_ram_digest(&v->ram, NULL, digest[0]);
			half = true;
		}
	}
	rl_ram_digest(&v->ram, NULL, digest[1]);
	assert_memory_not_equal(digest[0], digest[1], sizeof(digest[0])); /* the guest runs */
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

#endif /* RL_TEST_DIRTY_KVM_H */
