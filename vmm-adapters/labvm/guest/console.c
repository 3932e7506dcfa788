/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * COM1, a line at a time. Every in and out is an exit to the VMM, so the transmitter is asked once per
 * FIFO-full of bytes, and a port that nobody drains costs a bounded wait: then the line is dropped.
 */
#include "guest.h"

#define COM1       0x3f8
#define UART_IIR   2
#define UART_LCR   3
#define UART_LSR   5
#define LSR_DATA   0x01
#define LSR_EMPTY  0x20
#define FIFO_BYTES 16
#define MAX_POLLS  200
#define EXIT_PORT  0xf4

static char line[256];
static uint32_t used;

void
console_init(void)
{
	outb(COM1 + 1, 0);           /* no interrupts */
	outb(COM1 + UART_LCR, 0x80); /* divisor 1: 115200 */
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + UART_LCR, 0x03); /* 8N1 */
	outb(COM1 + UART_IIR, 0x07); /* FIFOs on and empty */
}

void
put(const char *text)
{
	while (*text && used < sizeof(line) - 1)
		line[used++] = *text++;
}

void
put_number(uint64_t value)
{
	char digits[21];
	uint32_t at = sizeof(digits) - 1;

	digits[at] = 0;
	do {
		digits[--at] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	put(digits + at);
}

void
end_line(void)
{
	line[used++] = '\n';
	for (uint32_t i = 0; i < used; i++) {
		uint32_t polls = 0;

		while (i % FIFO_BYTES == 0 && !(inb(COM1 + UART_LSR) & LSR_EMPTY)) {
			if (++polls == MAX_POLLS)
				goto out;
			cpu_pause();
		}
		outb(COM1, (uint8_t)line[i]);
	}
out:
	used = 0;
}

char
console_poll(void)
{
	uint8_t status = inb(COM1 + UART_LSR);

	if (status == 0xff || !(status & LSR_DATA))
		return 0;
	return (char)inb(COM1);
}

void
quit(uint32_t value)
{
	outl(EXIT_PORT, value);
	for (;;) {
		if (memory.lab_device)
			outl(LAB_IDLE_PORT, 10000);
		cpu_pause();
	}
}
