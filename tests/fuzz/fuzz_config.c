/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration files: whatever is in one, it loads or is refused with a text; what loads survives a dump. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "control/config.h"
#include "fuzz.h"

static void
check_round_trip(const struct rl_config *cfg)
{
	struct rl_config back;
	struct rl_err err = {0};
	char path[64];
	FILE *f;
	int fd = memfd_create("dump", MFD_CLOEXEC);

	FUZZ_CHECK(fd >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	f = fopen(path, "w");
	FUZZ_CHECK(f != NULL);
	rl_config_dump(cfg, f);
	FUZZ_CHECK(fclose(f) == 0);
	rl_config_defaults(&back);
	FUZZ_CHECK(rl_config_load(&back, path, &err) == 0);
	FUZZ_CHECK(memcmp(cfg, &back, sizeof(back)) == 0);
	close(fd);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct rl_err err = {0};
	struct rl_config cfg;
	char path[64];
	int fd = memfd_create("fuzz", MFD_CLOEXEC), rc;

	FUZZ_CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	rl_config_defaults(&cfg);
	rc = rl_config_load(&cfg, path, &err);
	FUZZ_CHECK(rc <= 0 && rc == err.code && (rc == 0) == (err.text[0] == '\0'));
	if (rc == 0)
		check_round_trip(&cfg);
	rl_config_check(&cfg, &err);
	close(fd);
	return 0;
}
