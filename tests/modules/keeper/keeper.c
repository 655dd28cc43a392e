// SPDX-License-Identifier: MIT
/*
 * Serves the echo module's protocol, but keeps a call of the second vCPU as long as there is one,
 * and reads and writes the guest's memory meanwhile. The boot CPU gets an error for call 0, with
 * which its self-test ends and leaves the other one calling, and RDX in RCX for other calls.
 */
#include "svsm/svsm.h"

#define PROTOCOL 0xc0010001u
#define GPA 0x1000u

static uint8_t page[4096];

int main(int argc, char **argv, char **envp)
{
	long protocol = svsm_protocol_register(PROTOCOL, 1, 1);
	struct svsm_request request;
	bool keeps = false;

	(void)argc, (void)argv, (void)envp;
	CHECK(protocol >= 0);
	CHECK(svsm_protocol_receive((int)protocol, &request, SVSM_NO_DEADLINE) == 0);
	for (;;) {
		struct svsm_answer answer = { .size = sizeof(answer), .token = request.token,
					      .rcx = request.rdx, .rdx = request.r8, .r8 = request.r9 };
		long result = 0;

		if (!request.apic_id && !request.call) {
			answer.rax = SVSM_ERR_INVALID_REQUEST;
			keeps = true;
		} else if (request.apic_id && keeps) {
			printf("keeps a call\n");
			while (result >= 0) {
				result = svsm_guest_read((int)protocol, request.token, GPA, page, sizeof(page));
				if (result >= 0)
					result = svsm_guest_write((int)protocol, request.token, GPA, page,
								  sizeof(page));
			}
			CHECK(result == -ECANCELED);
			CHECK(svsm_protocol_answer((int)protocol, &answer) == -ECANCELED);
			printf("its guest is gone\n");
			keeps = false;
		}
		CHECK(svsm_protocol_answer_receive((int)protocol, &answer, &request, SVSM_NO_DEADLINE) == 0);
	}
}
