/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS 1.3 by OpenSSL, see tls.h; most of it is saying what is wrong and what helps. */
#include "control/tls.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "control/peer.h"

#define CIPHER       "TLS_AES_256_GCM_SHA384"
#define PSK_IDENTITY "ramlift"
#define PSK_MIN      32u
#define PSK_MAX      64u
#define EXPORTER     "EXPORTER-ramlift-data-v1"
#define ACCEPTED     0x01 /* what the server sends once it has accepted the client */

struct rl_tls {
	SSL_CTX *ctx;
	SSL_SESSION *psk; /* NULL: X.509 */
};

struct rl_tls_conn {
	SSL *ssl;
	bool broken; /* a fatal error: nothing more may be said */
	int refused; /* X509_V_ERR_*: why the peer's certificate was not accepted */
	char subject[128];
};

/* ---- context ---- */

/* OpenSSL's own words for the newest error. */
static const char *
reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());

	return text != NULL ? text : "unknown error";
}

/* Open a file that nobody else may read or could have written. Returns the descriptor. */
static int
open_private(const char *what, const char *path, struct rl_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	int rc;

	if (fd < 0)
		return rl_err_set(err, -errno, "cannot read %s %s: %s", what, path,
				  strerror(errno));
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		rc = rl_err_set(err, -EINVAL, "%s %s is not a file", what, path);
	else if ((st.st_mode & 077) != 0)
		rc = rl_err_set(err, -EACCES,
				"%s %s can be read or written by others (mode %04o); chmod 600 it",
				what, path, (unsigned int)st.st_mode & 07777);
	else if (st.st_uid != geteuid() && st.st_uid != 0)
		rc = rl_err_set(err, -EACCES, "%s %s belongs to another user; chown it", what,
				path);
	else
		return fd;
	close(fd);
	return rc;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the bytes that @text has, all of it hex; 0: it has something else. */
static size_t
parse_hex(const char *text, size_t len, uint8_t *out, size_t cap)
{
	size_t n = 0;

	while (len > 0 && isspace((unsigned char)text[len - 1]))
		len--;
	if (len % 2 != 0 || len / 2 > cap)
		return 0;
	for (; n < len / 2; n++) {
		int high = hex_digit(text[2 * n]), low = hex_digit(text[2 * n + 1]);

		if (high < 0 || low < 0)
			return 0;
		out[n] = (uint8_t)(high << 4 | low);
	}
	return n;
}

static int
read_psk(const char *path, uint8_t psk[PSK_MAX], size_t *len, struct rl_err *err)
{
	char text[2 * PSK_MAX + 16];
	int fd = open_private("tls-psk-file", path, err);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read(fd, text, sizeof(text));
	close(fd);
	*len = n > 0 ? parse_hex(text, (size_t)n, psk, PSK_MAX) : 0;
	OPENSSL_cleanse(text, sizeof(text));
	if (*len < PSK_MIN)
		return rl_err_set(
			err, -EINVAL,
			"tls-psk-file %s: need %u to %u bytes in hex; make one with openssl rand "
			"-hex 32",
			path, PSK_MIN, PSK_MAX);
	return 0;
}

static int
use_psk(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len, SSL_SESSION **session)
{
	struct rl_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	(void)md; /* there is one cipher suite, so one hash */
	*id = (const unsigned char *)PSK_IDENTITY;
	*id_len = strlen(PSK_IDENTITY);
	*session = SSL_SESSION_up_ref(tls->psk) ? tls->psk : NULL;
	return *session != NULL;
}

static int
find_psk(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
	struct rl_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	*session = NULL;
	if (id_len == strlen(PSK_IDENTITY) && memcmp(id, PSK_IDENTITY, id_len) == 0 &&
	    SSL_SESSION_up_ref(tls->psk))
		*session = tls->psk;
	return 1;
}

static int
setup_psk(struct rl_tls *tls, const char *path, struct rl_err *err)
{
	const unsigned char cipher_id[] = {0x13, 0x02}; /* CIPHER */
	SSL *ssl = SSL_new(tls->ctx);
	uint8_t psk[PSK_MAX];
	size_t len = 0;
	int rc = ssl != NULL ? read_psk(path, psk, &len, err)
			     : rl_err_set(err, -ENOMEM, "TLS: %s", reason());

	if (rc == 0) {
		tls->psk = SSL_SESSION_new();
		if (tls->psk == NULL || !SSL_SESSION_set1_master_key(tls->psk, psk, len) ||
		    !SSL_SESSION_set_cipher(tls->psk, SSL_CIPHER_find(ssl, cipher_id)) ||
		    !SSL_SESSION_set_protocol_version(tls->psk, TLS1_3_VERSION) ||
		    !SSL_SESSION_set1_id_context(tls->psk, (const uint8_t *)PSK_IDENTITY,
						 strlen(PSK_IDENTITY)))
			rc = rl_err_set(err, -EINVAL, "TLS: %s", reason());
	}
	OPENSSL_cleanse(psk, sizeof(psk));
	SSL_free(ssl);
	SSL_CTX_set_psk_use_session_callback(tls->ctx, use_psk);
	SSL_CTX_set_psk_find_session_callback(tls->ctx, find_psk);
	/* Nobody is trusted for a certificate: the PSK or nothing. */
	SSL_CTX_set_verify(tls->ctx, SSL_VERIFY_PEER, NULL);
	return rc;
}

/* Keep what the handshake's error does not tell: whose certificate, and why not. */
static int
on_verify(int ok, X509_STORE_CTX *x)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(x, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct rl_tls_conn *c = SSL_get_app_data(ssl);

	if (!ok && c->refused == X509_V_OK) {
		c->refused = X509_STORE_CTX_get_error(x);
		X509_NAME_oneline(X509_get_subject_name(X509_STORE_CTX_get0_cert(x)), c->subject,
				  sizeof(c->subject));
	}
	return ok;
}

static int
setup_peers(struct rl_tls *tls, const char *peers, struct rl_err *err)
{
	X509_VERIFY_PARAM *param = SSL_CTX_get0_param(tls->ctx);
	uint32_t names = 0;

	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_WILDCARDS);
	while (*peers != '\0') {
		size_t n = strcspn(peers, ", ");

		if (n == 1 && *peers == '*')
			return X509_VERIFY_PARAM_set1_host(param, NULL, 0) ? 0 : -ENOMEM;
		if (n > 0 && !X509_VERIFY_PARAM_add1_host(param, peers, n))
			return rl_err_set(err, -EINVAL, "tls-peers: '%.*s' is not a name", (int)n,
					  peers);
		names += n > 0;
		peers += n + (peers[n] != '\0');
	}
	if (names == 0)
		return rl_err_set(
			err, -EINVAL,
			"tls-peers is empty: name the hosts, as in their certificates, that "
			"guests may come from and go to; * accepts all that tls-ca signed");
	return 0;
}

static int
setup_x509(struct rl_tls *tls, const struct rl_tls_opts *o, struct rl_err *err)
{
	int fd;

	if (o->ca[0] == '\0' || o->cert[0] == '\0' || o->key[0] == '\0')
		return rl_err_set(
			err, -EINVAL,
			"tls = x509 needs tls-ca, tls-cert, tls-key and tls-peers ('scripts/setup "
			"pki' makes them for a lab); other choices: psk, and insecure-lab on a "
			"network of its own");
	if (SSL_CTX_load_verify_file(tls->ctx, o->ca) != 1)
		return rl_err_set(err, -EINVAL, "cannot read tls-ca %s: %s", o->ca, reason());
	if (SSL_CTX_use_certificate_chain_file(tls->ctx, o->cert) != 1)
		return rl_err_set(err, -EINVAL, "cannot read tls-cert %s: %s", o->cert, reason());
	fd = open_private("tls-key", o->key, err);
	if (fd < 0)
		return fd;
	close(fd);
	if (SSL_CTX_use_PrivateKey_file(tls->ctx, o->key, SSL_FILETYPE_PEM) != 1)
		return rl_err_set(err, -EINVAL, "cannot use tls-key %s with tls-cert %s: %s",
				  o->key, o->cert, reason());
	SSL_CTX_set_verify(tls->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
	return setup_peers(tls, o->peers, err);
}

int
rl_tls_create(const struct rl_tls_opts *opts, struct rl_tls **out, struct rl_err *err)
{
	struct rl_tls *tls = calloc(1, sizeof(*tls));
	int rc;

	*out = NULL;
	if (tls == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for TLS");
	ERR_clear_error();
	tls->ctx = SSL_CTX_new(TLS_method());
	if (tls->ctx == NULL || !SSL_CTX_set_min_proto_version(tls->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_max_proto_version(tls->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(tls->ctx, CIPHER)) {
		rc = rl_err_set(err, -EIO, "this OpenSSL has no TLS 1.3 with " CIPHER ": %s",
				reason());
		goto fail;
	}
	SSL_CTX_set_app_data(tls->ctx, tls);
	SSL_CTX_clear_options(tls->ctx, SSL_OP_ALLOW_NO_DHE_KEX);
	SSL_CTX_set_session_cache_mode(tls->ctx, SSL_SESS_CACHE_OFF);
	/* A PSK is to OpenSSL a session to resume, which needs a context to be resumed in. */
	SSL_CTX_set_session_id_context(tls->ctx, (const uint8_t *)PSK_IDENTITY,
				       strlen(PSK_IDENTITY));
	SSL_CTX_set_num_tickets(tls->ctx, 0);
	SSL_CTX_set_mode(tls->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE);
	if (strcmp(opts->mode, "x509") == 0)
		rc = setup_x509(tls, opts, err);
	else if (strcmp(opts->mode, "psk") == 0)
		rc = setup_psk(tls, opts->psk_file, err);
	else
		rc = rl_err_set(err, -EINVAL, "tls '%s': x509, psk or insecure-lab", opts->mode);
	if (rc == 0) {
		*out = tls;
		return 0;
	}
fail:
	rl_tls_destroy(tls);
	return rc;
}

void
rl_tls_destroy(struct rl_tls *tls)
{
	if (tls == NULL)
		return;
	SSL_SESSION_free(tls->psk);
	SSL_CTX_free(tls->ctx);
	free(tls);
}

/* ---- what went wrong in a handshake ---- */

static const struct {
	int reason;
	const char *text;
} hints[] = {
	{SSL_R_WRONG_VERSION_NUMBER, "it does not speak TLS; does it run with tls = insecure-lab?"},
	{SSL_R_UNSUPPORTED_PROTOCOL, "it has no TLS 1.3, only older; update it"},
	{SSL_R_TLSV1_ALERT_PROTOCOL_VERSION, "it has no TLS 1.3, only older; update it"},
	{SSL_R_BINDER_DOES_NOT_VERIFY, "it has another PSK; copy one tls-psk-file to both hosts"},
	{SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER,
	 "it has another PSK; copy one tls-psk-file to both hosts"},
	{SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE,
	 "it showed no certificate; give it tls = x509 and a tls-cert"},
	{SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED,
	 "it wants a certificate; give this host tls = x509 and a tls-cert"},
	{SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM,
	 "it has no PSK, this host nothing else; the same tls = is needed at both"},
	{SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE,
	 "it accepts no certificate or PSK of ours; the same tls = is needed at both"},
	{SSL_R_CERTIFICATE_VERIFY_FAILED, /* explain_certificate() has the others */
	 "it shows a certificate, this host has a PSK; the same tls = is needed at both"},
	{SSL_R_TLSV1_ALERT_UNKNOWN_CA,
	 "it does not know the CA of our tls-cert; both hosts need certificates of one CA, and the "
	 "same tls ="},
	{SSL_R_TLSV1_ALERT_DECRYPT_ERROR, /* a CA of the same name */
	 "it does not know the CA of our tls-cert, only one of that name; was the CA made anew?"},
	{SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED,
	 "it says that our tls-cert has expired; renew it, or set the clocks"},
	{SSL_R_SSLV3_ALERT_BAD_CERTIFICATE,
	 "it does not accept our tls-cert; do its tls-peers name this host?"},
	{SSL_R_UNEXPECTED_EOF_WHILE_READING,
	 "it closed the connection; is that port ramliftd's, with tls on? its log says why"},
};

static int
explain_certificate(const struct rl_tls_conn *c, struct rl_err *err)
{
	const char *why;

	switch (c->refused) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
	case X509_V_ERR_CERT_NOT_YET_VALID:
		why = "is out of date; renew it, or set the clocks";
		break;
	case X509_V_ERR_HOSTNAME_MISMATCH:
		why = "has no name that tls-peers accepts; add its name there if it may";
		break;
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		why = "was not signed by tls-ca; both hosts need certificates of one CA";
		break;
	default:
		why = X509_verify_cert_error_string(c->refused);
	}
	return rl_err_set(err, -EACCES, "TLS: the peer's certificate (%s) %s", c->subject, why);
}

/* @rc: from a wait; 0: the error is OpenSSL's. */
static int
explain(const struct rl_tls_conn *c, int rc, struct rl_err *err)
{
	unsigned long code = ERR_peek_error();

	if (rc == -ECANCELED)
		return rl_err_set(err, rc, "cancelled");
	if (rc == -ETIMEDOUT)
		return rl_err_set(err, rc,
				  "TLS: the peer does not answer; is that port ramliftd's?");
	if (rc != 0 && rc != -ECONNRESET && rc != -EPIPE)
		return rl_err_set(err, rc, "TLS: %s", strerror(-rc));
	if (c->refused != X509_V_OK)
		return explain_certificate(c, err);
	for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++)
		if (ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == hints[i].reason)
			return rl_err_set(err, -EACCES, "TLS: no agreement with the peer: %s",
					  hints[i].text);
	return rl_err_set(err, -EACCES, "TLS: no agreement with the peer: %s",
			  code != 0 ? reason() : "it closed the connection; its log says why");
}

/* ---- connections ---- */

/*
 * After an SSL_* call that returned @ret: 0, try again (it has waited as needed), or -errno, over. @c is not
 * to be used any more then, except after -ETIMEDOUT and -ECANCELED.
 */
static int
again(struct rl_tls_conn *c, int ret, int cancel_fd, uint64_t deadline_ns)
{
	int sys = errno, fd = SSL_get_fd(c->ssl);

	switch (SSL_get_error(c->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		return rl_wait_fd(fd, POLLIN, cancel_fd, deadline_ns);
	case SSL_ERROR_WANT_WRITE:
		return rl_wait_fd(fd, POLLOUT, cancel_fd, deadline_ns);
	case SSL_ERROR_ZERO_RETURN:
		return -ECONNRESET;
	case SSL_ERROR_SYSCALL:
		c->broken = true;
		return sys != 0 ? -sys : -ECONNRESET;
	default:
		c->broken = true;
		return ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING
			       ? -ECONNRESET
			       : -EBADMSG;
	}
}

int
rl_tls_read(struct rl_tls_conn *c, void *buf, size_t n, int cancel_fd, uint64_t deadline_ns)
{
	uint8_t *at = buf;
	size_t k;

	while (n > 0) {
		int ret, rc;

		ERR_clear_error();
		errno = 0;
		ret = SSL_read_ex(c->ssl, at, n, &k);
		if (ret == 1) {
			at += k;
			n -= k;
			continue;
		}
		rc = again(c, ret, cancel_fd, deadline_ns);
		if (rc != 0)
			return rc;
	}
	return 0;
}

int
rl_tls_write(struct rl_tls_conn *c, const void *buf, size_t n, int cancel_fd, uint64_t deadline_ns)
{
	const uint8_t *at = buf;
	size_t k;

	while (n > 0) {
		int ret, rc;

		ERR_clear_error();
		errno = 0;
		ret = SSL_write_ex(c->ssl, at, n, &k);
		if (ret == 1) {
			at += k;
			n -= k;
			continue;
		}
		rc = again(c, ret, cancel_fd, deadline_ns);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* To a peer that speaks no TLS OpenSSL says nothing; a ramliftd in clear knows an alert when it sees one. */
static void
tell_in_clear(int fd)
{
	static const uint8_t alert[] = {21, 3, 3, 0, 2, 2, 70}; /* fatal, protocol_version */

	if (send(fd, alert, sizeof(alert), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return; /* then it is not told */
}

static int
handshake(struct rl_tls_conn *c, bool server, int cancel_fd, uint64_t deadline_ns)
{
	uint8_t accepted = ACCEPTED;
	int ret, rc;

	do {
		ERR_clear_error();
		errno = 0;
		ret = SSL_do_handshake(c->ssl);
		rc = ret == 1 ? 0 : again(c, ret, cancel_fd, deadline_ns);
	} while (ret != 1 && rc == 0);
	if (rc != 0)
		return rc;
	if (server)
		return rl_tls_write(c, &accepted, 1, cancel_fd, deadline_ns);
	return rl_tls_read(c, &accepted, 1, cancel_fd, deadline_ns);
}

int
rl_tls_handshake(struct rl_tls *tls, int fd, bool server, int cancel_fd, uint64_t deadline_ns,
		 struct rl_tls_conn **out, struct rl_err *err)
{
	struct rl_tls_conn *c = calloc(1, sizeof(*c));
	int rc;

	*out = NULL;
	if (c == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for TLS");
	c->ssl = SSL_new(tls->ctx);
	if (c->ssl == NULL || !SSL_set_fd(c->ssl, fd)) {
		rc = rl_err_set(err, -ENOMEM, "TLS: %s", reason());
		goto fail;
	}
	SSL_set_app_data(c->ssl, c);
	if (server)
		SSL_set_accept_state(c->ssl);
	else
		SSL_set_connect_state(c->ssl);
	rc = handshake(c, server, cancel_fd, deadline_ns);
	if (rc == 0) {
		*out = c;
		return 0;
	}
	if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_WRONG_VERSION_NUMBER)
		tell_in_clear(fd);
	rc = explain(c, rc == -EBADMSG ? 0 : rc, err);
fail:
	c->broken = true;
	rl_tls_close(c);
	return rc;
}

void
rl_tls_close(struct rl_tls_conn *c)
{
	if (c == NULL)
		return;
	if (!c->broken)
		SSL_shutdown(c->ssl); /* best effort: what does not fit into the socket is lost */
	ERR_clear_error();
	SSL_free(c->ssl);
	free(c);
}

int
rl_tls_master(struct rl_tls_conn *c, const uint8_t session[16], uint8_t master[RL_TLS_MASTER_BYTES],
	      struct rl_err *err)
{
	if (SSL_export_keying_material(c->ssl, master, RL_TLS_MASTER_BYTES, EXPORTER,
				       strlen(EXPORTER), session, 16, 1) != 1)
		return rl_err_set(err, -EIO, "TLS gives no keys: %s", reason());
	return 0;
}
