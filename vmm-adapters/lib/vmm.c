/* SPDX-License-Identifier: BSD-3-Clause */
/* libramlift-vmm: connects a VMM to ramliftd, registers it, serves requests and the doorbell. */
#include "ramlift-vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "board.h"
#include "machine.h"
#include "msg.h"

#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 1000
#define REPLY_MS     10000 /* the engine maps guest RAM before it answers */
#define PAGE_BYTES   4096u

#define NAME_CHARS   "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

struct rl_vmm {
	/* set at create or before start, then constant */
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char name[RL_VMM_NAME_BYTES];
	uint8_t uuid[16];
	uint64_t features;
	uint32_t n_vcpus, n_rings;
	struct rl_vmm_vcpu *vcpu;
	int *vcpu_fd; /* owned; -1: not given yet */

	struct rl_vmm_machine machine; /* socket thread */
	struct rl_vmm_board board;

	/* socket thread */
	struct rl_vmm_msg msg;
	int trouble; /* the -errno last logged: said once, not every second */

	int stop_fd; /* eventfd, readable for good once it is time to leave */
	bool started;
	pthread_t socket_thread, door_thread;
};

static void say(struct rl_vmm *vmm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void
say(struct rl_vmm *vmm, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	if (vmm->machine.ops->log == NULL)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	vmm->machine.ops->log(vmm->machine.ctx, line);
}

static bool
ops_complete(const struct rl_vmm_ops *ops, uint64_t features)
{
	bool ring = features == RL_VMM_FEAT_DIRTY_RING;

	return ops != NULL && ops->log_start != NULL && ops->log_stop != NULL &&
	       ops->pause != NULL && ops->resume != NULL && ops->state_get != NULL &&
	       ops->state_put != NULL && ops->run != NULL && ops->reset != NULL &&
	       ops->moved != NULL && (ring ? ops->reset_rings != NULL : ops->sync_bitmap != NULL);
}

static bool
opts_valid(const struct rl_vmm_opts *o)
{
	size_t name_len = o->name != NULL ? strlen(o->name) : 0;
	size_t path_len = o->engine_socket != NULL ? strlen(o->engine_socket) : 0;

	return name_len > 0 && name_len < RL_VMM_NAME_BYTES &&
	       strspn(o->name, NAME_CHARS) == name_len && path_len > 0 &&
	       path_len < sizeof(((struct rl_vmm *)0)->socket) && o->n_vcpus > 0 &&
	       o->n_vcpus <= RL_VMM_MAX_VCPUS &&
	       (o->features == RL_VMM_FEAT_DIRTY_RING || o->features == RL_VMM_FEAT_DIRTY_BITMAP) &&
	       ops_complete(o->ops, o->features);
}

int
rl_vmm_create(const struct rl_vmm_opts *opts, struct rl_vmm **out)
{
	struct rl_vmm *vmm;

	*out = NULL;
	if (!opts_valid(opts))
		return -EINVAL;
	vmm = calloc(1, sizeof(*vmm));
	if (vmm == NULL)
		return -ENOMEM;
	rl_vmm_board_init(&vmm->board);
	vmm->vcpu = calloc(opts->n_vcpus, sizeof(*vmm->vcpu));
	vmm->vcpu_fd = calloc(opts->n_vcpus, sizeof(*vmm->vcpu_fd));
	for (uint32_t i = 0; vmm->vcpu_fd != NULL && i < opts->n_vcpus; i++)
		vmm->vcpu_fd[i] = -1;
	vmm->n_vcpus = opts->n_vcpus;
	vmm->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vmm->vcpu == NULL || vmm->vcpu_fd == NULL || vmm->stop_fd < 0) {
		int err = vmm->stop_fd < 0 ? -errno : -ENOMEM;

		rl_vmm_destroy(vmm);
		return err;
	}
	snprintf(vmm->socket, sizeof(vmm->socket), "%s", opts->engine_socket);
	snprintf(vmm->name, sizeof(vmm->name), "%s", opts->name);
	memcpy(vmm->uuid, opts->uuid, sizeof(vmm->uuid));
	vmm->features = opts->features;
	vmm->machine.ops = opts->ops;
	vmm->machine.ctx = opts->ctx;
	vmm->machine.phase = opts->incoming ? RL_VMM_INCOMING : RL_VMM_RUNNING;
	*out = vmm;
	return 0;
}

int
rl_vmm_add_region(struct rl_vmm *vmm, const struct rl_vmm_region *region, int fd)
{
	struct rl_vmm_machine *m = &vmm->machine;
	int copy;

	if (vmm->started)
		return -EBUSY;
	if (m->n_regions == RL_VMM_MAX_REGIONS)
		return -ENOSPC;
	if (region->n_pages == 0 || region->n_pages > INT64_MAX / PAGE_BYTES ||
	    region->fd_offset > INT64_MAX - region->n_pages * PAGE_BYTES)
		return -EINVAL;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return -errno;
	m->region[m->n_regions] = *region;
	m->region_fd[m->n_regions++] = copy;
	return 0;
}

int
rl_vmm_add_vcpu(struct rl_vmm *vmm, const struct rl_vmm_vcpu *vcpu, int fd)
{
	int copy;

	if (vmm->started)
		return -EBUSY;
	if (vcpu->index >= vmm->n_vcpus || vmm->vcpu_fd[vcpu->index] >= 0)
		return -EINVAL;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return -errno;
	vmm->vcpu[vcpu->index] = *vcpu;
	vmm->vcpu_fd[vcpu->index] = copy;
	vmm->n_rings++;
	return 0;
}

int
rl_vmm_slot_add(struct rl_vmm *vmm, uint32_t slot, uint64_t gpn, uint64_t n_pages)
{
	return rl_vmm_board_slot_add(&vmm->board, slot, gpn, n_pages);
}

void
rl_vmm_slot_delete(struct rl_vmm *vmm, uint32_t slot)
{
	if (!rl_vmm_board_slot_delete(&vmm->board, slot, &vmm->machine.logging))
		say(vmm, "WARN slot %#x: ramliftd did not drain the dirty rings within a second",
		    slot);
}

void
rl_vmm_ring_full(struct rl_vmm *vmm)
{
	rl_vmm_board_ring_full(&vmm->board);
}

enum rl_vmm_phase
rl_vmm_phase(const struct rl_vmm *vmm)
{
	return (enum rl_vmm_phase)(int)vmm->machine.phase;
}

/* -errno, or the connected socket. A full backlog (EAGAIN) counts as not there yet. */
static int
connect_engine(const struct rl_vmm *vmm)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, err;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	memcpy(addr.sun_path, vmm->socket, sizeof(addr.sun_path));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	err = -errno;
	close(fd);
	return err;
}

/* Send vmm->msg, wait for its reply, judge it. */
static int
ask(struct rl_vmm *vmm, const struct rl_vmm_conn *conn)
{
	uint32_t request = vmm->msg.request;
	struct rl_vmm_status status;
	int err;

	err = rl_vmm_msg_send(conn, &vmm->msg);
	if (err == 0)
		err = rl_vmm_msg_recv(conn, REPLY_MS, &vmm->msg);
	if (err != 0)
		return err;
	if (!vmm->msg.is_reply || vmm->msg.request != request || vmm->msg.n_fds != 0 ||
	    vmm->msg.size != sizeof(status)) {
		rl_vmm_msg_close_fds(&vmm->msg);
		return -EPROTO;
	}
	memcpy(&status, vmm->msg.payload, sizeof(status));
	status.text[sizeof(status.text) - 1] = 0;
	if (status.code == 0)
		return 0;
	if (vmm->trouble != -EREMOTEIO)
		say(vmm, "ERROR ramliftd refused this VM: %s", status.text);
	vmm->trouble = -EREMOTEIO;
	return -EREMOTEIO;
}

static void
fill(struct rl_vmm_msg *msg, uint32_t request, const void *payload, uint32_t size)
{
	msg->request = request;
	msg->is_reply = false;
	msg->size = size;
	msg->n_fds = 0;
	if (size > 0)
		memcpy(msg->payload, payload, size);
}

static int
send_hello(struct rl_vmm *vmm, const struct rl_vmm_conn *conn)
{
	struct rl_vmm_hello hello = {
		.features = vmm->features,
		.phase = (uint32_t)vmm->machine.phase,
		.n_vcpus = vmm->n_vcpus,
		.last = vmm->machine.last,
		.last_outcome = vmm->machine.last_outcome,
	};

	memcpy(hello.uuid, vmm->uuid, sizeof(hello.uuid));
	memcpy(hello.name, vmm->name, sizeof(hello.name));
	fill(&vmm->msg, RL_VMM_HELLO, &hello, sizeof(hello));
	return ask(vmm, conn);
}

static int
send_region(struct rl_vmm *vmm, const struct rl_vmm_conn *conn, uint32_t i)
{
	struct rl_vmm_region region = vmm->machine.region[i];

	/* Only a target that waits is sure to be what it was when the VMM described it. */
	if (vmm->machine.phase != RL_VMM_INCOMING)
		region.flags &= ~RL_VMM_REGION_ZEROED;
	fill(&vmm->msg, RL_VMM_REGION, &region, sizeof(region));
	vmm->msg.fd[0] = vmm->machine.region_fd[i];
	vmm->msg.n_fds = 1;
	return ask(vmm, conn);
}

static int
send_shared(struct rl_vmm *vmm, const struct rl_vmm_conn *conn)
{
	struct rl_vmm_shared_info info = {.size = vmm->board.size};

	fill(&vmm->msg, RL_VMM_SHARED, &info, sizeof(info));
	vmm->msg.fd[0] = vmm->board.fd;
	vmm->msg.fd[1] = vmm->board.doorbell;
	vmm->msg.n_fds = 2;
	return ask(vmm, conn);
}

static int
send_vcpu(struct rl_vmm *vmm, const struct rl_vmm_conn *conn, uint32_t i)
{
	fill(&vmm->msg, RL_VMM_VCPU, &vmm->vcpu[i], sizeof(vmm->vcpu[i]));
	vmm->msg.fd[0] = vmm->vcpu_fd[i];
	vmm->msg.n_fds = 1;
	return ask(vmm, conn);
}

static int
do_register(struct rl_vmm *vmm, const struct rl_vmm_conn *conn)
{
	int err;

	err = send_hello(vmm, conn);
	for (uint32_t i = 0; i < vmm->machine.n_regions && err == 0; i++)
		err = send_region(vmm, conn, i);
	if (err == 0)
		err = send_shared(vmm, conn);
	for (uint32_t i = 0; i < vmm->n_rings && err == 0; i++)
		err = send_vcpu(vmm, conn, i);
	if (err == 0) {
		fill(&vmm->msg, RL_VMM_ONLINE, NULL, 0);
		err = ask(vmm, conn);
	}
	return err;
}

static int
send_answer(struct rl_vmm *vmm, const struct rl_vmm_conn *conn, uint32_t request,
	    const struct rl_vmm_answer *ans)
{
	struct rl_vmm_state_reply reply = {.status = ans->status, .state.size = ans->state_size};

	fill(&vmm->msg, request, &reply, ans->fd >= 0 ? sizeof(reply) : sizeof(reply.status));
	vmm->msg.is_reply = true;
	vmm->msg.fd[0] = ans->fd;
	vmm->msg.n_fds = ans->fd >= 0 ? 1 : 0;
	return rl_vmm_msg_send(conn, &vmm->msg);
}

/* Until the connection ends; returns why. */
static int
serve(struct rl_vmm *vmm, const struct rl_vmm_conn *conn)
{
	struct rl_vmm_answer ans;
	uint32_t request;
	int err;

	for (;;) {
		err = rl_vmm_msg_recv(conn, -1, &vmm->msg);
		if (err != 0)
			return err;
		if (vmm->msg.is_reply) { /* to nothing we asked */
			rl_vmm_msg_close_fds(&vmm->msg);
			return -EPROTO;
		}
		request = vmm->msg.request;
		rl_vmm_machine_request(&vmm->machine, &vmm->msg, &ans);
		rl_vmm_msg_close_fds(&vmm->msg);
		if (ans.status.code != 0)
			say(vmm, "WARN request %u: %s", request, ans.status.text);
		err = send_answer(vmm, conn, request, &ans);
		if (ans.fd >= 0)
			close(ans.fd);
		if (ans.moved)
			vmm->machine.ops->moved(vmm->machine.ctx);
		if (err != 0)
			return err;
	}
}

/* One connection, from connect to its end. Sets @online if it came that far. */
static int
visit(struct rl_vmm *vmm, bool *online)
{
	struct rl_vmm_conn conn = {.stop_fd = vmm->stop_fd};
	int err;

	conn.sock = connect_engine(vmm);
	if (conn.sock < 0)
		return conn.sock;
	err = do_register(vmm, &conn);
	if (err == 0) {
		*online = true;
		vmm->trouble = 0;
		say(vmm, "INFO connected to ramliftd at %s as %s, guest %s", vmm->socket, vmm->name,
		    rl_vmm_phase_name(vmm->machine.phase));
		err = serve(vmm, &conn);
	}
	close(conn.sock);
	return err;
}

static void
complain(struct rl_vmm *vmm, int err, bool was_online)
{
	if (err == vmm->trouble || err == -ECANCELED)
		return;
	vmm->trouble = err;
	say(vmm, "WARN %s ramliftd at %s: %s; trying again", was_online ? "lost" : "cannot reach",
	    vmm->socket, strerror(-err));
}

/* After every connection, before the next: no phase that needs an engine is left standing. */
static int
settle(struct rl_vmm *vmm)
{
	int before = vmm->machine.phase;
	char text[RL_VMM_TEXT_BYTES] = "";
	int err;

	err = rl_vmm_machine_lost(&vmm->machine, text);
	if (err != 0 && err != vmm->trouble)
		say(vmm, "ERROR ramliftd is gone, and the guest stays %s: %s",
		    rl_vmm_phase_name(vmm->machine.phase), text);
	else if (err == 0 && before != vmm->machine.phase)
		say(vmm, "WARN ramliftd is gone: migration given up, guest %s",
		    rl_vmm_phase_name(vmm->machine.phase));
	if (err != 0)
		vmm->trouble = err;
	return err;
}

static bool
stopped(const struct rl_vmm *vmm, int wait_ms)
{
	struct pollfd p = {.fd = vmm->stop_fd, .events = POLLIN};

	return poll(&p, 1, wait_ms) > 0;
}

static void *
socket_main(void *arg)
{
	struct rl_vmm *vmm = arg;
	int retry_ms = RETRY_MIN_MS;

	do {
		bool online = false;

		if (settle(vmm) == 0) {
			int err = visit(vmm, &online);

			complain(vmm, err, online);
		}
		if (online) {
			settle(vmm);
			retry_ms = RETRY_MIN_MS;
		} else if (retry_ms < RETRY_MAX_MS) {
			retry_ms = retry_ms * 2 < RETRY_MAX_MS ? retry_ms * 2 : RETRY_MAX_MS;
		}
	} while (!stopped(vmm, retry_ms));
	return NULL;
}

static void *
door_main(void *arg)
{
	struct rl_vmm *vmm = arg;
	struct pollfd p[2] = {
		{.fd = vmm->stop_fd, .events = POLLIN},
		{.fd = vmm->board.doorbell, .events = POLLIN},
	};
	uint64_t rings;
	struct iovec iov = {.iov_base = &rings, .iov_len = sizeof(rings)};

	while (p[0].revents == 0) {
		if (poll(p, 2, -1) <= 0 || p[1].revents == 0)
			continue;
		/* RWF_NOWAIT: the engine holds this eventfd too and could take away O_NONBLOCK. */
		if (preadv2(vmm->board.doorbell, &iov, 1, -1, RWF_NOWAIT) == sizeof(rings))
			rl_vmm_board_answer(&vmm->board, vmm->machine.ops, vmm->machine.ctx);
	}
	return NULL;
}

/* The VMM's signals are for its own threads. */
static int
start_thread(pthread_t *thread, void *(*run)(void *), struct rl_vmm *vmm)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(thread, NULL, run, vmm);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

int
rl_vmm_start(struct rl_vmm *vmm)
{
	bool ring = vmm->features == RL_VMM_FEAT_DIRTY_RING;
	uint64_t n_pages = 0;
	int err;

	if (vmm->board.fd >= 0) /* started before, and perhaps stopped */
		return -EBUSY;
	if (vmm->machine.n_regions == 0 || vmm->n_rings != (ring ? vmm->n_vcpus : 0))
		return -EINVAL;
	for (uint32_t i = 0; i < vmm->machine.n_regions; i++)
		n_pages += vmm->machine.region[i].n_pages;
	vmm->machine.n_rings = vmm->n_rings;
	vmm->machine.ring = vmm->vcpu;
	vmm->machine.ring_fd = vmm->vcpu_fd;
	err = rl_vmm_board_open(&vmm->board, !ring, n_pages);
	if (err != 0)
		return err;
	vmm->machine.guest_runs = &vmm->board.page->guest_runs;
	*vmm->machine.guest_runs = vmm->machine.phase == RL_VMM_RUNNING;
	err = start_thread(&vmm->door_thread, door_main, vmm);
	if (err != 0)
		return err;
	err = start_thread(&vmm->socket_thread, socket_main, vmm);
	if (err != 0) {
		eventfd_write(vmm->stop_fd, 1);
		pthread_join(vmm->door_thread, NULL);
		return err;
	}
	vmm->started = true;
	return 0;
}

void
rl_vmm_stop(struct rl_vmm *vmm)
{
	if (!vmm->started)
		return;
	eventfd_write(vmm->stop_fd, 1);
	pthread_join(vmm->socket_thread, NULL);
	pthread_join(vmm->door_thread, NULL);
	vmm->started = false;
}

void
rl_vmm_destroy(struct rl_vmm *vmm)
{
	if (vmm == NULL)
		return;
	rl_vmm_stop(vmm);
	rl_vmm_board_fini(&vmm->board);
	for (uint32_t i = 0; i < vmm->machine.n_regions; i++)
		close(vmm->machine.region_fd[i]);
	for (uint32_t i = 0; vmm->vcpu_fd != NULL && i < vmm->n_vcpus; i++)
		if (vmm->vcpu_fd[i] >= 0)
			close(vmm->vcpu_fd[i]);
	if (vmm->stop_fd >= 0)
		close(vmm->stop_fd);
	free(vmm->vcpu);
	free(vmm->vcpu_fd);
	free(vmm);
}
