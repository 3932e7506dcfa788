/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_VMM_MSG_H
#define RL_VMM_MSG_H
/**
 * @file msg.h
 * Framing of the VMM socket: one message with its file descriptors, sent or received whole.
 *
 * The other side is not trusted: a header that does not fit, more descriptors than allowed, or a message
 * that stops half-way ends the connection, and no descriptor stays open.
 *
 * Threads: one at a time per socket.
 * Units:   milliseconds.
 * Errors:  0 or -errno: -ECONNRESET (closed between two messages), -EPROTO (not a message),
 *          -ETIMEDOUT, -ECANCELED (stop_fd is readable), whatever the socket says.
 */
#include <stdbool.h>
#include <stdint.h>

#include <ramlift/vmm.h>

/* Once its first byte is there, the rest of a message has this long. */
#define RL_VMM_MSG_REST_MS 5000

struct rl_vmm_conn {
	int sock;    /* non-blocking stream socket; owned */
	int stop_fd; /* readable: give up; borrowed, -1: none */
};

struct rl_vmm_msg {
	uint32_t request;
	bool is_reply;
	uint32_t size; /* of the payload; at most RL_VMM_MAX_PAYLOAD */
	uint32_t n_fds;
	int fd[RL_VMM_MAX_FDS]; /* owned; -1 where taken */
	_Alignas(8) uint8_t payload[RL_VMM_MAX_PAYLOAD];
};

/** Receive one message. @first_ms: how long its first byte may take; -1: for ever. On success @msg owns its
 * descriptors until rl_vmm_msg_close_fds(). */
int rl_vmm_msg_recv(const struct rl_vmm_conn *conn, int first_ms, struct rl_vmm_msg *msg);

/** Close the descriptors that nobody took. */
void rl_vmm_msg_close_fds(struct rl_vmm_msg *msg);

/** Send @msg; its descriptors stay the caller's. */
int rl_vmm_msg_send(const struct rl_vmm_conn *conn, const struct rl_vmm_msg *msg);

#endif /* RL_VMM_MSG_H */
