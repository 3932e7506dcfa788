/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_PEER_H
#define RL_CONTROL_PEER_H
/**
 * @file peer.h
 * The control channel between two ramliftd: kernel TCP, TLS 1.3 on it (tls.h), messages of a JSON object and an
 * optional blob.
 *
 *   0 u32 magic "RLC1"   4 u32 bytes of JSON (<= 1 MiB)   8 u64 bytes of blob (<= 256 MiB)   then both
 *
 * Little-endian. Every object has a string "type". docs/wire.md lists the messages.
 *
 * Threads: a channel belongs to one session thread, which blocks in it: every wait has a deadline and ends at
 *          once when the session's cancel_fd becomes readable.
 * Units:   absolute monotonic ns for deadlines.
 * Errors:  0 or -errno with cause: -ETIMEDOUT, -ECANCELED, -ECONNRESET (the peer is gone), -EPROTO
 *          (garbage), -EREMOTEIO (the peer sent an "error" message; its text is in @err).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <jansson.h>

#include "base/err.h"

#define RL_PEER_MAGIC    0x31434c52u
#define RL_PEER_HDR      16u
#define RL_PEER_MAX_JSON (1u << 20)
#define RL_PEER_MAX_BLOB (256u << 20)

struct rl_tls;
struct rl_tls_conn;

struct rl_peer {
	int fd;                  /* -1: closed */
	struct rl_tls_conn *tls; /* NULL: in clear, the insecure lab */
	int cancel_fd;           /* borrowed; -1: none */
	uint64_t max_blob;       /* that we are ready to receive; 0 until we know whom we talk to */
};

struct rl_peer_msg {
	json_t *json;
	const char *type; /* inside json */
	uint8_t *blob;    /* NULL when empty */
	size_t blob_bytes;
};

int rl_peer_connect(struct rl_peer *p, const struct sockaddr_storage *to, socklen_t len,
		    uint64_t deadline_ns, struct rl_err *err);
/** Shake hands on a fresh connection, as the end that accepted it (@server) or made it. NULL: stay in clear. */
int rl_peer_secure(struct rl_peer *p, struct rl_tls *tls, bool server, uint64_t deadline_ns,
		   struct rl_err *err);
void rl_peer_close(struct rl_peer *p);

/** Takes @json (decrefs it also on failure). */
int rl_peer_send(struct rl_peer *p, json_t *json, const void *blob, size_t blob_bytes,
		 uint64_t deadline_ns, struct rl_err *err);

/** The next message; free it with rl_peer_msg_free(). */
int rl_peer_recv(struct rl_peer *p, struct rl_peer_msg *msg, uint64_t deadline_ns,
		 struct rl_err *err);
/** The next message, which must be a @type. */
int rl_peer_expect(struct rl_peer *p, const char *type, struct rl_peer_msg *msg,
		   uint64_t deadline_ns, struct rl_err *err);
void rl_peer_msg_free(struct rl_peer_msg *msg);

/** Tell the peer why we give up; best effort. */
void rl_peer_send_error(struct rl_peer *p, const struct rl_err *why);

/** Read and check the 16-byte header. Pure; for the parser's fuzz target. -EPROTO. */
int rl_peer_header(const uint8_t *buf, uint32_t *json_bytes, uint64_t *blob_bytes);

/** @text as a JSON string. What came from a VMM or was cut need not be UTF-8: then '?' for what is not ASCII. */
json_t *rl_peer_text(const char *text);

/** Wait until @fd has one of @events (poll.h). 0, -ETIMEDOUT, -ECANCELED. */
int rl_wait_fd(int fd, short events, int cancel_fd, uint64_t deadline_ns);

/** The same for readable. */
int rl_wait_readable(int fd, int cancel_fd, uint64_t deadline_ns);

#endif /* RL_CONTROL_PEER_H */
