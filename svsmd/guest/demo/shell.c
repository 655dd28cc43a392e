/* SPDX-License-Identifier: MIT */
#include "shell.h"

#include <stdbool.h>

#include "commands.h"
#include "print.h"
#include "string.h"
#include "uart.h"

#define LINE_SIZE 128
#define MAX_ARGS 8
#define HISTORY 16

enum {
	KEY_CTRL_C = 0x03,
	KEY_BACKSPACE = 0x08,
	KEY_CTRL_P = 0x10,
	KEY_CTRL_N = 0x0e,
	KEY_CTRL_U = 0x15,
	KEY_ESCAPE = 0x1b,
	KEY_DELETE = 0x7f,
};

static char history[HISTORY][LINE_SIZE];
static unsigned int history_count;

/* A key; arrow up and down come as Ctrl-P and Ctrl-N, other escape sequences not at all. */
static char read_key(void)
{
	for (;;) {
		char c = uart_read();

		if (c != KEY_ESCAPE)
			return c;
		if (uart_read() != '[')
			continue;
		do
			c = uart_read();
		while (c >= 0x20 && c < 0x40);
		if (c == 'A')
			return KEY_CTRL_P;
		if (c == 'B')
			return KEY_CTRL_N;
	}
}

static void erase(size_t count)
{
	while (count--)
		print("\b \b");
}

/* Puts a line of the history in place of what is typed; returns its length. */
static size_t recall(char *line, size_t length, unsigned int index)
{
	erase(length);
	if (index == history_count)
		line[0] = 0;
	else
		memcpy(line, history[index % HISTORY], LINE_SIZE);
	print("%s", line);
	return strlen(line);
}

static void remember(const char *line)
{
	if (line[0])
		memcpy(history[history_count++ % HISTORY], line, LINE_SIZE);
}

/* One line with echo and editing. False: given up with Ctrl-C. */
static bool read_line(char *line)
{
	size_t length = 0;
	unsigned int at = history_count;

	for (;;) {
		char c = read_key();

		switch (c) {
		case '\r':
		case '\n':
			print("\n");
			line[length] = 0;
			remember(line);
			return true;
		case KEY_CTRL_C:
			print("^C\n");
			return false;
		case KEY_BACKSPACE:
		case KEY_DELETE:
			if (length) {
				length--;
				erase(1);
			}
			break;
		case KEY_CTRL_U:
			erase(length);
			length = 0;
			break;
		case KEY_CTRL_P:
			if (at && at + HISTORY > history_count)
				length = recall(line, length, --at);
			break;
		case KEY_CTRL_N:
			if (at < history_count)
				length = recall(line, length, ++at);
			break;
		default:
			if (c >= ' ' && c < KEY_DELETE && length < LINE_SIZE - 1) {
				line[length++] = c;
				uart_write(&c, 1);
			}
		}
	}
}

static int split(char *line, char **argv)
{
	int argc = 0;

	for (char *p = line; *p;) {
		while (*p == ' ')
			*p++ = 0;
		if (!*p)
			break;
		if (argc == MAX_ARGS)
			return argc + 1;
		argv[argc++] = p;
		while (*p && *p != ' ')
			p++;
	}
	return argc;
}

static void run_line(char *line)
{
	char *argv[MAX_ARGS];
	int argc = split(line, argv);

	if (!argc)
		return;
	for (const struct command *c = commands; c->name; c++) {
		if (strcmp(c->name, argv[0]))
			continue;
		if (argc - 1 < c->min_args || argc - 1 > c->max_args)
			print("usage: %s %s\n", c->name, c->arguments);
		else
			c->run(argc, argv);
		return;
	}
	print("%s: no such command; try help\n", argv[0]);
}

void shell(void)
{
	char line[LINE_SIZE];

	for (;;) {
		print("demo> ");
		if (read_line(line))
			run_line(line);
	}
}
