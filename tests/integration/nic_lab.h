/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_TEST_NIC_LAB_H
#define RL_TEST_NIC_LAB_H
/**
 * @file nic_lab.h
 * The laboratory of the NIC tests: two network namespaces, A (ours) and B, with two veth pairs between them: rlA-rlB
 * and, with four queues, rlM-rlN. A process has one DPDK, so every end of a case is a process.
 *
 * Threads: the main thread of the test.
 * Errors:  a failed CHECK ends its process with 1; in the main process it takes the laboratory down first.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "nic/port.h"

#define UDP_PORT 7410

#define A4       "198.18.77.1"
#define B4       "198.18.77.2"
#define A6       "fd00:77::1"
#define B6       "fd00:77::2"
#define XDP_A    "dpdk:net_af_xdp,iface=rlA"
#define XDP_B    "dpdk:net_af_xdp,iface=rlB"
#define XDP_M    "dpdk:net_af_xdp,iface=rlM" /* a pair with four queues */
#define XDP_N    "dpdk:net_af_xdp,iface=rlN"
#define M4       "198.18.79.1"
#define N4       "198.18.79.2"

#define CHECK(cond, ...)                                                                           \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                 \
			fprintf(stderr, __VA_ARGS__);                                              \
			fputc('\n', stderr);                                                       \
			lab_give_up();                                                             \
		}                                                                                  \
	} while (0)

struct lab_shared {
	atomic_int ready; /* ports that are open */
	atomic_int stop;
};

struct lab {
	struct lab_shared *shared; /* between the processes of a case */
	pid_t holder;              /* of namespace B */
	char dir[32];              /* for files */
};

/* One end of a link. */
struct end {
	const char *uri, *address, *peer;
	const char *peer_mac; /* where there is no kernel interface */
	uint32_t n_queues;
	bool one_port; /* the other end has one UDP port: answer from queue 0 */
};

struct lab_case {
	const char *name;
	bool (*run)(void);
};

extern struct lab lab;

/** Make the laboratory, run the cases whose name contains @only (NULL: all). Returns main()'s result, 77: skipped. */
int lab_main(const struct lab_case *cases, size_t n, const char *only);
void lab_give_up(void) __attribute__((noreturn));

/** A shell command in namespace A; 0 is success. */
int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
struct rl_ip ip(const char *text);

/** Run @fn(@arg) in a process, in namespace B if @in_b. It dies with us. */
pid_t spawn(void (*fn)(const void *arg), const void *arg, bool in_b);
bool wait_ok(pid_t pid);
void wait_ready(int n);

/** Open a port, which must succeed and leave the caller's CPU affinity alone, and count it as ready. */
struct rl_nic *end_open(const struct end *e);

#endif /* RL_TEST_NIC_LAB_H */
