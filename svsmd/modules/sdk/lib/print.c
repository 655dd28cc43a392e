// SPDX-License-Identifier: MIT
#include "svsm/svsm.h"

#define LINE_SIZE 512
#define DIGITS_SIZE 24

struct output {
	char *buffer;
	size_t size, length; /* `length` counts what does not fit too */
};

static void put(struct output *out, char c)
{
	if (out->length + 1 < out->size)
		out->buffer[out->length] = c;
	out->length++;
}

static void put_number(struct output *out, unsigned long value, unsigned int base, bool negative,
		       size_t width, char fill)
{
	char digits[DIGITS_SIZE];
	size_t count = 0;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	if (negative && fill == ' ')
		digits[count++] = '-';
	if (negative && fill == '0')
		put(out, '-');
	for (size_t i = count + (negative && fill == '0'); i < width; i++)
		put(out, fill);
	while (count)
		put(out, digits[--count]);
}

int vsnprintf(char *buffer, size_t size, const char *format, va_list arguments)
{
	struct output out = { buffer, size, 0 };

	for (; *format; format++) {
		if (*format != '%') {
			put(&out, *format);
			continue;
		}
		bool is_long = false;
		size_t width = 0;
		char fill = ' ';

		if (*++format == '0')
			fill = *format++;
		for (; *format >= '0' && *format <= '9'; format++)
			width = width * 10 + (size_t)(*format - '0');
		for (; *format == 'l' || *format == 'z'; format++)
			is_long = true;
		switch (*format) {
		case 's':
			for (const char *text = va_arg(arguments, const char *); *text; text++)
				put(&out, *text);
			break;
		case 'c':
			put(&out, (char)va_arg(arguments, int));
			break;
		case 'd': {
			long value = is_long ? va_arg(arguments, long) : va_arg(arguments, int);
			unsigned long magnitude = value < 0 ? -(unsigned long)value : (unsigned long)value;

			put_number(&out, magnitude, 10, value < 0, width, fill);
			break;
		}
		case 'u':
		case 'x': {
			unsigned long value = is_long ? va_arg(arguments, unsigned long) :
							va_arg(arguments, unsigned int);

			put_number(&out, value, *format == 'x' ? 16 : 10, false, width, fill);
			break;
		}
		case 'p':
			put(&out, '0');
			put(&out, 'x');
			put_number(&out, (unsigned long)va_arg(arguments, void *), 16, false, 0, fill);
			break;
		default:
			put(&out, *format);
			if (!*format)
				format--;
		}
	}
	if (size)
		buffer[out.length < size ? out.length : size - 1] = 0;
	return (int)out.length;
}

int snprintf(char *buffer, size_t size, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(buffer, size, format, arguments);
	va_end(arguments);
	return length;
}

int printf(const char *format, ...)
{
	char line[LINE_SIZE];
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	if (length > (int)sizeof(line) - 1)
		length = sizeof(line) - 1;
	return (int)write(1, line, (size_t)length);
}

_Noreturn void svsm_check_failed(const char *file, int line, const char *condition)
{
	printf("%s:%d: %s is not so\n", file, line, condition);
	exit(99);
}
