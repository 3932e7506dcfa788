/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_SESSION_H
#define RL_CONTROL_SESSION_H
/**
 * @file session.h
 * One migration, seen from one of its ends. Each has a thread of its own that runs through the steps of
 * source_session.c or sink_session.c, so that the switch-over reads as a list of steps; everything it waits
 * for has a deadline and ends when the session is cancelled.
 *
 * Threads: members are grouped by who may touch them. rl_session_* [any].
 * Units:   ns, bytes, pages.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>
#include <ramlift/vmm.h>

#include "base/err.h"
#include "control/peer.h"
#include "flow/sink.h"
#include "flow/source.h"
#include "memory/dirty.h"

struct rl_daemon;
struct rl_keys;
struct rl_vm;

/* QEMU's MigrationStatus names. */
enum rl_status {
	RL_STATUS_NONE,
	RL_STATUS_SETUP,
	RL_STATUS_ACTIVE,
	RL_STATUS_DEVICE, /* switch-over: the guest is paused */
	RL_STATUS_COMPLETED,
	RL_STATUS_FAILED,
	RL_STATUS_CANCELLING,
	RL_STATUS_CANCELLED,
};

/* What an operator says of a guest whose other end is lost for good. */
enum rl_decision { RL_DECIDE_NONE, RL_DECIDE_RESUME, RL_DECIDE_DISCARD };

enum rl_timeout_strategy { RL_TIMEOUT_CANCEL, RL_TIMEOUT_SWITCHOVER };

struct rl_parameters {
	uint64_t max_bandwidth; /* bytes/s, 0: no limit */
	uint64_t downtime_limit_ms;
	uint64_t timeout_s; /* 0: none */
	enum rl_timeout_strategy timeout_strategy;
	bool verify;
};

struct rl_session {
	/* set at creation, then constant */
	struct rl_daemon *d;
	uint8_t uuid[16];
	char id[37];
	char vm_name[RL_VMM_NAME_BYTES];
	char peer[RL_VMM_PEER_BYTES]; /* "host:port" */
	bool target;
	uint64_t born_ns;
	int cancel_fd; /* eventfd, readable once cancelled or the daemon ends */
	int relink_fd; /* eventfd: the peer is back with a new connection, in new_peer */

	/* under the lock */
	pthread_mutex_t lock;
	enum rl_status status;
	struct rl_err error;
	struct rl_parameters param;
	bool param_changed;
	bool committed; /* past the point where cancelling is possible */
	enum rl_decision decision;
	bool recovering; /* waiting for the peer's word on the outcome */
	int verified;    /* -1: not asked for */
	uint64_t setup_ns, downtime_ns, ended_ns;
	uint64_t expected_downtime_ns;
	uint64_t total_bytes; /* guest RAM */
	uint64_t final_bytes; /* on the wire while the guest was paused */
	uint64_t dirty_pages_per_s, pages_per_s, bytes_per_s;
	struct rl_source *source; /* while it lives; else the last picture is in progress */
	struct rl_source_progress progress;
	struct rl_dirty *dirty;
	struct rl_dirty_stats dirty_stats;
	struct rl_sink *sink;
	struct rl_sink_lane_stats sink_stats;
	uint64_t ring_full_exits;
	struct rl_peer new_peer; /* fd -1: none */
	bool new_peer_abort;     /* the source came back only to give up */

	/* under the daemon's lock */
	bool ended;
	struct rl_session *next;
};

struct rl_session *rl_session_create(struct rl_daemon *d, bool target, const uint8_t uuid[16],
				     const char *vm_name, const char *peer);
void rl_session_destroy(struct rl_session *s);

/** Run @main in a thread of its own; it ends with rl_session_end(). */
int rl_session_start(struct rl_session *s, void *(*main_fn)(void *), struct rl_err *err);

void rl_session_set_status(struct rl_session *s, enum rl_status status);

/** Final status, error (may be NULL) and log line; the session stays listed. */
void rl_session_end(struct rl_session *s, enum rl_status status, const struct rl_err *why);

/** Ask it to end. -EALREADY after the commit. */
int rl_session_cancel(struct rl_session *s, struct rl_err *err);

/**
 * End a doubt by order: resume = the guest runs here, discard = it runs (or is lost) at the other end. Right only
 * where the other end is known not to run it, or to run it. -EALREADY: there is no doubt.
 */
int rl_session_decide(struct rl_session *s, enum rl_decision decision, struct rl_err *err);

bool rl_session_cancelled(const struct rl_session *s);

/** As docs/rpc.md describes it. */
json_t *rl_session_json(struct rl_session *s);
json_t *rl_parameters_json(const struct rl_parameters *p);

const char *rl_status_name(enum rl_status status);

/** The keys of its packets, from the connection on which both ends agreed on it; NULL in the insecure lab. */
int rl_session_keys(const struct rl_session *s, struct rl_peer *peer, struct rl_keys **keys,
		    struct rl_err *err);

/* source_session.c */
void *rl_source_session_main(void *session);
/* The VM here is committed to a migration whose outcome only the peer knows. */
void *rl_source_session_recover(void *session);

/* notice.c */
/* The VM here gave up a migration while no ramliftd was there: tell the peer. */
void *rl_source_session_abort(void *session);

/* sink_session.c */
/* A connection came: @fd's first message decides what it is about. */
void rl_sink_accept(struct rl_daemon *d, int fd);
/* The VM here is ready to run; only the source knows whether it may. */
void *rl_sink_session_recover(void *session);

#endif /* RL_CONTROL_SESSION_H */
