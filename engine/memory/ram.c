/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest RAM: regions of files, where they are mapped, which parts hold data, and their digest. */
#include "memory/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <isa-l.h>

#include "base/bytes.h"

#define GPN_BITS    40
#define ALIGN_BYTES (2ull << 20) /* of the mapping: KVM and THP map 2 MiB at once */
#define GIGANTIC    (1ull << 30)
#define BLOCK_PAGES 512u

static uint64_t
region_bytes(const struct rl_region *r)
{
	return r->n_pages << RL_PAGE_SHIFT;
}

void
rl_ram_init(struct rl_ram *ram)
{
	memset(ram, 0, sizeof(*ram));
}

static int
region_check(const struct rl_region *r, struct rl_err *err)
{
	uint64_t gpn_max = 1ull << GPN_BITS;
	struct stat st;

	if (r->n_pages == 0 || r->n_pages > gpn_max || r->gpn > gpn_max - r->n_pages)
		return rl_err_set(
			err, -EINVAL,
			"region at page %#llx of %llu pages: outside the 2^40 pages of the "
			"guest-physical space; correct the VMM's region",
			(unsigned long long)r->gpn, (unsigned long long)r->n_pages);
	if (!rl_is_pow2(r->page_size) || r->page_size < RL_PAGE_SIZE || r->page_size > GIGANTIC)
		return rl_err_set(
			err, -EINVAL,
			"region at page %#llx: page size %u; 4096, 2 MiB or 1 GiB is possible",
			(unsigned long long)r->gpn, r->page_size);
	if (r->fd_offset % r->page_size != 0 || region_bytes(r) % r->page_size != 0)
		return rl_err_set(
			err, -EINVAL,
			"region at page %#llx: offset %llu and length %llu must be multiples "
			"of its page size %u",
			(unsigned long long)r->gpn, (unsigned long long)r->fd_offset,
			(unsigned long long)region_bytes(r), r->page_size);
	if (fstat(r->fd, &st) != 0 || !S_ISREG(st.st_mode))
		return rl_err_set(
			err, -EINVAL,
			"region at page %#llx: not a file; give guest RAM a memfd, or a file on "
			"tmpfs or hugetlbfs",
			(unsigned long long)r->gpn);
	if (r->fd_offset > LLONG_MAX - region_bytes(r) ||
	    (uint64_t)st.st_size < r->fd_offset + region_bytes(r))
		return rl_err_set(
			err, -EINVAL,
			"region at page %#llx: the file has %lld bytes, the region needs %llu "
			"from %llu on; make the file larger",
			(unsigned long long)r->gpn, (long long)st.st_size,
			(unsigned long long)region_bytes(r), (unsigned long long)r->fd_offset);
	return 0;
}

/* Where a region with @gpn goes, or where one that overlaps is. */
static bool
find_place(const struct rl_ram *ram, const struct rl_region *r, uint32_t *at)
{
	uint32_t i = 0;

	while (i < ram->n && ram->region[i].gpn + ram->region[i].n_pages <= r->gpn)
		i++;
	*at = i;
	return i == ram->n || r->gpn + r->n_pages <= ram->region[i].gpn;
}

int
rl_ram_add(struct rl_ram *ram, const struct rl_region *r, struct rl_err *err)
{
	struct rl_region *new;
	uint32_t at;
	int rc;

	rc = region_check(r, err);
	if (rc == 0 && ram->n == RL_RAM_MAX_REGIONS)
		rc = rl_err_set(err, -ENOSPC,
				"more than %u regions of guest RAM; join adjacent ones",
				RL_RAM_MAX_REGIONS);
	if (rc == 0 && !find_place(ram, r, &at))
		rc = rl_err_set(
			err, -EINVAL,
			"region at page %#llx overlaps the one at page %#llx; name each page "
			"once, not its aliases",
			(unsigned long long)r->gpn, (unsigned long long)ram->region[at].gpn);
	if (rc != 0) {
		if (r->fd >= 0)
			close(r->fd);
		return rc;
	}
	new = &ram->region[at];
	memmove(new + 1, new, (ram->n - at) * sizeof(*new));
	*new = *r;
	new->hva = NULL;
	ram->n++;
	ram->n_pages = 0;
	for (uint32_t i = 0; i < ram->n; i++) {
		ram->region[i].page = ram->n_pages;
		ram->n_pages += ram->region[i].n_pages;
	}
	return 0;
}

/* mmap() aligns by page size only; take more address space than needed and give the ends back. */
static int
region_map(struct rl_region *r, int prot)
{
	uint64_t align = rl_max64(r->page_size, ALIGN_BYTES), len = region_bytes(r), head;
	uint8_t *base, *hva;

	base = mmap(NULL, len + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (base == MAP_FAILED)
		return -errno;
	head = -(uintptr_t)base & (align - 1);
	hva = base + head;
	if (mmap(hva, len, prot, MAP_SHARED | MAP_FIXED, r->fd, (off_t)r->fd_offset) ==
	    MAP_FAILED) {
		int rc = -errno;

		munmap(base, len + align);
		return rc;
	}
	if (head > 0)
		munmap(base, head);
	munmap(hva + len, align - head);
	madvise(hva, len, MADV_DONTDUMP); /* a core file is no place for a guest's secrets */
	if (r->thp)
		madvise(hva, len, MADV_HUGEPAGE);
	r->hva = hva;
	return 0;
}

int
rl_ram_map(struct rl_ram *ram, bool writable, struct rl_err *err)
{
	int rc;

	for (uint32_t i = 0; i < ram->n; i++) {
		struct rl_region *r = &ram->region[i];

		if (r->hva)
			continue;
		rc = region_map(r, writable ? PROT_READ | PROT_WRITE : PROT_READ);
		if (rc == 0)
			continue;
		rl_ram_unmap(ram);
		if (rc == -EACCES || rc == -EPERM)
			return rl_err_set(
				err, -EACCES,
				"cannot map guest RAM at page %#llx for writing; the VMM must "
				"pass a descriptor that is open for writing and not sealed",
				(unsigned long long)r->gpn);
		return rl_err_set(
			err, rc,
			"cannot map %llu MiB of guest RAM: %s; for hugetlb reserve more pages "
			"(vm.nr_hugepages)",
			(unsigned long long)(region_bytes(r) >> 20), strerror(-rc));
	}
	return 0;
}

void
rl_ram_unmap(struct rl_ram *ram)
{
	for (uint32_t i = 0; i < ram->n; i++) {
		struct rl_region *r = &ram->region[i];

		if (r->hva)
			munmap(r->hva, region_bytes(r));
		r->hva = NULL;
	}
}

void
rl_ram_fini(struct rl_ram *ram)
{
	rl_ram_unmap(ram);
	for (uint32_t i = 0; i < ram->n; i++)
		close(ram->region[i].fd);
	rl_ram_init(ram);
}

/* A mapping of its own: the engine's may be absent or for reading only. */
static int
region_clear(const struct rl_region *r)
{
	void *p = mmap(NULL, region_bytes(r), PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		       (off_t)r->fd_offset);

	if (p == MAP_FAILED)
		return -errno;
	memset(p, 0, region_bytes(r));
	munmap(p, region_bytes(r));
	return 0;
}

int
rl_ram_discard(struct rl_ram *ram, struct rl_err *err)
{
	for (uint32_t i = 0; i < ram->n; i++) {
		struct rl_region *r = &ram->region[i];
		int rc = 0;

		if (fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)r->fd_offset, (off_t)region_bytes(r)) != 0)
			rc = region_clear(r);
		if (rc != 0)
			return rl_err_set(
				err, rc,
				"cannot clear guest RAM at page %#llx: %s; the VMM must pass a "
				"descriptor that is open for writing and not sealed",
				(unsigned long long)r->gpn, strerror(-rc));
		r->zeroed = true;
	}
	return 0;
}

bool
rl_ram_run(const struct rl_ram *ram, uint64_t gpn, uint64_t n, uint64_t *page)
{
	for (uint32_t i = 0; i < ram->n; i++) {
		const struct rl_region *r = &ram->region[i];
		uint64_t off = gpn - r->gpn; /* huge when gpn lies before the region */

		if (off >= r->n_pages)
			continue;
		*page = r->page + off;
		return n <= r->n_pages - off;
	}
	return false;
}

bool
rl_ram_page(const struct rl_ram *ram, uint64_t gpn, uint64_t *page)
{
	return rl_ram_run(ram, gpn, 1, page);
}

static const struct rl_region *
region_of(const struct rl_ram *ram, uint64_t page)
{
	const struct rl_region *r = ram->region;

	while (page - r->page >= r->n_pages)
		r++;
	return r;
}

uint64_t
rl_ram_gpn(const struct rl_ram *ram, uint64_t page)
{
	const struct rl_region *r = region_of(ram, page);

	return r->gpn + (page - r->page);
}

uint8_t *
rl_ram_hva(const struct rl_ram *ram, uint64_t page)
{
	const struct rl_region *r = region_of(ram, page);

	return r->hva + ((page - r->page) << RL_PAGE_SHIFT);
}

/* The next extent of the file in [*pos, end); false: only a hole is left. */
static bool
next_extent(int fd, uint64_t *pos, uint64_t *stop, uint64_t end)
{
	off_t data = lseek(fd, (off_t)*pos, SEEK_DATA), hole;

	if (data < 0 && errno == ENXIO)
		return false;
	*stop = end;
	if (data < (off_t)*pos)
		return true; /* cannot tell */
	if ((uint64_t)data >= end)
		return false;
	*pos = (uint64_t)data;
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole > data && (uint64_t)hole < end)
		*stop = (uint64_t)hole;
	return true;
}

void
rl_ram_extents(const struct rl_ram *ram, void (*fn)(void *ctx, uint64_t page, uint64_t n),
	       void *ctx)
{
	for (uint32_t i = 0; i < ram->n; i++) {
		const struct rl_region *r = &ram->region[i];
		uint64_t pos = r->fd_offset, end = pos + region_bytes(r), stop;

		while (pos < end && next_extent(r->fd, &pos, &stop, end)) {
			uint64_t first = (pos - r->fd_offset) >> RL_PAGE_SHIFT;
			uint64_t last = (stop - r->fd_offset - 1) >> RL_PAGE_SHIFT;

			fn(ctx, r->page + first, last - first + 1);
			pos = stop;
		}
	}
}

/* MurmurHash3's finaliser (public domain). */
static uint64_t
mix64(uint64_t v)
{
	v = (v ^ (v >> 33)) * 0xff51afd7ed558ccdull;
	v = (v ^ (v >> 33)) * 0xc4ceb9fe1a85ec53ull;
	return v ^ (v >> 33);
}

struct digest {
	const struct rl_ram *ram;
	const uint64_t *touched;
	uint64_t *out;
};

static void
digest_extent(void *ctx, uint64_t page, uint64_t n)
{
	const struct digest *d = ctx;

	for (uint64_t p = page; p < page + n; p++) {
		uint8_t *data = rl_ram_hva(d->ram, p);
		uint64_t crc;

		if (d->touched != NULL && (d->touched[p / 64] >> (p % 64) & 1) == 0)
			continue;
		if (isal_zero_detect(data, RL_PAGE_SIZE) == 0)
			continue;
		crc = crc64_ecma_refl(0, data, RL_PAGE_SIZE);
		d->out[p / BLOCK_PAGES] += mix64(crc ^ mix64(rl_ram_gpn(d->ram, p) + 1));
	}
}

void
rl_ram_digest(const struct rl_ram *ram, const uint64_t *touched, uint64_t *digest)
{
	struct digest d = {.ram = ram, .touched = touched, .out = digest};

	memset(digest, 0, RL_RAM_BLOCKS(ram) * sizeof(*digest));
	rl_ram_extents(ram, digest_extent, &d);
}
