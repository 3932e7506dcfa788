/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RAMLIFT_VERSION_H
#define RAMLIFT_VERSION_H
/**
 * @file version.h
 * Version of the programs, of the wire protocol and of the VMM socket protocol.
 */
#define RAMLIFT_VERSION "0.1.0"

/* docs/wire.md: a peer that speaks another one is refused by name. */
#define RAMLIFT_WIRE_VERSION 1

/* docs/vmm-socket.md: carried in the flags of every message. */
#define RAMLIFT_VMM_VERSION 1

#endif /* RAMLIFT_VERSION_H */
