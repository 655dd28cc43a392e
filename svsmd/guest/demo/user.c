/* SPDX-License-Identifier: MIT */
#include "user.h"

uint64_t syscall_sum;

uint64_t user_run(const char *entry, uint64_t argument)
{
	return user_enter(entry, (uint64_t)user_page + sizeof(user_page), argument);
}
