/* SPDX-License-Identifier: MIT */
/* AES-256-GCM with an IV of 12 bytes, for messages that are few and short: simple, not fast. */
#ifndef DEMO_AES_GCM_H
#define DEMO_AES_GCM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AES_KEY_SIZE 32
#define GCM_IV_SIZE 12
#define GCM_TAG_SIZE 16

/* What is protected: `data` is encrypted in place, `aad` is only authenticated. */
struct gcm_message {
	const void *aad;
	size_t aad_size;
	void *data;
	size_t size;
};

void gcm_seal(const uint8_t key[AES_KEY_SIZE], const uint8_t iv[GCM_IV_SIZE], const struct gcm_message *message,
	      uint8_t tag[GCM_TAG_SIZE]);

/* False: not what was sealed with this key and IV; the data stay as they are. */
bool gcm_open(const uint8_t key[AES_KEY_SIZE], const uint8_t iv[GCM_IV_SIZE], const struct gcm_message *message,
	      const uint8_t tag[GCM_TAG_SIZE]);

#endif
