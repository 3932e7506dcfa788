/* SPDX-License-Identifier: BSD-3-Clause */
/* synthvm's guest: dirty rings that miss no write, contents that can be checked, device state. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest.h"

#define N_PAGES 4096u
#define BYTES   ((size_t)N_PAGES * RL_SYNTH_PAGE_BYTES)
#define N_VCPUS 3u
#define ENTRIES 1024u

struct vm {
	uint8_t *ram;
	struct rl_synth_log log;
	struct rl_synth_guest *guest;
	atomic_uint ring_full;
};

static void
on_ring_full(void *ctx)
{
	((struct vm *)ctx)->ring_full++;
}

static void
make_hot(struct vm *vm, bool held, enum rl_synth_content content, uint64_t working_set_pages)
{
	struct rl_synth_opts opts = {
		.n_pages = N_PAGES,
		.n_vcpus = N_VCPUS,
		.held = held,
		.work = {.content = content,
			 .pattern = RL_SYNTH_UNIFORM,
			 .rate = RL_SYNTH_RATE_MAX,
			 .seed = 42,
			 .working_set_pages = working_set_pages},
		.log = &vm->log,
		.ring_full = on_ring_full,
		.ctx = vm,
	};

	memset(vm, 0, sizeof(*vm));
	vm->ram = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(vm->ram, MAP_FAILED);
	opts.ram = vm->ram;
	assert_int_equal(rl_synth_log_init(&vm->log, N_PAGES, N_VCPUS, ENTRIES), 0);
	assert_int_equal(rl_synth_create(&opts, &vm->guest), 0);
	assert_int_equal(rl_synth_start(vm->guest), 0);
}

static void
make(struct vm *vm, bool held, enum rl_synth_content content)
{
	make_hot(vm, held, content, 0);
}

static void
unmake(struct vm *vm)
{
	rl_synth_destroy(vm->guest);
	rl_synth_log_fini(&vm->log);
	munmap(vm->ram, BYTES);
}

static void
wait_writes(const struct vm *vm, uint64_t n)
{
	uint64_t until = rl_synth_writes(vm->guest) + n;

	for (int ms = 0; rl_synth_writes(vm->guest) < until; ms++) {
		assert_true(ms < 30000);
		usleep(1000);
	}
}

/* Nobody harvests: soon a vCPU waits for its ring. */
static void
wait_full(const struct vm *vm)
{
	uint32_t before = vm->ring_full;

	for (int ms = 0; vm->ring_full == before; ms++) {
		assert_true(ms < 30000);
		usleep(1000);
	}
}

static uint64_t
wrong(struct vm *vm)
{
	struct rl_synth_verdict v;

	rl_synth_check(vm->guest, &v);
	assert_int_equal(v.checked, N_PAGES);
	return v.wrong;
}

/* ---- the harvester: an engine's part, in the order that DESIGN's first rule says ---- */

struct harvester {
	struct vm *vm;
	uint64_t next[N_VCPUS];
	uint32_t n;
	uint64_t page[N_VCPUS * ENTRIES];
	uint8_t *shadow;
};

static void
harvest(struct harvester *h)
{
	h->n = 0;
	for (uint32_t i = 0; i < N_VCPUS; i++) {
		for (;; h->next[i]++) {
			struct rl_vmm_dirty_gfn *g = &h->vm->log.ring[i].gfn[h->next[i] % ENTRIES];

			if (__atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) != RL_VMM_GFN_DIRTY)
				break;
			assert_int_equal(g->slot, 0);
			assert_true(g->offset < N_PAGES);
			assert_true(h->n < N_VCPUS * ENTRIES);
			h->page[h->n++] = g->offset;
			__atomic_store_n(&g->flags, RL_VMM_GFN_RESET, __ATOMIC_RELEASE);
		}
	}
	assert_int_equal(rl_synth_log_reset(&h->vm->log), h->n);
}

/* The guest writes on while this reads, as a real one does: what it writes now is in the ring again. */
__attribute__((no_sanitize("thread"))) static void
copy_page(struct harvester *h, uint64_t page)
{
	const volatile uint64_t *from =
		(const volatile uint64_t *)(void *)(h->vm->ram + page * RL_SYNTH_PAGE_BYTES);
	uint64_t *to = (uint64_t *)(void *)(h->shadow + page * RL_SYNTH_PAGE_BYTES);

	for (uint32_t i = 0; i < RL_SYNTH_PAGE_BYTES / 8; i++)
		to[i] = from[i];
}

static void
test_rings_miss_nothing(void **state)
{
	struct harvester h = {0};
	uint64_t entries = 0;
	struct vm vm;

	(void)state;
	make(&vm, false, RL_SYNTH_MIXED);
	h.vm = &vm;
	h.shadow = malloc(BYTES);
	assert_non_null(h.shadow);
	wait_writes(&vm, 1000);
	rl_synth_log_start(&vm.log);
	for (uint64_t page = 0; page < N_PAGES; page++)
		copy_page(&h, page);
	for (int round = 0; round < 400; round++) {
		harvest(&h);
		entries += h.n;
		for (uint32_t i = 0; i < h.n; i++)
			copy_page(&h, h.page[i]);
		if (round % 100 == 50)
			wait_full(&vm);
	}
	rl_synth_hold(vm.guest);
	harvest(&h);
	for (uint32_t i = 0; i < h.n; i++)
		copy_page(&h, h.page[i]);
	harvest(&h);
	assert_int_equal(h.n, 0);
	assert_memory_equal(h.shadow, vm.ram, BYTES);
	rl_synth_release(vm.guest);
	assert_true(entries > ENTRIES * N_VCPUS); /* went round the rings */

	/* Stopped, even a vCPU at a full ring goes on. */
	wait_full(&vm);
	rl_synth_log_stop(&vm.log);
	wait_writes(&vm, ENTRIES * N_VCPUS);
	assert_int_equal(wrong(&vm), 0);
	free(h.shadow);
	unmake(&vm);
}

/* A few pages, written all the time, and compared again and again: a store that slips between the reset and the
 * copy of its page shows. Logging stops and starts in between. */
static void
test_rings_race(void **state)
{
	struct harvester h = {0};
	struct vm vm;

	(void)state;
	make_hot(&vm, false, RL_SYNTH_RANDOM, 16);
	h.vm = &vm;
	h.shadow = calloc(1, BYTES);
	assert_non_null(h.shadow);
	wait_writes(&vm, 2 * N_PAGES); /* all is filled once */
	for (int lap = 0; lap < 500; lap++) {
		rl_synth_log_start(&vm.log);
		for (uint64_t page = 0; page < 32; page++)
			copy_page(&h, page);
		for (int round = 0; round < 4; round++) {
			harvest(&h);
			for (uint32_t i = 0; i < h.n; i++)
				copy_page(&h, h.page[i]);
		}
		rl_synth_hold(vm.guest);
		harvest(&h);
		for (uint32_t i = 0; i < h.n; i++)
			copy_page(&h, h.page[i]);
		assert_memory_equal(h.shadow, vm.ram, (size_t)32 * RL_SYNTH_PAGE_BYTES);
		rl_synth_log_stop(&vm.log);
		rl_synth_release(vm.guest);
		wait_writes(&vm, 20);
	}
	free(h.shadow);
	unmake(&vm);
}

static void
test_hostile_ring(void **state)
{
	struct rl_vmm_dirty_gfn *g;
	struct vm vm;

	(void)state;
	make(&vm, true, RL_SYNTH_RANDOM);
	rl_synth_log_start(&vm.log);
	/* Entries that no vCPU pushed, of pages that there are not: once round and no further. */
	g = vm.log.ring[0].gfn;
	for (uint32_t i = 0; i < ENTRIES; i++)
		g[i] = (struct rl_vmm_dirty_gfn){0xffffffff, i, UINT64_MAX - i};
	assert_int_equal(rl_synth_log_reset(&vm.log), ENTRIES);
	assert_int_equal(rl_synth_log_reset(&vm.log), 0);
	/* An entry made another's leaves its page writable. The next engine is not to suffer for it. */
	rl_synth_log_begin(&vm.log, 1, 5);
	rl_synth_log_end(&vm.log, 5);
	g = vm.log.ring[1].gfn;
	assert_int_equal(g[0].flags, RL_VMM_GFN_DIRTY);
	g[0].offset = 6;
	g[0].flags = RL_VMM_GFN_RESET;
	assert_int_equal(rl_synth_log_reset(&vm.log), 1);
	rl_synth_log_stop(&vm.log);
	rl_synth_log_start(&vm.log);
	rl_synth_log_begin(&vm.log, 1, 5);
	rl_synth_log_end(&vm.log, 5);
	assert_int_equal(g[1].flags, RL_VMM_GFN_DIRTY);
	assert_int_equal(g[1].offset, 5);
	unmake(&vm);
}

static void
test_check_finds(void **state)
{
	static uint8_t old_ram[BYTES];
	uint32_t *table;
	uint64_t page;
	struct vm vm;

	(void)state;
	make(&vm, false, RL_SYNTH_RANDOM);
	wait_writes(&vm, 2 * N_PAGES);
	rl_synth_hold(vm.guest);
	memcpy(old_ram, vm.ram, BYTES);
	rl_synth_release(vm.guest);
	wait_writes(&vm, N_PAGES);
	rl_synth_hold(vm.guest);
	assert_int_equal(wrong(&vm), 0);

	/* One bit. */
	vm.ram[BYTES - 1] ^= 0x80;
	assert_int_equal(wrong(&vm), 1);
	vm.ram[BYTES - 1] ^= 0x80;
	/* A stale page. */
	table = (uint32_t *)(void *)vm.ram;
	for (page = 4; table[page] == ((uint32_t *)(void *)old_ram)[page]; page++)
		;
	memcpy(vm.ram + page * 4096, old_ram + page * 4096, 4096);
	assert_int_equal(wrong(&vm), 1);
	/* And its entry as stale as the page. */
	table[page] = ((uint32_t *)(void *)old_ram)[page];
	assert_int_equal(wrong(&vm), 1);
	/* A page in another's place. */
	memcpy(vm.ram, old_ram, BYTES);
	assert_int_equal(wrong(&vm), 1); /* all of it old: only the sum tells */
	memcpy(vm.ram + page * 4096, vm.ram + (page + 1) * 4096, 4096);
	assert_int_equal(wrong(&vm), 2);
	rl_synth_release(vm.guest);
	unmake(&vm);
}

static void
test_migrates(void **state)
{
	char text[RL_VMM_TEXT_BYTES];
	struct vm a, b;
	uint64_t size, writes;
	int fd;

	(void)state;
	make(&a, false, RL_SYNTH_MIXED);
	make(&b, true, RL_SYNTH_TEXT);
	wait_writes(&a, 2 * N_PAGES);
	rl_synth_hold(a.guest);
	writes = rl_synth_writes(a.guest);
	assert_int_equal(rl_synth_save(a.guest, &fd, &size), 0);
	memcpy(b.ram, a.ram, BYTES);
	assert_int_equal(rl_synth_load(b.guest, fd, size, text), 0);
	assert_int_equal(rl_synth_writes(b.guest), writes);
	assert_int_equal(wrong(&b), 0);
	rl_synth_release(b.guest);
	wait_writes(&b, 1000);
	assert_int_equal(wrong(&b), 0);
	assert_int_equal(rl_synth_writes(a.guest), writes); /* held, it writes nothing */
	assert_int_equal(wrong(&a), 0);

	/* An attempt given up leaves an empty target. */
	rl_synth_hold(b.guest);
	memset(b.ram, 0, BYTES);
	rl_synth_reset(b.guest);
	assert_int_equal(rl_synth_writes(b.guest), 0);
	assert_int_equal(wrong(&b), 0);
	rl_synth_release(b.guest);
	close(fd);
	unmake(&a);
	unmake(&b);
}

static void
test_load_refuses(void **state)
{
	/* word of the head, a value that cannot be */
	static const uint64_t lies[][2] = {
		{0, 0},          {1, N_PAGES + 1}, {2, N_VCPUS - 1}, {3, RL_SYNTH_N_CONTENTS},
		{4, UINT64_MAX}, {6, 1ull << 62},  {7, N_PAGES},     {7, 0},
	};
	char text[RL_VMM_TEXT_BYTES];
	uint64_t size, word;
	struct vm a;
	int fd;

	(void)state;
	make(&a, true, RL_SYNTH_MIXED);
	assert_int_equal(rl_synth_save(a.guest, &fd, &size), 0);
	assert_int_equal(rl_synth_load(a.guest, fd, size, text), 0);
	for (uint64_t n = 0; n < size; n++)
		assert_int_equal(rl_synth_load(a.guest, fd, n, text), -EINVAL);
	assert_int_equal(rl_synth_load(a.guest, fd, size + 1, text), -EINVAL);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		off_t at = (off_t)lies[i][0] * 8;

		assert_int_equal(pread(fd, &word, 8, at), 8);
		assert_int_equal(pwrite(fd, &lies[i][1], 8, at), 8);
		text[0] = 0;
		assert_int_equal(rl_synth_load(a.guest, fd, size, text), -EINVAL);
		assert_int_not_equal(text[0], 0);
		assert_int_equal(pwrite(fd, &word, 8, at), 8);
	}
	assert_int_equal(ftruncate(fd, (off_t)size - 1), 0);
	assert_int_equal(rl_synth_load(a.guest, fd, size, text), -EINVAL);
	close(fd);
	unmake(&a);
}

static void
test_content(void **state)
{
	static uint64_t a[512], b[512], zero[512];
	uint32_t zeros = 0;

	(void)state;
	for (int c = 0; c < RL_SYNTH_N_CONTENTS; c++) {
		rl_synth_fill(a, (enum rl_synth_content)c, 1, 7, 0);
		assert_memory_equal(a, zero, 4096); /* never written */
		if (c == RL_SYNTH_ZERO)
			continue;
		for (uint32_t generation = 1; generation < 200; generation++) {
			rl_synth_fill(a, (enum rl_synth_content)c, 1, 7, generation);
			rl_synth_fill(b, (enum rl_synth_content)c, 1, 7, generation);
			assert_memory_equal(a, b, 4096);
			if (memcmp(a, zero, 4096) == 0) {
				zeros++;
				continue;
			}
			rl_synth_fill(b, (enum rl_synth_content)c, 1, 7, generation + 1);
			assert_memory_not_equal(a, b, 4096);
			rl_synth_fill(b, (enum rl_synth_content)c, 1, 8, generation);
			assert_memory_not_equal(a, b, 4096);
			rl_synth_fill(b, (enum rl_synth_content)c, 2, 7, generation);
			assert_memory_not_equal(a + 2, b + 2, 4080);
		}
	}
	assert_in_range(zeros, 1, 40); /* mixed has some */
}

static void
test_create_refuses(void **state)
{
	struct rl_synth_opts o = {.n_pages = 100, .n_vcpus = 2};
	struct rl_synth_guest *g;

	(void)state;
	o.n_pages = 2; /* one for the table, one for two vCPUs */
	assert_int_equal(rl_synth_create(&o, &g), -EINVAL);
	o.n_pages = 100, o.work.working_set_pages = 100;
	assert_int_equal(rl_synth_create(&o, &g), -EINVAL);
	o.work.working_set_pages = 1;
	assert_int_equal(rl_synth_create(&o, &g), -EINVAL);
	o.work.working_set_pages = 0, o.n_vcpus = 0;
	assert_int_equal(rl_synth_create(&o, &g), -EINVAL);
	assert_null(g);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_content),
		cmocka_unit_test(test_create_refuses),
		cmocka_unit_test(test_rings_miss_nothing),
		cmocka_unit_test(test_rings_race),
		cmocka_unit_test(test_hostile_ring),
		cmocka_unit_test(test_check_finds),
		cmocka_unit_test(test_migrates),
		cmocka_unit_test(test_load_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
