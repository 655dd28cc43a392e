// SPDX-License-Identifier: MIT
/*
 * Serves a private protocol of the guest, and nothing useful: for tests, for measurements, and to
 * see how it is done. The calls are in docs/modules.md. With the argument --mortal a call ends it.
 */
#include "svsm/svsm.h"

#define PROTOCOL_ECHO 0xc0010001u

enum { ECHO_ROTATE, ECHO_REVERSE, ECHO_DELAY, ECHO_DIE };

#define REVERSE_MAX 16384u
#define DELAY_MAX 1000000000ul /* 1 s */

static uint8_t buffer[REVERSE_MAX];

/* Turns `size` bytes of the guest round. */
static uint64_t reverse(int protocol, uint64_t token, uint64_t gpa, uint64_t size)
{
	if (!size || size > sizeof(buffer))
		return SVSM_ERR_INVALID_PARAMETER;
	if (svsm_guest_read(protocol, token, gpa, buffer, size) < 0)
		return SVSM_ERR_INVALID_ADDRESS;
	for (size_t i = 0; i < size / 2; i++) {
		uint8_t other = buffer[size - 1 - i];

		buffer[size - 1 - i] = buffer[i];
		buffer[i] = other;
	}
	if (svsm_guest_write(protocol, token, gpa, buffer, size) < 0)
		return SVSM_ERR_INVALID_ADDRESS;
	return SVSM_SUCCESS;
}

static uint64_t delay(uint64_t nanoseconds)
{
	struct timespec time = { .tv_nsec = (long)nanoseconds };

	if (nanoseconds >= DELAY_MAX)
		return SVSM_ERR_INVALID_PARAMETER;
	nanosleep(&time, NULL);
	return SVSM_SUCCESS;
}

int main(int argc, char **argv, char **envp)
{
	bool mortal = argc > 1 && !strcmp(argv[1], "--mortal");
	long protocol = svsm_protocol_register(PROTOCOL_ECHO, 1, 1);
	struct svsm_request request;
	struct svsm_answer answer;
	long result;

	(void)envp;
	if (protocol < 0) {
		printf("cannot serve protocol %x: error %d\n", PROTOCOL_ECHO, (int)-protocol);
		return 1;
	}
	result = svsm_protocol_receive((int)protocol, &request, SVSM_NO_DEADLINE);
	while (result == 0) {
		answer = (struct svsm_answer){
			.size = sizeof(answer),
			.token = request.token,
			.rax = SVSM_SUCCESS,
			.rcx = request.rcx,
			.rdx = request.rdx,
			.r8 = request.r8,
		};
		switch (request.call) {
		case ECHO_ROTATE:
			answer.rcx = request.rdx;
			answer.rdx = request.r8;
			answer.r8 = request.r9;
			break;
		case ECHO_REVERSE:
			answer.rax = reverse((int)protocol, request.token, request.rcx, request.rdx);
			break;
		case ECHO_DELAY:
			answer.rax = delay(request.rcx);
			break;
		case ECHO_DIE:
			if (mortal)
				return 0;
			/* fall through */
		default:
			answer.rax = SVSM_ERR_UNSUPPORTED_CALL;
		}
		result = svsm_protocol_answer_receive((int)protocol, &answer, &request, SVSM_NO_DEADLINE);
	}
	printf("no more requests: error %d\n", (int)-result);
	return 1;
}
