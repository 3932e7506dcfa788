/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a page of the set holds. Everything follows from the seed, the page's number and its generation, so a
 * check needs nothing but the table of generations. Layout, in 64-bit words:
 *   0: magic | generation << 32   1: page   2: generation of the fill   3: mix of all these
 *   4..510: fill                  511: mix again, so that half a page is noticed
 * A page of zeros is one in full at every odd generation, as a guest's freed pages are.
 * In ring 0, where an emulated guest runs a million instructions a second, a page is one 32-bit value,
 * stored by a single rep stosl.
 */
#include "guest.h"

#define PAGE_MAGIC   0x50474c52u /* "RLGP" */
#define FILL_FIRST   4u
#define FILL_WORDS   (PAGE_WORDS - FILL_FIRST - 1)
#define SPARSE_WORDS 8u

static const char words[64][9] = {
	"the page",         " of a gu", "est is s", "ent once", " more if", " a write",
	" came in",         " between", "; rounds", " go on u", "ntil the", " rest is",
	" small. ",         "A vCPU s", "tops for", " a while", " and its", " state m",
	"oves on.",         " Memory ", "that was", " never w", "ritten i", "s zeros.",
	" Devices",         " come la", "st of al", "l, and t", "hen the ", "other si",
	"de runs ",         "the same", " machine", " again. ", "dirty = ", "clean = ",
	"[ OK ]  ",         "<p>     ", "</p>    ", "int main", "(void) {", "return 0",
	"; }     ",         "GET /ind", "ex.html ", "HTTP/1.1", "200 OK  ", "user    ",
	"root    ",         "/usr/lib", "/var/log", "kernel: ", "info    ", "warning ",
	"00000000",         "11111111", "        ", "--------", "========", "\t\t\t\t\t\t\t\t",
	"\n\n\n\n\n\n\n\n", "sizeof (", "struct p", "age *p; ",
};

static uint64_t *
page_address(uint64_t page)
{
	uint32_t i = 0;

	while (page >= memory.range[i].pages)
		page -= memory.range[i++].pages;
	return (uint64_t *)(memory.range[i].gpa + page * PAGE_BYTES);
}

static uint64_t
mix(uint64_t page, uint64_t gen)
{
	uint64_t x = config.seed + page * 0x9e3779b97f4a7c15u + gen * 0xbf58476d1ce4e5b9u;

	x ^= x >> 29;
	x *= 0x94d049bb133111ebu;
	return x ^ x >> 32;
}

static enum content
page_content(uint64_t page)
{
	if (config.content == CONTENT_MIXED)
		return (enum content)(mix(page, 0) & 3);
	return config.content;
}

static uint64_t
step(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ x << 17;
}

static void
put_head(uint64_t *p, uint64_t page, uint32_t gen, uint32_t fill_gen)
{
	uint64_t sum = mix(page, (uint64_t)gen << 32 | fill_gen);

	p[0] = PAGE_MAGIC | (uint64_t)gen << 32;
	p[1] = page;
	p[2] = fill_gen;
	p[3] = sum;
	p[PAGE_WORDS - 1] = sum;
}

static void
clear_head(uint64_t *p)
{
	p[0] = p[1] = p[2] = p[3] = p[PAGE_WORDS - 1] = 0;
}

/* The words of a sparse page that change with its generation; the rest stays. */
static void
put_sparse(uint64_t *p, uint64_t page, uint32_t gen)
{
	uint64_t at = mix(page, 1) % FILL_WORDS;

	for (uint32_t i = 0; i < SPARSE_WORDS; i++) {
		p[FILL_FIRST + at] = mix(page + i, gen);
		at = (at + 61) % FILL_WORDS;
	}
}

static void
put_fill(uint64_t *p, uint64_t page, uint32_t gen, enum content content)
{
	uint64_t x = mix(page, content == CONTENT_SPARSE ? 0 : gen) | 1;

	p += FILL_FIRST;
	switch (content) {
	case CONTENT_ZERO:
		for (uint32_t i = 0; i < FILL_WORDS; i++)
			p[i] = 0;
		break;
	case CONTENT_TEXT:
		for (uint32_t i = 0; i < FILL_WORDS; i++) {
			x = step(x);
			p[i] = *(const uint64_t *)(const void *)words[x >> 58];
		}
		break;
	default:
		for (uint32_t i = 0; i < FILL_WORDS; i++)
			p[i] = x = step(x);
	}
}

/* All of a page as it must be at @gen. */
static void
put_page(uint64_t *p, uint64_t page, uint32_t gen, uint32_t fill_gen)
{
	enum content content = page_content(page);

	put_fill(p, page, fill_gen, content);
	if (content == CONTENT_SPARSE)
		put_sparse(p, page, fill_gen);
	if (content == CONTENT_ZERO && gen & 1)
		clear_head(p);
	else
		put_head(p, page, gen, fill_gen);
}

static void
put_value(uint64_t *p, uint32_t value)
{
	uint64_t n = PAGE_BYTES / 4;

	__asm__ volatile("rep stosl" : "+D"(p), "+c"(n) : "a"(value) : "memory");
}

/* Returns the first byte that differs from @value, PAGE_BYTES when none does. */
static uint64_t
find_other(const uint64_t *p, uint32_t value)
{
	uint64_t n = PAGE_BYTES / 4;
	uint8_t same;

	__asm__ volatile("repe scasl" : "+D"(p), "+c"(n), "=@ccz"(same) : "a"(value) : "memory");
	return same ? PAGE_BYTES : PAGE_BYTES - 4 * (n + 1);
}

void
page_write(struct cpu *cpu, uint64_t page)
{
	uint64_t *p = page_address(page);
	uint32_t gen = memory.generation[page] + 1;

	memory.generation[page] = gen;
	cpu->bumps++;
	if (!config.ring) {
		put_value(p, (uint32_t)mix(page, gen));
	} else if (gen > 1 && page_content(page) == CONTENT_SPARSE) {
		put_sparse(p, page, gen);
		put_head(p, page, gen, gen);
	} else {
		put_page(p, page, gen, gen);
	}
}

void
page_touch(struct cpu *cpu, uint64_t page)
{
	uint64_t *p = page_address(page);
	uint32_t gen = memory.generation[page] + 1;

	if (!config.ring) {
		page_write(cpu, page);
		return;
	}
	memory.generation[page] = gen;
	cpu->bumps++;
	if (page_content(page) == CONTENT_ZERO) {
		/* not from the page itself: it is all zeros every other time */
		if (gen & 1)
			clear_head(p);
		else
			put_head(p, page, gen, 1);
	} else {
		put_head(p, page, gen, (uint32_t)p[2]);
	}
}

void
page_rewrite(struct cpu *cpu, uint64_t page)
{
	volatile uint64_t *p = page_address(page);

	(void)cpu;
	if (!config.ring)
		put_value(page_address(page), (uint32_t)mix(page, memory.generation[page]));
	else
		for (uint32_t i = 0; i < PAGE_WORDS; i += config.rate ? 1 : PAGE_WORDS - 1)
			p[i] = p[i];
}

void
wrong_note(struct cpu *cpu, struct wrong wrong)
{
	if (cpu->n_noted < MAX_WRONG_NOTED) {
		cpu->noted[cpu->n_noted] = wrong;
		__atomic_store_n(&cpu->n_noted, cpu->n_noted + 1, __ATOMIC_RELEASE);
	}
	cpu->n_wrong++;
}

void
page_check(struct cpu *cpu, uint64_t page)
{
	const uint64_t *p = page_address(page);
	uint32_t gen = memory.generation[page];
	uint64_t at = 0;

	cpu->checked++;
	if (!config.ring) {
		at = find_other(p, (uint32_t)mix(page, gen));
	} else {
		/* The page says when its fill is from; the mix in words 3 and 511 vouches for that. */
		put_page(cpu->scratch, page, gen, (uint32_t)p[2]);
		while (at < PAGE_WORDS && p[at] == cpu->scratch[at])
			at++;
		at *= 8;
	}
	if (at != PAGE_BYTES)
		wrong_note(cpu, (struct wrong){page, gen, p[0] >> 32, at});
}
