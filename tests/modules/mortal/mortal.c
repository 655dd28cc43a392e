// SPDX-License-Identifier: MIT
/*
 * Starts servers of the echo module's protocol that die with a call of each of two vCPUs in their
 * hands, one after the other and each in its own way, and at last one that answers.
 */
#include "svsm/svsm.h"

#define PROTOCOL 0xc0010001u
#define EXCEPTION_UD 6
#define SERVICE "mortal"
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static const char *self;

static int serve(const char *number, const char *how)
{
	long protocol = svsm_protocol_register(PROTOCOL, 1, 1);
	struct svsm_request request;
	uint32_t held = 0;

	CHECK(protocol >= 0);
	printf("%s serves until %s\n", number, how);
	CHECK(svsm_protocol_receive((int)protocol, &request, SVSM_NO_DEADLINE) == 0);
	while (!strcmp(how, "never")) {
		struct svsm_answer answer = { .size = sizeof(answer), .token = request.token,
					      .rcx = request.rdx, .rdx = request.r8, .r8 = request.r9 };

		CHECK(svsm_protocol_answer_receive((int)protocol, &answer, &request, SVSM_NO_DEADLINE) == 0);
	}
	held = request.apic_id;
	while (request.apic_id == held)
		CHECK(svsm_protocol_receive((int)protocol, &request, SVSM_NO_DEADLINE) == 0);
	if (!strcmp(how, "exit"))
		return 7;
	if (!strcmp(how, "fault"))
		__asm__ volatile("ud2");
	CHECK(svsm_service_connect(SERVICE, SVSM_NO_DEADLINE) >= 0);
	svsm_protocol_receive((int)protocol, &request, SVSM_NO_DEADLINE);
	return 1;
}

static int start(size_t number, const char *how)
{
	const char text[] = { (char)('0' + number), 0 };
	const char *arguments[] = { self, text, how, NULL };
	struct svsm_spawn limits = { .size = sizeof(limits), .pages = 64,
				     .capabilities = SVSM_CAP_SERVE_PROTOCOL };
	long child = svsm_spawn(self, arguments, NULL, &limits);

	CHECK(child > 0);
	return (int)child;
}

int main(int argc, char **argv, char **envp)
{
	static const struct {
		const char *how;
		int status;
	} ends[] = { { "exit", 7 },
		     { "fault", SVSM_STATUS_EXCEPTION + EXCEPTION_UD },
		     { "kill", SVSM_STATUS_KILLED },
		     { "exit", 7 } };
	long service;

	(void)envp;
	self = argv[0];
	if (argc > 1)
		return serve(argv[1], argv[2]);
	service = svsm_service_register(SERVICE);
	CHECK(service >= 0);
	for (size_t i = 0; i < COUNT(ends); i++) {
		int child = start(i, ends[i].how), status = -1;

		if (!strcmp(ends[i].how, "kill")) {
			long client = svsm_service_accept((int)service, SVSM_NO_DEADLINE);

			CHECK(client >= 0 && kill(child, SIGKILL) == 0 && close((int)client) == 0);
		}
		CHECK(svsm_wait(child, &status, SVSM_NO_DEADLINE) == child && status == ends[i].status);
	}
	CHECK(svsm_wait(start(COUNT(ends), "never"), NULL, SVSM_NO_DEADLINE) > 0);
	return 0;
}
