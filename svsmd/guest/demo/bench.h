/* SPDX-License-Identifier: MIT */
#ifndef DEMO_BENCH_H
#define DEMO_BENCH_H

#include <stdbool.h>

/* Run one benchmark by name, or all with null; false: no such name. A line each: name, count, ticks. */
bool bench(const char *name);

/* The body of the `alu` benchmark: a tight loop of two instructions, `rounds` times. */
void bench_alu_loop(unsigned long rounds);

#endif
