/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RL_CONTROL_NOTICE_H
#define RL_CONTROL_NOTICE_H
/**
 * @file notice.h
 * What is left to say of a migration that was given up: that the target need not wait. Its session has ended by
 * then and may be forgotten any time, so a notice holds its own copies.
 *
 * Threads: any, one that may wait.
 * Errors:  a peer that cannot be told is logged.
 */
#include "control/session.h"

struct rl_notice {
	char id[sizeof(((struct rl_session *)0)->id)];
	char peer[sizeof(((struct rl_session *)0)->peer)];
};

void rl_notice_init(struct rl_notice *n, const struct rl_session *s);

/**
 * Tell the target that the source gave up, until it says that it has forgotten the guest: one that is READY waits
 * for our word for ever. Ends early when the daemon stops; its next start takes the matter up again.
 */
void rl_notice_abort(struct rl_daemon *d, const struct rl_notice *n);

#endif /* RL_CONTROL_NOTICE_H */
