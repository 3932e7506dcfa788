/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zero pages: every byte counts, and nothing beyond the page is read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "codec/zero.h"

static void
test_zero(void **state)
{
	/* Neighbours that fault when touched: some versions of ISA-L read beyond the end. */
	uint8_t *map = mmap(NULL, 3 * RL_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *page = map + RL_PAGE_SIZE;

	(void)state;
	assert_true(map != MAP_FAILED);
	assert_int_equal(mprotect(page, RL_PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	assert_true(rl_page_is_zero(page));
	for (uint32_t bit = 0; bit < 8 * RL_PAGE_SIZE; bit++) {
		page[bit / 8] = (uint8_t)(1u << (bit % 8));
		assert_false(rl_page_is_zero(page));
		page[bit / 8] = 0;
	}
	memset(page, 0xff, RL_PAGE_SIZE);
	assert_false(rl_page_is_zero(page));
	memset(page, 0, RL_PAGE_SIZE);
	assert_true(rl_page_is_zero(page));
	munmap(map, 3 * RL_PAGE_SIZE);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_zero)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
