// SPDX-License-Identifier: MIT
/*
 * Work of known size at CPL 3 of the SVSM, for the host to time. Each piece is one line of the log
 * before it and one behind it; a line with its number ends a round, and the next one begins a second
 * later. Started with an argument it is the other side: it answers messages and gives way.
 */
#include "svsm/svsm.h"

#define SERVICE "bench"
#define CALLS 2000u
#define SECOND 1000000000ul

static int channel;

static void system_call(void)
{
	getpid();
}

/* The other side does the same, so this goes to it and comes back. */
static void give_way(void)
{
	sched_yield();
}

static void call_and_reply(void)
{
	char message[16] = { 1 };

	CHECK(svsm_call_bytes(channel, message, sizeof(message), message, sizeof(message)) == sizeof(message));
}

/* `each`: how many of what is measured one call of `work` is. */
static void measure(const char *name, void (*work)(void), unsigned int each)
{
	unsigned long start, ticks;

	printf("begin %s\n", name);
	start = svsm_now();
	for (unsigned int i = 0; i < CALLS; i++)
		work();
	ticks = svsm_now() - start;
	printf("end %s: %u times, %lu ticks\n", name, each * CALLS, ticks);
}

/* Answers `CALLS` messages, then gives way as often, and again. */
static int other_side(void)
{
	struct svsm_message request, reply;
	char message[16];

	channel = (int)svsm_service_connect(SERVICE, SVSM_NO_DEADLINE);
	CHECK(channel >= 0);
	for (;;) {
		for (unsigned int i = 0; i < CALLS; i++) {
			request = (struct svsm_message){
				.size = sizeof(request), .length = sizeof(message), .data = message,
			};
			if (i == 0)
				CHECK(svsm_receive(channel, &request, SVSM_NO_DEADLINE) == sizeof(message));
			else
				CHECK(svsm_reply_receive(channel, &reply, &request, SVSM_NO_DEADLINE) ==
				      sizeof(message));
			reply = (struct svsm_message){
				.size = sizeof(reply), .length = sizeof(message), .data = message, .token = request.token,
			};
		}
		CHECK(svsm_reply(channel, &reply) == 0);
		for (unsigned int i = 0; i < CALLS; i++)
			give_way();
	}
}

int main(int argc, char **argv, char **envp)
{
	const char *const arguments[] = { "other", "side", NULL };
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64 };
	struct timespec second = { .tv_sec = 1 };
	long service;

	(void)envp;
	if (argc > 1)
		return other_side();
	service = svsm_service_register(SERVICE);
	CHECK(service >= 0);
	CHECK(svsm_spawn(argv[0], arguments, NULL, &how) > 0);
	channel = (int)svsm_service_accept((int)service, SVSM_NO_DEADLINE);
	CHECK(channel >= 0);
	for (unsigned int round = 0;; round++) {
		nanosleep(&second, NULL);
		measure("system call", system_call, 1);
		measure("message", call_and_reply, 1);
		measure("context switch", give_way, 2);
		printf("round %u is over\n", round);
	}
}
