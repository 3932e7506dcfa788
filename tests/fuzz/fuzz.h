/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TESTS_FUZZ_H
#define RL_TESTS_FUZZ_H
/**
 * @file fuzz.h
 * What every fuzz target has: libFuzzer's entry point, and a check that no build option removes.
 *
 * A target fuzz_NAME.c defines LLVMFuzzerTestOneInput() and keeps no state between calls. It is built with
 * replay.c as a test over corpus/NAME, and with libFuzzer when fuzzing is configured.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/** @data has @len bytes. Returns 0; a fault ends the process. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define FUZZ_CHECK(cond)                                                                           \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);         \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif /* RL_TESTS_FUZZ_H */
