/* SPDX-License-Identifier: MIT */
/* Code at CPL 3, and the way there and back. */
#ifndef DEMO_USER_H
#define DEMO_USER_H

/* System call numbers, in RAX. */
#define SYSCALL_EXIT 0 /* RDI: result of user_run */
#define SYSCALL_COUNT 1 /* adds RDI to syscall_sum, returns the sum in RAX by SYSRET */

#ifndef __ASSEMBLER__
#include <stdint.h>

extern uint64_t syscall_sum;

/* Run code of the user_text section at CPL 3 with RDI = argument until it makes SYSCALL_EXIT. */
uint64_t user_run(const char *entry, uint64_t argument);

/* One 4 KiB page that CPL 3 may read and write: its stack, and words for tests at the start. */
extern volatile uint64_t user_page[512];

/* user.S */
extern const char user_exit[], user_count[], user_read[], user_write[], user_jump[], user_in[], user_outs[];
extern const char user_hlt[], user_int3[], user_int_gp[], user_cli[], user_spin[], user_cs[];
void syscall_entry(void);
uint64_t user_enter(const char *entry, uint64_t stack, uint64_t argument);
#endif
#endif
