/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_DAEMON_H
#define RL_CONTROL_DAEMON_H
/**
 * @file daemon.h
 * ramliftd: port, workers, listening sockets, the registry of VMs and migrations.
 *
 * Threads: rl_daemon_run() is the control thread; registry functions [any], under `lock`.
 * Errors:  0 or -errno with cause and remedy.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "control/config.h"
#include "control/session.h"
#include "control/tls.h"
#include "control/vmm.h"
#include "control/worker.h"
#include "nic/nic.h"

#define RL_SESSIONS_KEPT 64u /* ended migrations that list still shows */

struct rl_daemon {
	/* set at start, then constant */
	struct rl_config cfg;
	struct rl_tls *tls; /* NULL: insecure lab */
	struct rl_nic *nic;
	struct rl_workers *workers;
	int epoll_fd, listen_fd, vmm_fd, rpc_fd, stop_fd;
	char listen_text[64];
	uint64_t born_ns;

	struct rl_client *clients; /* RPC connections; control thread */

	/* under the lock */
	pthread_mutex_t lock;
	pthread_cond_t idle; /* a thread of ours ended */
	bool stopping;
	uint32_t n_threads; /* sessions, greeters, accepters */
	struct rl_vm *vms;
	struct rl_session *sessions; /* newest first */
	uint64_t vmm_refused, peer_refused, rpc_errors;
};

int rl_daemon_start(const struct rl_config *cfg, struct rl_daemon **d, struct rl_err *err);
/** Serve until SIGTERM or SIGINT; running migrations are cancelled (before their commit). */
int rl_daemon_run(struct rl_daemon *d);
void rl_daemon_stop(struct rl_daemon *d);

/** A detached thread that is counted; rl_daemon_thread_done() is its last word. */
int rl_daemon_thread(struct rl_daemon *d, void *(*main_fn)(void *), void *arg);
void rl_daemon_thread_done(struct rl_daemon *d);

/**
 * Take a VM for a session: nobody else uses it until rl_daemon_put_vm(). @phase: which phase it must be
 * in. -ENOENT names the VMs that are there; -EBUSY.
 */
int rl_daemon_take_vm(struct rl_daemon *d, const char *name, enum rl_vmm_phase phase,
		      struct rl_vm **vm, struct rl_err *err);
void rl_daemon_put_vm(struct rl_daemon *d, struct rl_vm *vm);

void rl_daemon_add_session(struct rl_daemon *d, struct rl_session *s);

/**
 * What became of a migration of which this end is the target: "running", "ready", "aborted", "active" or
 * "unknown". *live: its session while it has not ended, else NULL. Call with the lock held.
 */
const char *rl_daemon_outcome(struct rl_daemon *d, const uint8_t uuid[16],
			      struct rl_session **live);

/** Where peers reach the port: filled into hello and welcome. */
json_t *rl_daemon_port_json(const struct rl_daemon *d);
/** The inverse; @from: the address to use when the peer named none. */
int rl_daemon_port_parse(json_t *json, const struct sockaddr_storage *from,
			 struct rl_nic_peer *peer, uint32_t *max_payload, uint32_t *credit,
			 struct rl_err *err);

#endif /* RL_CONTROL_DAEMON_H */
