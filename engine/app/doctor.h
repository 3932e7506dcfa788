/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_APP_DOCTOR_H
#define RL_APP_DOCTOR_H
/**
 * @file doctor.h
 * `ramlift doctor`: each thing that ramlift wants of this host, found or missing, and what mends it.
 *
 * Threads: main. Errors: the exit status: 0 all that is required is there, 1 not.
 */
#include <stdbool.h>

int rl_doctor(const char *rpc_socket, bool json);

#endif /* RL_APP_DOCTOR_H */
