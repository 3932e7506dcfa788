/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a VMM may send to the engine: registration, then the replies to a migration's requests.
 *
 * The input is pieces as they come through the socket: a byte whose low nibble is the number of descriptors (more
 * than allowed, too) and whose high nibble says of what kind; a length byte (0xff: a word in the next two); that
 * many bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/vmm.h"
#include "fuzz.h"

#define MAX_PIECES 128
#define N_KINDS    4
#define WAIT_NS    (10 * RL_NS_PER_S) /* never waited for: the socket is shut behind the input */

struct kinds {
	int fd[N_KINDS]; /* guest RAM, shared page, doorbell, not a memfd */
};

static void
send_piece(int sock, const uint8_t *data, size_t bytes, uint32_t n_fds, uint32_t kind,
	   const struct kinds *kinds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(15 * sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)data, bytes};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (n_fds > 0) {
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		for (uint32_t i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &kinds->fd[(kind + i) % N_KINDS],
			       sizeof(int));
	}
	FUZZ_CHECK(sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes);
}

static void
send_pieces(int sock, const uint8_t *data, size_t size, const struct kinds *kinds)
{
	size_t at = 0;

	for (uint32_t n = 0; n < MAX_PIECES && size - at >= 5; n++) {
		uint8_t how = data[at++];
		size_t bytes = data[at++];

		if (bytes == 0xff) {
			bytes = (size_t)data[at] | (size_t)data[at + 1] << 8;
			at += 2;
		}
		bytes = bytes == 0 ? 1 : bytes;
		if (bytes > size - at)
			bytes = size - at;
		if (bytes == 0)
			break;
		send_piece(sock, data + at, bytes, how & 15, how >> 4, kinds);
		at += bytes;
	}
	shutdown(sock, SHUT_WR);
}

static int
may_register(void *ctx, const struct rl_vmm_hello *hello, struct rl_err *err)
{
	(void)ctx;
	(void)err;
	FUZZ_CHECK(memchr(hello->name, 0, sizeof(hello->name)) != NULL && hello->name[0] != '\0');
	FUZZ_CHECK(memchr(hello->last.peer, 0, sizeof(hello->last.peer)) != NULL);
	FUZZ_CHECK(hello->n_vcpus > 0 && hello->n_vcpus <= RL_VMM_MAX_VCPUS);
	return 0;
}

/* The requests of a migration, whatever the VMM replied beforehand. */
static void
migrate(struct rl_vm *vm)
{
	static const uint8_t uuid[16] = {1};
	struct rl_err err = {0};
	uint8_t *state = NULL;
	uint64_t size;
	int rc;

	FUZZ_CHECK(vm->ram.n > 0 && vm->shared != NULL);
	rl_vm_online(vm, &err);
	rc = rl_vm_session_begin(vm, uuid, vm->hello.phase == RL_VMM_INCOMING, "198.18.0.2:7410",
				 &err);
	if (rc == 0)
		rc = rl_vm_call(vm, RL_VMM_PAUSE, NULL, 0, WAIT_NS, &err);
	if (rc == 0 && rl_vm_state_get(vm, &state, &size, &err) == 0) {
		FUZZ_CHECK(size > 0 && size <= RL_VMM_STATE_MAX);
		rc = rl_vm_state_put(vm, state, size, &err);
		free(state);
	}
	rc = rl_vm_session_end(vm, RL_VMM_ABORTED, &err);
	FUZZ_CHECK(rc == 0 || (rc == err.code && err.text[0] != '\0'));
}

/* The lowest number that is free. */
static int
next_fd(int fd)
{
	int probe = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	close(probe);
	return probe;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kinds kinds = {{memfd_create("ram", MFD_CLOEXEC),
			       memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING),
			       eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			       open("/dev/null", O_RDONLY | O_CLOEXEC)}};
	struct rl_err err = {0};
	struct rl_vm *vm = NULL;
	int pair[2], probe;

	if (size > 32768)
		goto out;
	FUZZ_CHECK(ftruncate(kinds.fd[0], 64 << 12) == 0 && ftruncate(kinds.fd[1], 8192) == 0);
	FUZZ_CHECK(fcntl(kinds.fd[1], F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	probe = next_fd(kinds.fd[0]);
	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	send_pieces(pair[0], data, size, &kinds);
	if (rl_vm_register(pair[1], WAIT_NS, may_register, NULL, &vm, &err) == 0)
		migrate(vm);
	else
		FUZZ_CHECK(vm == NULL && err.code < 0 && err.text[0] != '\0');
	rl_vm_destroy(vm);
	close(pair[0]);
	FUZZ_CHECK(next_fd(kinds.fd[0]) == probe); /* nothing stayed open */
out:
	for (int i = 0; i < N_KINDS; i++)
		close(kinds.fd[i]);
	return 0;
}
