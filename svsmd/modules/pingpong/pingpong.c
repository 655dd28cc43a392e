// SPDX-License-Identifier: MIT
/*
 * Two programs talk. The first one offers a service and starts the second one, which connects,
 * measures calls and messages, and shows that handles and shared memory arrive.
 */
#include "svsm/svsm.h"

#define SERVICE "pingpong"
#define ROUNDS 1000u
#define MEMORY_SIZE 8192u

enum { PING, COUNT, SHARE, END };

struct ping {
	uint32_t what;
	uint32_t number;
};

/* Takes shared memory and an event from a message: fills one, sets the other. */
static uint32_t fill(const int32_t *handles)
{
	uint32_t *words = (uint32_t *)mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, handles[0], 0);

	CHECK((long)words > 0);
	for (uint32_t i = 0; i < MEMORY_SIZE / sizeof(*words); i++)
		words[i] = i * i;
	CHECK(svsm_event_signal(handles[1]) == 0);
	CHECK(munmap(words, MEMORY_SIZE) == 0);
	CHECK(close(handles[0]) == 0 && close(handles[1]) == 0);
	return 1;
}

static int serve(const char *self)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 256 };
	const char *const arguments[] = { "pingpong-client", "client", NULL };
	struct ping ping, pong;
	struct svsm_message request, reply;
	uint32_t messages = 0;
	int status = -1;
	long service, channel, child, result;

	service = svsm_service_register(SERVICE);
	CHECK(service >= 0);
	child = svsm_spawn(self, arguments, NULL, &how);
	CHECK(child > 0);
	channel = svsm_service_accept((int)service, SVSM_NO_DEADLINE);
	CHECK(channel >= 0);
	request = (struct svsm_message){
		.size = sizeof(request), .length = sizeof(ping), .data = &ping, .handle_count = SVSM_MESSAGE_HANDLES,
	};
	result = svsm_receive((int)channel, &request, SVSM_NO_DEADLINE);
	while (result == sizeof(ping)) {
		pong = ping;
		pong.number++;
		messages++;
		reply = (struct svsm_message){
			.size = sizeof(reply), .length = sizeof(pong), .data = &pong, .token = request.token,
		};
		if (ping.what == COUNT)
			pong.number = messages;
		if (ping.what == SHARE && request.handle_count == 2)
			pong.number = fill(request.handles);
		request.length = sizeof(ping);
		request.handle_count = SVSM_MESSAGE_HANDLES;
		if (reply.token)
			result = svsm_reply_receive((int)channel, &reply, &request, SVSM_NO_DEADLINE);
		else
			result = svsm_receive((int)channel, &request, SVSM_NO_DEADLINE);
	}
	CHECK(result == -EPIPE);
	CHECK(svsm_wait((int)child, &status, SVSM_NO_DEADLINE) == child);
	printf("%u messages served, client ended with %d\n", messages, status);
	return status;
}

static uint32_t call(int channel, uint32_t what, uint32_t number)
{
	struct ping ping = { what, number }, pong = { 0 };

	CHECK(svsm_call_bytes(channel, &ping, sizeof(ping), &pong, sizeof(pong)) == sizeof(pong));
	CHECK(pong.what == what);
	return pong.number;
}

static void share(int channel)
{
	long memory = svsm_memory_create(MEMORY_SIZE), event = svsm_event_create(0);
	long memory_too = svsm_duplicate((int)memory), event_too = svsm_duplicate((int)event);
	struct ping ping = { .what = SHARE }, pong;
	struct svsm_message request = {
		.size = sizeof(request), .length = sizeof(ping), .data = &ping,
		.handle_count = 2, .handles = { (int32_t)memory_too, (int32_t)event_too },
	};
	struct svsm_message reply = { .size = sizeof(reply), .length = sizeof(pong), .data = &pong };
	struct svsm_wait_item item = { .handle = (int32_t)event, .wanted = SVSM_READY_SIGNALED };
	uint32_t *words;

	CHECK(memory >= 0 && event >= 0 && memory_too >= 0 && event_too >= 0);
	words = (uint32_t *)mmap(NULL, MEMORY_SIZE, PROT_READ, MAP_SHARED, (int)memory, 0);
	CHECK((long)words > 0);
	CHECK(svsm_wait_many(&item, 1, SVSM_POLL) == -EAGAIN);
	CHECK(svsm_call(channel, &request, &reply, SVSM_NO_DEADLINE) == sizeof(pong));
	CHECK(pong.number == 1);
	CHECK(close((int)memory_too) == -EBADF); /* it has moved */
	CHECK(svsm_wait_many(&item, 1, SVSM_NO_DEADLINE) == 1);
	for (uint32_t i = 0; i < MEMORY_SIZE / sizeof(*words); i++)
		CHECK(words[i] == i * i);
	CHECK(mprotect(words, MEMORY_SIZE, PROT_READ | PROT_EXEC) == -EACCES);
}

static int measure(void)
{
	struct ping ping = { .what = PING };
	long channel = svsm_service_connect(SERVICE, SVSM_NO_DEADLINE);
	unsigned long start, ticks;

	CHECK(channel >= 0);
	start = svsm_now();
	for (uint32_t i = 0; i < ROUNDS; i++)
		CHECK(call((int)channel, PING, i) == i + 1);
	ticks = svsm_now() - start;
	printf("%u calls, %lu ticks each\n", ROUNDS, ticks / ROUNDS);
	start = svsm_now();
	for (uint32_t i = 0; i < ROUNDS; i++)
		CHECK(svsm_send_bytes((int)channel, &ping, sizeof(ping)) == 0);
	CHECK(call((int)channel, COUNT, 0) == 2 * ROUNDS + 1);
	ticks = svsm_now() - start;
	printf("%u messages, %lu ticks each\n", ROUNDS, ticks / ROUNDS);
	share((int)channel);
	printf("handles and shared memory are there\n");
	return 0;
}

int main(int argc, char **argv, char **envp)
{
	(void)envp;
	return argc > 1 ? measure() : serve(argv[0]);
}
