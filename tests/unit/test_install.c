/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Installing at the target: newer wins, and nothing outside guest RAM or the lane's stripes is touched.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "memory/install.h"

/*
 * Two regions with a hole between them. The second begins in mid-stripe: stripes go by page, not by gpn.
 * region 0: gpn 16..., pages 0..699; region 1: gpn 4096..., pages 700..1723
 */
#define GPN0   16u
#define N0     700u
#define GPN1   4096u
#define N1     1024u
#define LANES  2u
#define IN_ALL (N0 + N1)

static struct rl_ram ram;
static struct rl_install in;
static uint8_t data[RL_PAGE_SIZE];

static int
setup(void **state)
{
	size_t bytes = (size_t)IN_ALL * RL_PAGE_SIZE;
	uint8_t *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		return -1;
	*state = mem;
	ram = (struct rl_ram){
		.n = 2,
		.n_pages = IN_ALL,
		.region = {{.gpn = GPN0, .n_pages = N0, .page = 0, .hva = mem, .fd = -1},
			   {.gpn = GPN1,
			    .n_pages = N1,
			    .page = N0,
			    .hva = mem + (size_t)N0 * RL_PAGE_SIZE,
			    .fd = -1}},
	};
	return rl_install_init(&in, &ram, LANES);
}

static int
teardown(void **state)
{
	rl_install_fini(&in);
	return munmap(*state, (size_t)IN_ALL * RL_PAGE_SIZE);
}

static uint8_t *
page_at(uint64_t page)
{
	return ram.region[0].hva + page * RL_PAGE_SIZE;
}

static int
raw(uint64_t gpn, uint16_t version, uint8_t fill)
{
	uint64_t page = gpn < GPN1 ? gpn - GPN0 : gpn - GPN1 + N0;

	memset(data, fill, sizeof(data));
	return rl_install_raw(&in, page / RL_STRIPE_PAGES % LANES, gpn, version, 0, data,
			      RL_PAGE_SIZE);
}

static void
test_newer_wins(void **state)
{
	uint8_t *page = page_at(4);

	(void)state;
	assert_int_equal(raw(GPN0 + 4, 2, 'b'), 1);
	assert_int_equal(page[0], 'b');
	assert_int_equal(page[4095], 'b');
	assert_int_equal(raw(GPN0 + 4, 1, 'a'), 0); /* older: stale */
	assert_int_equal(page[0], 'b');
	assert_int_equal(raw(GPN0 + 4, 2, 'B'), 1); /* the same: written */
	assert_int_equal(page[0], 'B');
	assert_int_equal(raw(GPN0 + 4, 3, 'c'), 1);
	assert_int_equal(page[0], 'c');
	assert_int_equal(page_at(3)[4095], 0);
	assert_int_equal(page_at(5)[0], 0);
}

/* Versions are serial numbers: 2 follows 65534. */
static void
test_wrap(void **state)
{
	uint8_t *page = page_at(7);

	(void)state;
	for (uint32_t v = 1; v <= 0xfffe; v += 0x7000)
		assert_int_equal(raw(GPN0 + 7, (uint16_t)v, 'x'), 1);
	assert_int_equal(raw(GPN0 + 7, 0xfffe, 'y'), 1);
	assert_int_equal(raw(GPN0 + 7, 2, 'z'), 1);
	assert_int_equal(raw(GPN0 + 7, 0xffff, 'w'), 0);
	assert_int_equal(page[0], 'z');
}

static void
test_fragments(void **state)
{
	uint8_t *page = page_at(0);

	(void)state;
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 4090, (const uint8_t *)"tail..", 6), 1);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 0, (const uint8_t *)"head", 4), 1);
	assert_memory_equal(page, "head\0", 5);
	assert_memory_equal(page + 4089, "\0tail..", 7);
	/* A zero run of a newer version takes all of it away, and the rest of version 1 comes too late. */
	assert_int_equal(rl_install_zero(&in, 0, GPN0, 1, 2), 1);
	assert_int_equal(page[0], 0);
	assert_int_equal(page[4095], 0);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 0, (const uint8_t *)"head", 4), 0);
	assert_int_equal(page[0], 0);
}

static void
test_zero(void **state)
{
	unsigned char resident[8];

	(void)state;
	/* Nothing was written: versions move, memory is left alone. */
	assert_int_equal(rl_install_zero(&in, 1, GPN1 + 324, 512, 5), -EBADMSG); /* lane 0's */
	assert_int_equal(rl_install_zero(&in, 0, GPN1 + 324, 512, 5), 512);
	assert_int_equal(mincore(page_at(N0 + 324), sizeof(resident) * RL_PAGE_SIZE, resident), 0);
	for (size_t i = 0; i < sizeof(resident); i++)
		assert_int_equal(resident[i] & 1, 0);
	assert_int_equal(raw(GPN1 + 324, 4, 'a'), 0);

	/* One of three is newer than the run. */
	assert_int_equal(raw(GPN1 + 330, 6, 'a'), 1);
	assert_int_equal(raw(GPN1 + 331, 8, 'b'), 1);
	assert_int_equal(raw(GPN1 + 332, 6, 'c'), 1);
	assert_int_equal(rl_install_zero(&in, 0, GPN1 + 330, 3, 7), 2);
	assert_int_equal(page_at(N0 + 330)[0], 0);
	assert_int_equal(page_at(N0 + 331)[0], 'b');
	assert_int_equal(page_at(N0 + 332)[4095], 0);
	assert_int_equal(rl_install_zero(&in, 0, GPN1 + 330, 3, 6), 0);
}

static void
test_bounds(void **state)
{
	static const uint64_t outside[] = {
		0,         GPN0 - 1,         GPN0 + N0,        GPN1 - 1,
		GPN1 + N1, (1ull << 40) - 1, UINT64_MAX >> 12, UINT64_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++)
		for (uint32_t lane = 0; lane < LANES; lane++) {
			assert_int_equal(rl_install_raw(&in, lane, outside[i], 1, 0, data, 1),
					 -EBADMSG);
			assert_int_equal(rl_install_zero(&in, lane, outside[i], 1, 1), -EBADMSG);
		}
	/* leaves its region, though the next page number is there */
	assert_int_equal(rl_install_zero(&in, 1, GPN0 + N0 - 1, 2, 1), -EBADMSG);
	/* leaves its stripe */
	assert_int_equal(rl_install_zero(&in, 0, GPN0 + 511, 2, 1), -EBADMSG);
	assert_int_equal(rl_install_zero(&in, 0, GPN0, 513, 1), -EBADMSG);
	assert_int_equal(rl_install_zero(&in, 0, GPN0, UINT32_MAX, 1), -EBADMSG);
	assert_int_equal(rl_install_zero(&in, 0, GPN0, 0, 1), -EBADMSG);
	/* another lane's, or no lane's */
	assert_int_equal(rl_install_raw(&in, 1, GPN0 + 511, 1, 0, data, 1), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 0, GPN0 + 512, 1, 0, data, 1), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 2, GPN0, 1, 0, data, 1), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 1, GPN0 + 512, 1, 0, data, 1), 1);
	/* leaves its page */
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 1, data, RL_PAGE_SIZE), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, RL_PAGE_SIZE, data, 1), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, UINT32_MAX, data, 2), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 0, data, UINT32_MAX), -EBADMSG);
	assert_int_equal(rl_install_raw(&in, 0, GPN0, 1, 4095, data, 1), 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_newer_wins, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fragments, setup, teardown),
		cmocka_unit_test_setup_teardown(test_zero, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
