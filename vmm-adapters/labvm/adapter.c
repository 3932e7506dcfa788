/* SPDX-License-Identifier: BSD-3-Clause */
/* What libramlift-vmm asks of this VMM. */
#include "labvm.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>

static int
op_log_start(void *ctx, char *text)
{
	return vm_log_dirty(ctx, true, text);
}

static int
op_log_stop(void *ctx, char *text)
{
	return vm_log_dirty(ctx, false, text);
}

static int
op_pause(void *ctx, char *text)
{
	(void)text;
	vm_hold(ctx);
	return 0;
}

static int
op_resume(void *ctx, char *text)
{
	(void)text;
	vm_release(ctx);
	return 0;
}

static int
op_state_get(void *ctx, int *memfd, uint64_t *size, char *text)
{
	return state_save(ctx, memfd, size, text);
}

static int
op_state_put(void *ctx, int memfd, uint64_t size, char *text)
{
	return state_load(ctx, memfd, size, text);
}

static int
op_run(void *ctx, char *text)
{
	struct vm *vm = ctx;

	(void)text;
	pthread_mutex_lock(&vm->serial.lock);
	vm_set_uart_irq(vm, uart_irq(&vm->uart));
	pthread_mutex_unlock(&vm->serial.lock);
	vm_release(vm);
	event(vm->opts, "running", "the guest has moved here and runs");
	return 0;
}

/* vCPU state is replaced whole by the next attempt. */
static int
op_reset(void *ctx, char *text)
{
	struct vm *vm = ctx;

	(void)text;
	pthread_mutex_lock(&vm->serial.lock);
	uart_reset(&vm->uart);
	pthread_mutex_unlock(&vm->serial.lock);
	return 0;
}

static void
op_moved(void *ctx)
{
	struct vm *vm = ctx;

	event(vm->opts, "moved", "moved to the target");
	vm_leave(vm, LABVM_EXIT_OK);
}

static int64_t
op_reset_rings(void *ctx)
{
	const struct vm *vm = ctx;
	int n = ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0);

	return n < 0 ? -errno : n;
}

static int
op_sync_bitmap(void *ctx, const struct rl_vmm_slot *slot, uint64_t *bitmap)
{
	const struct vm *vm = ctx;
	struct kvm_dirty_log get = {.slot = slot->slot, .dirty_bitmap = bitmap};
	struct kvm_clear_dirty_log clear = {
		.slot = slot->slot, .num_pages = (uint32_t)slot->n_pages, .dirty_bitmap = bitmap};

	/* ENOENT: deleted this moment, or not added yet; a deletion counts all of it as dirty */
	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get) || ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear))
		return errno == ENOENT ? 0 : -errno;
	return 0;
}

static void
op_log(void *ctx, const char *line)
{
	const struct vm *vm = ctx;

	event(vm->opts, "engine", "%s", line);
}

static const struct rl_vmm_ops ops = {
	.log_start = op_log_start,
	.log_stop = op_log_stop,
	.pause = op_pause,
	.resume = op_resume,
	.state_get = op_state_get,
	.state_put = op_state_put,
	.run = op_run,
	.reset = op_reset,
	.moved = op_moved,
	.reset_rings = op_reset_rings,
	.sync_bitmap = op_sync_bitmap,
	.log = op_log,
};

static int
make_uuid(uint8_t uuid[16])
{
	if (getrandom(uuid, 16, 0) != 16)
		return -EIO;
	uuid[6] = (uuid[6] & 0x0f) | 0x40;
	uuid[8] = (uuid[8] & 0x3f) | 0x80;
	return 0;
}

int
adapter_create(struct vm *vm, char *text)
{
	struct rl_vmm_opts opts = {
		.engine_socket = vm->opts->engine,
		.name = vm->opts->name,
		.incoming = vm->opts->incoming,
		.features = vm->opts->bitmap ? RL_VMM_FEAT_DIRTY_BITMAP : RL_VMM_FEAT_DIRTY_RING,
		.n_vcpus = vm->n_vcpus,
		.ops = &ops,
		.ctx = vm,
	};
	int err = make_uuid(opts.uuid);

	if (!err)
		err = rl_vmm_create(&opts, &vm->rl);
	for (uint32_t i = 0; i < vm->n_regions && !err; i++)
		err = rl_vmm_add_region(vm->rl, &vm->region[i].desc, vm->region[i].fd);
	for (uint32_t i = 0; i < vm->n_vcpus && !err && !vm->opts->bitmap; i++) {
		struct rl_vmm_vcpu vcpu = {i, vm->opts->ring_entries,
					   KVM_DIRTY_LOG_PAGE_OFFSET * 4096ull};

		err = rl_vmm_add_vcpu(vm->rl, &vcpu, vm->vcpu[i].fd);
	}
	return err ? refuse(text, err, "libramlift-vmm refuses this VM: %s", strerror(-err)) : 0;
}
