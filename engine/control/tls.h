/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_TLS_H
#define RL_CONTROL_TLS_H
/**
 * @file tls.h
 * TLS 1.3, and nothing older, on the control channel; both ends prove who they are:
 *
 *   x509   each shows a certificate that @ca signed and that has one of the names in @peers, as a DNS name
 *          (or, without any, as common name). "*" in @peers accepts whatever @ca signed. Wildcards in
 *          certificates count for nothing; there is no revocation: take the name out of @peers.
 *   psk    each has the same 32 to 64 bytes, in hex, in a file that only its owner may read; always with an
 *          ephemeral key exchange (psk_dhe_ke), so that the file opens no recorded migration.
 *
 * After the handshake the server sends one byte, once it has accepted the client: so that the client learns here,
 * not in its first message, that it was refused. No tickets, no resumption, no early data. SIGPIPE must be ignored.
 *
 * Threads: create/destroy [control]; a context serves any number of threads; a connection belongs to one session
 *          thread, which blocks in it: every wait has a deadline and ends at once when cancel_fd is readable.
 * Units:   absolute monotonic ns for deadlines.
 * Errors:  0 or -errno. Handshakes: -EACCES with cause and remedy, -ETIMEDOUT, -ECANCELED. Read and write:
 *          -ECONNRESET (the peer is gone), -EBADMSG (a record was damaged or forged), -ETIMEDOUT, -ECANCELED.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RL_TLS_MASTER_BYTES 32u

struct rl_tls_opts {
	const char *mode;            /* "x509" or "psk" */
	const char *ca, *cert, *key; /* PEM files */
	const char *peers;           /* names, separated by commas */
	const char *psk_file;
};

struct rl_tls;      /* opaque: what this end is and whom it accepts */
struct rl_tls_conn; /* opaque: one connection */

int rl_tls_create(const struct rl_tls_opts *opts, struct rl_tls **tls, struct rl_err *err);
void rl_tls_destroy(struct rl_tls *tls); /* NULL is fine; connections may outlive it */

/** On @fd, which is connected, non-blocking, borrowed, and closed only after rl_tls_close(). */
int rl_tls_handshake(struct rl_tls *tls, int fd, bool server, int cancel_fd, uint64_t deadline_ns,
		     struct rl_tls_conn **conn, struct rl_err *err);
/** Says good-bye if there is someone to hear it. NULL is fine. */
void rl_tls_close(struct rl_tls_conn *c);

/** All @n bytes. A message that begins a record and ends one leaves nothing behind that poll() can't see. */
int rl_tls_read(struct rl_tls_conn *c, void *buf, size_t n, int cancel_fd, uint64_t deadline_ns);
int rl_tls_write(struct rl_tls_conn *c, const void *buf, size_t n, int cancel_fd,
		 uint64_t deadline_ns);

/** The master secret of the migration with id @session (RFC 8446 7.5); both ends get the same. -EIO. */
int rl_tls_master(struct rl_tls_conn *c, const uint8_t session[16],
		  uint8_t master[RL_TLS_MASTER_BYTES], struct rl_err *err);

#endif /* RL_CONTROL_TLS_H */
