/* SPDX-License-Identifier: MIT */
#ifndef DEMO_COMMANDS_H
#define DEMO_COMMANDS_H

/* A command of the shell. argv[0] is its name; argc is between min_args + 1 and max_args + 1. */
struct command {
	const char *name;
	const char *arguments; /* for help */
	const char *help;
	int min_args, max_args;
	void (*run)(int argc, char **argv);
};

extern const struct command commands[]; /* ends with a null name */

/* Something to look at with a debugger: `busy` runs the loop until a key is pressed. */
extern volatile unsigned long demo_counter;
void demo_busy_loop(unsigned long rounds);

#endif
