/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vCPU's loop: in steps of a millisecond write what the rate allows, check, report, idle. rate=max does
 * bursts of cheap writes (page_touch) without a pause. The TSC may jump when the guest moves to another
 * host: a step back counts as a millisecond, a long one as ten seconds, and neither earns a burst.
 */
#include "guest.h"

#define BURST_PAGES        4096u /* rate=max, between looks at the clock */
#define BURST_PAGES_RING0  8u
#define CHECK_PAGES        32u /* per burst */
#define CHECK_PAGES_PER_MS 128u
#define CATCH_UP_MS        10u
#define MAX_STEP_MS        10000u
#define POLL_MS            50u

uint32_t check_request;

/* @idle: the vCPU was out of its loop by its own will; that is no gap. */
static void
clock_step(struct cpu *cpu, bool idle)
{
	uint64_t now = tsc(), step = now - cpu->last_tsc, limit = MAX_STEP_MS * config.tsc_khz;

	cpu->last_tsc = now;
	if ((int64_t)step < 0)
		step = config.tsc_khz;
	else if (step > cpu->gap_ticks && !idle)
		cpu->gap_ticks = step;
	if (step > limit)
		step = limit;
	cpu->elapsed += step;
	cpu->credit += step;
	if (cpu->credit > CATCH_UP_MS * config.tsc_khz)
		cpu->credit = CATCH_UP_MS * config.tsc_khz;
}

static uint64_t
own_page(const struct cpu *cpu, uint64_t i)
{
	return cpu->index + i * config.cpus;
}

static uint64_t
pick(struct cpu *cpu)
{
	uint64_t among = cpu->n_ws, i;

	if (config.pattern == PATTERN_SEQ || config.pattern == PATTERN_REWRITE) {
		i = cpu->next++;
		if (cpu->next == cpu->n_ws)
			cpu->next = 0;
		return i;
	}
	cpu->rng = cpu->rng * 6364136223846793005u + 1442695040888963407u;
	/* hot: nine of ten writes go to a tenth of the working set */
	if (config.pattern == PATTERN_HOT && cpu->n_ws >= 10 && (cpu->rng >> 16) % 10)
		among /= 10;
	return (cpu->rng >> 32) * among >> 32;
}

static void
write_pages(struct cpu *cpu, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = own_page(cpu, pick(cpu));

		if (config.pattern == PATTERN_REWRITE)
			page_rewrite(cpu, page);
		else if (config.rate)
			page_write(cpu, page);
		else
			page_touch(cpu, page);
	}
	cpu->writes += n;
	cpu->until_pass -= n < cpu->until_pass ? n : cpu->until_pass;
}

/* A round of checks is over: the table itself must add up. */
static void
check_sum(struct cpu *cpu)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < cpu->n_all; i++)
		sum += memory.generation[own_page(cpu, i)];
	if (sum != cpu->bumps)
		wrong_note(cpu, (struct wrong){0, cpu->bumps, sum, PAGE_BYTES});
	cpu->passes++;
}

static void
check_some(struct cpu *cpu, uint64_t n)
{
	while (n--) {
		page_check(cpu, own_page(cpu, cpu->check_next));
		if (++cpu->check_next == cpu->n_all) {
			cpu->check_next = 0;
			check_sum(cpu);
		}
	}
}

static void
check_all(struct cpu *cpu)
{
	for (uint64_t i = 0; i < cpu->n_all; i++)
		page_check(cpu, own_page(cpu, i));
	check_sum(cpu);
}

/* What is left of the millisecond: some checks, then nothing. */
static void
idle_until(struct cpu *cpu, uint64_t start)
{
	if (config.check == CHECK_CONTINUOUS)
		check_some(cpu, config.ring ? CHECK_PAGES_PER_MS : 1);
	for (;;) {
		uint64_t spent = tsc() - start;

		if (spent >= config.tsc_khz) /* also when the TSC went back */
			return;
		if (memory.lab_device)
			outl(LAB_IDLE_PORT,
			     (uint32_t)((config.tsc_khz - spent) * 1000 / config.tsc_khz));
		else
			cpu_pause();
	}
}

static void
report_wrong(void)
{
	static uint32_t told[MAX_CPUS];

	for (uint32_t i = 0; i < config.cpus; i++) {
		while (told[i] < __atomic_load_n(&cpus[i].n_noted, __ATOMIC_ACQUIRE)) {
			const struct wrong *wrong = &cpus[i].noted[told[i]++];

			put("guest: WRONG page=");
			put_number(wrong->page);
			put(" want=");
			put_number(wrong->want);
			put(" got=");
			put_number(wrong->got);
			put(" at=");
			put_number(wrong->at);
			end_line();
		}
	}
}

/* Returns how many pages were found wrong so far. */
static uint64_t
report(const char *what)
{
	static uint64_t last_writes, last_elapsed;
	uint64_t writes = 0, checked = 0, wrong = 0, gap = 0, passes = UINT64_MAX;
	uint64_t ms = (cpus[0].elapsed - last_elapsed) / config.tsc_khz;

	for (uint32_t i = 0; i < config.cpus; i++) {
		writes += cpus[i].writes;
		checked += cpus[i].checked;
		wrong += cpus[i].n_wrong;
		if (cpus[i].passes < passes)
			passes = cpus[i].passes;
		if (cpus[i].gap_ticks > gap)
			gap = cpus[i].gap_ticks;
		cpus[i].gap_ticks = 0;
	}
	report_wrong();
	put("guest: ");
	put(what);
	put("t=");
	put_number(cpus[0].elapsed / config.tsc_khz / 1000);
	put(" writes=");
	put_number(writes);
	put(" rate=");
	put_number(ms ? (writes - last_writes) * 1000 / ms : 0);
	put("/s pass=");
	put_number(passes);
	put(" checked=");
	put_number(checked);
	put(" wrong=");
	put_number(wrong);
	put(" gap=");
	put_number(gap * 1000 / config.tsc_khz);
	put("us");
	end_line();
	last_writes = writes;
	last_elapsed = cpus[0].elapsed;
	return wrong;
}

/* Everybody checks everything, then the first vCPU says so. */
static uint64_t
check_together(const char *what)
{
	uint32_t request = __atomic_add_fetch(&check_request, 1, __ATOMIC_RELEASE);

	check_all(&cpus[0]);
	for (uint32_t i = 1; i < config.cpus; i++)
		while (__atomic_load_n(&cpus[i].checks_done, __ATOMIC_ACQUIRE) != request)
			cpu_pause();
	return report(what);
}

/* What only the first vCPU does. */
static void
housekeeping(struct cpu *cpu)
{
	static uint64_t next_report, next_poll, next_slots;
	uint64_t ms = cpu->elapsed / config.tsc_khz;
	char command = 0;

	if (config.slots_ms && memory.lab_device && ms >= next_slots) {
		if (next_slots)
			outl(LAB_PORT, LAB_CMD_RESLOT);
		next_slots = ms + config.slots_ms;
	}
	if (ms >= next_report) {
		if (next_report)
			report("");
		next_report = ms + config.report_ms;
		clock_step(cpu, true); /* serial output takes milliseconds */
	}
	if (ms >= next_poll) {
		command = console_poll();
		next_poll = ms + POLL_MS;
	}
	if (command == 'c')
		check_together("check ");
	if (command == 'q' || (config.time_s && ms >= config.time_s * 1000ull))
		quit(check_together("end ") ? EXIT_WRONG : EXIT_GOOD);
}

static void
fill(struct cpu *cpu)
{
	for (uint64_t i = 0; i < cpu->n_all; i++)
		page_write(cpu, own_page(cpu, i));
	__atomic_store_n(&cpu->filled, 1, __ATOMIC_RELEASE);
	for (uint32_t i = 0; i < config.cpus; i++)
		while (!__atomic_load_n(&cpus[i].filled, __ATOMIC_ACQUIRE))
			cpu_pause();
	if (cpu->index == 0) {
		put("guest: filled pages=");
		put_number(memory.all_pages);
		put(" ws=");
		put_number(memory.ws_pages);
		put(" cpus=");
		put_number(config.cpus);
		put(" ring=");
		put_number(config.ring);
		end_line();
	}
}

static void
turn(struct cpu *cpu)
{
	uint64_t start = cpu->last_tsc, n = config.ring ? BURST_PAGES : BURST_PAGES_RING0;

	if (config.rate) {
		/* ticks of credit turn into pages; what is left of a page stays */
		uint64_t per_page = config.tsc_khz * 1000 * config.cpus / config.rate;

		n = cpu->credit / (per_page ? per_page : 1);
		cpu->credit -= n * per_page;
	}
	write_pages(cpu, n);
	if (config.check == CHECK_PASS && !cpu->until_pass) {
		check_all(cpu);
		cpu->until_pass = cpu->n_ws;
		clock_step(cpu, true);
	}
	if (config.rate)
		idle_until(cpu, start);
	else if (config.check == CHECK_CONTINUOUS)
		check_some(cpu, config.ring ? CHECK_PAGES : 1);
}

void
writer_main(unsigned index)
{
	struct cpu *cpu = &cpus[index];

	cpu->index = index;
	cpu->n_ws = (memory.ws_pages - index + config.cpus - 1) / config.cpus;
	cpu->n_all = (memory.all_pages - index + config.cpus - 1) / config.cpus;
	cpu->until_pass = cpu->n_ws;
	cpu->rng = config.seed + index;
	fill(cpu);
	cpu->last_tsc = tsc();
	for (;;) {
		uint32_t request = __atomic_load_n(&check_request, __ATOMIC_ACQUIRE);

		if (request != cpu->checks_done) {
			if (index)
				check_all(cpu);
			__atomic_store_n(&cpu->checks_done, request, __ATOMIC_RELEASE);
			clock_step(cpu, true);
		}
		clock_step(cpu, false);
		turn(cpu);
		if (index == 0)
			housekeeping(cpu);
	}
}
