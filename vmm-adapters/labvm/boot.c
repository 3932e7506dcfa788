/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Multiboot 1: a 32-bit ELF goes to its physical addresses, the first vCPU to its entry in flat protected mode
 * with EAX = magic and EBX = information (command line, memory map). Files come from outside: every offset
 * is checked.
 */
#include "labvm.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_MAGIC     0x1badb002u
#define BOOT_MAGIC       0x2badb002u
#define HEADER_SEARCH    8192u
#define FLAGS_KNOWN      0x3u    /* page-aligned modules, memory information: both are so anyway */
#define FLAGS_REQUIRED   0xffffu /* a loader that does not know one of these must refuse */
#define FLAG_ADDRESSES   (1u << 16)
#define MAX_KERNEL_BYTES (256u << 20)
#define ONE_MIB          0x100000u
#define INFO_GPA         0x70000u /* information, memory map and command line */
#define INFO_BYTES       0x10000u
#define MMAP_OFFSET      0x100u
#define CMDLINE_OFFSET   0x1000u
#define LOADER_OFFSET    0x200u
#define BASE_MEM_BYTES   0x9f000u
#define CR0_PE_ET        0x11u

struct info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
	uint32_t syms[4];
	uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, loader_name;
};
#define INFO_MEM     (1u << 0)
#define INFO_CMDLINE (1u << 2)
#define INFO_MMAP    (1u << 6)
#define INFO_LOADER  (1u << 9)

struct file {
	uint8_t *bytes;
	uint64_t size;
};

static int
read_file(const char *path, uint64_t max, struct file *file, char *text)
{
	struct stat st;
	uint64_t got = 0;
	ssize_t n;
	int err = 0, fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		err = refuse(text, -errno, "cannot read %s: %s", path, strerror(errno));
		goto out;
	}
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max) {
		err = refuse(text, -EFBIG, "%s: not a file of at most %llu MiB", path,
			     (unsigned long long)(max >> 20));
		goto out;
	}
	file->size = (uint64_t)st.st_size;
	file->bytes = malloc(file->size + 1);
	if (!file->bytes) {
		err = refuse(text, -ENOMEM, "%s: no memory for %llu bytes", path,
			     (unsigned long long)file->size);
		goto out;
	}
	while (got < file->size && (n = read(fd, file->bytes + got, file->size - got)) > 0)
		got += (uint64_t)n;
	if (got < file->size) {
		free(file->bytes);
		file->bytes = NULL;
		err = refuse(text, -EIO, "%s: cannot read all of it", path);
	}
out:
	if (fd >= 0)
		close(fd);
	return err;
}

static int
check_header(const char *path, const struct file *file, char *text)
{
	for (uint64_t at = 0; at + 12 <= file->size && at + 12 <= HEADER_SEARCH; at += 4) {
		uint32_t h[3];

		memcpy(h, file->bytes + at, sizeof(h));
		if (h[0] != HEADER_MAGIC || h[0] + h[1] + h[2])
			continue;
		if (h[1] & FLAGS_REQUIRED & ~FLAGS_KNOWN || h[1] & FLAG_ADDRESSES)
			return refuse(
				text, -ENOTSUP,
				"%s: multiboot flags %#x: video modes and address fields are not "
				"supported",
				path, h[1]);
		return 0;
	}
	return refuse(text, -ENOEXEC, "%s: no multiboot header in its first %u bytes", path,
		      HEADER_SEARCH);
}

static int
load_segment(struct vm *vm, const struct labvm_opts *opts, const struct file *file, uint32_t i,
	     const Elf32_Phdr *ph, char *text)
{
	uint8_t *to;

	if (ph->p_type != PT_LOAD || !ph->p_memsz)
		return 0;
	if (ph->p_filesz > ph->p_memsz || ph->p_offset > file->size ||
	    ph->p_filesz > file->size - ph->p_offset)
		return refuse(text, -ENOEXEC, "%s: segment %u is not inside the file", opts->kernel,
			      i);
	to = vm_ram(vm, ph->p_paddr, ph->p_memsz);
	if (ph->p_paddr < ONE_MIB || !to)
		return refuse(
			text, -ENOEXEC,
			"%s: segment %u wants %#x..%#llx: not in RAM above 1 MiB (more --memory?)",
			opts->kernel, i, ph->p_paddr,
			(unsigned long long)ph->p_paddr + ph->p_memsz);
	memcpy(to, file->bytes + ph->p_offset, ph->p_filesz);
	memset(to + ph->p_filesz, 0, ph->p_memsz - ph->p_filesz);
	return 0;
}

static int
load_kernel(struct vm *vm, uint32_t *entry, char *text)
{
	const struct labvm_opts *opts = vm->opts;
	struct file file = {NULL, 0};
	Elf32_Ehdr eh;
	Elf32_Phdr ph;
	int err;

	err = read_file(opts->kernel, MAX_KERNEL_BYTES, &file, text);
	if (!err)
		err = check_header(opts->kernel, &file, text);
	if (err)
		goto out;
	if (file.size < sizeof(eh)) {
		err = refuse(text, -ENOEXEC, "%s: too short for an ELF header", opts->kernel);
		goto out;
	}
	memcpy(&eh, file.bytes, sizeof(eh));
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) || eh.e_ident[EI_CLASS] != ELFCLASS32 ||
	    eh.e_machine != EM_386 || eh.e_phentsize != sizeof(ph)) {
		err = refuse(text, -ENOEXEC,
			     "%s: not a 32-bit x86 ELF (objcopy -O elf32-i386 makes one)",
			     opts->kernel);
		goto out;
	}
	for (uint32_t i = 0; i < eh.e_phnum && !err; i++) {
		uint64_t at = eh.e_phoff + (uint64_t)i * sizeof(ph);

		if (at + sizeof(ph) > file.size) {
			err = refuse(text, -ENOEXEC, "%s: program header %u is not inside the file",
				     opts->kernel, i);
			break;
		}
		memcpy(&ph, file.bytes + at, sizeof(ph));
		err = load_segment(vm, opts, &file, i, &ph, text);
	}
	*entry = eh.e_entry;
out:
	free(file.bytes);
	return err;
}

static int
load_raw(struct vm *vm, const struct labvm_load *load, char *text)
{
	struct file file = {NULL, 0};
	uint8_t *to;
	int err;

	err = read_file(load->path, vm->opts->memory_bytes, &file, text);
	if (err)
		return err;
	to = vm_ram(vm, load->gpa, file.size);
	if (to)
		memcpy(to, file.bytes, file.size);
	else
		err = refuse(text, -EFAULT, "--load %s: its %llu bytes at %#llx are not inside RAM",
			     load->path, (unsigned long long)file.size,
			     (unsigned long long)load->gpa);
	free(file.bytes);
	return err;
}

static uint32_t
put_mmap_entry(uint8_t *map, uint32_t at, uint64_t gpa, uint64_t bytes, uint32_t type)
{
	const uint32_t size = 20;

	memcpy(map + at, &size, 4);
	memcpy(map + at + 4, &gpa, 8);
	memcpy(map + at + 12, &bytes, 8);
	memcpy(map + at + 20, &type, 4);
	return at + size + 4;
}

static int
put_info(struct vm *vm, char *text)
{
	uint8_t *ram = vm_ram(vm, INFO_GPA, INFO_BYTES), *map = ram + MMAP_OFFSET;
	uint64_t low = vm->region[0].bytes;
	struct info info = {
		.flags = INFO_MEM | INFO_CMDLINE | INFO_MMAP | INFO_LOADER,
		.mem_lower = BASE_MEM_BYTES >> 10,
		.mem_upper = (uint32_t)((low - ONE_MIB) >> 10),
		.cmdline = INFO_GPA + CMDLINE_OFFSET,
		.mmap_addr = INFO_GPA + MMAP_OFFSET,
		.loader_name = INFO_GPA + LOADER_OFFSET,
	};
	uint32_t at, room = INFO_BYTES - CMDLINE_OFFSET;
	int n;

	at = put_mmap_entry(map, 0, 0, BASE_MEM_BYTES, 1);
	at = put_mmap_entry(map, at, BASE_MEM_BYTES, ONE_MIB - BASE_MEM_BYTES, 2);
	at = put_mmap_entry(map, at, ONE_MIB, low - ONE_MIB, 1);
	if (vm->n_regions > 1)
		at = put_mmap_entry(map, at, LABVM_HIGH_GPA, vm->region[1].bytes, 1);
	info.mmap_length = at;
	/* The guest cannot measure these as well; what the user says comes later and wins. */
	n = snprintf((char *)ram + CMDLINE_OFFSET, room, "%s tsc_khz=%u cpus=%u %s",
		     vm->opts->kernel, vm->tsc_khz, vm->n_vcpus, vm->opts->append);
	if (n < 0 || (uint32_t)n >= room)
		return refuse(text, -E2BIG, "--append: longer than %u bytes", room);
	memcpy(ram + LOADER_OFFSET, "labvm", sizeof("labvm"));
	memcpy(ram, &info, sizeof(info));
	return 0;
}

static int
set_entry(struct vm *vm, uint32_t entry, char *text)
{
	struct kvm_regs regs = {.rip = entry, .rax = BOOT_MAGIC, .rbx = INFO_GPA, .rflags = 2};
	struct kvm_segment code = {.limit = UINT32_MAX,
				   .selector = 8,
				   .type = 11,
				   .present = 1,
				   .db = 1,
				   .s = 1,
				   .g = 1};
	struct kvm_segment data = code;
	struct kvm_sregs sregs;
	int fd = vm->vcpu[0].fd;

	if (ioctl(fd, KVM_GET_SREGS, &sregs))
		return refuse(text, -errno, "KVM_GET_SREGS: %s", strerror(errno));
	data.selector = 16;
	data.type = 3;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = CR0_PE_ET;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		return refuse(text, -errno, "cannot set the entry registers: %s", strerror(errno));
	return 0;
}

int
boot_load(struct vm *vm, char *text)
{
	uint32_t entry = 0;
	int err;

	err = load_kernel(vm, &entry, text);
	for (uint32_t i = 0; i < vm->opts->n_loads && !err; i++)
		err = load_raw(vm, &vm->opts->load[i], text);
	if (!err)
		err = put_info(vm, text);
	return err ? err : set_entry(vm, entry, text);
}
