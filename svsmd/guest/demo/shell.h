/* SPDX-License-Identifier: MIT */
#ifndef DEMO_SHELL_H
#define DEMO_SHELL_H

/* Reads commands from the serial line, for ever. */
void shell(void) __attribute__((noreturn));

#endif
