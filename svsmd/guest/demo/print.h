/* SPDX-License-Identifier: MIT */
/* Text to the serial line. */
#ifndef DEMO_PRINT_H
#define DEMO_PRINT_H

/* As printf, with %s %c %d %u %x %% and l, zero padding and width. A line feed becomes CR LF. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
