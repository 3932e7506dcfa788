/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine: RAM and its memslots, the in-kernel interrupt controller and timer, dirty logging. */
#include "labvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backing.h"

#define CAP_DIRTY_LOG_RING_ACQ_REL 223 /* newer than some kernels' headers */
#define TSS_GPA                    0xfffbd000u
#define SLOT_ALIGN                 (2ull << 20)

static int
open_kvm(struct vm *vm, char *text)
{
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0)
		return refuse(
			text, -errno,
			"/dev/kvm: %s; labvm needs KVM (load kvm_intel or kvm_amd, or join the "
			"group of "
			"/dev/kvm); synthvm does without",
			strerror(errno));
	vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		return refuse(text, -errno, "KVM_CREATE_VM: %s", strerror(errno));
	vm->run_bytes = (uint32_t)ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0 ||
	    ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SREGS2) <= 0)
		return refuse(text, -ENOTSUP,
			      "this kernel's KVM is too old: labvm needs Linux 5.14");
	vm->cpuid.head.nent = LABVM_MAX_CPUID;
	if (ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, &vm->cpuid))
		return refuse(text, -errno, "KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
	return 0;
}

/* Before the first vCPU. */
static int
enable_dirty_log(struct vm *vm, char *text)
{
	struct kvm_enable_cap cap = {.cap = CAP_DIRTY_LOG_RING_ACQ_REL};

	if (vm->opts->bitmap) {
		/* never INITIALLY_SET: KVM would start without protecting anything */
		cap.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
		cap.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
		if (ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
			return refuse(text, -errno, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: %s",
				      strerror(errno));
		return 0;
	}
	cap.args[0] = vm->opts->ring_entries * sizeof(struct kvm_dirty_gfn);
	if (!ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
		return 0;
	cap.cap = KVM_CAP_DIRTY_LOG_RING;
	if (ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
		return refuse(
			text, -errno,
			"KVM has no dirty rings of %u entries (%s): try --dirty bitmap, or fewer "
			"--ring-entries",
			vm->opts->ring_entries, strerror(errno));
	return 0;
}

static int
create_chips(struct vm *vm, char *text)
{
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};

	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_GPA))
		return refuse(text, -errno, "KVM_SET_TSS_ADDR: %s", strerror(errno));
	if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0))
		return refuse(text, -errno, "KVM_CREATE_IRQCHIP: %s: labvm needs it in the kernel",
			      strerror(errno));
	if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit))
		return refuse(text, -errno, "KVM_CREATE_PIT2: %s: labvm needs it in the kernel",
			      strerror(errno));
	return 0;
}

static int
add_region(struct vm *vm, uint64_t gpa, uint64_t bytes, char *text)
{
	struct labvm_region *region = &vm->region[vm->n_regions];
	uint32_t page_size, align;
	int err;

	err = rl_backing_open(vm->opts->backing, bytes, &region->fd, &page_size,
			      &region->desc.flags, text);
	if (err)
		return err;
	vm->n_regions++;
	align = page_size < SLOT_ALIGN ? (uint32_t)SLOT_ALIGN : page_size;
	region->hva = rl_backing_map(region->fd, bytes, align);
	if (!region->hva)
		return refuse(text, -errno, "cannot map %llu MiB of guest RAM: %s",
			      (unsigned long long)(bytes >> 20), strerror(errno));
	region->bytes = bytes;
	region->desc.gpn = gpa >> 12;
	region->desc.n_pages = bytes >> 12;
	region->desc.page_size = page_size;
	/* a guest that boots here is loaded into it and runs before anybody asks */
	if (!vm->opts->incoming)
		region->desc.flags &= ~RL_VMM_REGION_ZEROED;
	return 0;
}

/* Two memslots: below 3 GiB and from 4 GiB; a smaller machine's RAM is cut in halves. */
static int
create_ram(struct vm *vm, char *text)
{
	uint64_t bytes = vm->opts->memory_bytes, low, half;
	int err;

	low = bytes < LABVM_LOW_BYTES ? bytes : LABVM_LOW_BYTES;
	err = add_region(vm, 0, low, text);
	if (!err && bytes > low)
		err = add_region(vm, LABVM_HIGH_GPA, bytes - low, text);
	if (err)
		return err;
	if (bytes > low) {
		vm->slot[0] = (struct labvm_slot){0, 0, low, vm->region[0].hva};
		vm->slot[1] =
			(struct labvm_slot){1, LABVM_HIGH_GPA, bytes - low, vm->region[1].hva};
		return 0;
	}
	half = bytes / 2 / SLOT_ALIGN * SLOT_ALIGN;
	vm->slot[0] = (struct labvm_slot){0, 0, half, vm->region[0].hva};
	vm->slot[1] = (struct labvm_slot){1, half, bytes - half, vm->region[0].hva + half};
	return 0;
}

static void
init_locks(struct vm *vm)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&vm->slot_lock, NULL);
	pthread_mutex_init(&vm->run_lock, NULL);
	pthread_cond_init(&vm->parked_cond, &attr);
	pthread_cond_init(&vm->go_cond, &attr);
	pthread_cond_init(&vm->hold_cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* Saved are the MSRs that KVM lists and lets be read; the others differ between kernels. */
static int
find_msrs(struct vm *vm, char *text)
{
	struct {
		struct kvm_msr_list head;
		uint32_t index[LABVM_MAX_MSRS];
	} list = {.head.nmsrs = LABVM_MAX_MSRS};

	if (ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &list))
		return refuse(text, -errno, "KVM_GET_MSR_INDEX_LIST: %s", strerror(errno));
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = {.head.nmsrs = 1, .entry.index = list.index[i]};

		if (ioctl(vm->vcpu[0].fd, KVM_GET_MSRS, &one) == 1)
			vm->msr_index[vm->n_msrs++] = list.index[i];
	}
	return 0;
}

int
vm_create(struct vm *vm, const struct labvm_opts *opts, char *text)
{
	int err, xsave;

	memset(vm, 0, sizeof(*vm));
	vm->opts = opts;
	vm->kvm_fd = vm->fd = -1;
	init_locks(vm);
	uart_reset(&vm->uart);
	vm->holds = 1; /* nothing runs before somebody releases */
	vm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = vm->wake_fd < 0 ? refuse(text, -errno, "eventfd: %s", strerror(errno)) : 0;
	if (!err)
		err = open_kvm(vm, text);
	if (!err)
		err = enable_dirty_log(vm, text);
	if (!err)
		err = create_chips(vm, text);
	if (!err)
		err = create_ram(vm, text);
	if (err)
		return err;
	xsave = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->xsave_bytes = xsave > 4096 ? (uint32_t)xsave : 4096;
	for (uint32_t i = 0; i < opts->n_vcpus && !err; i++)
		err = vcpu_create(vm, i, text);
	if (!err)
		err = find_msrs(vm, text);
	if (!err)
		vm->tsc_khz = (uint32_t)ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	return err;
}

void
vm_destroy(struct vm *vm)
{
	for (uint32_t i = 0; i < vm->n_vcpus; i++) {
		munmap(vm->vcpu[i].run, vm->run_bytes);
		close(vm->vcpu[i].fd);
	}
	for (uint32_t i = 0; i < vm->n_regions; i++) {
		if (vm->region[i].hva)
			munmap(vm->region[i].hva, vm->region[i].bytes);
		close(vm->region[i].fd);
	}
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm_fd >= 0)
		close(vm->kvm_fd);
	if (vm->wake_fd >= 0)
		close(vm->wake_fd);
}

static int
set_slot(struct vm *vm, const struct labvm_slot *slot, bool present, char *text)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->id,
		.flags = vm->logging ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = slot->gpa,
		.memory_size = present ? slot->bytes : 0,
		.userspace_addr = (uintptr_t)slot->hva,
	};

	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region))
		return refuse(text, -errno, "KVM_SET_USER_MEMORY_REGION: slot %u: %s", slot->id,
			      strerror(errno));
	return 0;
}

/* Publish first: the engine must know the slot before its first ring entry. */
static int
add_slot(struct vm *vm, const struct labvm_slot *slot, char *text)
{
	int err = 0;

	if (vm->rl)
		err = rl_vmm_slot_add(vm->rl, slot->id, slot->gpa >> 12, slot->bytes >> 12);
	if (err)
		return refuse(text, err, "memslot %u: %s", slot->id, strerror(-err));
	return set_slot(vm, slot, true, text);
}

int
vm_add_slots(struct vm *vm, char *text)
{
	int err = add_slot(vm, &vm->slot[0], text);

	return err ? err : add_slot(vm, &vm->slot[1], text);
}

int
vm_log_dirty(struct vm *vm, bool on, char *text)
{
	int err = 0;

	pthread_mutex_lock(&vm->slot_lock);
	vm->logging = on;
	for (uint32_t i = 0; i < 2 && !err; i++)
		err = set_slot(vm, &vm->slot[i], true, text);
	pthread_mutex_unlock(&vm->slot_lock);
	return err;
}

int
vm_reslot(struct vm *vm, char *text)
{
	int err;

	vm_hold(vm); /* a vCPU must not meet the hole */
	pthread_mutex_lock(&vm->slot_lock);
	err = set_slot(vm, &vm->slot[1], false, text);
	if (!err) {
		if (vm->rl)
			rl_vmm_slot_delete(vm->rl, vm->slot[1].id);
		vm->slot[1].id = vm->slot[1].id == 1 ? 2 : 1;
		err = add_slot(vm, &vm->slot[1], text);
	}
	pthread_mutex_unlock(&vm->slot_lock);
	vm_release(vm);
	vm->reslots++;
	return err;
}

uint8_t *
vm_ram(const struct vm *vm, uint64_t gpa, uint64_t bytes)
{
	for (uint32_t i = 0; i < vm->n_regions; i++) {
		const struct labvm_region *region = &vm->region[i];
		uint64_t start = region->desc.gpn << 12;

		if (gpa >= start && gpa - start <= region->bytes &&
		    bytes <= region->bytes - (gpa - start))
			return region->hva + (gpa - start);
	}
	return NULL;
}

void
vm_leave(struct vm *vm, int status)
{
	bool was = false;

	if (atomic_compare_exchange_strong(&vm->leaving, &was, true))
		vm->exit_status = status;
	eventfd_write(vm->wake_fd, 1);
}
