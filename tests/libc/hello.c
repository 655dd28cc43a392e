// SPDX-License-Identifier: MIT
/* An ordinary program, with a C library: heap, files, TLS, floating point, environment, exit status. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HEAP_SIZE 100000

static __thread int answer = 41;

static void at_exit(void)
{
	puts("at exit");
}

int main(int argc, char **argv)
{
	struct timespec now;
	char line[100] = "";
	unsigned char *heap = malloc(HEAP_SIZE), *more = malloc(4 * HEAP_SIZE);
	FILE *file = fopen("/svsm.toml", "r");

	if (!heap || !more || !file || !fgets(line, sizeof(line), file) || fclose(file) ||
	    clock_gettime(CLOCK_MONOTONIC, &now) || atexit(at_exit))
		return 1;
	line[strcspn(line, "\n")] = 0;
	memset(heap, 7, HEAP_SIZE);
	memset(more, 8, 4 * HEAP_SIZE);
	answer++;
	printf("hello world from %s, %d argument, %s, %d, %.2f, A is %s\n", argv[0], argc, line, answer,
	       1.5 * heap[0], getenv("A"));
	free(more);
	free(heap);
	return fopen("/none", "r") || fopen("/svsm.toml", "w") || getpid() <= 0 ? 2 : 0;
}
