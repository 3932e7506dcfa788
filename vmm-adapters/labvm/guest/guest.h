/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LABVM_GUEST_H
#define LABVM_GUEST_H
/**
 * @file guest.h
 * ramlift-guest: a freestanding multiboot guest that writes its memory to a known pattern, checks it for
 * ever, and reports on COM1. One writer per vCPU; page k of the working set belongs to vCPU k modulo the
 * number of vCPUs, so that no page has two writers and a vCPU may check its own pages at any time.
 *
 * Threads: ring 0 sets up on the first vCPU; afterwards each vCPU runs writer_main() in ring 3 (or ring 0).
 * Units:   pages of 4096 bytes, TSC ticks.
 * Errors:  a wrong page is counted, the first few are reported; a bad option ends the guest with a line.
 */
#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES      4096u
#define PAGE_WORDS      (PAGE_BYTES / 8)
#define MAX_RANGES      8u
#define MAX_WRONG_NOTED 4u

/* isa-debug-exit: the VMM's exit status is (value << 1) | 1. */
#define EXIT_GOOD  0x10u
#define EXIT_WRONG 0x11u
#define EXIT_USAGE 0x12u

enum pattern { PATTERN_SEQ, PATTERN_RANDOM, PATTERN_HOT, PATTERN_REWRITE };
enum content { CONTENT_ZERO, CONTENT_RANDOM, CONTENT_TEXT, CONTENT_SPARSE, CONTENT_MIXED };
enum check { CHECK_END, CHECK_PASS, CHECK_CONTINUOUS };

/* An amount of memory: bytes, or a percentage of what is usable. */
struct amount {
	uint64_t value;
	bool percent;
};

/* Set by the first vCPU before the others go; then constant. */
struct config {
	enum pattern pattern;
	enum content content;
	enum check check;
	struct amount ws, cold;
	uint64_t rate; /* pages/s of all vCPUs; 0: as fast as it can */
	uint64_t seed;
	uint64_t tsc_khz;
	uint32_t report_ms;
	uint32_t slots_ms; /* 0: never */
	uint32_t time_s;   /* 0: for ever */
	uint32_t ring;
	uint32_t cpus;
};

struct memory {
	uint32_t n_ranges;
	struct {
		uint64_t gpa;
		uint64_t pages;
	} range[MAX_RANGES];
	uint32_t *generation; /* per page; 0: never written */
	uint64_t ws_pages;    /* written again and again */
	uint64_t all_pages;   /* and the cold ones, filled once */
	bool lab_device;      /* labvm's, at LAB_PORT */
};

struct wrong {
	uint64_t page;
	uint64_t want; /* generation */
	uint64_t got;
	uint64_t at; /* first wrong byte; PAGE_BYTES: the sum of generations */
};

/* Written by its vCPU; the first vCPU reads all for the report. */
struct cpu {
	uint64_t writes;
	uint64_t checked;
	uint64_t passes;
	uint64_t n_wrong;
	uint32_t n_noted;
	uint32_t filled;
	uint32_t checks_done; /* of check_request */
	uint32_t pad;
	struct wrong noted[MAX_WRONG_NOTED];
	uint64_t gap_ticks; /* longest time off the processor since the last report */

	/* its own only */
	uint32_t index;
	uint64_t n_ws, n_all; /* own pages */
	uint64_t bumps;       /* what the generations of own pages must add up to */
	uint64_t next, check_next, until_pass;
	uint64_t rng;
	uint64_t last_tsc, elapsed, credit;
	uint64_t scratch[PAGE_WORDS];
} __attribute__((aligned(128)));

extern struct config config;
extern struct memory memory;
extern struct cpu cpus[MAX_CPUS];
extern uint32_t check_request; /* +1: everybody checks all own pages now */

/* boot.S */
extern uint32_t multiboot_magic, multiboot_info, cpus_arrived;
extern uint64_t pdpt[512], pd[MAX_GIB][512];
extern const char trampoline[], trampoline_end[], guest_end[];
void enter_ring3(unsigned cpu, void (*entry)(unsigned cpu)) __attribute__((noreturn));
void cpu_main(unsigned cpu) __attribute__((noreturn));

/* options.c */

/** Read the command line into config; an error is said on the console and ends the guest. */
void options_parse(const char *text);

/* console.c */
void console_init(void);
/** Append to the line being built; end_line sends it. */
void put(const char *text);
void put_number(uint64_t value);
void end_line(void);
/** A byte from COM1, or 0. */
char console_poll(void);
/** Leave by the exit port; where there is none, idle for ever. */
void quit(uint32_t value) __attribute__((noreturn));

/* page.c */

/** Write page @page of the set to generation @gen + 1 and note it in the table. */
void page_write(struct cpu *cpu, uint64_t page);
/** A cheap write for rate=max: next generation in a few words at the page's start and end, fill as it was. */
void page_touch(struct cpu *cpu, uint64_t page);
/** Store again what is there: the page gets dirty, its content stays. */
void page_rewrite(struct cpu *cpu, uint64_t page);
/** Compare with what the table says; counts and notes a wrong one. */
void page_check(struct cpu *cpu, uint64_t page);
void wrong_note(struct cpu *cpu, struct wrong wrong);

/* writer.c */
void writer_main(unsigned cpu) __attribute__((noreturn));

/* labvm's lab device: a 32-bit read gives LAB_MAGIC. */
#define LAB_PORT       0x5f0u
#define LAB_IDLE_PORT  0x5f4u
#define LAB_MAGIC      0x42414c52u /* "RLAB" */
#define LAB_CMD_RESLOT 1u

static inline void
outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void
outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t
inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint32_t
inl(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint64_t
tsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}

static inline void
cpu_pause(void)
{
	__asm__ volatile("pause");
}

#endif /* LABVM_GUEST_H */
