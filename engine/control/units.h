/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_UNITS_H
#define RL_CONTROL_UNITS_H
/**
 * @file units.h
 * Numbers and addresses as people write them.
 *
 * Threads: [any]. Errors: -EINVAL.
 */
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"
#include "nic/nic.h"

/** "1024", "64K", "1.5G", "100M": powers of 1024. */
int rl_parse_size(const char *text, uint64_t *value);

/** "198.18.0.1", "fd00::1"; "" gives family 0. */
int rl_parse_ip(const char *text, struct rl_ip *ip);

/** "198.18.0.1:7410", "[fd00::1]:7410", or without a port: @port. Numeric only. */
int rl_parse_endpoint(const char *text, uint16_t port, struct sockaddr_storage *ss, socklen_t *len,
		      struct rl_err *err);

#define RL_ENDPOINT_TEXT 64
/** The inverse; @text has RL_ENDPOINT_TEXT bytes. */
void rl_format_endpoint(const struct sockaddr_storage *ss, char *text);
void rl_format_ip(const struct rl_ip *ip, char *text);

/** The address in @ss without its port; an IPv4-mapped IPv6 address becomes IPv4. */
void rl_sockaddr_ip(const struct sockaddr_storage *ss, struct rl_ip *ip);

#endif /* RL_CONTROL_UNITS_H */
