// SPDX-License-Identifier: MIT
/* Says hello, and what it was started with. */
#include "svsm/svsm.h"

int main(int argc, char **argv, char **envp)
{
	struct svsm_task_info info;

	printf("hello from CPL %u, task %d\n", ({
		       uint16_t cs;
		       __asm__("mov %%cs, %0" : "=r"(cs));
		       cs & 3u;
	       }),
	       (int)getpid());
	for (int i = 0; i < argc; i++)
		printf("argv[%d] = %s\n", i, argv[i]);
	for (; *envp; envp++)
		printf("environment: %s\n", *envp);
	if (svsm_task_info(0, &info) == 0)
		printf("%lu of %lu pages\n", info.pages, info.page_limit);
	return 0;
}
