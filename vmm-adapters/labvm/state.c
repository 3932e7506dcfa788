/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Saved state: a header, then sections of { type, index, bytes } each followed by its bytes, padded to 8. Host byte
 * order, KVM's structures as they are (one architecture). Version 1.
 *
 * The reader trusts nothing: it checks header and sections by bounds, then that every section that this
 * machine needs is there once with the size it must have, and only then sets anything. Order matters: CPUID
 * first, APIC base (in SREGS2) before the LAPIC, the LAPIC before the TSC deadline (an MSR).
 */
#include "labvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define STATE_MAGIC   0x5453564cu /* "LVST" */
#define STATE_VERSION 1u
#define N_IRQCHIPS    3u
#define MAX_SECTIONS  (LABVM_MAX_VCPUS * 16 + 8)
#define FPU_BYTES     4096u

struct state_header {
	uint32_t magic, version;
	uint64_t bytes; /* of all */
	uint64_t ram_bytes;
	uint32_t n_vcpus, n_sections;
};

struct section {
	uint32_t type, index;
	uint64_t bytes;
};

/* Assigned once, never reused. */
enum section_type {
	SECTION_IRQCHIP = 1, /* index: chip */
	SECTION_PIT = 2,
	SECTION_CLOCK = 3,
	SECTION_UART = 4,
	SECTION_CPUID = 16, /* from here on index: vCPU */
	SECTION_SREGS2 = 17,
	SECTION_XCRS = 18,
	SECTION_XSAVE = 19,
	SECTION_LAPIC = 20,
	SECTION_MSRS = 21,
	SECTION_REGS = 22,
	SECTION_EVENTS = 23,
	SECTION_MP_STATE = 24,
	SECTION_DEBUGREGS = 25,
};

static const struct {
	uint32_t type;
	const char *name;
} names[] = {
	{SECTION_IRQCHIP, "irqchip"},   {SECTION_PIT, "pit"},
	{SECTION_CLOCK, "clock"},       {SECTION_UART, "uart"},
	{SECTION_CPUID, "cpuid"},       {SECTION_SREGS2, "sregs"},
	{SECTION_XCRS, "xcrs"},         {SECTION_XSAVE, "xsave"},
	{SECTION_LAPIC, "lapic"},       {SECTION_MSRS, "msrs"},
	{SECTION_REGS, "regs"},         {SECTION_EVENTS, "events"},
	{SECTION_MP_STATE, "mp_state"}, {SECTION_DEBUGREGS, "debugregs"},
};

/* vCPU sections that one ioctl gets and one sets; restored in this order. */
static const struct simple {
	uint32_t type, bytes;
	unsigned long get, set;
} early[] =
	{
		{SECTION_SREGS2, sizeof(struct kvm_sregs2), KVM_GET_SREGS2, KVM_SET_SREGS2},
		{SECTION_XCRS, sizeof(struct kvm_xcrs), KVM_GET_XCRS, KVM_SET_XCRS},
		{SECTION_LAPIC, sizeof(struct kvm_lapic_state), KVM_GET_LAPIC, KVM_SET_LAPIC},
},
  late[] = {
	  {SECTION_REGS, sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS},
	  {SECTION_EVENTS, sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS,
	   KVM_SET_VCPU_EVENTS},
	  {SECTION_MP_STATE, sizeof(struct kvm_mp_state), KVM_GET_MP_STATE, KVM_SET_MP_STATE},
	  {SECTION_DEBUGREGS, sizeof(struct kvm_debugregs), KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS},
};

static const char *
name_of(uint32_t type)
{
	for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].type == type)
			return names[i].name;
	return NULL;
}

/* Saving */

struct writer {
	uint8_t *bytes;
	uint64_t used, size;
	uint32_t n_sections;
	char *text;
};

/* Room for a section's bytes, zeroed; NULL: no memory. */
static void *
append(struct writer *w, uint32_t type, uint32_t index, uint64_t bytes)
{
	struct section section = {type, index, bytes};
	uint64_t need = sizeof(section) + (bytes + 7) / 8 * 8;
	void *body;

	if (w->used + need > w->size) {
		uint64_t size = (w->used + need) * 2;
		uint8_t *more = realloc(w->bytes, size);

		if (!more) {
			refuse(w->text, -ENOMEM, "no memory for the machine's state");
			return NULL;
		}
		w->bytes = more;
		w->size = size;
	}
	memcpy(w->bytes + w->used, &section, sizeof(section));
	body = w->bytes + w->used + sizeof(section);
	memset(body, 0, need - sizeof(section));
	w->used += need;
	w->n_sections++;
	return body;
}

static int
save_ioctl(struct writer *w, int fd, uint32_t type, uint32_t index, uint64_t bytes,
	   unsigned long get)
{
	void *body = append(w, type, index, bytes);

	if (!body)
		return -ENOMEM;
	if (ioctl(fd, get, body))
		return refuse(w->text, -errno, "cannot read %s %u: %s", name_of(type), index,
			      strerror(errno));
	return 0;
}

/* As it was set: KVM changes its own copy as the guest runs. */
static int
save_cpuid(struct writer *w, const struct vcpu *vcpu)
{
	uint64_t bytes = vcpu->cpuid.head.nent * sizeof(vcpu->cpuid.entry[0]);
	void *body = append(w, SECTION_CPUID, vcpu->index, bytes);

	if (!body)
		return -ENOMEM;
	memcpy(body, vcpu->cpuid.entry, bytes);
	return 0;
}

static int
save_msrs(struct writer *w, const struct vm *vm, const struct vcpu *vcpu)
{
	struct msrs msrs = {.head.nmsrs = vm->n_msrs};
	void *body;
	int n;

	for (uint32_t i = 0; i < vm->n_msrs; i++)
		msrs.entry[i].index = vm->msr_index[i];
	n = ioctl(vcpu->fd, KVM_GET_MSRS, &msrs);
	if (n != (int)vm->n_msrs)
		return refuse(w->text, -EIO, "cannot read MSR %#x of vCPU %u",
			      vm->msr_index[n < 0 ? 0 : n], vcpu->index);
	body = append(w, SECTION_MSRS, vcpu->index, vm->n_msrs * sizeof(msrs.entry[0]));
	if (!body)
		return -ENOMEM;
	memcpy(body, msrs.entry, vm->n_msrs * sizeof(msrs.entry[0]));
	return 0;
}

static int
save_vcpu(struct writer *w, const struct vm *vm, const struct vcpu *vcpu)
{
	uint32_t i = vcpu->index;
	int err = save_cpuid(w, vcpu);

	for (uint32_t k = 0; k < 3 && !err; k++)
		err = save_ioctl(w, vcpu->fd, early[k].type, i, early[k].bytes, early[k].get);
	if (!err)
		err = save_ioctl(w, vcpu->fd, SECTION_XSAVE, i, vm->xsave_bytes,
				 vm->xsave_bytes > FPU_BYTES ? KVM_GET_XSAVE2 : KVM_GET_XSAVE);
	if (!err)
		err = save_msrs(w, vm, vcpu);
	for (uint32_t k = 0; k < 4 && !err; k++)
		err = save_ioctl(w, vcpu->fd, late[k].type, i, late[k].bytes, late[k].get);
	return err;
}

static int
save_chips(struct writer *w, struct vm *vm)
{
	uint8_t *uart;
	int err = 0;

	for (uint32_t i = 0; i < N_IRQCHIPS && !err; i++) {
		struct kvm_irqchip *chip =
			append(w, SECTION_IRQCHIP, i, sizeof(struct kvm_irqchip));

		if (!chip)
			return -ENOMEM;
		chip->chip_id = i;
		if (ioctl(vm->fd, KVM_GET_IRQCHIP, chip))
			err = refuse(w->text, -errno, "cannot read irqchip %u: %s", i,
				     strerror(errno));
	}
	if (!err)
		err = save_ioctl(w, vm->fd, SECTION_PIT, 0, sizeof(struct kvm_pit_state2),
				 KVM_GET_PIT2);
	if (!err)
		err = save_ioctl(w, vm->fd, SECTION_CLOCK, 0, sizeof(struct kvm_clock_data),
				 KVM_GET_CLOCK);
	if (err)
		return err;
	uart = append(w, SECTION_UART, 0, UART_STATE_BYTES);
	if (!uart)
		return -ENOMEM;
	pthread_mutex_lock(&vm->serial.lock);
	uart_save(&vm->uart, uart);
	pthread_mutex_unlock(&vm->serial.lock);
	return 0;
}

static int
write_out(const struct writer *w, int *memfd)
{
	uint64_t done = 0;
	int fd = memfd_create("labvm-state", MFD_CLOEXEC);

	if (fd < 0)
		return refuse(w->text, -errno, "memfd_create: %s", strerror(errno));
	while (done < w->used) {
		ssize_t n = write(fd, w->bytes + done, w->used - done);

		if (n <= 0) {
			int err = n < 0 ? errno : EIO;

			close(fd);
			return refuse(w->text, -err, "cannot write the state: %s", strerror(err));
		}
		done += (uint64_t)n;
	}
	*memfd = fd;
	return 0;
}

int
state_save(struct vm *vm, int *memfd, uint64_t *bytes, char *text)
{
	struct state_header header = {
		STATE_MAGIC, STATE_VERSION, 0, vm->opts->memory_bytes, vm->n_vcpus, 0};
	struct writer w = {.size = 65536, .used = sizeof(header), .text = text};
	int err = 0;

	w.bytes = malloc(w.size);
	if (!w.bytes)
		return refuse(text, -ENOMEM, "no memory for the machine's state");
	for (uint32_t i = 0; i < vm->n_vcpus && !err; i++)
		err = save_vcpu(&w, vm, &vm->vcpu[i]);
	if (!err)
		err = save_chips(&w, vm);
	if (!err) {
		header.bytes = w.used;
		header.n_sections = w.n_sections;
		memcpy(w.bytes, &header, sizeof(header));
		err = write_out(&w, memfd);
	}
	*bytes = w.used;
	free(w.bytes);
	return err;
}

/* Loading */

struct found {
	uint32_t type, index;
	uint64_t bytes;
	const uint8_t *body; /* aligned to 8 */
};

struct reader {
	struct vm *vm;
	uint8_t *bytes;
	uint32_t n;
	struct found found[MAX_SECTIONS];
	char *text;
};

static int
check_header(const struct reader *r, uint64_t bytes)
{
	struct state_header h;

	if (bytes < sizeof(h))
		return refuse(r->text, -EPROTO, "state: %llu bytes are too few for a header",
			      (unsigned long long)bytes);
	memcpy(&h, r->bytes, sizeof(h));
	if (h.magic != STATE_MAGIC)
		return refuse(r->text, -EPROTO, "state: not a labvm's (magic %#x)", h.magic);
	if (h.version != STATE_VERSION)
		return refuse(
			r->text, -EPROTO,
			"state: format version %u, this labvm reads %u: run the same labvm on "
			"both hosts",
			h.version, STATE_VERSION);
	if (h.bytes != bytes)
		return refuse(r->text, -EPROTO, "state: %llu bytes came, the header says %llu",
			      (unsigned long long)bytes, (unsigned long long)h.bytes);
	if (h.n_vcpus != r->vm->n_vcpus)
		return refuse(r->text, -EINVAL,
			      "state: of %u vCPUs, this machine has %u: start it with --vcpus %u",
			      h.n_vcpus, r->vm->n_vcpus, h.n_vcpus);
	if (h.ram_bytes != r->vm->opts->memory_bytes)
		return refuse(r->text, -EINVAL,
			      "state: of %llu bytes of RAM, this machine has %llu: start it with "
			      "--memory %lluM",
			      (unsigned long long)h.ram_bytes,
			      (unsigned long long)r->vm->opts->memory_bytes,
			      (unsigned long long)(h.ram_bytes >> 20));
	if (h.n_sections > MAX_SECTIONS)
		return refuse(r->text, -EPROTO, "state: %u sections are too many", h.n_sections);
	return 0;
}

static const struct found *
find(const struct reader *r, uint32_t type, uint32_t index)
{
	for (uint32_t i = 0; i < r->n; i++)
		if (r->found[i].type == type && r->found[i].index == index)
			return &r->found[i];
	return NULL;
}

static int
index_sections(struct reader *r, uint64_t bytes)
{
	uint64_t at = sizeof(struct state_header);
	struct state_header h;

	memcpy(&h, r->bytes, sizeof(h));
	while (at < bytes) {
		struct section s;

		if (bytes - at < sizeof(s))
			return refuse(r->text, -EPROTO, "state: cut off at byte %llu",
				      (unsigned long long)at);
		memcpy(&s, r->bytes + at, sizeof(s));
		at += sizeof(s);
		if (s.bytes > bytes - at || (s.bytes + 7) / 8 * 8 > bytes - at)
			return refuse(r->text, -EPROTO,
				      "state: section %u is longer than what came", s.type);
		if (!name_of(s.type))
			return refuse(
				r->text, -EPROTO,
				"state: section %u is unknown: run the same labvm on both hosts",
				s.type);
		if (r->n == h.n_sections || find(r, s.type, s.index))
			return refuse(r->text, -EPROTO, "state: one section %s %u too many",
				      name_of(s.type), s.index);
		r->found[r->n++] = (struct found){s.type, s.index, s.bytes, r->bytes + at};
		at += (s.bytes + 7) / 8 * 8;
	}
	if (r->n != h.n_sections)
		return refuse(r->text, -EPROTO, "state: %u sections came, the header says %u", r->n,
			      h.n_sections);
	return 0;
}

/* The section must be there; @bytes 0: any size that is whole entries of @unit, at most @max of them. */
static int
need(const struct reader *r, uint32_t type, uint32_t index, uint64_t bytes, uint64_t unit,
     uint64_t max)
{
	const struct found *f = find(r, type, index);

	if (!f)
		return refuse(r->text, -EPROTO, "state: section %s %u is missing", name_of(type),
			      index);
	if (bytes ? f->bytes != bytes : !f->bytes || f->bytes % unit || f->bytes / unit > max)
		return refuse(r->text, -EPROTO,
			      "state: section %s %u has %llu bytes: KVM differs between the hosts",
			      name_of(type), index, (unsigned long long)f->bytes);
	return 0;
}

static int
check_vcpu(const struct reader *r, uint32_t i)
{
	int err = need(r, SECTION_CPUID, i, 0, sizeof(struct kvm_cpuid_entry2), LABVM_MAX_CPUID);

	if (!err)
		err = need(r, SECTION_MSRS, i, 0, sizeof(struct kvm_msr_entry), LABVM_MAX_MSRS);
	if (!err)
		err = need(r, SECTION_XSAVE, i, r->vm->xsave_bytes, 0, 0);
	for (uint32_t k = 0; k < 3 && !err; k++)
		err = need(r, early[k].type, i, early[k].bytes, 0, 0);
	for (uint32_t k = 0; k < 4 && !err; k++)
		err = need(r, late[k].type, i, late[k].bytes, 0, 0);
	return err;
}

static int
check_chips(const struct reader *r)
{
	struct uart uart;
	int err = 0;

	for (uint32_t i = 0; i < N_IRQCHIPS && !err; i++)
		err = need(r, SECTION_IRQCHIP, i, sizeof(struct kvm_irqchip), 0, 0);
	if (!err)
		err = need(r, SECTION_PIT, 0, sizeof(struct kvm_pit_state2), 0, 0);
	if (!err)
		err = need(r, SECTION_CLOCK, 0, sizeof(struct kvm_clock_data), 0, 0);
	if (!err)
		err = need(r, SECTION_UART, 0, UART_STATE_BYTES, 0, 0);
	if (!err && !uart_load(&uart, find(r, SECTION_UART, 0)->body))
		err = refuse(r->text, -EPROTO,
			     "state: section uart has values that a UART cannot have");
	return err;
}

static const struct kvm_cpuid_entry2 *
leaf(const struct kvm_cpuid_entry2 *entries, uint32_t n, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < n; i++)
		if (entries[i].function == function && entries[i].index == index)
			return &entries[i];
	return NULL;
}

/* Feature bits that the guest was shown and this host has not. */
static int
check_features(const struct reader *r, uint32_t index)
{
	static const struct {
		uint32_t function;
		bool bits[4]; /* which of eax..edx are features */
	} leaves[] = {
		{1, {false, false, true, true}},
		{7, {false, true, true, true}},
		{0xd, {true, false, false, true}},
		{0x80000001, {false, false, true, true}},
	};
	const struct found *f = find(r, SECTION_CPUID, index);
	const struct kvm_cpuid_entry2 *theirs, *ours, none = {0};

	for (uint32_t i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
		uint32_t lost[4];

		theirs = leaf((const void *)f->body, (uint32_t)(f->bytes / sizeof(none)),
			      leaves[i].function, 0);
		ours = leaf(r->vm->cpuid.entry, r->vm->cpuid.head.nent, leaves[i].function, 0);
		theirs = theirs ? theirs : &none;
		ours = ours ? ours : &none;
		lost[0] = theirs->eax & ~ours->eax;
		lost[1] = theirs->ebx & ~ours->ebx;
		lost[2] = theirs->ecx & ~ours->ecx;
		lost[3] = theirs->edx & ~ours->edx;
		for (uint32_t k = 0; k < 4; k++)
			if (leaves[i].bits[k] && lost[k])
				return refuse(
					r->text, -ENOTSUP,
					"state: the guest was shown CPU features that this host "
					"has not: CPUID %#x e%cx %#x",
					leaves[i].function, "abcd"[k], lost[k]);
	}
	return 0;
}

static int
load_ioctl(const struct reader *r, int fd, uint32_t type, uint32_t index, unsigned long set)
{
	/* the reader's own copy, which KVM only reads */
	if (ioctl(fd, set, find(r, type, index)->body))
		return refuse(r->text, -errno, "KVM refuses %s %u: %s", name_of(type), index,
			      strerror(errno));
	return 0;
}

static int
load_cpuid(const struct reader *r, struct vcpu *vcpu)
{
	const struct found *f = find(r, SECTION_CPUID, vcpu->index);

	vcpu->cpuid.head.nent = (uint32_t)(f->bytes / sizeof(vcpu->cpuid.entry[0]));
	memcpy(vcpu->cpuid.entry, f->body, f->bytes);
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, &vcpu->cpuid))
		return refuse(r->text, -errno, "KVM refuses cpuid %u: %s", vcpu->index,
			      strerror(errno));
	return 0;
}

/* An MSR that this host has not may be left out while it is zero. */
static int
load_msrs(const struct reader *r, const struct vcpu *vcpu)
{
	const struct found *f = find(r, SECTION_MSRS, vcpu->index);
	uint32_t n = (uint32_t)(f->bytes / sizeof(struct kvm_msr_entry)), at = 0;
	struct msrs all, msrs;

	memcpy(all.entry, f->body, f->bytes);
	while (at < n) {
		int done;

		msrs.head = (struct kvm_msrs){.nmsrs = n - at};
		memcpy(msrs.entry, all.entry + at, (n - at) * sizeof(all.entry[0]));
		done = ioctl(vcpu->fd, KVM_SET_MSRS, &msrs);
		if (done < 0)
			return refuse(r->text, -errno, "KVM_SET_MSRS: %s", strerror(errno));
		at += (uint32_t)done;
		if (at < n && all.entry[at].data)
			return refuse(r->text, -ENOTSUP, "KVM refuses MSR %#x = %#llx of vCPU %u",
				      all.entry[at].index, all.entry[at].data, vcpu->index);
		at += at < n;
	}
	return 0;
}

static int
load_vcpu(const struct reader *r, struct vcpu *vcpu)
{
	uint32_t i = vcpu->index;
	int err = load_cpuid(r, vcpu);

	for (uint32_t k = 0; k < 3 && !err; k++)
		err = load_ioctl(r, vcpu->fd, early[k].type, i, early[k].set);
	if (!err)
		err = load_ioctl(r, vcpu->fd, SECTION_XSAVE, i, KVM_SET_XSAVE);
	if (!err)
		err = load_msrs(r, vcpu);
	for (uint32_t k = 0; k < 4 && !err; k++)
		err = load_ioctl(r, vcpu->fd, late[k].type, i, late[k].set);
	return err;
}

static int
load_chips(const struct reader *r)
{
	struct vm *vm = r->vm;
	struct kvm_clock_data clock, set = {0};
	int err = 0;

	for (uint32_t i = 0; i < N_IRQCHIPS && !err; i++) {
		struct kvm_irqchip chip;

		memcpy(&chip, find(r, SECTION_IRQCHIP, i)->body, sizeof(chip));
		chip.chip_id = i;
		if (ioctl(vm->fd, KVM_SET_IRQCHIP, &chip))
			err = refuse(r->text, -errno, "KVM refuses irqchip %u: %s", i,
				     strerror(errno));
	}
	if (!err)
		err = load_ioctl(r, vm->fd, SECTION_PIT, 0, KVM_SET_PIT2);
	memcpy(&clock, find(r, SECTION_CLOCK, 0)->body, sizeof(clock));
	set.clock = clock.clock; /* the flags say how it was read */
	if (!err && ioctl(vm->fd, KVM_SET_CLOCK, &set))
		err = refuse(r->text, -errno, "KVM refuses the clock: %s", strerror(errno));
	pthread_mutex_lock(&vm->serial.lock);
	uart_load(&vm->uart, find(r, SECTION_UART, 0)->body);
	pthread_mutex_unlock(&vm->serial.lock);
	return err;
}

static int
load_all(struct reader *r, uint64_t bytes)
{
	struct vm *vm = r->vm;
	int err = check_header(r, bytes);

	if (!err)
		err = index_sections(r, bytes);
	if (!err)
		err = check_chips(r);
	for (uint32_t i = 0; i < vm->n_vcpus && !err; i++)
		err = check_vcpu(r, i);
	for (uint32_t i = 0; i < vm->n_vcpus && !err; i++)
		err = check_features(r, i);
	if (!err && r->n != N_IRQCHIPS + 3 + vm->n_vcpus * 10)
		err = refuse(r->text, -EPROTO,
			     "state: sections for things that this machine has not");
	for (uint32_t i = 0; i < vm->n_vcpus && !err; i++)
		err = load_vcpu(r, &vm->vcpu[i]);
	return err ? err : load_chips(r);
}

int
state_load(struct vm *vm, int memfd, uint64_t bytes, char *text)
{
	struct reader *r = calloc(1, sizeof(*r));
	uint64_t got = 0;
	ssize_t n;
	int err;

	if (!r || bytes > RL_VMM_STATE_MAX || !(r->bytes = malloc(bytes + 8))) {
		free(r);
		return refuse(text, -ENOMEM, "state: no room for %llu bytes",
			      (unsigned long long)bytes);
	}
	r->vm = vm;
	r->text = text;
	/* a copy: nobody can change it between check and use */
	while (got < bytes && (n = pread(memfd, r->bytes + got, bytes - got, (off_t)got)) > 0)
		got += (uint64_t)n;
	if (got < bytes)
		err = refuse(text, -EPROTO, "state: %llu of %llu bytes came",
			     (unsigned long long)got, (unsigned long long)bytes);
	else
		err = load_all(r, bytes);
	free(r->bytes);
	free(r);
	return err;
}
