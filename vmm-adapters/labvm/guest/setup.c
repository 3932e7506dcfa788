/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What happens once, in ring 0: the memory map, the command line, the clock's frequency, the other vCPUs.
 * Everything is read from the multiboot information before the first page is written.
 */
#include "guest.h"

#define MULTIBOOT_MAGIC  0x2badb002u
#define INFO_HAS_CMDLINE (1u << 2)
#define INFO_HAS_MMAP    (1u << 6)
#define MMAP_USABLE      1u
#define TRAMPOLINE_GPA   0x8000ul
#define LAPIC_ICR_LOW    ((volatile uint32_t *)0xfee00300ul)
#define IPI_INIT_OTHERS  0x000c4500u
#define IPI_START_OTHERS (0x000c4600u | TRAMPOLINE_GPA >> 12)
#define PIT_HZ           1193182u
#define PIT_TICKS        11932u /* 10 ms */

struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
	uint32_t syms[4];
	uint32_t mmap_bytes, mmap_gpa;
};

/* An entry, without the size in front of it; addresses are only 4-byte aligned. */
struct mmap_entry {
	uint32_t size;
	uint32_t gpa_lo, gpa_hi, len_lo, len_hi;
	uint32_t type;
};

struct memory memory;
struct cpu cpus[MAX_CPUS];
static uint32_t go;

/* The compiler may call these for struct copies and loops. */
void *memset(void *to, int value, uint64_t n);
void *memcpy(void *to, const void *from, uint64_t n);

void *
memset(void *to, int value, uint64_t n)
{
	void *at = to;

	__asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(value) : "memory");
	return to;
}

void *
memcpy(void *to, const void *from, uint64_t n)
{
	void *at = to;

	__asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
	return to;
}

static void __attribute__((noreturn)) give_up(const char *why)
{
	put("guest: ");
	put(why);
	end_line();
	quit(EXIT_USAGE);
}

/* boot.S maps 4 GiB; RAM above gets its page tables here. */
static void
map_gib(uint64_t gib)
{
	if (pdpt[gib])
		return;
	for (uint64_t i = 0; i < 512; i++)
		pd[gib][i] = gib << 30 | i << 21 | 0xe7;
	pdpt[gib] = (uint64_t)(uintptr_t)pd[gib] | 7;
}

static void
add_range(uint64_t start, uint64_t end)
{
	uint64_t floor = (uintptr_t)guest_end, top = (uint64_t)MAX_GIB << 30;

	start = start < floor ? floor : start;
	end = end > top ? top : end;
	start = (start + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	end = end / PAGE_BYTES * PAGE_BYTES;
	if (start >= end || memory.n_ranges == MAX_RANGES)
		return;
	for (uint64_t gib = start >> 30; gib <= (end - 1) >> 30; gib++)
		map_gib(gib);
	memory.range[memory.n_ranges].gpa = start;
	memory.range[memory.n_ranges++].pages = (end - start) / PAGE_BYTES;
}

static void
read_memory_map(const struct multiboot_info *info)
{
	uint32_t at = 0;

	while (at + sizeof(struct mmap_entry) <= info->mmap_bytes) {
		const struct mmap_entry *e = (const void *)(uintptr_t)(info->mmap_gpa + at);
		uint64_t gpa = (uint64_t)e->gpa_hi << 32 | e->gpa_lo;

		if (e->type == MMAP_USABLE)
			add_range(gpa, gpa + ((uint64_t)e->len_hi << 32 | e->len_lo));
		at += e->size + 4;
	}
	if (!memory.n_ranges)
		give_up("no usable memory above 1 MiB");
}

static uint64_t
pages_of(struct amount amount, uint64_t usable)
{
	if (amount.percent)
		return usable * amount.value / 100;
	return amount.value / PAGE_BYTES;
}

/* The table of generations goes to the front of the largest range, the pages behind it and elsewhere. */
static void
plan_memory(void)
{
	uint64_t usable = 0, table_pages;
	uint32_t largest = 0;

	for (uint32_t i = 0; i < memory.n_ranges; i++) {
		usable += memory.range[i].pages;
		if (memory.range[i].pages > memory.range[largest].pages)
			largest = i;
	}
	table_pages = (usable * sizeof(uint32_t) + PAGE_BYTES - 1) / PAGE_BYTES;
	memory.generation = (void *)(uintptr_t)memory.range[largest].gpa;
	if (table_pages >= memory.range[largest].pages)
		give_up("too little memory for its table");
	memory.range[largest].gpa += table_pages * PAGE_BYTES;
	memory.range[largest].pages -= table_pages;
	usable -= table_pages;

	memory.ws_pages = pages_of(config.ws, usable);
	memory.all_pages = memory.ws_pages + pages_of(config.cold, usable);
	if (memory.all_pages > usable)
		give_up("ws and cold are more than this machine has: make them smaller");
	if (memory.ws_pages < config.cpus)
		give_up("ws is less than a page per vCPU: make it larger");
	memset(memory.generation, 0, memory.all_pages * sizeof(uint32_t));
}

/* PIT channel 2 counts 10 ms down; its output shows in port 0x61. */
static uint64_t
calibrate_khz(void)
{
	uint64_t start;

	outb(0x61, (inb(0x61) & 0xfc) | 1);
	outb(0x43, 0xb0);
	outb(0x42, PIT_TICKS & 0xff);
	outb(0x42, PIT_TICKS >> 8);
	start = tsc();
	for (uint32_t polls = 0; !(inb(0x61) & 0x20); polls++)
		if (polls == 1000000)
			give_up("no PIT to find the TSC's frequency: say tsc_khz=");
	return (tsc() - start) * PIT_HZ / PIT_TICKS / 1000;
}

static void
wait_us(uint64_t us)
{
	uint64_t start = tsc();

	while (tsc() - start < us * config.tsc_khz / 1000)
		cpu_pause();
}

/* INIT, then STARTUP, to all but this one (SDM 3A 8.4.4.1). */
static void
start_others(void)
{
	memcpy((void *)TRAMPOLINE_GPA, trampoline, (uint64_t)(trampoline_end - trampoline));
	*LAPIC_ICR_LOW = IPI_INIT_OTHERS;
	wait_us(10000);
	for (uint32_t i = 0; i < 2; i++) {
		*LAPIC_ICR_LOW = IPI_START_OTHERS;
		wait_us(200);
	}
	for (uint32_t ms = 0; ms < 5000; ms++) {
		if (__atomic_load_n(&cpus_arrived, __ATOMIC_ACQUIRE) >= config.cpus)
			return;
		wait_us(1000);
	}
	give_up("not all vCPUs started: cpus= is more than the machine has");
}

static void
setup(void)
{
	const struct multiboot_info *info = (const void *)(uintptr_t)multiboot_info;

	console_init();
	memory.lab_device = inl(LAB_PORT) == LAB_MAGIC;
	if (multiboot_magic != MULTIBOOT_MAGIC || !(info->flags & INFO_HAS_MMAP))
		give_up("not started by multiboot, or without a memory map");
	if (info->flags & INFO_HAS_CMDLINE)
		options_parse((const char *)(uintptr_t)info->cmdline);
	read_memory_map(info);
	if (!config.tsc_khz)
		config.tsc_khz = calibrate_khz();
	plan_memory();
	if (config.cpus > 1)
		start_others();
}

void
cpu_main(unsigned cpu)
{
	if (cpu == 0) {
		setup();
		__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	}
	while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE) || cpu >= config.cpus)
		cpu_pause();
	if (config.ring)
		enter_ring3(cpu, writer_main);
	writer_main(cpu);
}
