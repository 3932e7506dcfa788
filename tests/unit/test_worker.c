/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Real workers on a kernel-socket port over loopback: which thread runs what, handing over, waking, sleeping,
 * and that a detached migration is never touched again while packets keep coming. The object is freed right
 * after its detach, so AddressSanitizer and ThreadSanitizer see any later touch.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "control/worker.h"
#include "wire/packet.h"

#define N_WORKERS 2u
#define WAIT_NS   (10 * RL_NS_PER_S)
#define ALIVE     0x616c697665ull

struct fixture {
	struct rl_nic *nic;
	struct rl_workers *ws;
	int fd; /* sends to the port */
};

/* A migration's stand-in. Plain members: written by the owner of a lane, read after the detach. */
struct object {
	uint64_t alive;
	uint32_t lanes;
	uint64_t wake_in_ns;
	uint64_t mistakes; /* atomic */
	struct {
		uint64_t turns, packets, last_pn; /* turns, packets: atomic */
		pthread_t thread;
		bool seen;
	} lane[N_WORKERS];
};

static void
owned(struct object *o, uint32_t lane)
{
	if (o->alive != ALIVE || lane >= o->lanes ||
	    (o->lane[lane].seen && !pthread_equal(o->lane[lane].thread, pthread_self()))) {
		__atomic_fetch_add(&o->mistakes, 1, __ATOMIC_RELAXED);
		return;
	}
	o->lane[lane].seen = true;
	o->lane[lane].thread = pthread_self();
}

static void
object_rx(void *obj, uint32_t lane, const uint8_t *data, uint32_t len, uint64_t now_ns)
{
	struct object *o = obj;
	struct rl_packet_hdr h;

	(void)now_ns;
	owned(o, lane);
	if (rl_packet_get_hdr(data, len, &h) != 0 || h.lane != lane)
		__atomic_fetch_add(&o->mistakes, 1, __ATOMIC_RELAXED);
	o->lane[lane].last_pn = h.pn;
	__atomic_fetch_add(&o->lane[lane].packets, 1, __ATOMIC_RELEASE);
}

static uint32_t
object_turn(void *obj, uint32_t lane, uint64_t now_ns, uint64_t *wake_ns)
{
	struct object *o = obj;

	owned(o, lane);
	if (o->wake_in_ns != 0)
		*wake_ns = rl_min64(*wake_ns, now_ns + o->wake_in_ns);
	__atomic_fetch_add(&o->lane[lane].turns, 1, __ATOMIC_RELEASE);
	return 0;
}

static const struct rl_task_ops ops = {.rx = object_rx, .turn = object_turn};

static struct object *
object_make(uint32_t lanes)
{
	struct object *o = calloc(1, sizeof(*o));

	assert_non_null(o);
	o->alive = ALIVE;
	o->lanes = lanes;
	return o;
}

static int
start(void **state)
{
	static struct fixture f;
	struct rl_nic_opts opts = {.n_queues = N_WORKERS};
	struct rl_err err = {0};
	int rc = -EADDRINUSE;

	inet_pton(AF_INET, "127.0.0.1", opts.address.addr);
	opts.address.family = AF_INET;
	for (uint32_t i = 0; i < 100 && rc == -EADDRINUSE; i++) {
		opts.udp_port =
			(uint16_t)(33000 + ((uint32_t)getpid() * 8 + i * N_WORKERS) % 20000);
		rc = rl_nic_open("udp:", &opts, &f.nic, &err);
	}
	if (rc == 0)
		rc = rl_workers_start(f.nic, N_WORKERS, "", &f.ws, &err);
	if (rc != 0)
		fail_msg("%s", err.text);
	f.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	*state = &f;
	return f.fd < 0;
}

static int
stop(void **state)
{
	struct fixture *f = *state;

	rl_workers_stop(f->ws);
	rl_nic_close(f->nic);
	close(f->fd);
	return 0;
}

static void
send_packet(const struct fixture *f, uint32_t queue, const struct rl_packet_hdr *h, uint32_t len)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port =
					 htons((uint16_t)(rl_nic_info(f->nic)->udp_port + queue)),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	uint8_t buf[512] = {0};

	rl_packet_put_hdr(buf, h);
	if (sendto(f->fd, buf, len, 0, (struct sockaddr *)&to, sizeof(to)) != (ssize_t)len)
		return; /* loopback's buffer is full: a lost packet */
}

static uint64_t
total(const struct fixture *f, size_t offset)
{
	uint64_t sum = 0;

	for (uint32_t k = 0; k < N_WORKERS; k++) {
		struct rl_worker_stats st;
		uint64_t v;

		rl_workers_stats(f->ws, k, &st);
		memcpy(&v, (const char *)&st + offset, sizeof(v));
		sum += v;
	}
	return sum;
}
#define TOTAL(f, member) total(f, offsetof(struct rl_worker_stats, member))

/* Wait until *@counter is at least @n. */
static void
wait_count(const uint64_t *counter, uint64_t n, const char *what)
{
	uint64_t deadline = rl_now_ns() + WAIT_NS;

	while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < n) {
		if (rl_now_ns() > deadline)
			fail_msg("%s: %llu of %llu", what, (unsigned long long)*counter,
				 (unsigned long long)n);
		rl_sleep_ns(RL_NS_PER_MS);
	}
}

static uint64_t
process_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * RL_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Two spinning workers would take hundreds of ms here. */
static void
assert_blocked(const struct fixture *f)
{
	uint64_t cpu, turns;

	rl_sleep_ns(20 * RL_NS_PER_MS);
	cpu = process_cpu_ns();
	turns = TOTAL(f, turns);
	rl_sleep_ns(300 * RL_NS_PER_MS);
	assert_int_equal(TOTAL(f, turns), turns);
	assert_in_range(process_cpu_ns() - cpu, 0, 50 * RL_NS_PER_MS);
}

static void
idle_workers_block_and_wake(void **state)
{
	struct fixture *f = *state;
	uint32_t receiver = rl_workers_receiver(f->ws);
	struct object *o = object_make(N_WORKERS);

	assert_int_equal(rl_workers_count(f->ws), N_WORKERS);
	assert_blocked(f);
	assert_int_equal(TOTAL(f, turns), 0);
	assert_int_equal(rl_workers_attach(f->ws, receiver, &ops, o, N_WORKERS), 0);
	for (uint32_t k = 0; k < N_WORKERS; k++)
		wait_count(&o->lane[k].turns, 10, "turns after a wake-up");
	rl_workers_detach(f->ws, receiver);
	assert_int_equal(o->mistakes, 0);
	assert_false(pthread_equal(o->lane[0].thread, o->lane[1].thread));
	free(o);
	assert_blocked(f);
	assert_true(TOTAL(f, cpu_ns) > 0);
}

/* A migration with nothing to do costs sleeps, not a whole CPU; its wake-up time is kept. */
static void
quiet_migration_sleeps(void **state)
{
	struct fixture *f = *state;
	uint32_t receiver = rl_workers_receiver(f->ws);
	struct object *o = object_make(1);
	uint64_t sleeps = TOTAL(f, sleeps), turns;

	o->wake_in_ns = 10000;
	assert_int_equal(rl_workers_attach(f->ws, receiver, &ops, o, 1), 0);
	wait_count(&o->lane[0].turns, 200, "turns of a quiet migration");
	turns = __atomic_load_n(&o->lane[0].turns, __ATOMIC_ACQUIRE);
	assert_true(TOTAL(f, sleeps) - sleeps + 10 > turns / 2);
	rl_workers_detach(f->ws, receiver);
	assert_int_equal(o->mistakes, 0);
	assert_int_equal(o->lane[1].turns, 0); /* it has no such lane */
	free(o);
}

static void
packets_find_their_lane(void **state)
{
	struct fixture *f = *state;
	uint32_t first = rl_workers_receiver(f->ws), second = rl_workers_receiver(f->ws);
	struct rl_packet_hdr h = {.receiver = first};
	uint64_t handed = TOTAL(f, handed_over), unknown = TOTAL(f, rx_unknown), more = 0;
	struct object *o = object_make(N_WORKERS), *other = object_make(1);

	assert_true(first != 0 && second != 0 && second != first);
	assert_int_equal(rl_workers_attach(f->ws, h.receiver, &ops, o, N_WORKERS), 0);
	assert_int_equal(rl_workers_attach(f->ws, second, &ops, other, 1), 0);
	for (uint32_t i = 0; i < 64;
	     i++) { /* all four ways, a few at a time: loopback must not drop */
		h.lane = (uint16_t)(i & 1);
		h.pn = i;
		send_packet(f, i >> 1 & 1, &h, RL_WIRE_MIN_BYTES + i);
		wait_count(&o->lane[h.lane].packets, i / 2 + 1, "packets of a lane");
	}
	assert_int_equal(TOTAL(f, handed_over) - handed, 32);
	h.lane = 0;
	h.receiver = second;
	send_packet(f, 1, &h, RL_WIRE_MIN_BYTES); /* the other migration has only lane 0 */
	wait_count(&other->lane[0].packets, 1, "packets of the other");

	/* Nobody's: unknown receiver, a lane it does not have, too short, not a packet. */
	h.receiver = second;
	h.lane = 1;
	send_packet(f, 0, &h, RL_WIRE_MIN_BYTES);
	h.lane = 0xffff;
	send_packet(f, 0, &h, RL_WIRE_MIN_BYTES);
	h.lane = 0;
	send_packet(f, 0, &h, RL_WIRE_MIN_BYTES - 1);
	h.receiver = first ^ second; /* not 0, and neither of them */
	send_packet(f, 1, &h, RL_WIRE_MIN_BYTES);
	for (uint64_t end = rl_now_ns() + WAIT_NS; more < 4 && rl_now_ns() < end;) {
		rl_sleep_ns(RL_NS_PER_MS);
		more = TOTAL(f, rx_unknown) - unknown;
	}
	assert_int_equal(more, 4);
	rl_workers_detach(f->ws, h.receiver); /* nobody's: nothing happens */
	rl_workers_detach(f->ws, second);
	wait_count(&o->lane[1].turns, __atomic_load_n(&o->lane[1].turns, __ATOMIC_ACQUIRE) + 2,
		   "turns of the one that stays");
	rl_workers_detach(f->ws, first);
	assert_true(o->lane[0].packets == 32 && o->lane[1].packets == 32);
	assert_int_equal(o->mistakes, 0);
	assert_int_equal(other->lane[0].packets, 1);
	assert_int_equal(other->mistakes, 0);
	free(other);
	free(o);
}

static void
stop_with_a_migration_attached(void **state)
{
	struct fixture *f = *state;
	struct object *o = object_make(N_WORKERS);
	struct rl_err err = {0};

	assert_int_equal(rl_workers_attach(f->ws, rl_workers_receiver(f->ws), &ops, o, N_WORKERS),
			 0);
	wait_count(&o->lane[1].turns, 1, "turns");
	rl_workers_stop(f->ws);
	o->alive = 0;
	assert_int_equal(o->mistakes, 0);
	free(o);
	assert_int_equal(rl_workers_start(f->nic, N_WORKERS, "", &f->ws, &err), 0);
}

struct churn {
	struct fixture *f;
	uint32_t *receiver; /* that packets are sent to; atomic */
	uint64_t mistakes, turns, packets;
	bool stop; /* atomic */
};

static void *
churn_main(void *arg)
{
	struct churn *c = arg;

	for (int i = 0; i < 150; i++) {
		uint32_t receiver = rl_workers_receiver(c->f->ws);
		struct object *o = object_make(i % N_WORKERS + 1);

		if (rl_workers_attach(c->f->ws, receiver, &ops, o, o->lanes) != 0)
			o->mistakes++;
		__atomic_store_n(c->receiver, receiver, __ATOMIC_RELAXED);
		if (i % 3 != 0)
			rl_sleep_ns((uint64_t)(i % 7) * 50000);
		rl_workers_detach(c->f->ws, receiver);
		o->alive = 0; /* plain writes: a race with a worker that is still in there */
		c->mistakes += o->mistakes;
		for (uint32_t k = 0; k < N_WORKERS; k++) {
			c->turns += o->lane[k].turns;
			c->packets += o->lane[k].packets;
		}
		free(o);
	}
	return NULL;
}

static void *
blast_main(void *arg)
{
	struct churn *c = arg;

	for (uint32_t i = 0; !__atomic_load_n(&c->stop, __ATOMIC_RELAXED); i++) {
		struct rl_packet_hdr h = {.lane = (uint16_t)(i % N_WORKERS), .pn = i};

		h.receiver = __atomic_load_n(&c->receiver[i / 2 % 3], __ATOMIC_RELAXED);
		send_packet(c->f, i / 4 % N_WORKERS, &h, RL_WIRE_MIN_BYTES);
		if (i % 64 == 0)
			rl_sleep_ns(20000);
	}
	return NULL;
}

static void
detached_objects_are_left_alone(void **state)
{
	uint32_t receiver[3] = {0};
	struct churn c[3], blast = {.f = *state, .receiver = receiver};
	struct object *stays = object_make(N_WORKERS);
	uint32_t stays_at = rl_workers_receiver(blast.f->ws);
	pthread_t threads[3], sender;
	uint64_t packets = 0;

	/* One that stays, so that workers never block and the churn meets busy tables. */
	assert_int_equal(rl_workers_attach(blast.f->ws, stays_at, &ops, stays, N_WORKERS), 0);
	assert_int_equal(pthread_create(&sender, NULL, blast_main, &blast), 0);
	for (int i = 0; i < 3; i++) {
		c[i] = (struct churn){.f = *state, .receiver = &receiver[i]};
		assert_int_equal(pthread_create(&threads[i], NULL, churn_main, &c[i]), 0);
	}
	for (int i = 0; i < 3; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(c[i].mistakes, 0);
		assert_true(c[i].turns > 0);
		packets += c[i].packets;
	}
	assert_true(packets > 0);
	__atomic_store_n(&blast.stop, true, __ATOMIC_RELAXED);
	pthread_join(sender, NULL);
	rl_workers_detach(blast.f->ws, stays_at);
	assert_int_equal(stays->mistakes, 0);
	free(stays);
	assert_blocked(blast.f);
}

static void
table_is_bounded(void **state)
{
	struct fixture *f = *state;
	struct object *o = object_make(1);
	uint32_t receiver[64];

	for (int i = 0; i < 64; i++) {
		receiver[i] = rl_workers_receiver(f->ws);
		assert_int_equal(rl_workers_attach(f->ws, receiver[i], &ops, o, 1), 0);
	}
	assert_int_equal(rl_workers_attach(f->ws, rl_workers_receiver(f->ws), &ops, o, 1), -EBUSY);
	rl_workers_detach(f->ws, receiver[17]);
	assert_int_equal(rl_workers_attach(f->ws, receiver[17], &ops, o, 1), 0);
	for (int i = 0; i < 64; i++)
		rl_workers_detach(f->ws, receiver[i]);
	assert_int_equal(o->mistakes, 0);
	free(o);
}

static uint32_t
count_entries(const char *path)
{
	DIR *dir = opendir(path);
	uint32_t n = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

static void
bad_cpus_leave_nothing_behind(void **state)
{
	static const char *const bad[] = {"0", "0,", "0,x", "0,99999999", "-1,0", ",0"};
	struct fixture *f = *state;
	uint32_t threads = count_entries("/proc/self/task"), fds = count_entries("/proc/self/fd");

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct rl_workers *ws;
		struct rl_err err = {0};

		if (rl_workers_start(f->nic, N_WORKERS, bad[i], &ws, &err) != -EINVAL)
			fail_msg("cpus '%s' are taken", bad[i]);
		assert_null(ws);
		assert_non_null(strstr(err.text, bad[i]));
		assert_int_equal(count_entries("/proc/self/fd"), fds);
	}
	/* A joined thread may linger in /proc for a moment. */
	for (int i = 0; i < 100 && count_entries("/proc/self/task") != threads; i++)
		rl_sleep_ns(10 * RL_NS_PER_MS);
	assert_int_equal(count_entries("/proc/self/task"), threads);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(idle_workers_block_and_wake, start, stop),
		cmocka_unit_test_setup_teardown(quiet_migration_sleeps, start, stop),
		cmocka_unit_test_setup_teardown(packets_find_their_lane, start, stop),
		cmocka_unit_test_setup_teardown(stop_with_a_migration_attached, start, stop),
		cmocka_unit_test_setup_teardown(detached_objects_are_left_alone, start, stop),
		cmocka_unit_test_setup_teardown(table_is_bounded, start, stop),
		cmocka_unit_test_setup_teardown(bad_cpus_leave_nothing_behind, start, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
