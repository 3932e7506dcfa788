/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_WORKER_H
#define RL_CONTROL_WORKER_H
/**
 * @file worker.h
 * Poll-mode workers: worker k owns queue k of the port and lane k of every migration. It spins while there is
 * work, sleeps microseconds while a migration has none, and blocks while there is no migration.
 *
 * The table of migrations is an immutable snapshot behind one pointer; each worker notes the generation that
 * it uses once per turn. rl_workers_detach() swaps the table and waits until every worker has moved on: no
 * lock in a turn, no reference left behind (quiescent-state reclamation).
 *
 * Threads: all functions [control], from any number of threads; the callbacks run on workers.
 * Errors:  0 or -errno.
 */
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "nic/nic.h"

/* What a migration has on the workers: a source or a sink. */
struct rl_task_ops {
	void (*rx)(void *obj, uint32_t lane, const uint8_t *data, uint32_t len, uint64_t now_ns);
	uint32_t (*turn)(void *obj, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns);
};

struct rl_worker_stats {
	uint64_t turns, busy_turns; /* turns that found work */
	uint64_t sleeps;
	uint64_t rx_unknown;  /* packets for no migration of ours */
	uint64_t handed_over; /* packets for another worker's lane */
	uint64_t cpu_ns;      /* CPU time of the thread, as last looked at while blocked or asked */
};

struct rl_workers; /* opaque */

/** @cpus: "2,3" or "". -EINVAL, -ENOMEM, -EAGAIN. */
int rl_workers_start(struct rl_nic *nic, uint32_t n, const char *cpus, struct rl_workers **ws,
		     struct rl_err *err);
void rl_workers_stop(struct rl_workers *ws);
uint32_t rl_workers_count(const struct rl_workers *ws);

/** A receiver index that no present migration has: goes into the packets that the peer sends us. */
uint32_t rl_workers_receiver(struct rl_workers *ws);

/** Run lanes 0..n_lanes-1 of @obj on the workers. -EBUSY: too many migrations. */
int rl_workers_attach(struct rl_workers *ws, uint32_t receiver, const struct rl_task_ops *ops,
		      void *obj, uint32_t n_lanes);
/** No worker touches @obj any more when this returns. */
void rl_workers_detach(struct rl_workers *ws, uint32_t receiver);

void rl_workers_stats(const struct rl_workers *ws, uint32_t worker, struct rl_worker_stats *st);

#endif /* RL_CONTROL_WORKER_H */
