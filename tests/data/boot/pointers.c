/* SPDX-License-Identifier: MIT */
/* A kernel of no use, with pointers in its data that have to be relocated. */
static int numbers[3] = { 7, 8, 9 };
static int none[0x900];

int *const pointers[] = { &numbers[0], &numbers[2], &none[1] };
const char *const text[] = { "one", "two" };

void svsm_start(void);
void (*const functions[])(void) = { svsm_start };

void svsm_start(void)
{
	for (;;)
		none[0] = **(int *const volatile *)pointers + (int)(long)functions[0] + *text[1];
}
