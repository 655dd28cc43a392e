/* SPDX-License-Identifier: MIT */
/* The parts of the C library's string.h that are needed here (and that compilers call on their own). */
#ifndef DEMO_STRING_H
#define DEMO_STRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);

/* True if every byte is `value`. */
bool memory_is(const volatile void *from, uint8_t value, size_t size);

/* Reads a hexadecimal number, with or without 0x; false unless all of `text` is one. */
bool parse_hex(const char *text, uint64_t *value);

/* True if the blank-separated `words` contain `word`. */
bool has_word(const char *words, const char *word);

#endif
