/* SPDX-License-Identifier: BSD-3-Clause */
/* Ports: COM1, the ways out, the lab device. Whatever is not here reads as all ones and swallows writes. */
#include "labvm.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>

#define PORT_KEYBOARD_DATA 0x60
#define PORT_KEYBOARD      0x64
#define PORT_EXIT          0xf4
#define PORT_COM1          0x3f8
#define PORT_LAB           0x5f0 /* read: LAB_MAGIC; write: a command */
#define PORT_LAB_IDLE      0x5f4 /* write: this vCPU has nothing to do for so many us */
#define KEYBOARD_RESET     0xfe
#define COM1_GSI           4
#define LAB_MAGIC          0x42414c52u
#define LAB_CMD_RESLOT     1u
#define LAB_IDLE_MAX_US    10000u

void
vm_set_uart_irq(struct vm *vm, bool level)
{
	struct kvm_irq_level irq = {.irq = COM1_GSI, .level = level};

	ioctl(vm->fd, KVM_IRQ_LINE, &irq);
}

static void
com1(struct vm *vm, uint32_t reg, bool out, uint8_t *value)
{
	bool before, after, full;

	pthread_mutex_lock(&vm->serial.lock);
	before = uart_irq(&vm->uart);
	full = !uart_room(&vm->uart);
	if (!out)
		*value = uart_read(&vm->uart, reg);
	else if (uart_write(&vm->uart, reg, *value))
		serial_send(&vm->serial, *value);
	after = uart_irq(&vm->uart);
	if (before != after)
		vm_set_uart_irq(vm, after);
	if (full && uart_room(&vm->uart))
		eventfd_write(vm->wake_fd, 1); /* main left input lying */
	pthread_mutex_unlock(&vm->serial.lock);
}

/* Sleep, but not through a hold. */
static void
nap(struct vm *vm, uint32_t us)
{
	struct timespec until;

	us = us > LAB_IDLE_MAX_US ? LAB_IDLE_MAX_US : us;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += us * 1000l;
	if (until.tv_nsec >= 1000000000l) {
		until.tv_nsec -= 1000000000l;
		until.tv_sec++;
	}
	pthread_mutex_lock(&vm->run_lock);
	while (!vm->holds &&
	       pthread_cond_timedwait(&vm->hold_cond, &vm->run_lock, &until) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&vm->run_lock);
}

static void
write_port(struct vm *vm, uint16_t port, uint8_t *data, uint32_t size)
{
	uint32_t value = 0;

	memcpy(&value, data, size);
	switch (port) {
	case PORT_EXIT:
		vm_leave(vm, (int)(value << 1 & 0xff) | 1);
		break;
	case PORT_KEYBOARD:
		if ((value & 0xff) == KEYBOARD_RESET) {
			event(vm->opts, "reset", "the guest resets the machine: the end");
			vm_leave(vm, LABVM_EXIT_OK);
		}
		break;
	case PORT_LAB:
		if (value == LAB_CMD_RESLOT) {
			vm->want_reslot = true;
			eventfd_write(vm->wake_fd, 1);
		}
		break;
	case PORT_LAB_IDLE:
		nap(vm, value);
		break;
	}
}

static void
read_port(uint16_t port, uint8_t *data, uint32_t size)
{
	uint32_t value = UINT32_MAX;

	if (port == PORT_LAB)
		value = LAB_MAGIC;
	else if (port == PORT_KEYBOARD || port == PORT_KEYBOARD_DATA)
		value = 0; /* nothing typed, ready for a command */
	memcpy(data, &value, size);
}

void
pio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	bool out = run->io.direction == KVM_EXIT_IO_OUT;
	uint16_t port = run->io.port;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (port >= PORT_COM1 && port < PORT_COM1 + 8)
			com1(vcpu->vm, port - PORT_COM1, out, data);
		else if (out)
			write_port(vcpu->vm, port, data, run->io.size);
		else
			read_port(port, data, run->io.size);
	}
}
