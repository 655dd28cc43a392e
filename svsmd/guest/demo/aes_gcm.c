/* SPDX-License-Identifier: MIT */
/* Spec: FIPS 197 (AES), NIST SP 800-38D (GCM). */
#include "aes_gcm.h"

#include "string.h"

#define BLOCK 16
#define ROUNDS 14
#define KEY_WORDS (AES_KEY_SIZE / 4)

struct aes {
	uint8_t round_key[ROUNDS + 1][BLOCK];
};

/* An element of GF(2^128): bit 0 of the specification is the top bit of `high`. */
struct field {
	uint64_t high, low;
};

static uint8_t sbox[256]; /* sbox[0] is 0x63 as soon as it is filled */

/* Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
static uint8_t multiply(uint8_t a, uint8_t b)
{
	uint8_t product = 0;

	for (; b; b >>= 1) {
		if (b & 1)
			product ^= a;
		a = (uint8_t)(a << 1 ^ (a & 0x80 ? 0x1b : 0));
	}
	return product;
}

/* FIPS 197, 5.1.1: the inverse, which is the power 2 + 4 + .. + 128, and an affine transformation of it. */
static void fill_sbox(void)
{
	for (unsigned int x = 0; x < 256; x++) {
		uint8_t power = (uint8_t)x, inverse = 1, result = 0x63;

		for (unsigned int i = 0; i < 7; i++) {
			power = multiply(power, power);
			inverse = multiply(inverse, power);
		}
		for (unsigned int i = 0; i < 5; i++)
			result ^= (uint8_t)(inverse << i | inverse >> (8 - i));
		sbox[x] = result;
	}
}

static void expand_key(struct aes *aes, const uint8_t key[AES_KEY_SIZE])
{
	uint8_t *words = aes->round_key[0], constant = 1;

	if (!sbox[0])
		fill_sbox();
	memcpy(words, key, AES_KEY_SIZE);
	for (unsigned int i = KEY_WORDS; i < 4 * (ROUNDS + 1); i++) {
		const uint8_t *last = words + 4 * (i - 1), *before = words + 4 * (i - KEY_WORDS);
		bool first = i % KEY_WORDS == 0, substitute = i % (KEY_WORDS / 2) == 0;

		for (unsigned int j = 0; j < 4; j++) {
			uint8_t byte = last[first ? (j + 1) % 4 : j];

			words[4 * i + j] = before[j] ^ (substitute ? sbox[byte] : byte);
		}
		if (first) {
			words[4 * i] ^= constant;
			constant = multiply(constant, 2);
		}
	}
}

static void add_round_key(const struct aes *aes, unsigned int round, uint8_t state[BLOCK])
{
	for (unsigned int i = 0; i < BLOCK; i++)
		state[i] ^= aes->round_key[round][i];
}

static void mix_column(uint8_t column[4])
{
	uint8_t all = column[0] ^ column[1] ^ column[2] ^ column[3], first = column[0];

	for (unsigned int i = 0; i < 4; i++) {
		uint8_t next = i < 3 ? column[i + 1] : first;

		column[i] ^= all ^ multiply(column[i] ^ next, 2);
	}
}

static void encrypt_block(const struct aes *aes, uint8_t state[BLOCK])
{
	add_round_key(aes, 0, state);
	for (unsigned int round = 1; round <= ROUNDS; round++) {
		uint8_t shifted[BLOCK];

		for (unsigned int i = 0; i < BLOCK; i++)
			shifted[i] = sbox[state[(i + 4 * (i % 4)) % BLOCK]];
		memcpy(state, shifted, BLOCK);
		for (unsigned int column = 0; round < ROUNDS && column < 4; column++)
			mix_column(state + 4 * column);
		add_round_key(aes, round, state);
	}
}

static uint64_t load_big(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return __builtin_bswap64(value);
}

static void store_big(uint8_t *at, uint64_t value)
{
	value = __builtin_bswap64(value);
	memcpy(at, &value, sizeof(value));
}

/* SP 800-38D, 6.3. */
static struct field field_multiply(struct field x, struct field v)
{
	struct field z = { 0, 0 };

	for (unsigned int i = 0; i < 128; i++) {
		bool carry = v.low & 1;

		if ((i < 64 ? x.high >> (63 - i) : x.low >> (127 - i)) & 1) {
			z.high ^= v.high;
			z.low ^= v.low;
		}
		v.low = v.low >> 1 | v.high << 63;
		v.high = v.high >> 1 ^ (carry ? 0xe1UL << 56 : 0);
	}
	return z;
}

/* SP 800-38D, 6.4: goes on with `hash` over data, the last block padded with zeros. */
static void ghash(struct field *hash, struct field h, const uint8_t *data, size_t size)
{
	for (size_t at = 0; at < size; at += BLOCK) {
		uint8_t block[BLOCK] = { 0 };

		memcpy(block, data + at, size - at < BLOCK ? size - at : BLOCK);
		hash->high ^= load_big(block);
		hash->low ^= load_big(block + 8);
		*hash = field_multiply(*hash, h);
	}
}

/* One block of the key stream; the counter is the last four bytes. */
static void key_stream(const struct aes *aes, const uint8_t iv[GCM_IV_SIZE], uint32_t counter, uint8_t block[BLOCK])
{
	memcpy(block, iv, GCM_IV_SIZE);
	for (unsigned int i = 0; i < 4; i++)
		block[GCM_IV_SIZE + i] = (uint8_t)(counter >> (24 - 8 * i));
	encrypt_block(aes, block);
}

static void apply_key_stream(const struct aes *aes, const uint8_t iv[GCM_IV_SIZE], uint8_t *data, size_t size)
{
	uint8_t block[BLOCK];

	for (size_t at = 0; at < size; at++) {
		if (at % BLOCK == 0)
			key_stream(aes, iv, (uint32_t)(2 + at / BLOCK), block);
		data[at] ^= block[at % BLOCK];
	}
}

/* The tag over the encrypted data. */
static void make_tag(const struct aes *aes, const uint8_t iv[GCM_IV_SIZE], const struct gcm_message *message,
		     uint8_t tag[GCM_TAG_SIZE])
{
	uint8_t block[BLOCK] = { 0 };
	struct field h, hash = { 0, 0 };

	encrypt_block(aes, block);
	h = (struct field){ load_big(block), load_big(block + 8) };
	ghash(&hash, h, message->aad, message->aad_size);
	ghash(&hash, h, message->data, message->size);
	store_big(block, 8 * (uint64_t)message->aad_size);
	store_big(block + 8, 8 * (uint64_t)message->size);
	ghash(&hash, h, block, BLOCK);
	key_stream(aes, iv, 1, block);
	store_big(tag, load_big(block) ^ hash.high);
	store_big(tag + 8, load_big(block + 8) ^ hash.low);
}

void gcm_seal(const uint8_t key[AES_KEY_SIZE], const uint8_t iv[GCM_IV_SIZE], const struct gcm_message *message,
	      uint8_t tag[GCM_TAG_SIZE])
{
	struct aes aes;

	expand_key(&aes, key);
	apply_key_stream(&aes, iv, message->data, message->size);
	make_tag(&aes, iv, message, tag);
}

bool gcm_open(const uint8_t key[AES_KEY_SIZE], const uint8_t iv[GCM_IV_SIZE], const struct gcm_message *message,
	      const uint8_t tag[GCM_TAG_SIZE])
{
	struct aes aes;
	uint8_t expected[GCM_TAG_SIZE];

	expand_key(&aes, key);
	make_tag(&aes, iv, message, expected);
	if (memcmp(expected, tag, GCM_TAG_SIZE))
		return false;
	apply_key_stream(&aes, iv, message->data, message->size);
	return true;
}
