/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_UUID_H
#define RL_CONTROL_UUID_H
/**
 * @file uuid.h
 * 16-byte UUIDs (RFC 4122 version 4) and their text.
 *
 * Threads: [any]. Errors: -EINVAL.
 */
#include <stdint.h>

void rl_uuid_make(uint8_t uuid[16]);
void rl_uuid_format(const uint8_t uuid[16], char text[37]);
int rl_uuid_parse(const char *text, uint8_t uuid[16]);

#endif /* RL_CONTROL_UUID_H */
