/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Runs a fuzz target over files, and over all files of directories: its corpus as an ordinary test.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned int n_run;

static int
run_file(const char *path, size_t size)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = malloc(size ? size : 1); /* no larger, so that ASan sees a byte too far */
	int rc = -1;

	if (f && data && fread(data, 1, size, f) == size) {
		fprintf(stderr, "%s\n", path); /* before the run: it names the input that crashed */
		LLVMFuzzerTestOneInput(data, size);
		n_run++;
		rc = 0;
	} else {
		fprintf(stderr, "%s: cannot read: %s\n", path, strerror(errno));
	}
	free(data);
	if (f)
		fclose(f);
	return rc;
}

static int
run_path(const char *path)
{
	struct dirent *entry;
	struct stat st;
	int rc = 0;
	DIR *dir;

	if (stat(path, &st) < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return -1;
	}
	if (!S_ISDIR(st.st_mode))
		return run_file(path, (size_t)st.st_size);
	dir = opendir(path);
	if (!dir) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return -1;
	}
	while (rc == 0 && (entry = readdir(dir))) {
		char sub[PATH_MAX];
		int n = snprintf(sub, sizeof(sub), "%s/%s", path, entry->d_name);

		if (entry->d_name[0] == '.')
			continue;
		rc = n < (int)sizeof(sub) ? run_path(sub) : -1;
	}
	closedir(dir);
	return rc;
}

int
main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (run_path(argv[i]) < 0)
			return 1;
	printf("%u inputs\n", n_run);
	return n_run > 0 ? 0 : 1;
}
