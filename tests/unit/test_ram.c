/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest RAM: regions, page numbers, mapping, holes, discarding, digests. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/memfd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/rand.h"
#include "memory/ram.h"

#define MIB2   (2u << 20)
#define GPN_4G (1ull << 20)

static int
memfd(uint64_t bytes, unsigned int flags)
{
	int fd = memfd_create("ram", MFD_CLOEXEC | flags);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static struct rl_region
region(int fd, uint64_t gpn, uint64_t n_pages, uint64_t offset)
{
	return (struct rl_region){
		.gpn = gpn, .n_pages = n_pages, .fd_offset = offset, .page_size = 4096, .fd = fd};
}

static void
add(struct rl_ram *ram, struct rl_region r)
{
	struct rl_err err = {0};

	if (rl_ram_add(ram, &r, &err) != 0)
		fail_msg("%s", err.text);
}

/* RAM below and above the hole under 4 GiB, both in one file, added in the wrong order. */
static void
two_regions(struct rl_ram *ram)
{
	int fd = memfd(40 * 4096, 0);

	rl_ram_init(ram);
	add(ram, region(dup(fd), GPN_4G, 24, 16 * 4096));
	add(ram, region(fd, 0, 16, 0));
}

static void
test_translation(void **state)
{
	struct rl_ram ram;
	struct rl_err err = {0};
	uint64_t page = 99;

	(void)state;
	two_regions(&ram);
	assert_int_equal(ram.n_pages, 40);
	assert_int_equal(rl_ram_map(&ram, true, &err), 0);

	assert_true(rl_ram_page(&ram, 15, &page) && page == 15);
	assert_true(rl_ram_page(&ram, GPN_4G, &page) && page == 16);
	assert_true(rl_ram_page(&ram, GPN_4G + 23, &page) && page == 39);
	assert_false(rl_ram_page(&ram, 16, &page));
	assert_false(rl_ram_page(&ram, GPN_4G - 1, &page));
	assert_false(rl_ram_page(&ram, GPN_4G + 24, &page));
	assert_false(rl_ram_page(&ram, UINT64_MAX, &page));

	assert_true(rl_ram_run(&ram, 3, 13, &page) && page == 3);
	assert_false(rl_ram_run(&ram, 3, 14, &page));
	assert_false(rl_ram_run(&ram, 3, UINT64_MAX, &page));
	assert_true(rl_ram_run(&ram, GPN_4G + 1, 23, &page) && page == 17);

	for (page = 0; page < ram.n_pages; page++) {
		uint64_t back, gpn = rl_ram_gpn(&ram, page);

		assert_true(rl_ram_page(&ram, gpn, &back) && back == page);
		rl_store64(rl_ram_hva(&ram, page) + 8, page);
	}
	/* The second region lies behind the first in the file. */
	for (page = 0; page < ram.n_pages; page++) {
		uint8_t raw[8];

		assert_int_equal(pread(ram.region[0].fd, raw, 8, (off_t)page * 4096 + 8), 8);
		assert_int_equal(rl_load64(raw), page);
	}
	rl_ram_fini(&ram);
	assert_int_equal(ram.n, 0);
}

static void
refuse(struct rl_ram *ram, struct rl_region r, int rc, const char *word)
{
	struct rl_err err = {0};
	uint32_t n = ram->n;

	assert_int_equal(rl_ram_add(ram, &r, &err), rc);
	if (strstr(err.text, word) == NULL)
		fail_msg("no '%s' in: %s", word, err.text);
	assert_int_equal(ram->n, n);
	assert_int_equal(fcntl(r.fd, F_GETFD), -1); /* was closed */
}

static void
test_refused(void **state)
{
	struct rl_region r;
	struct rl_ram ram;
	int pipes[2];

	(void)state;
	two_regions(&ram);
	refuse(&ram, region(memfd(MIB2, 0), 15, 2, 0), -EINVAL, "overlaps");
	refuse(&ram, region(memfd(MIB2, 0), GPN_4G - 1, 2, 0), -EINVAL, "overlaps");
	refuse(&ram, region(memfd(MIB2, 0), GPN_4G + 23, 1, 0), -EINVAL, "overlaps");
	refuse(&ram, region(memfd(MIB2, 0), 100, 0, 0), -EINVAL, "2^40");
	refuse(&ram, region(memfd(MIB2, 0), 1ull << 40, 1, 0), -EINVAL, "2^40");
	refuse(&ram, region(memfd(MIB2, 0), UINT64_MAX, 2, 0), -EINVAL, "2^40");
	refuse(&ram, region(memfd(MIB2, 0), 100, UINT64_MAX, 0), -EINVAL, "2^40");
	refuse(&ram, region(memfd(MIB2, 0), 100, 512, 4096), -EINVAL, "the file has");
	refuse(&ram, region(memfd(MIB2, 0), 100, 1, 0ull - 4096), -EINVAL, "the file has");
	refuse(&ram, region(memfd(MIB2, 0), 100, 1, 100), -EINVAL, "multiples");
	assert_int_equal(pipe(pipes), 0);
	refuse(&ram, region(pipes[0], 100, 1, 0), -EINVAL, "not a file");
	close(pipes[1]);
	r = region(memfd(MIB2, 0), 100, 1, 0);
	r.page_size = 12288;
	refuse(&ram, r, -EINVAL, "page size");
	r = region(memfd(2 * MIB2, 0), 1024, 513, 0);
	r.page_size = MIB2;
	refuse(&ram, r, -EINVAL, "multiples");

	for (uint64_t i = ram.n; i < RL_RAM_MAX_REGIONS; i++)
		add(&ram, region(memfd(4096, 0), 1000 * i, 1, 0));
	refuse(&ram, region(memfd(4096, 0), 500000, 1, 0), -ENOSPC, "more than 16");
	rl_ram_fini(&ram);
}

static void
test_map(void **state)
{
	struct rl_ram ram;
	struct rl_err err = {0};
	char path[64];
	int fd = memfd(8 * MIB2, 0), ro;

	(void)state;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(ro >= 0);
	rl_ram_init(&ram);
	add(&ram, region(ro, 0, 512 * 3, 0));
	assert_int_equal(rl_ram_map(&ram, true, &err), -EACCES);
	assert_non_null(strstr(err.text, "open for writing"));
	assert_null(ram.region[0].hva);
	assert_int_equal(rl_ram_map(&ram, false, &err), 0);
	rl_ram_fini(&ram);

	/* Many at once: an unaligned address would show. */
	for (uint64_t i = 0; i < 8; i++)
		add(&ram, region(dup(fd), i * 1000, 1 + 37 * i, 4096 * i));
	assert_int_equal(rl_ram_map(&ram, true, &err), 0);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal((uintptr_t)ram.region[i].hva % MIB2, 0);
	memset(ram.region[7].hva, 1, 4096);
	rl_ram_unmap(&ram);
	assert_null(ram.region[7].hva);
	rl_ram_fini(&ram);
	close(fd);
}

static void
mark(void *ctx, uint64_t page, uint64_t n)
{
	memset((uint8_t *)ctx + page, 1, n);
}

/* Any pattern of holes in a file of which the regions are two windows. */
static void
test_extents(void **state)
{
	struct rl_rand rnd = {.state = 7};
	uint8_t seen[140], has[140];

	(void)state;
	for (int round = 0; round < 200; round++) {
		int fd = memfd(200 * 4096, 0);
		struct rl_ram ram;

		rl_ram_init(&ram);
		add(&ram, region(fd, 500, 100, 20 * 4096));
		add(&ram, region(dup(fd), 100, 40, 150 * 4096));
		memset(seen, 0, sizeof(seen));
		memset(has, 0, sizeof(has));
		for (uint64_t i = rl_rand_below(&rnd, 60); i > 0; i--) {
			uint64_t p = rl_rand_below(&rnd, 200);

			assert_int_equal(pwrite(fd, "x", 1, (off_t)p * 4096 + 4095), 1);
			if (p >= 20 && p < 120)
				has[p - 20 + 40] = 1;
			if (p >= 150 && p < 190)
				has[p - 150] = 1;
		}
		rl_ram_extents(&ram, mark, seen);
		assert_memory_equal(seen, has, sizeof(has));
		rl_ram_fini(&ram);
	}
}

static void
digest(struct rl_ram *ram, uint64_t *out)
{
	uint64_t again[8];

	rl_ram_digest(ram, NULL, out);
	rl_ram_digest(ram, NULL, again);
	assert_memory_equal(out, again, RL_RAM_BLOCKS(ram) * sizeof(*out));
}

static void
test_digest(void **state)
{
	uint64_t a[8], b[8], gone[8] = {0};
	struct rl_ram ram, other;
	struct rl_err err = {0};
	uint8_t page[4096];

	(void)state;
	rl_ram_init(&ram);
	rl_ram_init(&other);
	add(&ram, region(memfd(1300 * 4096, 0), 0, 1300, 0));
	/* The same pages in two files. */
	add(&other, region(memfd(600 * 4096, 0), 0, 600, 0));
	add(&other, region(memfd(700 * 4096, 0), 600, 700, 0));
	assert_int_equal(rl_ram_map(&ram, true, &err), 0);
	assert_int_equal(rl_ram_map(&other, true, &err), 0);
	assert_int_equal(RL_RAM_BLOCKS(&ram), 3);
	digest(&ram, a);
	assert_memory_equal(a, gone, 3 * sizeof(*a));

	for (uint64_t p = 0; p < 1300; p += 7) {
		memset(page, (int)(p * 31 % 251), sizeof(page));
		memcpy(rl_ram_hva(&ram, p), page, sizeof(page));
		memcpy(rl_ram_hva(&other, p), page, sizeof(page));
	}
	digest(&ram, a);
	digest(&other, b);
	assert_memory_equal(a, b, 3 * sizeof(*a));
	assert_true(a[0] != 0 && a[1] != 0 && a[2] != 0 && a[0] != a[1]);

	/* A page of zeros is as good as a hole. */
	memset(rl_ram_hva(&ram, 1), 0, 4096);
	digest(&ram, a);
	assert_memory_equal(a, b, 3 * sizeof(*a));

	/* One bit, in its own block only. */
	rl_ram_hva(&ram, 1299)[4095] ^= 0x10;
	digest(&ram, a);
	assert_true(a[0] == b[0] && a[1] == b[1] && a[2] != b[2]);
	rl_ram_hva(&ram, 1299)[4095] ^= 0x10;

	/* Two pages swapped. */
	memcpy(page, rl_ram_hva(&ram, 7), 4096);
	memcpy(rl_ram_hva(&ram, 7), rl_ram_hva(&ram, 14), 4096);
	memcpy(rl_ram_hva(&ram, 14), page, 4096);
	digest(&ram, a);
	assert_true(a[0] != b[0] && a[1] == b[1]);
	rl_ram_fini(&ram);
	rl_ram_fini(&other);
}

static uint64_t
blocks_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void
test_discard(void **state)
{
	struct rl_ram ram;
	struct rl_err err = {0};
	int fd = memfd(10 * 4096, MFD_ALLOW_SEALING);
	uint8_t raw;

	(void)state;
	for (off_t p = 0; p < 10; p++)
		assert_int_equal(pwrite(fd, "y", 1, p * 4096), 1);
	rl_ram_init(&ram);
	add(&ram, region(fd, 0, 6, 2 * 4096));
	assert_int_equal(rl_ram_map(&ram, false, &err), 0);
	assert_int_equal(*rl_ram_hva(&ram, 5), 'y');
	assert_int_equal(rl_ram_discard(&ram, &err), 0);
	for (uint64_t p = 0; p < 6; p++)
		assert_int_equal(*rl_ram_hva(&ram, p), 0);
	assert_true(ram.region[0].zeroed);
	/* What lies around the region in the file stays. */
	assert_true(pread(fd, &raw, 1, 4096) == 1 && raw == 'y');
	assert_true(pread(fd, &raw, 1, 8 * 4096) == 1 && raw == 'y');

	rl_ram_unmap(&ram);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	assert_int_equal(rl_ram_discard(&ram, &err), -EPERM);
	assert_non_null(strstr(err.text, "not sealed"));
	rl_ram_fini(&ram);
}

/* A file system with neither hole punching nor SEEK_DATA. */
static void
test_ramfs(void **state)
{
	char dir[] = "/tmp/ramlift-ram-XXXXXX", path[64];
	uint8_t seen[10] = {0};
	struct rl_ram ram;
	struct rl_err err = {0};
	int fd;

	(void)state;
	if (unshare(CLONE_NEWNS) != 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
		print_message("skipped: no mount namespace of our own (needs root)\n");
		skip();
	}
	assert_non_null(mkdtemp(dir));
	assert_int_equal(mount("ram", dir, "ramfs", 0, NULL), 0);
	snprintf(path, sizeof(path), "%s/f", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 10 * 4096), 0);
	rl_ram_init(&ram);
	add(&ram, region(fd, 0, 10, 0));
	assert_int_equal(rl_ram_map(&ram, true, &err), 0);
	assert_true(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
	memset(rl_ram_hva(&ram, 0), 1, 10 * 4096);
	rl_ram_extents(&ram, mark, seen);
	for (int p = 0; p < 10; p++)
		assert_int_equal(seen[p], 1);
	assert_int_equal(rl_ram_discard(&ram, &err), 0);
	for (uint64_t p = 0; p < 10; p++)
		assert_int_equal(rl_ram_hva(&ram, p)[17], 0);
	rl_ram_fini(&ram);
	umount(dir);
	rmdir(dir);
}

static void
test_hugetlb(void **state)
{
	struct rl_region r = region(-1, 0, 512 * 3, MIB2);
	uint8_t seen[512 * 3];
	uint64_t a[3];
	struct rl_ram ram;
	struct rl_err err = {0};

	(void)state;
	r.fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	assert_true(r.fd >= 0 && ftruncate(r.fd, 4 * MIB2) == 0);
	r.page_size = MIB2;
	r.hugetlb = true;
	rl_ram_init(&ram);
	add(&ram, r);
	if (rl_ram_map(&ram, true, &err) != 0) {
		assert_non_null(strstr(err.text, "vm.nr_hugepages"));
		print_message("skipped: no 3 free hugetlb pages of 2 MiB (vm.nr_hugepages)\n");
		rl_ram_fini(&ram);
		skip();
	}
	assert_int_equal((uintptr_t)ram.region[0].hva % MIB2, 0);
	rl_ram_hva(&ram, 600)[0] = 1;
	memset(seen, 0, sizeof(seen));
	rl_ram_extents(&ram, mark, seen);
	assert_int_equal(seen[600], 1);
	rl_ram_digest(&ram, NULL, a);
	assert_true(a[0] == 0 && a[1] != 0 && a[2] == 0);
	assert_true(blocks_of(r.fd) > 0);
	assert_int_equal(rl_ram_discard(&ram, &err), 0);
	assert_int_equal(blocks_of(r.fd), 0);
	assert_int_equal(rl_ram_hva(&ram, 600)[0], 0);
	rl_ram_fini(&ram);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_translation), cmocka_unit_test(test_refused),
		cmocka_unit_test(test_map),         cmocka_unit_test(test_extents),
		cmocka_unit_test(test_digest),      cmocka_unit_test(test_discard),
		cmocka_unit_test(test_hugetlb),     cmocka_unit_test(test_ramfs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
