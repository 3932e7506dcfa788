/* SPDX-License-Identifier: BSD-3-Clause */
/* A 16550A's registers, after the PC16550D data sheet. */
#include "uart.h"

#include <string.h>

#define LCR_DLAB      0x80
#define FCR_ENABLE    0x01
#define FCR_CLEAR_RX  0x02
#define MCR_LOOP      0x10
#define IER_RX        0x01
#define IER_THR       0x02
#define IER_LINE      0x04
#define IIR_NONE      0x01
#define IIR_THR       0x02
#define IIR_RX        0x04
#define IIR_LINE      0x06
#define IIR_FIFO      0xc0
#define LSR_DATA      0x01
#define LSR_OVERRUN   0x02
#define LSR_TX_EMPTY  0x60
#define MSR_CONNECTED 0xb0 /* DCD, DSR, CTS */

void
uart_reset(struct uart *uart)
{
	memset(uart, 0, sizeof(*uart));
	uart->dll = 1;
}

static uint32_t
capacity(const struct uart *uart)
{
	return uart->fcr & FCR_ENABLE ? UART_FIFO_BYTES : 1;
}

uint32_t
uart_room(const struct uart *uart)
{
	return uart->n_rx < capacity(uart) ? capacity(uart) - uart->n_rx : 0;
}

void
uart_receive(struct uart *uart, uint8_t value)
{
	if (uart_room(uart))
		uart->rx[uart->n_rx++] = value;
	else
		uart->overrun = true;
}

static uint8_t
interrupt_id(const struct uart *uart)
{
	if (uart->overrun && uart->ier & IER_LINE)
		return IIR_LINE;
	if (uart->n_rx && uart->ier & IER_RX)
		return IIR_RX;
	if (uart->thr_empty_irq && uart->ier & IER_THR)
		return IIR_THR;
	return IIR_NONE;
}

bool
uart_irq(const struct uart *uart)
{
	return interrupt_id(uart) != IIR_NONE;
}

static uint8_t
take_received(struct uart *uart)
{
	uint8_t value = uart->rx[0];

	if (!uart->n_rx)
		return 0;
	memmove(uart->rx, uart->rx + 1, --uart->n_rx);
	return value;
}

static uint8_t
modem_status(const struct uart *uart)
{
	uint8_t m = uart->mcr;

	if (!(m & MCR_LOOP))
		return MSR_CONNECTED;
	/* loop back: RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD */
	return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

uint8_t
uart_read(struct uart *uart, uint32_t reg)
{
	uint8_t value;

	switch (reg) {
	case 0:
		return uart->lcr & LCR_DLAB ? uart->dll : take_received(uart);
	case 1:
		return uart->lcr & LCR_DLAB ? uart->dlm : uart->ier;
	case 2:
		value = interrupt_id(uart);
		if (value == IIR_THR)
			uart->thr_empty_irq = false;
		return uart->fcr & FCR_ENABLE ? value | IIR_FIFO : value;
	case 3:
		return uart->lcr;
	case 4:
		return uart->mcr;
	case 5:
		value = LSR_TX_EMPTY;
		value |= uart->n_rx ? LSR_DATA : 0;
		value |= uart->overrun ? LSR_OVERRUN : 0;
		uart->overrun = false;
		return value;
	case 6:
		return modem_status(uart);
	default:
		return uart->scr;
	}
}

static bool
transmit(struct uart *uart, uint8_t value)
{
	uart->thr_empty_irq = true;
	if (!(uart->mcr & MCR_LOOP))
		return true;
	uart_receive(uart, value);
	return false;
}

bool
uart_write(struct uart *uart, uint32_t reg, uint8_t value)
{
	switch (reg) {
	case 0:
		if (!(uart->lcr & LCR_DLAB))
			return transmit(uart, value);
		uart->dll = value;
		break;
	case 1:
		if (uart->lcr & LCR_DLAB) {
			uart->dlm = value;
			break;
		}
		if (value & ~uart->ier & IER_THR)
			uart->thr_empty_irq = true;
		uart->ier = value & 0x0f;
		break;
	case 2:
		if (value & FCR_CLEAR_RX || (value ^ uart->fcr) & FCR_ENABLE)
			uart->n_rx = 0;
		uart->fcr = value & 0xc9;
		break;
	case 3:
		uart->lcr = value;
		break;
	case 4:
		uart->mcr = value & 0x1f;
		break;
	case 7:
		uart->scr = value;
		break;
	}
	return false;
}

void
uart_save(const struct uart *uart, uint8_t state[UART_STATE_BYTES])
{
	const uint8_t regs[] = {uart->ier,           uart->fcr,  uart->lcr, uart->mcr,
				uart->scr,           uart->dll,  uart->dlm, uart->overrun,
				uart->thr_empty_irq, uart->n_rx, 0,         0};

	memcpy(state, regs, sizeof(regs));
	memcpy(state + sizeof(regs), uart->rx, UART_FIFO_BYTES);
}

bool
uart_load(struct uart *uart, const uint8_t state[UART_STATE_BYTES])
{
	struct uart u = {
		.ier = state[0],
		.fcr = state[1],
		.lcr = state[2],
		.mcr = state[3],
		.scr = state[4],
		.dll = state[5],
		.dlm = state[6],
		.overrun = state[7] == 1,
		.thr_empty_irq = state[8] == 1,
		.n_rx = state[9],
	};

	if (state[0] > 0x0f || state[1] & ~0xc9 || state[3] > 0x1f || state[7] > 1 ||
	    state[8] > 1 || u.n_rx > capacity(&u) || state[10] || state[11])
		return false;
	memcpy(u.rx, state + 12, UART_FIFO_BYTES);
	*uart = u;
	return true;
}
