/* SPDX-License-Identifier: BSD-3-Clause */
/* ramliftd: what it holds, and the control thread that accepts VMMs, peers and RPC clients. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/daemon.h"
#include "control/rpc.h"
#include "control/units.h"
#include "control/uuid.h"

#define REGISTER_NS (5 * RL_NS_PER_S)
#define MAX_THREADS 256u

struct rl_client { /* an RPC connection */
	struct rl_client *next;
	int fd;
	size_t in_bytes, out_bytes, out_done;
	char *out; /* replies not yet written */
	char in[RL_RPC_MAX_LINE];
};

struct greeting {
	struct rl_daemon *d;
	int fd;
};

int
rl_daemon_thread(struct rl_daemon *d, void *(*main_fn)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;
	int rc = -EAGAIN;

	pthread_mutex_lock(&d->lock);
	if (!d->stopping && d->n_threads < MAX_THREADS) {
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		rc = -pthread_create(&thread, &attr, main_fn, arg);
		pthread_attr_destroy(&attr);
		if (rc == 0)
			d->n_threads++;
	}
	pthread_mutex_unlock(&d->lock);
	return rc;
}

void
rl_daemon_thread_done(struct rl_daemon *d)
{
	pthread_mutex_lock(&d->lock);
	d->n_threads--;
	pthread_cond_signal(&d->idle);
	pthread_mutex_unlock(&d->lock);
}

/* What an epoll event is about. A VM may have gone before its event is read, so it is looked up by value. */
#define TAG_VM 1u

static void
watch(struct rl_daemon *d, int op, int fd, uint32_t events, const void *ptr, uint64_t tag)
{
	struct epoll_event e = {.events = events, .data.u64 = (uintptr_t)ptr | tag};

	if (epoll_ctl(d->epoll_fd, op, fd, &e) != 0)
		rl_error("epoll: %s", strerror(errno));
}

/* The list of VMs for "no such VM" errors. Called with the lock held. */
static void
vm_names(struct rl_daemon *d, char *text, size_t size)
{
	size_t at = 0;

	text[0] = '\0';
	for (struct rl_vm *vm = d->vms; vm != NULL && at + RL_VMM_NAME_BYTES + 32 < size;
	     vm = vm->next)
		at += (size_t)snprintf(text + at, size - at, "%s%s (%s)", at > 0 ? ", " : "",
				       vm->hello.name, rl_vm_phase_name(rl_vm_phase(vm)));
}

int
rl_daemon_take_vm(struct rl_daemon *d, const char *name, enum rl_vmm_phase phase,
		  struct rl_vm **out, struct rl_err *err)
{
	struct rl_vm *vm;
	char names[256];
	int rc = 0;

	pthread_mutex_lock(&d->lock);
	for (vm = d->vms; vm != NULL && strcmp(vm->hello.name, name) != 0;)
		vm = vm->next;
	vm_names(d, names, sizeof(names));
	if (vm == NULL)
		rc = rl_err_set(
			err, -ENOENT,
			"no VM named '%s' is connected to this ramliftd; there %s%s; start it "
			"with --engine %s",
			name, names[0] != '\0' ? "are: " : "is none", names, d->cfg.vmm_socket);
	else if (vm->busy)
		rc = rl_err_set(err, -EBUSY, "VM '%s' is in a migration already", name);
	else if (rl_vm_phase(vm) != (uint32_t)phase)
		rc = rl_err_set(err, -EINVAL, "VM '%s' is %s here, not %s%s", name,
				rl_vm_phase_name(rl_vm_phase(vm)), rl_vm_phase_name(phase),
				phase == RL_VMM_INCOMING ? "; start it with --incoming" : "");
	if (rc == 0) {
		vm->busy = true;
		epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, vm->fd, NULL);
		*out = vm;
	}
	pthread_mutex_unlock(&d->lock);
	return rc;
}

static void
drop_vm(struct rl_daemon *d, struct rl_vm *vm)
{
	for (struct rl_vm **at = &d->vms; *at != NULL; at = &(*at)->next)
		if (*at == vm) {
			*at = vm->next;
			break;
		}
	rl_info("VM '%s' has gone", vm->hello.name);
	rl_vm_destroy(vm);
}

void
rl_daemon_put_vm(struct rl_daemon *d, struct rl_vm *vm)
{
	pthread_mutex_lock(&d->lock);
	vm->busy = false;
	if (d->stopping || rl_vm_gone(vm))
		drop_vm(d, vm);
	else
		watch(d, EPOLL_CTL_ADD, vm->fd, EPOLLIN | EPOLLRDHUP, vm, TAG_VM);
	pthread_mutex_unlock(&d->lock);
}

void
rl_daemon_add_session(struct rl_daemon *d, struct rl_session *s)
{
	const uint64_t one = 1;
	uint32_t ended = 0;

	pthread_mutex_lock(&d->lock);
	s->next = d->sessions;
	d->sessions = s;
	/* Those that were there have been told already. */
	if (d->stopping && write(s->cancel_fd, &one, sizeof(one)) < 0)
		rl_warn("stopping: %s", strerror(errno));
	for (struct rl_session **at = &d->sessions; *at != NULL;) {
		struct rl_session *old = *at;

		if (old->ended && ++ended > RL_SESSIONS_KEPT) {
			*at = old->next;
			rl_session_destroy(old);
		} else {
			at = &old->next;
		}
	}
	pthread_mutex_unlock(&d->lock);
}

const char *
rl_daemon_outcome(struct rl_daemon *d, const uint8_t uuid[16], struct rl_session **live)
{
	bool given_up = false, ready = false;

	*live = NULL;
	for (struct rl_session *s = d->sessions; s != NULL; s = s->next) {
		if (!s->target || memcmp(s->uuid, uuid, 16) != 0)
			continue;
		if (s->ended && s->status == RL_STATUS_COMPLETED)
			return "running";
		if (s->ended) {
			given_up |= !s->committed;
			continue;
		}
		pthread_mutex_lock(&s->lock);
		ready |= s->committed;
		if (*live == NULL || s->committed)
			*live = s;
		pthread_mutex_unlock(&s->lock);
	}
	if (*live != NULL)
		return ready ? "ready" : "active";
	if (given_up)
		return "aborted";
	/* Sessions of an earlier ramliftd live on in their VMMs; a busy VM is in another one. */
	for (struct rl_vm *vm = d->vms; vm != NULL; vm = vm->next) {
		if (vm->busy || !vm->hello.last.is_target ||
		    memcmp(vm->hello.last.session, uuid, 16) != 0)
			continue;
		if (vm->hello.phase == RL_VMM_READY)
			return "ready";
		if (vm->hello.last_outcome == RL_VMM_ABORTED || vm->hello.phase == RL_VMM_INCOMING)
			return "aborted";
		return vm->hello.last_outcome == RL_VMM_COMPLETED ? "running" : "unknown";
	}
	return "unknown";
}

json_t *
rl_daemon_port_json(const struct rl_daemon *d)
{
	const struct rl_nic_info *info = rl_nic_info(d->nic);
	char address[RL_ENDPOINT_TEXT], mac[18];

	rl_format_ip(&info->address, address);
	snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", info->mac[0], info->mac[1],
		 info->mac[2], info->mac[3], info->mac[4], info->mac[5]);
	return json_pack("{ss si ss si si}", "address", address, "udp-port", (int)info->udp_port,
			 "mac", mac, "max-payload", (int)info->max_payload, "credit",
			 (int)info->rx_ring);
}

int
rl_daemon_port_parse(json_t *json, const struct sockaddr_storage *from, struct rl_nic_peer *peer,
		     uint32_t *max_payload, uint32_t *credit, struct rl_err *err)
{
	const char *address, *mac;
	int udp_port, payload, cred;

	memset(peer, 0, sizeof(*peer));
	if (json_unpack(json, "{ss si ss si si}", "address", &address, "udp-port", &udp_port, "mac",
			&mac, "max-payload", &payload, "credit", &cred) != 0 ||
	    rl_parse_ip(address, &peer->address) != 0 || udp_port < 1 || udp_port > 65535 ||
	    payload < 512 || payload > (int)RL_NIC_MAX_PAYLOAD || cred < 1 || cred > 1 << 20 ||
	    sscanf(mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &peer->mac[0], &peer->mac[1],
		   &peer->mac[2], &peer->mac[3], &peer->mac[4], &peer->mac[5]) != 6)
		return rl_err_set(err, -EPROTO, "the peer's description of its port is malformed");
	if (peer->address.family == 0)
		rl_sockaddr_ip(from, &peer->address);
	peer->udp_port = (uint16_t)udp_port;
	*max_payload = (uint32_t)payload;
	*credit = (uint32_t)cred;
	return 0;
}

static int
may_register(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err)
{
	struct rl_daemon *d = ctx;
	int rc = 0;

	pthread_mutex_lock(&d->lock);
	for (struct rl_vm *vm = d->vms; vm != NULL; vm = vm->next)
		if (strcmp(vm->hello.name, hello->name) == 0)
			rc = rl_err_set(
				err, -EEXIST,
				"a VM named '%s' (pid %d) is connected already; give this one "
				"another --name",
				hello->name, vm->pid);
	pthread_mutex_unlock(&d->lock);
	return rc;
}

/* Is the source's side of this migration in our list? Then its target has been told. */
static bool
source_known(struct rl_daemon *d, const uint8_t uuid[16])
{
	bool known = false;

	pthread_mutex_lock(&d->lock);
	for (struct rl_session *s = d->sessions; s != NULL; s = s->next)
		known |= !s->target && memcmp(s->uuid, uuid, 16) == 0;
	pthread_mutex_unlock(&d->lock);
	return known;
}

/* A VM that was left in the middle by an earlier ramliftd. */
static void
resume_session(struct rl_daemon *d, const struct rl_vmm_hello *h, uint64_t n_pages)
{
	void *(*main_fn)(void *) = NULL;
	struct rl_session *s;
	struct rl_err err;

	if (h->phase == RL_VMM_COMMITTED)
		main_fn = rl_source_session_recover;
	else if (h->phase == RL_VMM_READY)
		main_fn = rl_sink_session_recover;
	else if (h->phase == RL_VMM_RUNNING && !h->last.is_target && h->last.peer[0] != '\0' &&
		 h->last_outcome == RL_VMM_ABORTED && !source_known(d, h->last.session))
		main_fn = rl_source_session_abort;
	if (main_fn == NULL)
		return;
	s = rl_session_create(d, h->last.is_target, h->last.session, h->name, h->last.peer);
	if (s == NULL) {
		rl_error("no memory to recover the migration of '%s'", h->name);
		return;
	}
	s->total_bytes = n_pages * RL_PAGE_SIZE;
	/* Before anyone can see it: such a session is not to be cancelled. */
	s->committed = h->phase == RL_VMM_COMMITTED || h->phase == RL_VMM_READY;
	rl_daemon_add_session(d, s);
	if (rl_session_start(s, main_fn, &err) != 0)
		rl_session_end(s, RL_STATUS_FAILED, &err);
}

static void *
greet_main(void *arg)
{
	struct greeting g = *(struct greeting *)arg;
	struct rl_daemon *d = g.d;
	struct rl_vmm_hello hello;
	struct rl_err err = {0};
	struct rl_vm *vm;
	bool duplicate = false;
	uint64_t n_pages;

	free(arg);
	if (rl_vm_register(g.fd, REGISTER_NS, may_register, d, &vm, &err) != 0) {
		rl_warn("VMM socket: %s", err.text);
		pthread_mutex_lock(&d->lock);
		d->vmm_refused++;
		pthread_mutex_unlock(&d->lock);
		goto out;
	}
	rl_info("VM '%s' connected: %llu MiB, %u vCPUs, %s", vm->hello.name,
		(unsigned long long)(vm->ram.n_pages >> 8), vm->hello.n_vcpus,
		rl_vm_phase_name(vm->hello.phase));
	pthread_mutex_lock(&d->lock);
	for (struct rl_vm *other = d->vms; other != NULL; other = other->next)
		duplicate |= strcmp(other->hello.name, vm->hello.name) == 0;
	if (duplicate || rl_vm_online(vm, &err) != 0) {
		rl_vm_destroy(vm);
		pthread_mutex_unlock(&d->lock);
		goto out;
	}
	vm->next = d->vms;
	d->vms = vm;
	hello = vm->hello;
	n_pages = vm->ram.n_pages;
	watch(d, EPOLL_CTL_ADD, vm->fd, EPOLLIN | EPOLLRDHUP, vm, TAG_VM);
	pthread_mutex_unlock(&d->lock); /* from here on it may go at any time */
	resume_session(d, &hello, n_pages);
out:
	rl_daemon_thread_done(d);
	return NULL;
}

static void
accept_vmm(struct rl_daemon *d)
{
	int fd = accept4(d->vmm_fd, NULL, NULL, SOCK_CLOEXEC);
	struct greeting *g;

	if (fd < 0)
		return;
	g = malloc(sizeof(*g));
	if (g != NULL) {
		*g = (struct greeting){.d = d, .fd = fd};
		if (rl_daemon_thread(d, greet_main, g) == 0)
			return;
	}
	free(g);
	close(fd);
}

/* A VM that no session uses says something, which it must not, or goes. */
static void
vm_event(struct rl_daemon *d, const struct rl_vm *vm)
{
	pthread_mutex_lock(&d->lock);
	for (struct rl_vm *at = d->vms; at != NULL; at = at->next)
		if (at == vm && !at->busy) {
			drop_vm(d, at);
			break;
		}
	pthread_mutex_unlock(&d->lock);
}

static void
client_close(struct rl_daemon *d, struct rl_client *c)
{
	for (struct rl_client **at = &d->clients; *at != NULL; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	close(c->fd);
	free(c->out);
	free(c);
}

/* Returns false when the client has to go. */
static bool
client_flush(struct rl_daemon *d, struct rl_client *c)
{
	while (c->out_done < c->out_bytes) {
		ssize_t k = send(c->fd, c->out + c->out_done, c->out_bytes - c->out_done,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (k < 0 && errno == EAGAIN)
			break;
		if (k < 0 && errno != EINTR)
			return false;
		c->out_done += k > 0 ? (size_t)k : 0;
	}
	if (c->out_done == c->out_bytes)
		c->out_done = c->out_bytes = 0;
	watch(d, EPOLL_CTL_MOD, c->fd, c->out_bytes > 0 ? EPOLLOUT : EPOLLIN, c, 0);
	return true;
}

static bool
client_reply(struct rl_client *c, json_t *reply)
{
	char *text = json_dumps(reply, JSON_COMPACT), *out;
	size_t n = text != NULL ? strlen(text) : 0;

	json_decref(reply);
	out = text != NULL ? realloc(c->out, c->out_bytes + n + 1) : NULL;
	if (out != NULL) {
		c->out = out;
		memcpy(out + c->out_bytes, text, n);
		out[c->out_bytes + n] = '\n';
		c->out_bytes += n + 1;
	}
	free(text);
	return out != NULL;
}

static bool
client_event(struct rl_daemon *d, struct rl_client *c, uint32_t events)
{
	char *line = c->in, *end;
	ssize_t k;

	if (events & EPOLLOUT)
		return client_flush(d, c);
	k = recv(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, MSG_DONTWAIT);
	if (k < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (k <= 0)
		return false;
	c->in_bytes += (size_t)k;
	while ((end = memchr(line, '\n', c->in_bytes - (size_t)(line - c->in))) != NULL) {
		json_t *reply = rl_rpc_handle(d, line, (size_t)(end - line));

		if (reply != NULL && !client_reply(c, reply))
			return false;
		line = end + 1;
	}
	c->in_bytes -= (size_t)(line - c->in);
	memmove(c->in, line, c->in_bytes);
	return c->in_bytes < sizeof(c->in) && client_flush(d, c);
}

static void
accept_rpc(struct rl_daemon *d)
{
	int fd = accept4(d->rpc_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct rl_client *c;

	if (fd < 0)
		return;
	c = calloc(1, sizeof(*c));
	if (c == NULL) {
		close(fd);
		return;
	}
	c->fd = fd;
	c->next = d->clients;
	d->clients = c;
	watch(d, EPOLL_CTL_ADD, fd, EPOLLIN, c, 0);
}

/* A socket left by a ramliftd that was killed is replaced; one that answers is not ours to take. */
static int
listen_unix(const char *path, mode_t mode, struct rl_err *err)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	char dir[sizeof(sun.sun_path)], *slash;
	struct stat st;
	int rc;

	if (fd < 0)
		return rl_err_set(err, -errno, "socket: %s", strerror(errno));
	memcpy(sun.sun_path, path, strnlen(path, sizeof(sun.sun_path) - 1));
	if (connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0 || errno == EAGAIN) {
		close(fd);
		return rl_err_set(err, -EADDRINUSE,
				  "%s: another ramliftd answers there; give this one "
				  "sockets of its own",
				  path);
	}
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(path);
	memcpy(dir, sun.sun_path, sizeof(dir));
	slash = strrchr(dir, '/');
	if (slash != NULL && slash != dir) {
		*slash = '\0';
		if (mkdir(dir, 0755) != 0 && errno != EEXIST)
			goto fail;
	}
	if (bind(fd, (struct sockaddr *)&sun, sizeof(sun)) != 0 || chmod(path, mode) != 0 ||
	    listen(fd, 64) != 0)
		goto fail;
	return fd;
fail:
	rc = rl_err_set(err, -errno, "cannot listen on '%s': %s", path, strerror(errno));
	close(fd);
	return rc;
}

static int
listen_tcp(struct rl_daemon *d, struct rl_err *err)
{
	struct sockaddr_storage ss;
	socklen_t len;
	const int on = 1, off = 0;
	int fd, rc = rl_parse_endpoint(d->cfg.listen, RL_DEFAULT_PORT, &ss, &len, err);

	if (rc != 0)
		return rl_err_prefix(err, "listen");
	fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return rl_err_set(err, -errno, "socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ss.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, (struct sockaddr *)&ss, len) != 0 || listen(fd, 64) != 0) {
		rc = rl_err_set(err, -errno,
				"cannot listen on TCP %s: %s; set --listen to a free address",
				d->cfg.listen, strerror(errno));
		close(fd);
		return rc;
	}
	rl_format_endpoint(&ss, d->listen_text);
	return fd;
}

static int
open_port(struct rl_daemon *d, struct rl_err *err)
{
	struct rl_nic_opts opts = {
		.n_queues = (uint32_t)d->cfg.workers,
		.udp_port = (uint16_t)d->cfg.udp_port,
		.mtu = (uint32_t)d->cfg.mtu,
		.drop_ppm = (uint32_t)d->cfg.drop_ppm,
		.drop_seed = d->cfg.drop_seed,
		.eal = d->cfg.eal[0] != '\0' ? d->cfg.eal : NULL,
	};
	int rc;

	if (rl_parse_ip(d->cfg.address, &opts.address) != 0)
		return rl_err_set(err, -EINVAL, "address '%s' is not an IP address",
				  d->cfg.address);
	rc = rl_nic_open(d->cfg.uri, &opts, &d->nic, err);
	if (rc != 0)
		return rl_err_prefix(err, "port %s", d->cfg.uri);
	return rl_workers_start(d->nic, (uint32_t)d->cfg.workers, d->cfg.cpus, &d->workers, err);
}

static int
open_tls(struct rl_daemon *d, struct rl_err *err)
{
	const struct rl_config *cfg = &d->cfg;
	const struct rl_tls_opts opts = {
		.mode = cfg->tls,
		.ca = cfg->tls_ca,
		.cert = cfg->tls_cert,
		.key = cfg->tls_key,
		.peers = cfg->tls_peers,
		.psk_file = cfg->tls_psk_file,
	};

	if (strcmp(cfg->tls, "insecure-lab") == 0)
		return 0;
	return rl_tls_create(&opts, &d->tls, err);
}

int
rl_daemon_start(const struct rl_config *cfg, struct rl_daemon **out, struct rl_err *err)
{
	struct rl_daemon *d = calloc(1, sizeof(*d));
	int rc;

	*out = NULL;
	if (d == NULL)
		return rl_err_set(err, -ENOMEM, "no memory");
	d->cfg = *cfg;
	d->born_ns = rl_now_ns();
	d->epoll_fd = d->listen_fd = d->vmm_fd = d->rpc_fd = d->stop_fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->idle, NULL);
	d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = open_tls(d, err);
	/* The sockets first: whether another ramliftd is there is known before the port is touched. */
	if (rc >= 0)
		rc = d->rpc_fd = listen_unix(cfg->rpc_socket, 0600, err);
	if (rc >= 0)
		rc = d->vmm_fd = listen_unix(cfg->vmm_socket, 0600, err);
	if (rc >= 0)
		rc = d->listen_fd = listen_tcp(d, err);
	if (rc >= 0)
		rc = open_port(d, err);
	if (rc < 0) {
		rl_daemon_stop(d);
		return rc;
	}
	watch(d, EPOLL_CTL_ADD, d->rpc_fd, EPOLLIN, &d->rpc_fd, 0);
	watch(d, EPOLL_CTL_ADD, d->vmm_fd, EPOLLIN, &d->vmm_fd, 0);
	watch(d, EPOLL_CTL_ADD, d->listen_fd, EPOLLIN, &d->listen_fd, 0);
	*out = d;
	return 0;
}

static void
accept_peer(struct rl_daemon *d)
{
	int fd = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd >= 0)
		rl_sink_accept(d, fd);
}

static void
dispatch(struct rl_daemon *d, const struct epoll_event *e)
{
	void *ptr = (void *)(uintptr_t)(e->data.u64 & ~(uint64_t)TAG_VM);

	if (e->data.u64 & TAG_VM) {
		vm_event(d, ptr);
	} else if (ptr == &d->rpc_fd) {
		accept_rpc(d);
	} else if (ptr == &d->vmm_fd) {
		accept_vmm(d);
	} else if (ptr == &d->listen_fd) {
		accept_peer(d);
	} else if (!client_event(d, ptr, e->events)) {
		client_close(d, ptr);
	}
}

int
rl_daemon_run(struct rl_daemon *d)
{
	struct epoll_event events[32];
	sigset_t signals;
	int sig_fd;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sig_fd = signalfd(-1, &signals,
			  SFD_CLOEXEC | SFD_NONBLOCK); /* blocked by main() before threads */
	if (sig_fd < 0)
		return -errno;
	watch(d, EPOLL_CTL_ADD, sig_fd, EPOLLIN, NULL, 0);
	for (;;) {
		int n = epoll_wait(d->epoll_fd, events, 32, -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			if (events[i].data.u64 == 0) {
				close(sig_fd);
				return 0;
			}
			dispatch(d, &events[i]);
		}
	}
}

static void
stop_threads(struct rl_daemon *d)
{
	const uint64_t one = 1;

	pthread_mutex_lock(&d->lock);
	d->stopping = true;
	if (d->stop_fd >= 0 && write(d->stop_fd, &one, sizeof(one)) < 0)
		rl_warn("stopping: %s", strerror(errno));
	/* Not rl_session_cancel(): a committed session is to end its waiting, too. */
	for (struct rl_session *s = d->sessions; s != NULL; s = s->next)
		if (!s->ended && write(s->cancel_fd, &one, sizeof(one)) < 0)
			rl_warn("stopping: %s", strerror(errno));
	while (d->n_threads > 0)
		pthread_cond_wait(&d->idle, &d->lock);
	pthread_mutex_unlock(&d->lock);
}

void
rl_daemon_stop(struct rl_daemon *d)
{
	stop_threads(d);
	while (d->clients != NULL)
		client_close(d, d->clients);
	while (d->sessions != NULL) {
		struct rl_session *s = d->sessions;

		d->sessions = s->next;
		rl_session_destroy(s);
	}
	while (d->vms != NULL)
		drop_vm(d, d->vms);
	rl_workers_stop(d->workers);
	rl_tls_destroy(d->tls);
	if (d->nic != NULL)
		rl_nic_close(d->nic);
	if (d->rpc_fd >= 0)
		unlink(d->cfg.rpc_socket);
	if (d->vmm_fd >= 0)
		unlink(d->cfg.vmm_socket);
	int fds[] = {d->rpc_fd, d->vmm_fd, d->listen_fd, d->epoll_fd, d->stop_fd};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	pthread_cond_destroy(&d->idle);
	pthread_mutex_destroy(&d->lock);
	free(d);
}
