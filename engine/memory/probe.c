/* SPDX-License-Identifier: BSD-3-Clause */
/* What this kernel offers: opened, asked and closed again. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/kvm.h>
#include <linux/userfaultfd.h>

#include "memory/probe.h"

int
rl_probe_kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

int
rl_probe_dirty_ring(uint32_t *entries)
{
	static const int caps[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), bytes = 0;

	if (fd < 0)
		return -errno;
	for (int i = 0; i < 2 && bytes <= 0; i++)
		bytes = ioctl(fd, KVM_CHECK_EXTENSION, caps[i]);
	close(fd);
	if (bytes <= 0)
		return -EOPNOTSUPP;
	*entries = (uint32_t)bytes / (uint32_t)sizeof(struct kvm_dirty_gfn);
	return 0;
}

int
rl_probe_userfaultfd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	const uint64_t need = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
			      UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), rc = 0;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api) != 0)
		rc = -errno;
	else if ((api.features & need) != need)
		rc = -EOPNOTSUPP;
	close(fd);
	return rc;
}

static int
read_count(uint64_t page_bytes, const char *name, uint64_t *value)
{
	char path[128];
	unsigned long v;
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB/%s",
		 (unsigned long long)(page_bytes >> 10), name);
	f = fopen(path, "re");
	if (f == NULL)
		return -ENOENT;
	n = fscanf(f, "%lu", &v);
	fclose(f);
	*value = v;
	return n == 1 ? 0 : -EIO;
}

int
rl_probe_hugepages(uint64_t page_bytes, uint64_t *total, uint64_t *free_pages)
{
	int rc = read_count(page_bytes, "nr_hugepages", total);

	return rc != 0 ? rc : read_count(page_bytes, "free_hugepages", free_pages);
}
