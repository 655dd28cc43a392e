/* SPDX-License-Identifier: MIT */
#include "psp.h"

#include "aes_gcm.h"
#include "boot.h"
#include "ghcb.h"
#include "memory.h"
#include "paging.h"
#include "string.h"
#include "svsm.h"

#define AEAD_AES_256_GCM 1
#define HEADER_VERSION 1
#define MESSAGE_VERSION 1
#define PAYLOAD_MAX 256

struct header {
	uint8_t tag[32];
	uint64_t number;
	uint64_t reserved0;
	/* From here on, the tag covers it. */
	uint8_t algorithm;
	uint8_t header_version;
	uint16_t header_size;
	uint8_t type;
	uint8_t version;
	uint16_t size;
	uint32_t reserved1;
	uint8_t vmpck;
	uint8_t reserved2[35];
};

struct message {
	struct header header;
	uint8_t payload[PAYLOAD_MAX];
};

_Static_assert(sizeof(struct header) == 0x60, "56860, message header format");

/* Pages that the host reads and writes: the request, the response. */
static uint8_t pages[2][PAGE_SIZE] __attribute__((aligned(4096)));

static enum { NOT_SHARED, READY, BROKEN } state;

static const uint8_t *our_key(void)
{
	return boot_info.secrets->vmpck[svsm.vmpl];
}

/*
 * Number of the last message with our key, in either direction. It is in the secrets page, where an SVSM
 * finds it that starts us again: a key must not protect two messages with one number, whatever comes of
 * the first.
 */
static uint32_t *last_number(void)
{
	return (uint32_t *)&boot_info.secrets->message_count[svsm.vmpl];
}

static void make_iv(uint8_t iv[GCM_IV_SIZE], uint64_t number)
{
	memset(iv, 0, GCM_IV_SIZE);
	memcpy(iv, &number, sizeof(number));
}

static struct gcm_message protected_parts(struct message *message)
{
	return (struct gcm_message){
		.aad = &message->header.algorithm,
		.aad_size = sizeof(struct header) - offsetof(struct header, algorithm),
		.data = message->payload,
		.size = message->header.size,
	};
}

static bool share_pages(void)
{
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t gpa = (uint64_t)pages[i];

		if (!page_make_shared(gpa))
			return false;
		paging_set_image(gpa, 0); /* the private alias would only fault */
	}
	return true;
}

static void seal(struct message *message, uint8_t type, const void *payload, uint16_t size)
{
	struct gcm_message parts;
	uint8_t iv[GCM_IV_SIZE];

	memset(message, 0, sizeof(*message));
	message->header.number = *last_number() + 1UL;
	message->header.algorithm = AEAD_AES_256_GCM;
	message->header.header_version = HEADER_VERSION;
	message->header.header_size = sizeof(struct header);
	message->header.type = type;
	message->header.version = MESSAGE_VERSION;
	message->header.size = size;
	message->header.vmpck = (uint8_t)svsm.vmpl;
	memcpy(message->payload, payload, size);
	parts = protected_parts(message);
	make_iv(iv, message->header.number);
	gcm_seal(our_key(), iv, &parts, message->header.tag);
	*last_number() += 2; /* with the response */
}

/* Whether it is the response to the last message of that type. */
static bool open(struct message *message, uint8_t type, uint16_t size)
{
	struct gcm_message parts;
	uint8_t iv[GCM_IV_SIZE];

	if (message->header.number != *last_number() || message->header.type != type + 1 ||
	    message->header.size != size)
		return false;
	parts = protected_parts(message);
	make_iv(iv, message->header.number);
	return gcm_open(our_key(), iv, &parts, message->header.tag);
}

bool psp_request(uint8_t type, void *payload, uint16_t size)
{
	struct message message;
	struct ghcb_exit e = {
		.code = GHCB_EXIT_GUEST_REQUEST,
		.info1 = (uint64_t)pages[0],
		.info2 = (uint64_t)pages[1],
	};

	if (size > PAYLOAD_MAX || state == BROKEN)
		return false;
	if (state == NOT_SHARED && !share_pages())
		return false;
	state = BROKEN; /* until all has gone well */
	seal(&message, type, payload, size);
	memcpy(shared_address(e.info1), &message, sizeof(message));
	if (ghcb_call(&e) != GHCB_OK || e.info2)
		return false;
	memcpy(&message, shared_address((uint64_t)pages[1]), sizeof(message)); /* once: the host may change it */
	if (!open(&message, type, size))
		return false;
	memcpy(payload, message.payload, size);
	state = READY;
	return true;
}
