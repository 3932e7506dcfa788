/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest RAM as a file: memfd, tmpfs with huge folios, or huge pages. */
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <ramlift/vmm.h>

#define SIZE_4K (4u << 10)
#define SIZE_2M (2u << 20)
#define SIZE_1G (1u << 30)

struct backing_kind {
	const char *name;
	uint32_t page_size;
	uint32_t memfd_flags; /* hugetlb only */
	uint32_t region_flags;
	const char *page_name;
	const char *sysfs; /* where the free huge pages are counted */
};

static const struct backing_kind kinds[] = {
	{"plain", SIZE_4K, 0, 0, "4 KiB", NULL},
	{"thp", SIZE_2M, 0, RL_VMM_REGION_THP, "2 MiB", NULL},
	{"hugetlb-2M", SIZE_2M, MFD_HUGETLB | MFD_HUGE_2MB, RL_VMM_REGION_HUGETLB, "2 MiB",
	 "/sys/kernel/mm/hugepages/hugepages-2048kB"},
	{"hugetlb-1G", SIZE_1G, MFD_HUGETLB | MFD_HUGE_1GB, RL_VMM_REGION_HUGETLB, "1 GiB",
	 "/sys/kernel/mm/hugepages/hugepages-1048576kB"},
};

static int
say(char *text, int code, const char *what)
{
	snprintf(text, RL_VMM_TEXT_BYTES, "guest memory: %s: %s", what, strerror(-code));
	return code;
}

static uint64_t
read_count(const char *dir, const char *file)
{
	char path[128];
	uint64_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	f = fopen(path, "re");
	if (f == NULL)
		return 0;
	if (fscanf(f, "%lu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

/* A hugetlb mapping that finds no page kills the VMM by SIGBUS, so count before. */
static int
check_hugepages(const struct backing_kind *kind, uint64_t bytes, char *text)
{
	uint64_t need = bytes / kind->page_size;
	uint64_t held = read_count(kind->sysfs, "resv_hugepages");
	uint64_t n_free = read_count(kind->sysfs, "free_hugepages");

	n_free = n_free > held ? n_free - held : 0;
	if (n_free >= need)
		return 0;
	snprintf(text, RL_VMM_TEXT_BYTES,
		 "no free %s hugepages (need %lu, free %lu): run scripts/setup hugepages",
		 kind->page_name, need, n_free);
	return -ENOMEM;
}

static int
open_memfd(const struct backing_kind *kind, uint64_t bytes, char *text)
{
	int fd, err;

	fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING | kind->memfd_flags);
	if (fd < 0)
		return say(text, -errno, "memfd_create");
	if (ftruncate(fd, (off_t)bytes) != 0) {
		err = say(text, -errno, "ftruncate");
		goto close_fd;
	}
	/* The engine maps it too: nobody may make it shorter under the other. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
		err = say(text, -errno, "F_ADD_SEALS");
		goto close_fd;
	}
	return fd;

close_fd:
	close(fd);
	return err;
}

/* memfds follow shmem_enabled, which is "never" by default; a tmpfs mounted with huge=always does not. */
static int
mount_tmpfs(uint64_t bytes, char *text)
{
	char size[32];
	int fs, mnt, err;

	fs = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	if (fs < 0) {
		err = -errno;
		if (err != -EPERM)
			return say(text, err, "fsopen tmpfs");
		snprintf(text, RL_VMM_TEXT_BYTES,
			 "thp memory needs a tmpfs of its own, which needs root (CAP_SYS_ADMIN): "
			 "run as "
			 "root, or take --backing plain");
		return err;
	}
	snprintf(size, sizeof(size), "%lu", bytes);
	if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "huge", "always", 0) != 0) {
		err = say(text, -errno,
			  "tmpfs huge=always (has the kernel transparent huge pages?)");
	} else if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "size", size, 0) != 0 ||
		   syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0) {
		err = say(text, -errno, "tmpfs");
	} else {
		mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
		err = mnt >= 0 ? mnt : say(text, -errno, "fsmount tmpfs");
	}
	close(fs);
	return err;
}

static int
open_thp(uint64_t bytes, char *text)
{
	int mnt, fd, err;

	mnt = mount_tmpfs(bytes, text);
	if (mnt < 0)
		return mnt;
	fd = openat(mnt, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	err = fd < 0 ? say(text, -errno, "O_TMPFILE on tmpfs") : 0;
	close(mnt); /* the open file keeps the file system */
	if (err != 0)
		return err;
	if (ftruncate(fd, (off_t)bytes) != 0) {
		err = say(text, -errno, "ftruncate");
		close(fd);
		return err;
	}
	return fd;
}

int
rl_backing_open(const char *name, uint64_t bytes, int *fd, uint32_t *page_size,
		uint32_t *region_flags, char *text)
{
	const struct backing_kind *kind = NULL;
	int rc;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strcmp(name, kinds[i].name) == 0)
			kind = &kinds[i];
	if (kind == NULL) {
		snprintf(text, RL_VMM_TEXT_BYTES,
			 "no backing '%.32s': choose plain, thp, hugetlb-2M or hugetlb-1G", name);
		return -EINVAL;
	}
	if (bytes == 0 || bytes % kind->page_size != 0 || bytes > INT64_MAX) {
		snprintf(text, RL_VMM_TEXT_BYTES,
			 "%lu bytes of guest memory are not whole pages of %s, as %s needs", bytes,
			 kind->page_name, kind->name);
		return -EINVAL;
	}
	if (kind->sysfs != NULL) {
		rc = check_hugepages(kind, bytes, text);
		if (rc != 0)
			return rc;
	}
	rc = kind->region_flags == RL_VMM_REGION_THP ? open_thp(bytes, text)
						     : open_memfd(kind, bytes, text);
	if (rc < 0)
		return rc;
	*fd = rc;
	*page_size = kind->page_size;
	*region_flags = kind->region_flags | RL_VMM_REGION_ZEROED;
	return 0;
}

uint8_t *
rl_backing_map(int fd, uint64_t bytes, uint32_t align)
{
	uint8_t *at, *base;
	uint64_t head;

	/* mmap knows no alignment: reserve more, place the file inside, give the rest back. */
	base = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (base == MAP_FAILED)
		return NULL;
	head = -(uintptr_t)base & (align - 1);
	at = mmap(base + head, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED) {
		int err = errno;

		munmap(base, bytes + align);
		errno = err;
		return NULL;
	}
	if (head != 0)
		munmap(base, head);
	if (align != head)
		munmap(at + bytes, align - head);
	return at;
}
