/* SPDX-License-Identifier: MIT */
#include "string.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	void *start = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
	return start;
}

void *memmove(void *to, const void *from, size_t size)
{
	uint8_t *t = to;
	const uint8_t *f = from;

	if (t <= f || t >= f + size)
		return memcpy(to, from, size);
	while (size--)
		((volatile uint8_t *)t)[size] = f[size];
	return to;
}

void *memset(void *to, int value, size_t size)
{
	void *start = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
	return start;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const uint8_t *x = a, *y = b;

	for (; size; size--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *text)
{
	const char *end = text;

	while (*(const volatile char *)end)
		end++;
	return (size_t)(end - text);
}

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (uint8_t)*a - (uint8_t)*b;
}

bool memory_is(const volatile void *from, uint8_t value, size_t size)
{
	const volatile uint8_t *p = from;

	while (size--)
		if (*p++ != value)
			return false;
	return true;
}

bool parse_hex(const char *text, uint64_t *value)
{
	uint64_t number = 0;
	unsigned int digits = 0;

	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		text += 2;
	for (; *text; text++, digits++) {
		char c = *text | 0x20;

		if (c >= '0' && c <= '9')
			number = number << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			number = number << 4 | (uint64_t)(c - 'a' + 10);
		else
			return false;
	}
	*value = number;
	return digits >= 1 && digits <= 16;
}

bool has_word(const char *words, const char *word)
{
	size_t length = strlen(word);

	while (*words) {
		const char *start;

		while (*words == ' ')
			words++;
		start = words;
		while (*words && *words != ' ')
			words++;
		if ((size_t)(words - start) == length && !memcmp(start, word, length))
			return true;
	}
	return false;
}
