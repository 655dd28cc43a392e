/* SPDX-License-Identifier: MIT */
/* The SDK without a C library: system calls, strings, printf. */
#ifndef SVSM_H
#define SVSM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "calls.h"
#include "posix.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *left, const void *right, size_t size);
size_t strlen(const char *text);
int strcmp(const char *left, const char *right);

/* To standard output, in one write(). Takes %s %c %d %u %x %p %%, `l`, a width and a leading 0. */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vsnprintf(char *buffer, size_t size, const char *format, va_list arguments);
int snprintf(char *buffer, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Messages of bytes alone; return the length that was received, or a negative error code. */
long svsm_send_bytes(int channel, const void *data, size_t size);
long svsm_receive_bytes(int channel, void *data, size_t room);
long svsm_call_bytes(int channel, const void *request, size_t size, void *reply, size_t room);

/* Now, in nanoseconds since the machine was switched on: what deadlines are given in. */
unsigned long svsm_now(void);

/* Writes where a condition failed, and ends with status 99. */
_Noreturn void svsm_check_failed(const char *file, int line, const char *condition);
#define CHECK(condition) \
	((condition) ? (void)0 : svsm_check_failed(__FILE_NAME__, __LINE__, #condition))

int main(int argc, char **argv, char **envp);

#endif
