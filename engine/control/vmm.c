/* SPDX-License-Identifier: BSD-3-Clause */
/* The engine's side of the VMM socket: framing with descriptors, registration, requests. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ramlift/version.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "control/peer.h"
#include "control/vmm.h"

#define CALL_TIMEOUT_NS (10 * RL_NS_PER_S)
#define MAX_ERRNO       4095

struct vmm_msg {
	struct rl_vmm_hdr hdr;
	uint8_t payload[RL_VMM_MAX_PAYLOAD];
	int fd[RL_VMM_MAX_FDS];
	uint32_t n_fds;
};

static void
msg_close_fds(struct vmm_msg *m)
{
	for (uint32_t i = 0; i < m->n_fds; i++)
		if (m->fd[i] >= 0)
			close(m->fd[i]);
	m->n_fds = 0;
}

/* The descriptor at @i, now the caller's. */
static int
msg_take_fd(struct vmm_msg *m, uint32_t i)
{
	int fd = m->fd[i];

	m->fd[i] = -1;
	return fd;
}

static int
gone(struct rl_err *err)
{
	return rl_err_set(err, -ECONNRESET, "the VMM closed its socket");
}

static int
send_msg(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t size, int pass_fd,
	 struct rl_err *err)
{
	struct rl_vmm_hdr hdr = {
		.request = request, .flags = RAMLIFT_VMM_VERSION | flags, .size = size};
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov[2] = {{&hdr, sizeof(hdr)}, {(void *)(uintptr_t)payload, size}};
	struct msghdr mh = {.msg_iov = iov, .msg_iovlen = size > 0 ? 2 : 1};

	if (pass_fd >= 0) {
		memset(&control, 0, sizeof(control));
		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
	}
	/* One message is far smaller than any socket buffer, and one is under way at a time: only a VMM that
	 * does not read fills it. */
	if (sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)(sizeof(hdr) + size))
		return 0;
	return errno == EAGAIN ? rl_err_set(err, -EPROTO, "the VMM does not read its socket")
			       : gone(err);
}

static int
take_fds(struct msghdr *mh, struct vmm_msg *m)
{
	int rc = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		uint32_t n = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		for (uint32_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (m->n_fds < RL_VMM_MAX_FDS)
				m->fd[m->n_fds++] = fd;
			else
				close(fd);
		}
	}
	if (mh->msg_flags & MSG_CTRUNC)
		rc = -EPROTO;
	return rc;
}

static int
recv_part(int fd, void *buf, size_t n, struct vmm_msg *m, uint64_t deadline_ns, struct rl_err *err)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * RL_VMM_MAX_FDS)];
		struct cmsghdr align;
	} control;
	uint8_t *at = buf;

	while (n > 0) {
		struct iovec iov = {at, n};
		struct msghdr mh = {.msg_iov = &iov,
				    .msg_iovlen = 1,
				    .msg_control = control.buf,
				    .msg_controllen = sizeof(control.buf)};
		ssize_t k;

		if (rl_wait_readable(fd, -1, deadline_ns) != 0)
			return rl_err_set(err, -ETIMEDOUT, "the VMM does not answer");
		k = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (k < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (k <= 0)
			return gone(err);
		if (take_fds(&mh, m) != 0)
			return rl_err_set(err, -EPROTO,
					  "the VMM sent more descriptors than allowed");
		at += k;
		n -= (size_t)k;
	}
	return 0;
}

static int
recv_msg(int fd, struct vmm_msg *m, uint64_t deadline_ns, struct rl_err *err)
{
	int rc;

	m->n_fds = 0;
	rc = recv_part(fd, &m->hdr, sizeof(m->hdr), m, deadline_ns, err);
	if (rc == 0 && (m->hdr.flags & RL_VMM_F_VERSION) != RAMLIFT_VMM_VERSION)
		rc = rl_err_set(
			err, -EPROTONOSUPPORT,
			"the VMM speaks version %u of the VMM socket, this ramliftd %u; update "
			"the older one",
			m->hdr.flags & RL_VMM_F_VERSION, RAMLIFT_VMM_VERSION);
	if (rc == 0 && (m->hdr.flags & ~(RL_VMM_F_VERSION | RL_VMM_F_REPLY)) != 0)
		rc = rl_err_set(err, -EPROTO, "the VMM sent a message with flags %#x",
				m->hdr.flags);
	if (rc == 0 && m->hdr.size > RL_VMM_MAX_PAYLOAD)
		rc = rl_err_set(err, -EPROTO, "the VMM sent a message of %u bytes, more than %u",
				m->hdr.size, RL_VMM_MAX_PAYLOAD);
	if (rc == 0)
		rc = recv_part(fd, m->payload, m->hdr.size, m, deadline_ns, err);
	if (rc != 0)
		msg_close_fds(m);
	return rc;
}

static int
send_status(int fd, uint32_t request, const struct rl_err *why, struct rl_err *err)
{
	struct rl_vmm_status st = {.code = why != NULL ? why->code : 0};

	if (why != NULL)
		memcpy(st.text, why->text, rl_min64(strlen(why->text), sizeof(st.text) - 1));
	return send_msg(fd, request, RL_VMM_F_REPLY, &st, sizeof(st), -1, err);
}

static bool
name_ok(const char *name)
{
	static const char chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789._-";
	size_t n = strnlen(name, RL_VMM_NAME_BYTES);

	return n > 0 && n < RL_VMM_NAME_BYTES && strspn(name, chars) == n;
}

static int
on_hello(struct rl_vm *vm, const struct vmm_msg *m, struct rl_err *err)
{
	struct rl_vmm_hello *h = &vm->hello;

	if (m->hdr.size != sizeof(*h) || m->n_fds != 0)
		return rl_err_set(err, -EPROTO, "HELLO of %u bytes, not %zu", m->hdr.size,
				  sizeof(*h));
	memcpy(h, m->payload, sizeof(*h));
	h->last.peer[sizeof(h->last.peer) - 1] = '\0';
	if (!name_ok(h->name))
		return rl_err_set(err, -EINVAL,
				  "the VM's name must be 1 to %u of A-Z a-z 0-9 . _ -",
				  RL_VMM_NAME_BYTES - 1);
	if ((h->features & ~RL_VMM_FEAT_ALL) != 0 || !rl_is_pow2(h->features))
		return rl_err_set(err, -EINVAL,
				  "features %#llx: one of dirty ring and dirty bitmap",
				  (unsigned long long)h->features);
	if (h->n_vcpus == 0 || h->n_vcpus > RL_VMM_MAX_VCPUS)
		return rl_err_set(err, -EINVAL, "%u vCPUs: 1 to %u", h->n_vcpus, RL_VMM_MAX_VCPUS);
	if (h->phase < RL_VMM_RUNNING || h->phase > RL_VMM_MOVED)
		return rl_err_set(err, -EINVAL, "phase %u is not known", h->phase);
	return 0;
}

static int
on_region(struct rl_vm *vm, struct vmm_msg *m, struct rl_err *err)
{
	struct rl_vmm_region r;

	if (m->hdr.size != sizeof(r) || m->n_fds != 1)
		return rl_err_set(err, -EPROTO, "REGION needs %zu bytes and one descriptor",
				  sizeof(r));
	memcpy(&r, m->payload, sizeof(r));
	struct rl_region region = {
		.gpn = r.gpn,
		.n_pages = r.n_pages,
		.fd_offset = r.fd_offset,
		.page_size = r.page_size,
		.hugetlb = r.flags & RL_VMM_REGION_HUGETLB,
		.thp = r.flags & RL_VMM_REGION_THP,
		.zeroed = r.flags & RL_VMM_REGION_ZEROED,
		.fd = msg_take_fd(m, 0),
	};
	return rl_ram_add(&vm->ram, &region, err);
}

static int
on_shared(struct rl_vm *vm, struct vmm_msg *m, struct rl_err *err)
{
	struct rl_vmm_shared_info info;
	void *at;
	int seals;

	if (m->hdr.size != sizeof(info) || m->n_fds != 2 || vm->shared_fd >= 0)
		return rl_err_set(err, -EPROTO,
				  "SHARED comes once, with %zu bytes and two descriptors",
				  sizeof(info));
	memcpy(&info, m->payload, sizeof(info));
	vm->shared_fd = msg_take_fd(m, 0);
	vm->doorbell_fd = msg_take_fd(m, 1);
	vm->shared_size = info.size;
	seals = fcntl(vm->shared_fd, F_GET_SEALS);
	/* Sealed: nobody can take the pages away under our feet. */
	if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
	    lseek(vm->shared_fd, 0, SEEK_END) < (off_t)sizeof(struct rl_vmm_shared) ||
	    info.size < sizeof(struct rl_vmm_shared))
		return rl_err_set(
			err, -EPROTO,
			"the shared page must be a memfd of %zu bytes or more, sealed with "
			"F_SEAL_SHRINK",
			sizeof(struct rl_vmm_shared));
	at = mmap(NULL, sizeof(struct rl_vmm_shared), PROT_READ, MAP_SHARED, vm->shared_fd, 0);
	if (at == MAP_FAILED)
		return rl_err_set(err, -errno, "cannot map the shared page: %s", strerror(errno));
	vm->shared = at;
	return 0;
}

static int
on_vcpu(struct rl_vm *vm, struct vmm_msg *m, struct rl_err *err)
{
	struct rl_vmm_vcpu v;

	if (m->hdr.size != sizeof(v) || m->n_fds != 1)
		return rl_err_set(err, -EPROTO, "VCPU needs %zu bytes and one descriptor",
				  sizeof(v));
	memcpy(&v, m->payload, sizeof(v));
	if (v.index >= vm->hello.n_vcpus || vm->vcpu_fd[v.index] >= 0)
		return rl_err_set(err, -EINVAL, "vCPU %u: out of range or given twice", v.index);
	if (!rl_is_pow2(v.ring_entries) || v.ring_entries < 2048 || v.ring_entries > 65536)
		return rl_err_set(err, -EINVAL,
				  "dirty ring of %u entries: a power of two from 2048 to "
				  "65536",
				  v.ring_entries);
	vm->vcpu_fd[v.index] = msg_take_fd(m, 0);
	vm->ring[v.index] = (struct rl_dirty_ring_opts){
		.fd = vm->vcpu_fd[v.index], .offset = v.ring_offset, .entries = v.ring_entries};
	return 0;
}

static int
on_online(const struct rl_vm *vm, const struct vmm_msg *m, struct rl_err *err)
{
	if (m->hdr.size != 0 || m->n_fds != 0)
		return rl_err_set(err, -EPROTO, "ONLINE has neither payload nor descriptors");
	if (vm->ram.n == 0 || vm->shared_fd < 0)
		return rl_err_set(err, -EPROTO, "ONLINE before any REGION or before SHARED");
	if (vm->hello.features & RL_VMM_FEAT_DIRTY_RING)
		for (uint32_t i = 0; i < vm->hello.n_vcpus; i++)
			if (vm->vcpu_fd[i] < 0)
				return rl_err_set(err, -EPROTO, "vCPU %u has no dirty ring", i);
	return 0;
}

static int
on_message(struct rl_vm *vm, struct vmm_msg *m,
	   int (*check)(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err), void *ctx,
	   struct rl_err *err)
{
	int rc;

	if (m->hdr.flags & RL_VMM_F_REPLY)
		return rl_err_set(err, -EPROTO, "a reply where a request was due");
	if ((vm->hello.features == 0) != (m->hdr.request == RL_VMM_HELLO))
		return rl_err_set(err, -EPROTO, "HELLO comes first, and once");
	switch (m->hdr.request) {
	case RL_VMM_HELLO:
		rc = on_hello(vm, m, err);
		return rc == 0 ? check(ctx, &vm->hello, err) : rc;
	case RL_VMM_REGION:
		return on_region(vm, m, err);
	case RL_VMM_SHARED:
		return on_shared(vm, m, err);
	case RL_VMM_VCPU:
		return on_vcpu(vm, m, err);
	case RL_VMM_ONLINE:
		return on_online(vm, m, err);
	default:
		return rl_err_set(err, -EPROTO, "request %u is not one of a registration",
				  m->hdr.request);
	}
}

static struct rl_vm *
vm_create(int fd)
{
	struct rl_vm *vm = calloc(1, sizeof(*vm));
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (vm == NULL) {
		close(fd);
		return NULL;
	}
	vm->fd = fd;
	vm->shared_fd = vm->doorbell_fd = vm->pidfd = -1;
	for (uint32_t i = 0; i < RL_VMM_MAX_VCPUS; i++)
		vm->vcpu_fd[i] = -1;
	rl_ram_init(&vm->ram);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0) {
		vm->pid = cred.pid;
		vm->pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
	}
	return vm;
}

int
rl_vm_register(int fd, uint64_t timeout_ns,
	       int (*check)(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err),
	       void *ctx, struct rl_vm **out, struct rl_err *err)
{
	uint64_t deadline_ns = rl_now_ns() + timeout_ns;
	struct rl_vm *vm = vm_create(fd);
	struct vmm_msg m = {0};
	int rc;

	*out = NULL;
	if (vm == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for a VM");
	do {
		rc = recv_msg(fd, &m, deadline_ns, err);
		if (rc != 0) {
			if (rc == -EPROTO || rc == -EPROTONOSUPPORT)
				send_status(fd, m.hdr.request, err, NULL);
			goto fail;
		}
		rc = on_message(vm, &m, check, ctx, err);
		msg_close_fds(&m);
		if (rc != 0)
			send_status(fd, m.hdr.request, err, NULL);
		else if (m.hdr.request != RL_VMM_ONLINE)
			rc = send_status(fd, m.hdr.request, NULL, err);
		if (rc != 0)
			goto fail;
	} while (m.hdr.request != RL_VMM_ONLINE);
	vm->zeroed = true;
	for (uint32_t i = 0; i < vm->ram.n; i++)
		vm->zeroed &= vm->ram.region[i].zeroed;
	*out = vm;
	return 0;
fail:
	rl_vm_destroy(vm);
	return rc;
}

int
rl_vm_online(struct rl_vm *vm, struct rl_err *err)
{
	return send_status(vm->fd, RL_VMM_ONLINE, NULL, err);
}

void
rl_vm_destroy(struct rl_vm *vm)
{
	if (vm == NULL)
		return;
	for (uint32_t i = 0; i < RL_VMM_MAX_VCPUS; i++)
		if (vm->vcpu_fd[i] >= 0)
			close(vm->vcpu_fd[i]);
	rl_ram_fini(&vm->ram);
	if (vm->shared != NULL)
		munmap((void *)(uintptr_t)vm->shared, sizeof(*vm->shared));
	if (vm->shared_fd >= 0)
		close(vm->shared_fd);
	if (vm->doorbell_fd >= 0)
		close(vm->doorbell_fd);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	close(vm->fd);
	free(vm);
}

/* One request, one reply, into @m. After a failure nobody knows which reply would come next, or whether the
 * request was done: the socket is shut, rl_vm_gone() says so, and the VMM comes back with its phase. */
static int
exchange(struct rl_vm *vm, uint32_t request, const void *payload, uint32_t size, int pass_fd,
	 uint64_t timeout_ns, struct vmm_msg *m, struct rl_err *err)
{
	int rc = send_msg(vm->fd, request, 0, payload, size, pass_fd, err);

	if (rc == 0)
		rc = recv_msg(vm->fd, m, rl_now_ns() + timeout_ns, err);
	if (rc == 0 && (m->hdr.request != request || (m->hdr.flags & RL_VMM_F_REPLY) == 0 ||
			m->hdr.size < sizeof(struct rl_vmm_status))) {
		msg_close_fds(m);
		rc = rl_err_set(err, -EPROTO, "the VMM replied to %u with %u, %u bytes", request,
				m->hdr.request, m->hdr.size);
	}
	if (rc == 0)
		return 0;
	shutdown(vm->fd, SHUT_RDWR);
	return rl_vm_dead(vm, 0) ? rl_err_set(err, -ESRCH, "the VMM (pid %d) has died", vm->pid)
				 : rc;
}

/* Ask, and read the reply into @m; its status is turned into our error. */
static int
call(struct rl_vm *vm, uint32_t request, const void *payload, uint32_t size, int pass_fd,
     uint64_t timeout_ns, uint32_t reply_size, struct vmm_msg *m, struct rl_err *err)
{
	struct rl_vmm_status st;
	int rc = exchange(vm, request, payload, size, pass_fd, timeout_ns, m, err);

	if (rc != 0)
		return rc;
	memcpy(&st, m->payload, sizeof(st));
	st.text[sizeof(st.text) - 1] = '\0';
	if (st.code != 0) {
		msg_close_fds(m);
		return rl_err_set(err, st.code < 0 && st.code >= -MAX_ERRNO ? st.code : -EIO,
				  "the VMM refused: %s",
				  st.text[0] != '\0' ? st.text : "it gives no reason");
	}
	if (m->hdr.size != reply_size) {
		msg_close_fds(m);
		shutdown(vm->fd, SHUT_RDWR);
		return rl_err_set(err, -EPROTO, "the VMM's reply to %u has %u bytes, not %u",
				  request, m->hdr.size, reply_size);
	}
	return 0;
}

int
rl_vm_call(struct rl_vm *vm, uint32_t request, const void *payload, uint32_t size,
	   uint64_t timeout_ns, struct rl_err *err)
{
	struct vmm_msg m;
	int rc = call(vm, request, payload, size, -1, timeout_ns, sizeof(struct rl_vmm_status), &m,
		      err);

	if (rc == 0)
		msg_close_fds(&m);
	return rc;
}

int
rl_vm_session_begin(struct rl_vm *vm, const uint8_t session[16], bool is_target, const char *peer,
		    struct rl_err *err)
{
	struct rl_vmm_session s = {.is_target = is_target};
	int rc;

	memcpy(s.session, session, sizeof(s.session));
	memcpy(s.peer, peer, rl_min64(strlen(peer), sizeof(s.peer) - 1));
	rc = rl_vm_call(vm, RL_VMM_SESSION_BEGIN, &s, sizeof(s), CALL_TIMEOUT_NS, err);
	if (rc == 0) {
		vm->hello.last = s;
		vm->hello.last_outcome = RL_VMM_OUTCOME_NONE;
		rl_vm_set_phase(vm, is_target ? RL_VMM_RECEIVING : RL_VMM_MIGRATING);
	}
	return rc;
}

int
rl_vm_session_end(struct rl_vm *vm, enum rl_vmm_outcome outcome, struct rl_err *err)
{
	struct rl_vmm_session_end e = {.outcome = outcome};
	bool target = vm->hello.last.is_target;
	int rc;

	vm->hello.last_outcome = outcome;
	if (outcome == RL_VMM_COMPLETED)
		rl_vm_set_phase(vm, target ? RL_VMM_RUNNING : RL_VMM_MOVED);
	else
		rl_vm_set_phase(vm, target ? RL_VMM_INCOMING : RL_VMM_RUNNING);
	/* An aborted target gives its memory back first, which can take a while. */
	rc = rl_vm_call(vm, RL_VMM_SESSION_END, &e, sizeof(e), 3 * CALL_TIMEOUT_NS, err);
	/* One that refuses is not in the phase that we think: it registers anew and says where it stands. */
	if (rc != 0)
		shutdown(vm->fd, SHUT_RDWR);
	return rc;
}

static int
read_state(int fd, uint64_t size, uint8_t **state, struct rl_err *err)
{
	uint8_t *buf = malloc(size);
	uint64_t done = 0;

	if (buf == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for %llu bytes of device state",
				  (unsigned long long)size);
	while (done < size) {
		ssize_t k = pread(fd, buf + done, size - done, (off_t)done);

		if (k <= 0) {
			free(buf);
			return rl_err_set(err, -EPROTO,
					  "device state ends after %llu of %llu bytes",
					  (unsigned long long)done, (unsigned long long)size);
		}
		done += (uint64_t)k;
	}
	*state = buf;
	return 0;
}

int
rl_vm_state_get(struct rl_vm *vm, uint8_t **state, uint64_t *size, struct rl_err *err)
{
	struct rl_vmm_state_reply r;
	struct vmm_msg m;
	int rc;

	rc = call(vm, RL_VMM_STATE_GET, NULL, 0, -1, CALL_TIMEOUT_NS, sizeof(r), &m, err);
	if (rc != 0)
		return rc;
	memcpy(&r, m.payload, sizeof(r));
	/* Only a memfd never makes us wait, as a file of another kind might. */
	if (m.n_fds != 1 || r.state.size == 0 || r.state.size > RL_VMM_STATE_MAX ||
	    fcntl(m.fd[0], F_GET_SEALS) < 0)
		rc = rl_err_set(err, -EPROTO,
				"device state of %llu bytes with %u descriptors; one memfd "
				"of at most 64 MiB is needed",
				(unsigned long long)r.state.size, m.n_fds);
	else
		rc = read_state(m.fd[0], r.state.size, state, err);
	msg_close_fds(&m);
	*size = r.state.size;
	return rc;
}

int
rl_vm_state_put(struct rl_vm *vm, const uint8_t *state, uint64_t size, struct rl_err *err)
{
	struct rl_vmm_state st = {.size = size};
	int fd = memfd_create("ramlift-device-state", MFD_CLOEXEC);
	struct vmm_msg m;
	int rc;

	if (fd < 0 || write(fd, state, size) != (ssize_t)size) {
		rc = rl_err_set(err, -errno, "cannot store %llu bytes of device state: %s",
				(unsigned long long)size, strerror(errno));
	} else {
		rc = call(vm, RL_VMM_STATE_PUT, &st, sizeof(st), fd, CALL_TIMEOUT_NS,
			  sizeof(struct rl_vmm_status), &m, err);
		if (rc == 0)
			msg_close_fds(&m);
	}
	if (rc == 0)
		rl_vm_set_phase(vm, RL_VMM_READY);
	if (fd >= 0)
		close(fd);
	return rc;
}

void
rl_vm_dirty_opts(const struct rl_vm *vm, struct rl_dirty_opts *opts)
{
	opts->bitmap = vm->hello.features & RL_VMM_FEAT_DIRTY_BITMAP;
	opts->n_rings = opts->bitmap ? 0 : vm->hello.n_vcpus;
	opts->ring = vm->ring;
	opts->shared_fd = vm->shared_fd;
	opts->shared_size = vm->shared_size;
	opts->doorbell_fd = vm->doorbell_fd;
	opts->ram = &vm->ram;
}

bool
rl_vm_guest_runs(const struct rl_vm *vm)
{
	return __atomic_load_n(&vm->shared->guest_runs, __ATOMIC_ACQUIRE) != 0;
}

bool
rl_vm_gone(const struct rl_vm *vm)
{
	struct pollfd p = {.fd = vm->fd, .events = POLLRDHUP};

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool
rl_vm_dead(const struct rl_vm *vm, int timeout_ms)
{
	struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};

	return vm->pidfd >= 0 && poll(&p, 1, timeout_ms) > 0;
}

const char *
rl_vm_phase_name(uint32_t phase)
{
	static const char *const names[] = {
		[RL_VMM_RUNNING] = "running",     [RL_VMM_INCOMING] = "incoming",
		[RL_VMM_MIGRATING] = "migrating", [RL_VMM_PAUSED] = "paused",
		[RL_VMM_COMMITTED] = "committed", [RL_VMM_RECEIVING] = "receiving",
		[RL_VMM_READY] = "ready",         [RL_VMM_MOVED] = "moved",
	};

	return phase >= RL_VMM_RUNNING && phase <= RL_VMM_MOVED ? names[phase] : "unknown";
}
