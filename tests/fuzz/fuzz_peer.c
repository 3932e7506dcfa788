/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control channel: whatever a peer sends, a message comes out whole or an error with a text. What comes out
 * goes through the parser of port descriptions, too.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/daemon.h"
#include "control/peer.h"
#include "fuzz.h"

#define MAX_BYTES 65536 /* what a socket takes while nobody reads */

static void
check_port(json_t *json)
{
	struct sockaddr_storage from = {.ss_family = AF_INET};
	struct rl_nic_peer peer;
	uint32_t payload, credit;
	struct rl_err err;

	if (rl_daemon_port_parse(json, &from, &peer, &payload, &credit, &err) == 0) {
		FUZZ_CHECK(peer.udp_port != 0 && payload <= RL_NIC_MAX_PAYLOAD && credit > 0);
		FUZZ_CHECK(peer.address.family == AF_INET || peer.address.family == AF_INET6);
	}
}

static void
check_message(const struct rl_peer_msg *m, uint64_t max_blob)
{
	FUZZ_CHECK(strcmp(m->type, json_string_value(json_object_get(m->json, "type"))) == 0);
	FUZZ_CHECK(strcmp(m->type, "error") != 0);
	FUZZ_CHECK(m->blob_bytes <= max_blob && (m->blob == NULL) == (m->blob_bytes == 0));
	check_port(json_object_get(m->json, "port"));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct rl_peer p = {.cancel_fd = -1,
			    .max_blob = len > 0 && (data[0] & 1) ? RL_PEER_MAX_BLOB : 0};
	uint64_t deadline_ns = rl_now_ns() + 10 * RL_NS_PER_S;
	struct rl_peer_msg m;
	struct rl_err err;
	int pair[2], rc;

	if (len > MAX_BYTES)
		return 0;
	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	FUZZ_CHECK(send(pair[0], data, len, MSG_DONTWAIT) == (ssize_t)len);
	shutdown(pair[0], SHUT_WR);
	p.fd = pair[1];
	do {
		memset(&err, 0, sizeof(err));
		rc = rl_peer_recv(&p, &m, deadline_ns, &err);
		if (rc == 0)
			check_message(&m, p.max_blob);
		else
			FUZZ_CHECK(rc == err.code && m.json == NULL && m.blob == NULL);
		FUZZ_CHECK(rc == 0 || rc == -EPROTO || rc == -ECONNRESET || rc == -EREMOTEIO ||
			   rc == -ENOMEM);
		rl_peer_msg_free(&m);
	} while (rc == 0 || rc == -EREMOTEIO || rc == -EPROTO);
	rl_peer_close(&p);
	close(pair[0]);
	return 0;
}
