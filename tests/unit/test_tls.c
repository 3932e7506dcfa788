/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS over socket pairs, one end in a thread of its own: who is let in and who is not, and that either end
 * says why in words that help.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "base/clock.h"
#include "control/peer.h"
#include "control/tls.h"

#define LONG_NS (10 * RL_NS_PER_S)

static char dir[] = "/tmp/ramlift-tls-XXXXXX";

static const char *
path(const char *name)
{
	static char text[8][64];
	static uint32_t n;
	char *p = text[n++ % 8];

	snprintf(p, sizeof(text[0]), "%s/%s", dir, name);
	return p;
}

/* ---- certificates ---- */

struct identity {
	X509 *cert;
	EVP_PKEY *key;
};

static void
add_ext(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *ext;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	assert_non_null(ext);
	X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
}

/* Signed by @ca (NULL: by itself), named @name, valid until @days from now; writes NAME.crt and NAME.key. */
static struct identity
issue(const char *name, const struct identity *ca, int days)
{
	struct identity id = {X509_new(), EVP_EC_gen("P-256")};
	X509 *issuer = ca != NULL ? ca->cert : id.cert;
	char file[32], san[64];
	static long serial;
	FILE *f;

	X509_set_version(id.cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(id.cert), ++serial);
	X509_gmtime_adj(X509_getm_notBefore(id.cert), -10 * 86400);
	X509_gmtime_adj(X509_getm_notAfter(id.cert), days * 86400L);
	X509_set_pubkey(id.cert, id.key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(id.cert), "CN", MBSTRING_ASC,
				   (const uint8_t *)name, -1, -1, 0);
	X509_set_issuer_name(id.cert, X509_get_subject_name(issuer));
	add_ext(id.cert, issuer, NID_basic_constraints,
		ca != NULL ? "CA:FALSE" : "critical,CA:TRUE");
	if (ca != NULL && strcmp(name, "common") != 0) {
		snprintf(san, sizeof(san), "DNS:%s", name);
		add_ext(id.cert, issuer, NID_subject_alt_name, san);
	}
	X509_sign(id.cert, ca != NULL ? ca->key : id.key, EVP_sha256());
	snprintf(file, sizeof(file), "%s.crt", name[0] == '*' ? "wild" : name);
	f = fopen(path(file), "w");
	assert_non_null(f);
	PEM_write_X509(f, id.cert);
	fclose(f);
	snprintf(file, sizeof(file), "%s.key", name[0] == '*' ? "wild" : name);
	f = fopen(path(file), "w");
	assert_non_null(f);
	PEM_write_PrivateKey(f, id.key, NULL, NULL, 0, NULL, NULL);
	fclose(f);
	assert_int_equal(chmod(path(file), 0600), 0);
	return id;
}

static void
drop(struct identity *id)
{
	X509_free(id->cert);
	EVP_PKEY_free(id->key);
}

static void
write_file(const char *name, const char *text, mode_t mode)
{
	FILE *f = fopen(path(name), "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(path(name), mode), 0);
}

#define PSK_A "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
#define PSK_B "10112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static int
setup(void **state)
{
	struct identity ca, other, id;
	const char *names[] = {"alpha", "beta", "gamma", "common", "*.test.lab"};

	(void)state;
	if (mkdtemp(dir) == NULL)
		return -1;
	ca = issue("ca", NULL, 10);
	other = issue("other-ca", NULL, 10);
	assert_int_equal(link(path("ca.crt"), path("old-ca.crt")), 0);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		id = issue(names[i], &ca, 10);
		drop(&id);
	}
	id = issue("old", &ca, -1);
	drop(&id);
	id = issue("stranger", &other, 10);
	drop(&id);
	drop(&ca);
	assert_int_equal(unlink(path("ca.crt")), 0);
	ca = issue("ca", NULL, 10); /* made anew: same name, another key */
	id = issue("newer", &ca, 10);
	drop(&id);
	drop(&ca);
	drop(&other);
	assert_int_equal(rename(path("ca.crt"), path("new-ca.crt")), 0);
	assert_int_equal(rename(path("old-ca.crt"), path("ca.crt")), 0);
	write_file("psk-a", PSK_A "\n", 0600);
	write_file("psk-b", PSK_B, 0600);
	return 0;
}

static int
teardown(void **state)
{
	char cmd[64];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

/* ---- two ends ---- */

static struct rl_tls_opts
x509(const char *name, const char *peers, const char *ca)
{
	char crt[32], key[32];

	snprintf(crt, sizeof(crt), "%s.crt", name);
	snprintf(key, sizeof(key), "%s.key", name);
	return (struct rl_tls_opts){.mode = "x509",
				    .ca = path(ca),
				    .cert = path(crt),
				    .key = path(key),
				    .peers = peers,
				    .psk_file = ""};
}

static struct rl_tls_opts
psk(const char *file)
{
	return (struct rl_tls_opts){"psk", "", "", "", "", path(file)};
}

struct end {
	struct rl_tls *tls;
	struct rl_tls_conn *c;
	struct rl_err err;
	int fd, cancel_fd, rc;
	bool server;
};

static struct rl_tls *
context(struct rl_tls_opts o)
{
	struct rl_tls *tls;
	struct rl_err err = {0};

	if (rl_tls_create(&o, &tls, &err) != 0)
		fail_msg("%s", err.text);
	return tls;
}

static void *
shake(void *arg)
{
	struct end *e = arg;

	e->rc = rl_tls_handshake(e->tls, e->fd, e->server, e->cancel_fd, rl_now_ns() + LONG_NS,
				 &e->c, &e->err);
	if (e->rc != 0) /* as its owner would: the other end must not wait for the deadline */
		shutdown(e->fd, SHUT_RDWR);
	return NULL;
}

static void
pair(struct end end[2], struct rl_tls_opts client, struct rl_tls_opts server)
{
	int fd[2];

	memset(end, 0, 2 * sizeof(end[0]));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd), 0);
	for (int i = 0; i < 2; i++) {
		end[i].tls = context(i ? server : client);
		end[i].fd = fd[i];
		end[i].cancel_fd = -1;
		end[i].server = i;
	}
}

static void
shake_both(struct end end[2])
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, shake, &end[1]), 0);
	shake(&end[0]);
	pthread_join(thread, NULL);
}

static void
finish(struct end end[2])
{
	for (int i = 0; i < 2; i++) {
		rl_tls_close(end[i].c);
		rl_tls_destroy(end[i].tls);
		close(end[i].fd);
	}
}

static void
meet(struct end end[2], struct rl_tls_opts client, struct rl_tls_opts server)
{
	pair(end, client, server);
	shake_both(end);
	if (end[0].rc != 0 || end[1].rc != 0)
		fail_msg("client: %s; server: %s", end[0].err.text, end[1].err.text);
}

/* Both ends refuse, each with these words. */
static void
refuse(struct rl_tls_opts client, struct rl_tls_opts server, const char *client_says,
       const char *server_says)
{
	struct end end[2];
	uint64_t start = rl_now_ns();

	pair(end, client, server);
	shake_both(end);
	for (int i = 0; i < 2; i++) {
		const char *want = i ? server_says : client_says;

		assert_null(end[i].c);
		assert_int_equal(end[i].rc, -EACCES);
		assert_int_equal(end[i].err.code, -EACCES);
		if (strstr(end[i].err.text, want) == NULL)
			fail_msg("%s says '%s', not '%s'", i ? "server" : "client", end[i].err.text,
				 want);
	}
	assert_true(rl_now_ns() - start < LONG_NS / 2); /* by what was said, not by a deadline */
	finish(end);
}

/* ---- the good cases ---- */

struct transfer {
	struct rl_tls_conn *c;
	const uint8_t *out;
	size_t n;
	int rc;
};

static void *
transfer(void *arg)
{
	struct transfer *t = arg;

	t->rc = rl_tls_write(t->c, t->out, t->n, -1, rl_now_ns() + LONG_NS);
	return NULL;
}

static void
check_works(struct rl_tls_opts client, struct rl_tls_opts server)
{
	static const uint8_t id[2][16] = {{1}, {2}};
	const size_t n = 3000000; /* far more than the socket holds */
	uint8_t *out = malloc(n), *in = malloc(n), key[4][32], byte = 7;
	struct end end[2];
	uint8_t again[32];
	pthread_t thread;

	assert_true(out != NULL && in != NULL);
	for (size_t i = 0; i < n; i++)
		out[i] = (uint8_t)(i * 7 + i / 251);
	meet(end, client, server);
	for (int from = 0; from < 2; from++) {
		struct transfer t = {end[from].c, out, n, -1};

		memset(in, 0, n);
		assert_int_equal(pthread_create(&thread, NULL, transfer, &t), 0);
		assert_int_equal(rl_tls_read(end[!from].c, in, n, -1, rl_now_ns() + LONG_NS), 0);
		pthread_join(thread, NULL);
		assert_int_equal(t.rc, 0);
		assert_memory_equal(in, out, n);
	}
	/* Nothing that was not sent by us makes the socket readable: sessions poll it. */
	assert_int_equal(recv(end[0].fd, in, 1, MSG_PEEK | MSG_DONTWAIT), -1);
	assert_int_equal(recv(end[1].fd, in, 1, MSG_PEEK | MSG_DONTWAIT), -1);

	/* One secret per migration and connection, the same at both ends. */
	for (int i = 0; i < 4; i++)
		assert_int_equal(rl_tls_master(end[i & 1].c, id[i / 2], key[i], NULL), 0);
	assert_memory_equal(key[0], key[1], 32);
	assert_memory_equal(key[2], key[3], 32);
	assert_memory_not_equal(key[0], key[2], 32);
	rl_tls_close(end[0].c);
	end[0].c = NULL;
	assert_int_equal(rl_tls_read(end[1].c, &byte, 1, -1, rl_now_ns() + LONG_NS), -ECONNRESET);
	finish(end);

	meet(end, client, server);
	assert_int_equal(rl_tls_master(end[0].c, id[0], again, NULL), 0);
	assert_memory_not_equal(key[0], again, 32);
	finish(end);
	free(out);
	free(in);
}

static void
test_x509(void **state)
{
	(void)state;
	check_works(x509("alpha", "beta", "ca.crt"), x509("beta", "gamma, alpha", "ca.crt"));
	check_works(x509("alpha", "*", "ca.crt"), x509("beta", "x,*", "ca.crt"));
	/* A certificate without alternative names: its common name. */
	check_works(x509("common", "alpha", "ca.crt"), x509("alpha", "common", "ca.crt"));
}

static void
test_psk(void **state)
{
	(void)state;
	check_works(psk("psk-a"), psk("psk-a"));
}

/* ---- the bad cases ---- */

static void
test_certificates_refused(void **state)
{
	(void)state;
	refuse(x509("alpha", "*", "ca.crt"), x509("stranger", "*", "ca.crt"),
	       "not signed by tls-ca", "does not know the CA");
	refuse(x509("stranger", "*", "ca.crt"), x509("beta", "*", "ca.crt"), "does not know the CA",
	       "not signed by tls-ca");
	refuse(x509("alpha", "*", "ca.crt"), x509("newer", "*", "ca.crt"), "not signed by tls-ca",
	       "was the CA made anew?");
	refuse(x509("alpha", "*", "ca.crt"), x509("old", "*", "ca.crt"), "out of date",
	       "our tls-cert has expired");
	refuse(x509("old", "*", "ca.crt"), x509("beta", "*", "ca.crt"), "our tls-cert has expired",
	       "out of date");
	refuse(x509("alpha", "beta", "ca.crt"), x509("gamma", "*", "ca.crt"),
	       "no name that tls-peers", "do its tls-peers name this host?");
	refuse(x509("gamma", "*", "ca.crt"), x509("beta", "alpha", "ca.crt"),
	       "do its tls-peers name this host?", "CN=gamma");
	/* Neither does a wildcard match, nor a part of a name. */
	refuse(x509("wild", "*", "ca.crt"), x509("beta", "a.test.lab", "ca.crt"), "tls-peers",
	       "tls-peers");
	refuse(x509("alpha", "*", "ca.crt"), x509("beta", "alph,lpha,alpha.lab", "ca.crt"),
	       "tls-peers", "tls-peers");
}

static void
test_psk_refused(void **state)
{
	(void)state;
	refuse(psk("psk-a"), psk("psk-b"), "another PSK", "another PSK");
	refuse(psk("psk-a"), x509("beta", "*", "ca.crt"), "the same tls =", "the same tls =");
	refuse(x509("alpha", "*", "ca.crt"), psk("psk-a"), "the same tls =", "the same tls =");
}

/* A peer of another make: plain OpenSSL on @fd, as @method with at most @max. */
struct other {
	int fd, max;
	bool server, with_cert;
	SSL_CTX *ctx;
	SSL *ssl;
};

static void *
other_main(void *arg)
{
	struct other *o = arg;
	uint8_t byte;

	o->ctx = SSL_CTX_new(TLS_method());
	SSL_CTX_set_max_proto_version(o->ctx, o->max);
	if (o->with_cert) {
		SSL_CTX_use_certificate_file(o->ctx, path("beta.crt"), SSL_FILETYPE_PEM);
		SSL_CTX_use_PrivateKey_file(o->ctx, path("beta.key"), SSL_FILETYPE_PEM);
	}
	o->ssl = SSL_new(o->ctx);
	SSL_set_fd(o->ssl, o->fd);
	if ((o->server ? SSL_accept(o->ssl) : SSL_connect(o->ssl)) == 1)
		SSL_read(o->ssl, &byte, 1);
	shutdown(o->fd, SHUT_RDWR);
	SSL_free(o->ssl);
	SSL_CTX_free(o->ctx);
	return NULL;
}

static void
refuse_other(struct other o, const char *says)
{
	struct end end[2];
	pthread_t thread;

	pair(end, x509("alpha", "*", "ca.crt"), x509("alpha", "*", "ca.crt"));
	o.fd = end[o.server].fd;
	fcntl(o.fd, F_SETFL, 0); /* it blocks */
	assert_int_equal(pthread_create(&thread, NULL, other_main, &o), 0);
	shake(&end[!o.server]);
	pthread_join(thread, NULL);
	assert_int_equal(end[!o.server].rc, -EACCES);
	if (strstr(end[!o.server].err.text, says) == NULL)
		fail_msg("says '%s', not '%s'", end[!o.server].err.text, says);
	finish(end);
}

static void
test_other_makes(void **state)
{
	(void)state;
	refuse_other((struct other){.max = TLS1_2_VERSION, .with_cert = true}, "no TLS 1.3");
	refuse_other((struct other){.max = TLS1_2_VERSION, .server = true, .with_cert = true},
		     "no TLS 1.3");
	refuse_other((struct other){.max = TLS1_3_VERSION}, "showed no certificate");
}

/* What comes is not TLS at all, is nothing, or ends at once. */
static void
test_not_tls(void **state)
{
	static const char hello[] = "RLC1\x20\0\0\0\0\0\0\0\0\0\0\0{\"type\":\"hello\",\"wire\":1}";
	struct end end[2];

	(void)state;
	for (int i = 0; i < 2; i++) {
		pair(end, psk("psk-a"), psk("psk-a"));
		assert_int_equal(write(end[!i].fd, hello, sizeof(hello)), sizeof(hello));
		shake(&end[i]);
		assert_int_equal(end[i].rc, -EACCES);
		assert_non_null(strstr(end[i].err.text, "does not speak TLS"));
		finish(end);

		pair(end, psk("psk-a"), psk("psk-a"));
		shutdown(end[!i].fd, SHUT_RDWR);
		shake(&end[i]);
		assert_int_equal(end[i].rc, -EACCES);
		assert_non_null(strstr(end[i].err.text, "closed the connection"));
		finish(end);
	}
}

/* The end that is in clear is told, too, whichever end that is. */
static void
test_only_one_speaks_tls(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct rl_peer clear = {.cancel_fd = -1};
		struct rl_peer_msg msg;
		struct rl_err err = {0};
		struct end end[2];
		pthread_t thread;

		pair(end, psk("psk-a"), psk("psk-a"));
		clear.fd = end[i].fd;
		assert_int_equal(rl_peer_send(&clear, json_pack("{ss}", "type", "hello"), NULL, 0,
					      rl_now_ns() + LONG_NS, &err),
				 0);
		pthread_create(&thread, NULL, shake, &end[!i]);
		assert_int_equal(rl_peer_recv(&clear, &msg, rl_now_ns() + LONG_NS, &err), -EPROTO);
		assert_non_null(strstr(err.text, "the peer speaks TLS"));
		pthread_join(thread, NULL);
		assert_non_null(strstr(end[!i].err.text, "does not speak TLS"));
		finish(end);
	}
}

static void *
cancel_soon(void *arg)
{
	const struct timespec soon = {.tv_nsec = 20000000};

	nanosleep(&soon, NULL);
	eventfd_write(*(int *)arg, 1);
	return NULL;
}

/* A silent peer holds nobody up: deadlines and cancel, in the handshake, in reads and in writes. */
static void
test_silence(void **state)
{
	static uint8_t big[4000000];
	uint64_t start = rl_now_ns();
	struct end end[2];
	pthread_t thread;
	int cancel = eventfd(0, EFD_CLOEXEC);
	uint64_t n;

	(void)state;
	for (int i = 0; i < 2; i++) {
		pair(end, psk("psk-a"), psk("psk-a"));
		assert_int_equal(rl_tls_handshake(end[i].tls, end[i].fd, i, -1,
						  rl_now_ns() + 20 * RL_NS_PER_MS, &end[i].c,
						  &end[i].err),
				 -ETIMEDOUT);
		end[i].cancel_fd = cancel;
		pthread_create(&thread, NULL, cancel_soon, &cancel);
		shake(&end[i]);
		pthread_join(thread, NULL);
		assert_int_equal(end[i].rc, -ECANCELED);
		assert_int_equal(read(cancel, &n, sizeof(n)), sizeof(n));
		finish(end);
	}
	meet(end, psk("psk-a"), psk("psk-a"));
	assert_int_equal(rl_tls_read(end[0].c, big, 1, -1, rl_now_ns() + 20 * RL_NS_PER_MS),
			 -ETIMEDOUT);
	/* A timeout breaks nothing. */
	assert_int_equal(rl_tls_write(end[1].c, "x", 1, -1, rl_now_ns() + LONG_NS), 0);
	assert_int_equal(rl_tls_read(end[0].c, big, 1, -1, rl_now_ns() + LONG_NS), 0);
	assert_int_equal(big[0], 'x');
	pthread_create(&thread, NULL, cancel_soon, &cancel);
	assert_int_equal(rl_tls_read(end[0].c, big, 1, cancel, rl_now_ns() + LONG_NS), -ECANCELED);
	pthread_join(thread, NULL);
	assert_int_equal(rl_tls_write(end[0].c, big, sizeof(big), cancel, rl_now_ns() + LONG_NS),
			 -ECANCELED);
	assert_int_equal(
		rl_tls_write(end[1].c, big, sizeof(big), -1, rl_now_ns() + 20 * RL_NS_PER_MS),
		-ETIMEDOUT);
	finish(end);
	close(cancel);
	assert_true(rl_now_ns() - start < LONG_NS);
}

/* A forged record and a cut connection are told apart. */
static void
test_tampering(void **state)
{
	uint8_t forged[5 + 40] = {23, 3, 3, 0, 40}, byte;
	struct end end[2];

	(void)state;
	meet(end, psk("psk-a"), psk("psk-a"));
	assert_int_equal(write(end[0].fd, forged, sizeof(forged)), sizeof(forged));
	assert_int_equal(rl_tls_read(end[1].c, &byte, 1, -1, rl_now_ns() + LONG_NS), -EBADMSG);
	finish(end);
	meet(end, psk("psk-a"), psk("psk-a"));
	shutdown(end[0].fd, SHUT_RDWR);
	assert_int_equal(rl_tls_read(end[1].c, &byte, 1, -1, rl_now_ns() + LONG_NS), -ECONNRESET);
	finish(end);
	meet(end, psk("psk-a"), psk("psk-a"));
	shutdown(end[0].fd, SHUT_RDWR);
	byte = 1;
	assert_int_equal(rl_tls_write(end[1].c, &byte, 1, -1, rl_now_ns() + LONG_NS), -EPIPE);
	finish(end);
}

/* ---- configuration ---- */

static void
refuse_opts(struct rl_tls_opts o, const char *says)
{
	struct rl_tls *tls;
	struct rl_err err = {0};

	assert_true(rl_tls_create(&o, &tls, &err) < 0);
	assert_null(tls);
	if (strstr(err.text, says) == NULL)
		fail_msg("says '%s', not '%s'", err.text, says);
}

static void
test_configuration(void **state)
{
	struct rl_tls_opts o = x509("alpha", "beta", "ca.crt");

	(void)state;
	write_file("psk-open", PSK_A, 0640);
	refuse_opts(psk("psk-open"), "chmod 600");
	write_file("psk-other", PSK_A, 0602);
	refuse_opts(psk("psk-other"), "mode 0602");
	write_file("psk-short", "00112233445566778899aabbccddeeff", 0600);
	refuse_opts(psk("psk-short"), "openssl rand -hex 32");
	write_file("psk-odd", PSK_A "0", 0600);
	refuse_opts(psk("psk-odd"), "openssl rand -hex 32");
	write_file("psk-text", "correct horse battery staple, and then some more of that kind...",
		   0600);
	refuse_opts(psk("psk-text"), "openssl rand -hex 32");
	write_file("psk-long", PSK_A PSK_A "00", 0600);
	refuse_opts(psk("psk-long"), "openssl rand -hex 32");
	refuse_opts(psk("nowhere"), "No such file");
	refuse_opts(psk("."), "not a file");

	o.mode = "ssl";
	refuse_opts(o, "x509, psk or insecure-lab");
	o = x509("alpha", "", "ca.crt");
	refuse_opts(o, "tls-peers is empty");
	o = x509("alpha", " , ", "ca.crt");
	refuse_opts(o, "tls-peers is empty");
	o = x509("alpha", "beta", "ca.crt");
	o.cert = "";
	refuse_opts(o, "scripts/setup pki");
	o.cert = path("nowhere");
	refuse_opts(o, "tls-cert");
	o = x509("alpha", "beta", "nowhere");
	refuse_opts(o, "tls-ca");
	o = x509("alpha", "beta", "ca.crt");
	o.key = path("beta.key");
	refuse_opts(o, "tls-key");
	assert_int_equal(chmod(path("gamma.key"), 0644), 0);
	o = x509("gamma", "beta", "ca.crt");
	refuse_opts(o, "chmod 600");
	assert_int_equal(chmod(path("gamma.key"), 0600), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_x509),
		cmocka_unit_test(test_psk),
		cmocka_unit_test(test_certificates_refused),
		cmocka_unit_test(test_psk_refused),
		cmocka_unit_test(test_other_makes),
		cmocka_unit_test(test_not_tls),
		cmocka_unit_test(test_only_one_speaks_tls),
		cmocka_unit_test(test_silence),
		cmocka_unit_test(test_tampering),
		cmocka_unit_test(test_configuration),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, setup, teardown);
}
