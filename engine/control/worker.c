/* SPDX-License-Identifier: BSD-3-Clause */
/* Poll-mode workers: receive, hand packets to migrations, give each a turn, sleep when there is nothing. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <unistd.h>

#define RTE_USE_C11_MEM_MODEL 1 /* as fast on x86, and ThreadSanitizer can follow it */
#include <rte_ring.h>
#include <rte_ring_elem.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stats.h"
#include "control/worker.h"
#include "wire/packet.h"

#define MAX_TASKS        64u
#define HANDOVER_PACKETS 1024u
/* Two empty turns are common between a burst and its ACK; more mean that the CPU is better used elsewhere. */
#define IDLE_TURNS   4u
#define SLEEP_MIN_NS 50000ull
#define SLEEP_MAX_NS 250000ull /* far less than a receive ring holds at line rate */

struct task {
	uint32_t receiver, n_lanes;
	const struct rl_task_ops *ops;
	void *obj;
};

/* Immutable once published. */
struct table {
	uint64_t generation;
	uint32_t n;
	struct task task[MAX_TASKS];
};

struct worker {
	struct rl_workers *ws;
	uint32_t index;
	int wake_fd; /* eventfd: the table changed while we were blocked */
	pthread_t thread;
	uint64_t seen;          /* generation in use, or newer than any we hold; atomic */
	struct rte_ring *inbox; /* packets for our lane that another queue received */
	struct rl_worker_stats st;
} __attribute__((aligned(64)));

struct rl_workers {
	struct rl_nic *nic;
	uint32_t n;
	bool stop;            /* atomic */
	pthread_mutex_t lock; /* table changes */
	struct table *table;  /* atomic */
	struct worker worker[];
};

static const struct task *
task_find(const struct table *t, uint32_t receiver)
{
	for (uint32_t i = 0; i < t->n; i++)
		if (t->task[i].receiver == receiver)
			return &t->task[i];
	return NULL;
}

/* Give one packet to its migration, or to the worker that owns its lane. Returns false when the packet
 * was handed over (and is not ours to free). */
static bool
deliver(struct worker *w, const struct table *t, struct rl_pkt *pkt, uint64_t now_ns)
{
	struct rl_packet_hdr h;
	const struct task *task;

	if (rl_packet_get_hdr(pkt->data, pkt->len, &h) != 0 ||
	    (task = task_find(t, h.receiver)) == NULL || h.lane >= task->n_lanes) {
		rl_count(&w->st.rx_unknown, 1);
		return true;
	}
	if (h.lane != w->index) {
		rl_count(&w->st.handed_over, 1);
		return rte_ring_enqueue_elem(w->ws->worker[h.lane].inbox, pkt, sizeof(*pkt)) != 0;
	}
	task->ops->rx(task->obj, h.lane, pkt->data, pkt->len, now_ns);
	return true;
}

static uint32_t
worker_rx(struct worker *w, const struct table *t, uint64_t now_ns)
{
	struct rl_pkt pkts[RL_NIC_BURST], pkt;
	uint32_t n, keep = 0, other = 0;

	n = rl_nic_rx_burst(w->ws->nic, w->index, pkts, RL_NIC_BURST);
	for (uint32_t i = 0; i < n; i++)
		if (deliver(w, t, &pkts[i], now_ns))
			pkts[keep++] = pkts[i];
	rl_nic_free(w->ws->nic, w->index, pkts, keep);
	while (other < RL_NIC_BURST && rte_ring_dequeue_elem(w->inbox, &pkt, sizeof(pkt)) == 0) {
		deliver(w, t, &pkt, now_ns);
		rl_nic_free(w->ws->nic, w->index, &pkt, 1);
		other++;
	}
	return n + other;
}

static uint64_t
thread_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * RL_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* No migration: wait to be told otherwise. Returns false to stop. */
static bool
worker_block(struct worker *w)
{
	uint64_t n;

	rl_count_set(&w->st.cpu_ns, thread_cpu_ns());
	return read(w->wake_fd, &n, sizeof(n)) == (ssize_t)sizeof(n) || errno == EINTR;
}

static void
worker_loop(struct worker *w)
{
	struct rl_workers *ws = w->ws;
	uint64_t sleep_ns = SLEEP_MIN_NS;
	uint32_t idle = 0;

	while (!__atomic_load_n(&ws->stop, __ATOMIC_ACQUIRE)) {
		const struct table *t = __atomic_load_n(&ws->table, __ATOMIC_ACQUIRE);
		uint64_t now, wake = UINT64_MAX;
		uint32_t work;

		__atomic_store_n(&w->seen, t->generation, __ATOMIC_RELEASE);
		if (t->n == 0) {
			if (!worker_block(w))
				return;
			continue;
		}
		now = rl_now_ns();
		work = worker_rx(w, t, now);
		for (uint32_t i = 0; i < t->n; i++)
			if (w->index < t->task[i].n_lanes)
				work += t->task[i].ops->turn(t->task[i].obj, w->index, now, &wake);
		rl_count(&w->st.turns, 1);
		if (work > 0) {
			rl_count(&w->st.busy_turns, 1);
			idle = 0;
			sleep_ns = SLEEP_MIN_NS;
		} else if (++idle >= IDLE_TURNS && wake > now) {
			rl_count(&w->st.sleeps, 1);
			if ((w->st.sleeps & 1023) == 0)
				rl_count_set(&w->st.cpu_ns, thread_cpu_ns());
			rl_sleep_ns(rl_min64(wake - now, sleep_ns));
			sleep_ns = rl_min64(sleep_ns * 2, SLEEP_MAX_NS);
		}
	}
}

static void *
worker_main(void *arg)
{
	struct worker *w = arg;
	char name[16];

	snprintf(name, sizeof(name), "rl-worker-%u", w->index);
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_TIMERSLACK, 1ul); /* sleeps of tens of us, not the default 50 us more */
	if (rl_nic_thread_init(w->ws->nic) == 0) {
		worker_loop(w);
		rl_nic_thread_fini(w->ws->nic);
	} else {
		rl_error("worker %u: the port does not take this thread; its lane stands still",
			 w->index);
	}
	__atomic_store_n(&w->seen, UINT64_MAX, __ATOMIC_RELEASE);
	return NULL;
}

static int
pin(pthread_t thread, const char *cpus, uint32_t index, struct rl_err *err)
{
	const char *p = cpus;
	cpu_set_t set;
	char *end;

	if (cpus[0] == '\0')
		return 0;
	for (uint32_t i = 0;; i++) {
		unsigned long cpu = strtoul(p, &end, 10);

		if (end == p || cpu >= CPU_SETSIZE || (*end != '\0' && *end != ','))
			break;
		if (i == index) {
			CPU_ZERO(&set);
			CPU_SET(cpu, &set);
			if (pthread_setaffinity_np(thread, sizeof(set), &set) == 0)
				return 0;
			break;
		}
		if (*end == '\0')
			break;
		p = end + 1;
	}
	return rl_err_set(err, -EINVAL,
			  "cpus '%s': need one usable CPU number per worker, e.g. 2,3", cpus);
}

static struct rte_ring *
inbox_create(uint32_t index)
{
	ssize_t bytes = rte_ring_get_memsize_elem(sizeof(struct rl_pkt), HANDOVER_PACKETS);
	char name[RTE_RING_NAMESIZE];
	struct rte_ring *r = NULL;

	if (bytes > 0 && posix_memalign((void **)&r, 64, (size_t)bytes) == 0) {
		snprintf(name, sizeof(name), "inbox-%u", index);
		/* Any worker puts, the owner takes. */
		if (rte_ring_init(r, name, HANDOVER_PACKETS, RING_F_SC_DEQ) != 0) {
			free(r);
			r = NULL;
		}
	}
	return r;
}

int
rl_workers_start(struct rl_nic *nic, uint32_t n, const char *cpus, struct rl_workers **out,
		 struct rl_err *err)
{
	struct rl_workers *ws = NULL;
	int rc;

	*out = NULL;
	if (posix_memalign((void **)&ws, 64, sizeof(*ws) + n * sizeof(ws->worker[0])) != 0)
		return rl_err_set(err, -ENOMEM, "no memory for %u workers", n);
	memset(ws, 0, sizeof(*ws) + n * sizeof(ws->worker[0]));
	ws->nic = nic;
	pthread_mutex_init(&ws->lock, NULL);
	ws->table = calloc(1, sizeof(*ws->table));
	for (uint32_t i = 0; i < n; i++) {
		struct worker *w = &ws->worker[i];

		w->ws = ws;
		w->index = i;
		w->inbox = inbox_create(i);
		w->wake_fd = eventfd(0, EFD_CLOEXEC);
	}
	for (uint32_t i = 0; i < n; i++) {
		struct worker *w = &ws->worker[i];

		if (ws->table == NULL || w->inbox == NULL || w->wake_fd < 0) {
			rc = rl_err_set(err, -ENOMEM, "no memory for worker %u", i);
			goto stop;
		}
		rc = pthread_create(&w->thread, NULL, worker_main, w);
		if (rc != 0) {
			rc = rl_err_set(err, -rc, "cannot start worker %u: %s", i, strerror(rc));
			goto stop;
		}
		ws->n = i + 1;
		rc = pin(w->thread, cpus, i, err);
		if (rc != 0)
			goto stop;
	}
	*out = ws;
	return 0;
stop:
	for (uint32_t i = ws->n; i < n; i++) {
		free(ws->worker[i].inbox);
		if (ws->worker[i].wake_fd >= 0)
			close(ws->worker[i].wake_fd);
	}
	rl_workers_stop(ws);
	return rc;
}

static void
wake_all(struct rl_workers *ws)
{
	const uint64_t one = 1;

	for (uint32_t i = 0; i < ws->n; i++)
		if (write(ws->worker[i].wake_fd, &one, sizeof(one)) < 0)
			continue; /* EAGAIN: the counter is at its top, so the worker wakes anyway */
}

void
rl_workers_stop(struct rl_workers *ws)
{
	if (ws == NULL)
		return;
	__atomic_store_n(&ws->stop, true, __ATOMIC_RELEASE);
	wake_all(ws);
	for (uint32_t i = 0; i < ws->n; i++) {
		pthread_join(ws->worker[i].thread, NULL);
		free(ws->worker[i].inbox);
		close(ws->worker[i].wake_fd);
	}
	pthread_mutex_destroy(&ws->lock);
	free(ws->table);
	free(ws);
}

uint32_t
rl_workers_count(const struct rl_workers *ws)
{
	return ws->n;
}

uint32_t
rl_workers_receiver(struct rl_workers *ws)
{
	uint32_t receiver = 0;

	pthread_mutex_lock(&ws->lock);
	while (receiver == 0 || task_find(ws->table, receiver) != NULL)
		if (getrandom(&receiver, sizeof(receiver), 0) != (ssize_t)sizeof(receiver))
			receiver++;
	pthread_mutex_unlock(&ws->lock);
	return receiver;
}

/* Publish @next and free the old table once no worker uses it. Called with the lock held. */
static void
publish(struct rl_workers *ws, struct table *next)
{
	struct table *old = ws->table;

	next->generation = old->generation + 1;
	__atomic_store_n(&ws->table, next, __ATOMIC_RELEASE);
	wake_all(ws);
	for (uint32_t i = 0; i < ws->n; i++)
		while (__atomic_load_n(&ws->worker[i].seen, __ATOMIC_ACQUIRE) < next->generation)
			rl_sleep_ns(20000);
	free(old);
}

int
rl_workers_attach(struct rl_workers *ws, uint32_t receiver, const struct rl_task_ops *ops,
		  void *obj, uint32_t n_lanes)
{
	struct table *next = malloc(sizeof(*next));
	int rc = 0;

	if (next == NULL)
		return -ENOMEM;
	pthread_mutex_lock(&ws->lock);
	*next = *ws->table;
	if (next->n < MAX_TASKS) {
		next->task[next->n++] = (struct task){receiver, n_lanes, ops, obj};
		publish(ws, next);
	} else {
		free(next);
		rc = -EBUSY;
	}
	pthread_mutex_unlock(&ws->lock);
	return rc;
}

void
rl_workers_detach(struct rl_workers *ws, uint32_t receiver)
{
	struct table *next = malloc(sizeof(*next));

	/* A detach must not fail; this small an allocation fails only where nothing can go on. */
	if (next == NULL)
		abort();
	pthread_mutex_lock(&ws->lock);
	*next = *ws->table;
	for (uint32_t i = 0; i < next->n; i++)
		if (next->task[i].receiver == receiver) {
			next->task[i] = next->task[--next->n];
			publish(ws, next);
			next = NULL;
			break;
		}
	pthread_mutex_unlock(&ws->lock);
	free(next);
}

void
rl_workers_stats(const struct rl_workers *ws, uint32_t worker, struct rl_worker_stats *st)
{
	const struct rl_worker_stats *from = &ws->worker[worker].st;

	*st = (struct rl_worker_stats){
		.turns = rl_count_read(&from->turns),
		.busy_turns = rl_count_read(&from->busy_turns),
		.sleeps = rl_count_read(&from->sleeps),
		.rx_unknown = rl_count_read(&from->rx_unknown),
		.handed_over = rl_count_read(&from->handed_over),
		.cpu_ns = rl_count_read(&from->cpu_ns),
	};
}
