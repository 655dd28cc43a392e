// SPDX-License-Identifier: MIT
/*
 * Asks the security processor for reports and keys through Linux's /dev/sev-guest, and prints what
 * comes back in hexadecimal.
 *
 *     snp_report report DATA VMPL              an attestation report; DATA: 128 digits
 *     snp_report extended DATA VMPL PAGES      the same, with certificates in a buffer of PAGES
 *     snp_report key ROOT FIELDS VMPL SVN TCB  a derived key
 *
 * Prints one line for each result: its name, a space, the value. Exit code 0: the processor has
 * answered, see `status`. 1: the driver has refused, see `errno` and `exitinfo2`. 2: usage.
 *
 * Spec: Linux, Documentation/virt/coco/sev-guest.rst, for the driver's interface, which older
 * systems have no header for; 56860 for the messages.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_SIZE 4096
#define MESSAGE_VERSION 1
#define REPORT_DATA_SIZE 64
#define REPORT_SIZE 0x4a0
#define RESPONSE_OFFSET 0x20
#define KEY_SIZE 32

struct guest_request {
	uint8_t msg_version;
	uint64_t req_data;
	uint64_t resp_data;
	uint64_t exitinfo2;
};

struct report_request {
	uint8_t user_data[REPORT_DATA_SIZE];
	uint32_t vmpl;
	uint8_t reserved[28];
};

struct report_response {
	uint8_t data[4000];
};

struct extended_request {
	struct report_request report;
	uint64_t certs_address;
	uint32_t certs_len;
};

struct key_request {
	uint32_t root_key_select;
	uint32_t reserved;
	uint64_t guest_field_select;
	uint32_t vmpl;
	uint32_t guest_svn;
	uint64_t tcb_version;
};

struct key_response {
	uint8_t data[64];
};

_Static_assert(sizeof(struct guest_request) == 32, "struct snp_guest_request_ioctl");
_Static_assert(sizeof(struct extended_request) == 112, "struct snp_ext_report_req");
_Static_assert(sizeof(struct key_request) == 32, "struct snp_derived_key_req");

#define SNP_GET_REPORT _IOWR('S', 0, struct guest_request)
#define SNP_GET_DERIVED_KEY _IOWR('S', 1, struct guest_request)
#define SNP_GET_EXT_REPORT _IOWR('S', 2, struct guest_request)

static int usage(void)
{
	fprintf(stderr, "usage: snp_report report DATA VMPL | extended DATA VMPL PAGES |"
			" key ROOT FIELDS VMPL SVN TCB\n");
	return 2;
}

static void print_hex(const char *name, const uint8_t *data, size_t size)
{
	printf("%s ", name);
	for (size_t i = 0; i < size; i++)
		printf("%02x", data[i]);
	printf("\n");
}

static int parse_data(const char *text, uint8_t *data)
{
	if (strlen(text) != 2 * REPORT_DATA_SIZE)
		return -1;
	for (size_t i = 0; i < REPORT_DATA_SIZE; i++)
		if (sscanf(text + 2 * i, "%2hhx", &data[i]) != 1)
			return -1;
	return 0;
}

/* Does one request; says why if the driver refuses. */
static int request(unsigned long command, void *request_data, void *response)
{
	struct guest_request arguments = {
		.msg_version = MESSAGE_VERSION,
		.req_data = (uintptr_t)request_data,
		.resp_data = (uintptr_t)response,
		.exitinfo2 = ~0ULL,
	};
	int fd = open("/dev/sev-guest", O_RDWR);
	int error = 0;

	if (fd < 0) {
		printf("errno %d\n", errno);
		return -1;
	}
	if (ioctl(fd, command, &arguments) < 0)
		error = errno;
	close(fd);
	if (error) {
		printf("exitinfo2 %#llx\n", (unsigned long long)arguments.exitinfo2);
		printf("errno %d\n", error);
		return -1;
	}
	return 0;
}

/* Both kinds of responses start with their STATUS. */
static uint32_t print_status(const uint8_t *response)
{
	uint32_t status;

	memcpy(&status, response, sizeof(status));
	printf("status %#x\n", status);
	return status;
}

static int report(const char *data, const char *vmpl, const char *pages)
{
	static struct report_response response;
	struct extended_request wanted = { .report.vmpl = strtoul(vmpl, NULL, 0) };
	unsigned long command = SNP_GET_REPORT;
	uint8_t *certificates = NULL;

	if (parse_data(data, wanted.report.user_data))
		return usage();
	if (pages) {
		command = SNP_GET_EXT_REPORT;
		wanted.certs_len = strtoul(pages, NULL, 0) * PAGE_SIZE;
		certificates = mmap(NULL, wanted.certs_len, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (certificates == MAP_FAILED)
			return usage();
		wanted.certs_address = (uintptr_t)certificates;
	}
	if (request(command, &wanted, &response)) {
		if (pages)
			printf("needed %u\n", wanted.certs_len);
		return 1;
	}
	print_status(response.data);
	print_hex("report", response.data + RESPONSE_OFFSET, REPORT_SIZE);
	if (certificates)
		print_hex("certificates", certificates, wanted.certs_len);
	return 0;
}

static int key(char **arguments)
{
	struct key_response response = { 0 };
	struct key_request wanted = {
		.root_key_select = strtoul(arguments[0], NULL, 0),
		.guest_field_select = strtoull(arguments[1], NULL, 0),
		.vmpl = strtoul(arguments[2], NULL, 0),
		.guest_svn = strtoul(arguments[3], NULL, 0),
		.tcb_version = strtoull(arguments[4], NULL, 0),
	};

	if (request(SNP_GET_DERIVED_KEY, &wanted, &response))
		return 1;
	print_status(response.data);
	print_hex("key", response.data + RESPONSE_OFFSET, KEY_SIZE);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "report") && argc == 4)
		return report(argv[2], argv[3], NULL);
	if (!strcmp(what, "extended") && argc == 5)
		return report(argv[2], argv[3], argv[4]);
	if (!strcmp(what, "key") && argc == 7)
		return key(argv + 2);
	return usage();
}
