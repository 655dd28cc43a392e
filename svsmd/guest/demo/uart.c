/* SPDX-License-Identifier: MIT */
/*
 * The driver knows where it is: instead of IN and OUT instructions (a #VC each, then an exit) it
 * makes the GHCB exits itself, and output goes out as strings as long as the FIFO has room.
 * Spec: PC16550D data sheet.
 */
#include "uart.h"

#include <stdint.h>

#include "apic.h"
#include "cpu.h"
#include "ghcb.h"
#include "trap.h"

#define RBR 0 /* receive, DLAB = 0 */
#define THR 0 /* transmit, DLAB = 0 */
#define IER 1
#define FCR 2
#define LCR 3
#define MCR 4
#define LSR 5

#define IER_RX 0x01
#define FCR_ENABLE_CLEAR 0x07
#define LCR_DLAB 0x80
#define LCR_8N1 0x03
#define MCR_DTR_RTS_OUT2 0x0b
#define LSR_DATA_READY 0x01
#define LSR_THR_EMPTY 0x20
#define FIFO_SIZE 16
#define DIVISOR_115200 1

#define RING_SIZE 256

static char ring[RING_SIZE];
static volatile unsigned int ring_head, ring_tail; /* head: next to write, tail: next to read */
static bool irq_enabled;

static uint8_t in(unsigned int reg)
{
	return (uint8_t)ghcb_in((uint16_t)(UART_PORT + reg), 1);
}

static void out(unsigned int reg, uint8_t value)
{
	ghcb_out((uint16_t)(UART_PORT + reg), 1, value);
}

void uart_init(void)
{
	out(IER, 0);
	out(LCR, LCR_DLAB | LCR_8N1);
	out(0, DIVISOR_115200);
	out(1, 0);
	out(LCR, LCR_8N1);
	out(FCR, FCR_ENABLE_CLEAR);
	out(MCR, MCR_DTR_RTS_OUT2);
}

/* Moves what has arrived to the ring. Called with interrupts off. */
static void receive(void)
{
	while (in(LSR) & LSR_DATA_READY) {
		char c = (char)in(RBR);

		if (ring_head - ring_tail < RING_SIZE)
			ring[ring_head++ % RING_SIZE] = c;
	}
}

void uart_enable_irq(void)
{
	irq_register(VECTOR_UART, receive);
	if (!ioapic_route(UART_IRQ, VECTOR_UART))
		return;
	out(IER, IER_RX);
	irq_enabled = true;
}

void uart_write(const char *text, size_t length)
{
	while (length) {
		uint32_t piece = length < FIFO_SIZE ? (uint32_t)length : FIFO_SIZE;

		while (!(in(LSR) & LSR_THR_EMPTY))
			cpu_pause();
		if (piece == 1)
			out(THR, (uint8_t)*text);
		else
			ghcb_out_string(UART_PORT + THR, text, piece);
		text += piece;
		length -= piece;
	}
}

bool uart_has_input(void)
{
	uint64_t flags = irq_save();

	receive();
	irq_restore(flags);
	return ring_head != ring_tail;
}

char uart_read(void)
{
	uint64_t flags = irq_save();
	char c;

	for (;;) {
		receive();
		if (ring_head != ring_tail)
			break;
		if (irq_enabled)
			irq_wait();
		else
			cpu_pause();
	}
	c = ring[ring_tail++ % RING_SIZE];
	irq_restore(flags);
	return c;
}
