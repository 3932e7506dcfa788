/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control channel over real sockets: framing, messages in pieces, garbage, deadlines, cancelling, a peer
 * that goes, and what may be sent when nobody knows yet who is there.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "control/peer.h"

#define SOON_NS (10 * RL_NS_PER_S)   /* never waited for */
#define NOW_NS  (100 * RL_NS_PER_MS) /* waited for on purpose */

/* Two ends of a TCP connection over loopback: `a` to be tested, `b` the other one. */
struct pair {
	struct rl_peer a, b;
	int cancel_fd;
};

static uint64_t
after(uint64_t ns)
{
	return rl_now_ns() + ns;
}

static int
listen_loopback(struct sockaddr_storage *ss, socklen_t *len)
{
	struct sockaddr_in *in = (struct sockaddr_in *)ss;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(ss, 0, sizeof(*ss));
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*len = sizeof(*in);
	assert_int_equal(bind(fd, (struct sockaddr *)ss, *len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)ss, len), 0);
	return fd;
}

static int
connect_pair(void **state)
{
	static struct pair p;
	struct sockaddr_storage ss;
	struct rl_err err = {0};
	socklen_t len;
	int fd = listen_loopback(&ss, &len);

	p.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p.a = (struct rl_peer){.fd = -1, .cancel_fd = p.cancel_fd, .max_blob = RL_PEER_MAX_BLOB};
	if (rl_peer_connect(&p.a, &ss, len, after(SOON_NS), &err) != 0)
		fail_msg("%s", err.text);
	p.b = (struct rl_peer){.fd = accept(fd, NULL, NULL), .cancel_fd = -1};
	p.b.max_blob = RL_PEER_MAX_BLOB;
	assert_true(p.b.fd >= 0);
	close(fd);
	*state = &p;
	return 0;
}

static int
close_pair(void **state)
{
	struct pair *p = *state;

	rl_peer_close(&p->a);
	rl_peer_close(&p->b);
	rl_peer_close(&p->b); /* a second time is harmless */
	close(p->cancel_fd);
	return 0;
}

/* Bytes as a peer that is not ramlift would send them. */
static void
put(const struct pair *p, const void *bytes, size_t n)
{
	assert_int_equal(send(p->b.fd, bytes, n, MSG_NOSIGNAL), n);
}

static void
put_header(const struct pair *p, uint32_t magic, uint32_t json_bytes, uint64_t blob_bytes)
{
	uint8_t hdr[RL_PEER_HDR];

	rl_store32(hdr, magic);
	rl_store32(hdr + 4, json_bytes);
	rl_store64(hdr + 8, blob_bytes);
	put(p, hdr, sizeof(hdr));
}

static void
put_text(const struct pair *p, const char *json)
{
	put_header(p, RL_PEER_MAGIC, (uint32_t)strlen(json), 0);
	put(p, json, strlen(json));
}

static void
header(void **state)
{
	static const struct {
		uint32_t magic, json;
		uint64_t blob;
		int rc;
	} cases[] = {
		{RL_PEER_MAGIC, 2, 0, 0},
		{RL_PEER_MAGIC, RL_PEER_MAX_JSON, RL_PEER_MAX_BLOB, 0},
		{RL_PEER_MAGIC + 1, 2, 0, -EPROTO},
		{RL_PEER_MAGIC, 0, 0, -EPROTO},
		{RL_PEER_MAGIC, 1, 0, -EPROTO},
		{RL_PEER_MAGIC, RL_PEER_MAX_JSON + 1, 0, -EPROTO},
		{RL_PEER_MAGIC, UINT32_MAX, 0, -EPROTO},
		{RL_PEER_MAGIC, 2, RL_PEER_MAX_BLOB + 1, -EPROTO},
		{RL_PEER_MAGIC, 2, UINT64_MAX, -EPROTO},
		{RL_PEER_MAGIC, 2, 1ull << 32, -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t hdr[RL_PEER_HDR];
		uint32_t json;
		uint64_t blob;

		rl_store32(hdr, cases[i].magic);
		rl_store32(hdr + 4, cases[i].json);
		rl_store64(hdr + 8, cases[i].blob);
		assert_int_equal(rl_peer_header(hdr, &json, &blob), cases[i].rc);
		assert_int_equal(json, cases[i].json);
		assert_true(blob == cases[i].blob);
	}
}

static void
messages_both_ways(void **state)
{
	struct pair *p = *state;
	uint8_t blob[5000];
	struct rl_peer_msg m;
	struct rl_err err;

	for (size_t i = 0; i < sizeof(blob); i++)
		blob[i] = (uint8_t)(i * 13);
	for (size_t n = 0; n <= sizeof(blob); n += sizeof(blob) / 4) {
		assert_int_equal(rl_peer_send(&p->a,
					      json_pack("{ss si}", "type", "one", "n", (int)n),
					      blob, n, after(SOON_NS), &err),
				 0);
		assert_int_equal(rl_peer_expect(&p->b, "one", &m, after(SOON_NS), &err), 0);
		assert_string_equal(m.type, "one");
		assert_int_equal(json_integer_value(json_object_get(m.json, "n")), n);
		assert_int_equal(m.blob_bytes, n);
		assert_true(n == 0 ? m.blob == NULL : memcmp(m.blob, blob, n) == 0);
		rl_peer_msg_free(&m);
		rl_peer_msg_free(&m);
	}
	/* Two in one segment are two. */
	put_text(p, "{\"type\":\"x\"}");
	put_text(p, "{\"type\":\"y\"}");
	assert_int_equal(rl_peer_expect(&p->a, "x", &m, after(SOON_NS), &err), 0);
	rl_peer_msg_free(&m);
	assert_int_equal(rl_peer_expect(&p->a, "y", &m, after(SOON_NS), &err), 0);
	rl_peer_msg_free(&m);
	assert_int_equal(rl_peer_send(&p->a, NULL, NULL, 0, after(SOON_NS), &err), -ENOMEM);
}

static void *
dribble(void *arg)
{
	static const char text[] = "{\"type\":\"slow\",\"n\":[1,2,3]}";
	struct pair *p = arg;
	uint8_t bytes[RL_PEER_HDR + sizeof(text) - 1 + 10];

	rl_store32(bytes, RL_PEER_MAGIC);
	rl_store32(bytes + 4, sizeof(text) - 1);
	rl_store64(bytes + 8, 10);
	memcpy(bytes + RL_PEER_HDR, text, sizeof(text) - 1);
	memcpy(bytes + RL_PEER_HDR + sizeof(text) - 1, "0123456789", 10);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		put(p, bytes + i, 1);
		rl_sleep_ns(RL_NS_PER_MS);
	}
	return NULL;
}

static void
byte_by_byte(void **state)
{
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	pthread_t t;
	const int on = 1;

	setsockopt(p->b.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	assert_int_equal(pthread_create(&t, NULL, dribble, p), 0);
	assert_int_equal(rl_peer_expect(&p->a, "slow", &m, after(SOON_NS), &err), 0);
	assert_int_equal(m.blob_bytes, 10);
	assert_memory_equal(m.blob, "0123456789", 10);
	rl_peer_msg_free(&m);
	pthread_join(t, NULL);
}

static void *
read_late(void *arg)
{
	struct pair *p = arg;
	struct rl_peer_msg m;
	struct rl_err err;

	rl_sleep_ns(NOW_NS); /* the sender's socket is full by now */
	assert_int_equal(rl_peer_expect(&p->b, "big", &m, after(SOON_NS), &err), 0);
	for (size_t i = 0; i < m.blob_bytes; i += 4093)
		assert_int_equal(m.blob[i], (uint8_t)(i >> 12));
	arg = (void *)m.blob_bytes;
	rl_peer_msg_free(&m);
	return arg;
}

static void
larger_than_the_socket_buffer(void **state)
{
	struct pair *p = *state;
	size_t bytes = 24u << 20;
	uint8_t *blob = malloc(bytes);
	struct rl_err err;
	pthread_t t;
	void *got;

	assert_non_null(blob);
	for (size_t i = 0; i < bytes; i++)
		blob[i] = (uint8_t)(i >> 12);
	assert_int_equal(pthread_create(&t, NULL, read_late, p), 0);
	assert_int_equal(rl_peer_send(&p->a, json_pack("{ss}", "type", "big"), blob, bytes,
				      after(SOON_NS), &err),
			 0);
	pthread_join(t, &got);
	assert_int_equal((size_t)got, bytes);

	/* Nobody reads: the deadline ends it. */
	assert_int_equal(rl_peer_send(&p->a, json_pack("{ss}", "type", "big"), blob, bytes,
				      after(NOW_NS), &err),
			 -ETIMEDOUT);
	free(blob);
}

static void
garbage(void **state)
{
	static const char *const texts[] = {
		"{}",
		"[]",
		"[\"type\"]",
		"{\"type\":1}",
		"{\"type\":null}",
		"{\"type\":\"x\"",
		"nonsense",
		"{\"type\":\"x\"}}",
		"{\"type\":\"\\u0000\"}",
		"{\"typ\":\"x\"}",
		"\"type\"",
		"{\"type\":\"\xff\"}",
	};
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	char *deep;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		put_text(p, texts[i]);
		if (rl_peer_recv(&p->a, &m, after(SOON_NS), &err) != -EPROTO)
			fail_msg("taken: %s", texts[i]);
		assert_non_null(strstr(err.text, "not JSON with a type"));
		assert_null(m.json);
		assert_null(m.blob);
	}
	deep = malloc(RL_PEER_MAX_JSON);
	assert_non_null(deep);
	memset(deep, '[', RL_PEER_MAX_JSON);
	put_header(p, RL_PEER_MAGIC, 100000, 0);
	put(p, deep, 100000);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EPROTO);
	free(deep);
	put(p, "GET / HTTP/1.1\r\n", 16);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EPROTO);
	assert_non_null(strstr(err.text, "is that port ramliftd's?"));
}

/* What nobody asked for is not even read. */
static void
oversize(void **state)
{
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;

	put_header(p, RL_PEER_MAGIC, RL_PEER_MAX_JSON + 1, 0);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EPROTO);
	put_header(p, RL_PEER_MAGIC, 12, RL_PEER_MAX_BLOB + 1);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EPROTO);
	p->a.max_blob = 0;
	put_header(p, RL_PEER_MAGIC, 12, 1);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EPROTO);
	assert_non_null(strstr(err.text, "1 bytes of data"));
	assert_null(m.blob);
	put_text(p, "{\"type\":\"x\"}");
	assert_int_equal(rl_peer_expect(&p->a, "x", &m, after(SOON_NS), &err), 0);
	rl_peer_msg_free(&m);
}

static void
wrong_type_and_errors(void **state)
{
	static const struct rl_err why = {-EBUSY, "VM 'a' is busy"};
	static const struct rl_err bytes = {-EBUSY, "the VMM refused: \xff\xfe"};
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;

	put_text(p, "{\"type\":\"welcome\"}");
	assert_int_equal(rl_peer_expect(&p->a, "ready", &m, after(SOON_NS), &err), -EPROTO);
	assert_non_null(strstr(err.text, "'welcome' where 'ready' was due"));

	rl_peer_send_error(&p->b, &why);
	assert_int_equal(rl_peer_expect(&p->a, "ready", &m, after(SOON_NS), &err), -EREMOTEIO);
	assert_string_equal(err.text, why.text);
	rl_peer_send_error(&p->b, &bytes); /* not UTF-8: it comes all the same */
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EREMOTEIO);
	assert_string_equal(err.text, "the VMM refused: ??");
	put_text(p, "{\"type\":\"error\"}");
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EREMOTEIO);
	assert_string_equal(err.text, "the peer gave up");
	put_text(p, "{\"type\":\"error\",\"text\":[7]}");
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -EREMOTEIO);
	rl_peer_send_error(&(struct rl_peer){.fd = -1}, &why);
}

static void
deadlines(void **state)
{
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	uint64_t start = rl_now_ns();

	assert_int_equal(rl_peer_recv(&p->a, &m, after(NOW_NS), &err), -ETIMEDOUT);
	assert_true(rl_now_ns() - start >= NOW_NS);
	assert_non_null(strstr(err.text, "does not answer"));
	/* In the middle of a header, of JSON, of a blob. */
	put(p, "RLC1", 4);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(NOW_NS), &err), -ETIMEDOUT);
	put_header(p, RL_PEER_MAGIC, 12, 4);
	put(p, "{\"type\":", 8);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(NOW_NS), &err), -ETIMEDOUT);
	assert_null(m.blob);
	assert_int_equal(rl_wait_readable(p->a.fd, -1, after(0)), -ETIMEDOUT);
}

static void *
cancel_soon(void *arg)
{
	struct pair *p = arg;

	rl_sleep_ns(NOW_NS);
	assert_int_equal(eventfd_write(p->cancel_fd, 1), 0);
	return NULL;
}

static void
cancelling(void **state)
{
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, cancel_soon, p), 0);
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -ECANCELED);
	pthread_join(t, NULL);
	assert_int_equal(rl_wait_readable(p->a.fd, p->cancel_fd, after(SOON_NS)), -ECANCELED);
	assert_int_equal(rl_wait_readable(p->cancel_fd, -1, after(SOON_NS)), 0);
	/* Cancelled, but the peer is still told why. */
	rl_peer_send_error(&p->a, &(struct rl_err){-ECANCELED, "cancelled"});
	assert_int_equal(rl_peer_recv(&p->b, &m, after(SOON_NS), &err), -EREMOTEIO);
	assert_string_equal(err.text, "cancelled");
}

static void
peer_goes(void **state)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};
	struct pair *p = *state;
	struct rl_peer_msg m;
	struct rl_err err;
	int rc = 0;

	put_header(p, RL_PEER_MAGIC, 12, 0);
	put(p, "{\"ty", 4);
	rl_peer_close(&p->b); /* in the middle of a message */
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -ECONNRESET);
	assert_non_null(strstr(err.text, "closed the connection"));
	for (int i = 0; i < 100 && rc == 0; i++) {
		rc = rl_peer_send(&p->a, json_pack("{ss}", "type", "x"), NULL, 0, after(SOON_NS),
				  &err);
		rl_sleep_ns(RL_NS_PER_MS);
	}
	assert_int_equal(rc, -ECONNRESET);

	close_pair(state);
	connect_pair(state);
	setsockopt(p->b.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	rl_peer_close(&p->b); /* RST */
	assert_int_equal(rl_peer_recv(&p->a, &m, after(SOON_NS), &err), -ECONNRESET);
}

static uint32_t
open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t n = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

static void
connecting_fails(void **state)
{
	struct rl_peer peer = {.fd = -1, .cancel_fd = -1};
	struct sockaddr_storage ss;
	struct rl_err err;
	uint32_t fds = open_fds();
	socklen_t len;
	int fd = listen_loopback(&ss, &len), cancel;

	(void)state;
	close(fd); /* a port where nobody listens */
	assert_int_equal(rl_peer_connect(&peer, &ss, len, after(SOON_NS), &err), -ECONNREFUSED);
	assert_non_null(strstr(err.text, "is ramliftd running there"));
	assert_int_equal(peer.fd, -1);

	/* A listener that takes nobody: its queue is full. */
	fd = listen_loopback(&ss, &len);
	assert_int_equal(listen(fd, 0), 0);
	struct rl_peer full[4];
	int rc = 0, n = 0;

	for (; n < 4 && rc == 0; n++) {
		full[n] = (struct rl_peer){.fd = -1, .cancel_fd = -1};
		rc = rl_peer_connect(&full[n], &ss, len, after(NOW_NS), &err);
	}
	assert_int_equal(rc, -ETIMEDOUT);
	cancel = eventfd(1, EFD_CLOEXEC);
	peer.cancel_fd = cancel;
	assert_int_equal(rl_peer_connect(&peer, &ss, len, after(SOON_NS), &err), -ECANCELED);
	assert_int_equal(peer.fd, -1);
	while (n-- > 0)
		rl_peer_close(&full[n]);
	close(cancel);
	close(fd);
	assert_int_equal(open_fds(), fds);
}

static void
texts(void **state)
{
	static const char *const plain[] = {"", "abc", "a\nb\"c", "\xc3\xa4"};
	char cut[400];
	json_t *j;

	(void)state;
	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
		j = rl_peer_text(plain[i]);
		assert_string_equal(json_string_value(j), plain[i]);
		json_decref(j);
	}
	j = rl_peer_text("cut \xc3");
	assert_string_equal(json_string_value(j), "cut ?");
	json_decref(j);
	memset(cut, 0xc3, sizeof(cut)); /* longer than any error */
	cut[sizeof(cut) - 1] = '\0';
	j = rl_peer_text(cut);
	assert_int_equal(json_string_length(j), sizeof(((struct rl_err *)0)->text) - 1);
	json_decref(j);
}

#define PAIR_TEST(f) cmocka_unit_test_setup_teardown(f, connect_pair, close_pair)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header),
		PAIR_TEST(messages_both_ways),
		PAIR_TEST(byte_by_byte),
		PAIR_TEST(larger_than_the_socket_buffer),
		PAIR_TEST(garbage),
		PAIR_TEST(oversize),
		PAIR_TEST(wrong_type_and_errors),
		PAIR_TEST(deadlines),
		PAIR_TEST(cancelling),
		PAIR_TEST(peer_goes),
		cmocka_unit_test(connecting_fails),
		cmocka_unit_test(texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
