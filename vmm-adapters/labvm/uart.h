/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LABVM_UART_H
#define LABVM_UART_H
/**
 * @file uart.h
 * A 16550A: registers, a receive FIFO, interrupt conditions. What is transmitted leaves at once.
 *
 * Threads: none of its own; its owner locks.
 * Errors:  none; a byte for a full FIFO sets the overrun bit.
 */
#include <stdbool.h>
#include <stdint.h>

#define UART_FIFO_BYTES  16u
#define UART_STATE_BYTES 28u

struct uart {
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	bool overrun, thr_empty_irq;
	uint8_t n_rx;
	uint8_t rx[UART_FIFO_BYTES]; /* oldest first */
};

void uart_reset(struct uart *uart);

/** A register (0..7) is read. */
uint8_t uart_read(struct uart *uart, uint32_t reg);
/** A register is written; true: @value is to be transmitted. */
bool uart_write(struct uart *uart, uint32_t reg, uint8_t value);
/** A byte comes in. */
void uart_receive(struct uart *uart, uint8_t value);
/** How many bytes it can take. */
uint32_t uart_room(const struct uart *uart);
/** The level of its interrupt line. */
bool uart_irq(const struct uart *uart);

void uart_save(const struct uart *uart, uint8_t state[UART_STATE_BYTES]);
/** False: not a state that a UART can have. */
bool uart_load(struct uart *uart, const uint8_t state[UART_STATE_BYTES]);

#endif /* LABVM_UART_H */
