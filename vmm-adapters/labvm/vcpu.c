/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vCPU threads, and holding them. A hold sends SIGUSR1; its handler sets immediate_exit, so that a vCPU that is
 * just about to enter KVM_RUN comes out too. Before it parks, a vCPU completes the port I/O it was in: KVM
 * finishes an instruction only at the next KVM_RUN, and its registers are not what they seem until then.
 */
#include "labvm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RING_FULL_NAP_US 100

static _Thread_local struct kvm_run *this_run;

static void
on_kick(int sig)
{
	(void)sig;
	if (this_run)
		this_run->immediate_exit = 1;
}

static void
set_apic_id(struct cpuid *cpuid, uint32_t id)
{
	for (uint32_t i = 0; i < cpuid->head.nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entry[i];

		if (e->function == 1)
			e->ebx = (e->ebx & 0x00ffffff) | id << 24;
		else if (e->function == 0xb || e->function == 0x1f)
			e->edx = id;
	}
}

int
vcpu_create(struct vm *vm, uint32_t index, char *text)
{
	struct vcpu *vcpu = &vm->vcpu[index];

	vcpu->vm = vm;
	vcpu->index = index;
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (vcpu->fd < 0)
		return refuse(text, -errno, "KVM_CREATE_VCPU %u: %s", index, strerror(errno));
	vcpu->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		int err = errno;

		close(vcpu->fd);
		return refuse(text, -err, "cannot map vCPU %u: %s", index, strerror(err));
	}
	vm->n_vcpus = index + 1;
	vcpu->cpuid = vm->cpuid;
	set_apic_id(&vcpu->cpuid, index);
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, &vcpu->cpuid))
		return refuse(text, -errno, "KVM_SET_CPUID2: %s", strerror(errno));
	return 0;
}

static void
crash(struct vcpu *vcpu, const char *why, uint64_t detail)
{
	struct kvm_regs regs = {0};
	struct kvm_sregs sregs = {0};

	ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	event(vcpu->vm->opts, "crashed",
	      "vCPU %u: %s (%llu) at rip=%llx rsp=%llx cr0=%llx cr2=%llx cr3=%llx cs=%x",
	      vcpu->index, why, (unsigned long long)detail, regs.rip, regs.rsp, sregs.cr0,
	      sregs.cr2, sregs.cr3, sregs.cs.selector);
	vm_leave(vcpu->vm, LABVM_EXIT_CRASHED);
}

static void
mmio(struct kvm_run *run)
{
	/* nothing is there: all ones, and writes go nowhere */
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

/* False: this vCPU does not go on. */
static bool
handle_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		pio(vcpu);
		return true;
	case KVM_EXIT_MMIO:
		mmio(run);
		return true;
	case KVM_EXIT_DIRTY_RING_FULL:
		if (vcpu->vm->rl)
			rl_vmm_ring_full(vcpu->vm->rl);
		usleep(RING_FULL_NAP_US);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return true;
	case KVM_EXIT_SHUTDOWN:
		crash(vcpu, "triple fault", 0);
		return false;
	case KVM_EXIT_FAIL_ENTRY:
		crash(vcpu, "KVM cannot enter the guest",
		      run->fail_entry.hardware_entry_failure_reason);
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		crash(vcpu, "KVM internal error", run->internal.suberror);
		return false;
	default:
		crash(vcpu, "exit that labvm does not know", run->exit_reason);
		return false;
	}
}

/* KVM_RUN once. */
static bool
enter(struct vcpu *vcpu)
{
	vcpu->unfinished = !ioctl(vcpu->fd, KVM_RUN, 0);
	if (vcpu->unfinished)
		return handle_exit(vcpu);
	if (errno == EINTR || errno == EAGAIN)
		return true;
	crash(vcpu, strerror(errno), (uint64_t)errno);
	return false;
}

/* A string instruction may take several exits; each needs its answer before the next. */
static bool
complete_io(struct vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	while (vcpu->unfinished)
		if (!enter(vcpu))
			return false;
	return true;
}

/* Until nobody holds. False: the end. */
static bool
park(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	bool go_on = complete_io(vcpu);

	pthread_mutex_lock(&vm->run_lock);
	vm->n_parked++;
	pthread_cond_broadcast(&vm->parked_cond);
	while ((vm->holds || !go_on) && !vm->quitting)
		pthread_cond_wait(&vm->go_cond, &vm->run_lock);
	go_on = !vm->quitting;
	if (go_on) {
		vm->n_parked--;
		vcpu->run->immediate_exit = 0; /* under the lock: a later hold sets it again */
	}
	pthread_mutex_unlock(&vm->run_lock);
	return go_on;
}

static void *
vcpu_main(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vm *vm = vcpu->vm;
	char name[16];
	bool go_on = true;

	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	this_run = vcpu->run;
	while (go_on) {
		if (vm->holds)
			go_on = park(vcpu);
		else if (!enter(vcpu))
			go_on = false;
	}
	/* a vCPU that has ended counts as still */
	pthread_mutex_lock(&vm->run_lock);
	if (!vm->quitting) {
		vm->n_parked++;
		pthread_cond_broadcast(&vm->parked_cond);
	}
	pthread_mutex_unlock(&vm->run_lock);
	return NULL;
}

int
vcpu_start_all(struct vm *vm, char *text)
{
	struct sigaction action = {.sa_handler = on_kick};

	sigaction(SIGUSR1, &action, NULL);
	for (uint32_t i = 0; i < vm->n_vcpus; i++) {
		int err = pthread_create(&vm->vcpu[i].thread, NULL, vcpu_main, &vm->vcpu[i]);

		if (err)
			return refuse(text, -err, "cannot start the thread of vCPU %u: %s", i,
				      strerror(err));
		vm->vcpu[i].started = true;
	}
	return 0;
}

static void
kick_all(struct vm *vm)
{
	for (uint32_t i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpu[i].started)
			pthread_kill(vm->vcpu[i].thread, SIGUSR1);
}

void
vm_hold(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->holds++;
	pthread_cond_broadcast(&vm->hold_cond);
	kick_all(vm);
	while (vm->n_parked < vm->n_vcpus)
		pthread_cond_wait(&vm->parked_cond, &vm->run_lock);
	pthread_mutex_unlock(&vm->run_lock);
}

void
vm_release(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	if (!--vm->holds)
		pthread_cond_broadcast(&vm->go_cond);
	pthread_mutex_unlock(&vm->run_lock);
}

void
vcpu_stop_all(struct vm *vm)
{
	pthread_mutex_lock(&vm->run_lock);
	vm->quitting = true;
	vm->holds++;
	pthread_cond_broadcast(&vm->go_cond);
	pthread_cond_broadcast(&vm->hold_cond);
	kick_all(vm);
	pthread_mutex_unlock(&vm->run_lock);
	for (uint32_t i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpu[i].started)
			pthread_join(vm->vcpu[i].thread, NULL);
}
