/* SPDX-License-Identifier: MIT */
/* Log lines: formatted here, sent to the hypervisor's debug port in one piece. */
#include "stages.h"

struct line {
	char text[LINE_MAX + 1];
	unsigned int length;
};

static void put(struct line *line, char c)
{
	if (line->length < LINE_MAX)
		line->text[line->length++] = c;
}

static void put_number(struct line *line, uint64_t value, unsigned int base)
{
	char digits[20];
	unsigned int count = 0;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (count)
		put(line, digits[--count]);
}

void print_arguments(const char *format, va_list arguments)
{
	struct line line = { .length = 0 };

	for (; *format; format++) {
		bool wide = false;

		if (*format != '%') {
			put(&line, *format);
			continue;
		}
		if (*++format == 'l') {
			wide = true;
			format++;
		}
		switch (*format) {
		case 's':
			for (const char *s = va_arg(arguments, const char *); *s; s++)
				put(&line, *s);
			break;
		case 'u':
		case 'x':
			put_number(&line, wide ? va_arg(arguments, uint64_t) : va_arg(arguments, uint32_t),
				   *format == 'x' ? 16 : 10);
			break;
		}
	}
	line.text[line.length++] = '\n';
	ghcb_print(line.text, line.length);
}

void print_line(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print_arguments(format, arguments);
	va_end(arguments);
}
