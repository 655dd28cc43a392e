/* SPDX-License-Identifier: MIT */
#include "print.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "string.h"
#include "uart.h"

/* Characters wait here so that a line costs few exits. */
struct output {
	char text[128];
	size_t length;
};

static void flush(struct output *out)
{
	uart_write(out->text, out->length);
	out->length = 0;
}

static void put(struct output *out, char c)
{
	if (out->length == sizeof(out->text))
		flush(out);
	out->text[out->length++] = c;
}

static void put_padded(struct output *out, const char *text, size_t length, unsigned int width, bool left, char pad)
{
	size_t padding = width > length ? width - length : 0;

	for (; !left && padding; padding--)
		put(out, pad);
	for (; length; length--)
		put(out, *text++);
	for (; padding; padding--)
		put(out, ' ');
}

static void put_number(struct output *out, uint64_t value, unsigned int base, bool negative, unsigned int width,
		       bool left, char pad)
{
	char digits[24];
	size_t at = sizeof(digits);

	do
		digits[--at] = "0123456789abcdef"[value % base];
	while (value /= base);
	if (negative)
		digits[--at] = '-';
	put_padded(out, digits + at, sizeof(digits) - at, width, left, pad);
}

void print(const char *format, ...)
{
	struct output out = { .length = 0 };
	va_list args;

	va_start(args, format);
	for (const char *p = format; *p; p++) {
		bool is_long = false, left = false;
		unsigned int width = 0;
		char pad = ' ';
		int64_t number;
		const char *text;

		if (*p == '\n')
			put(&out, '\r');
		if (*p != '%') {
			put(&out, *p);
			continue;
		}
		for (p++; *p == '-' || *p == '0'; p++) {
			left |= *p == '-';
			if (*p == '0')
				pad = '0';
		}
		for (; *p >= '0' && *p <= '9'; p++)
			width = width * 10 + (unsigned int)(*p - '0');
		for (; *p == 'l'; p++)
			is_long = true;
		switch (*p) {
		case 's':
			text = va_arg(args, const char *);
			put_padded(&out, text, strlen(text), width, left, ' ');
			break;
		case 'c':
			put(&out, (char)va_arg(args, int));
			break;
		case 'd':
			number = is_long ? va_arg(args, int64_t) : va_arg(args, int);
			put_number(&out, number < 0 ? -(uint64_t)number : (uint64_t)number, 10, number < 0, width,
				   left, pad);
			break;
		case 'u':
		case 'x':
			put_number(&out, is_long ? va_arg(args, uint64_t) : va_arg(args, unsigned int),
				   *p == 'x' ? 16 : 10, false, width, left, pad);
			break;
		default:
			put(&out, *p);
		}
	}
	va_end(args);
	flush(&out);
}
