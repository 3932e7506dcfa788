/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LABVM_SERIAL_H
#define LABVM_SERIAL_H
/**
 * @file serial.h
 * Where COM1 goes: stdio, a unix socket (listening, one client, the latest one wins), a file, nowhere.
 * Output never waits: what nobody takes is dropped and counted.
 *
 * Threads: send under the lock; accept, receive and close by main, which takes the lock itself.
 * Errors:  open: 0 or -errno with cause and remedy in `text`.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <termios.h>

struct serial {
	pthread_mutex_t lock;         /* the UART's too */
	int out_fd, in_fd, listen_fd; /* -1: none */
	bool socket, raw;
	uint64_t dropped;
	const char *unlink_path;
	struct termios tty; /* as it was */
};

/** @target: stdio, null, unix:PATH, file:PATH. */
int serial_open(struct serial *serial, const char *target, char *text);
void serial_close(struct serial *serial);

/** A byte out. [lock held] */
void serial_send(struct serial *serial, uint8_t value);
/** Somebody connects to the socket. */
void serial_accept(struct serial *serial);
/** What has come in, at most @max bytes; 0 when nothing or the other side has gone. */
size_t serial_receive(struct serial *serial, uint8_t *bytes, size_t max);

#endif /* LABVM_SERIAL_H */
