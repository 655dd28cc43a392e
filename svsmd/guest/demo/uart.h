/* SPDX-License-Identifier: MIT */
/* COM1: a 16550A at 0x3f8, IRQ 4. */
#ifndef DEMO_UART_H
#define DEMO_UART_H

#include <stdbool.h>
#include <stddef.h>

#define UART_PORT 0x3f8
#define UART_SCRATCH 7 /* register that does nothing: a cell of memory */
#define UART_IRQ 4

/* Needs the GHCB page. */
void uart_init(void);

/* From now on a waiting uart_read halts. Needs APIC and IOAPIC; without them it goes on polling. */
void uart_enable_irq(void);

void uart_write(const char *text, size_t length);

/* True if uart_read would not wait. */
bool uart_has_input(void);

/* The next character; waits for it. */
char uart_read(void);

#endif
