// SPDX-License-Identifier: MIT
/*
 * Starts itself until somebody refuses, again and again: first its own quota of children, then, with
 * children that do the same, that of the machine.
 */
#include "svsm/svsm.h"

static void wait_for_all(int children)
{
	int status;

	for (int i = 0; i < children; i++) {
		CHECK(svsm_wait(-1, &status, SVSM_NO_DEADLINE) > 0);
		CHECK(status == 0 || status == SVSM_STATUS_KILLED);
	}
	CHECK(svsm_wait(-1, &status, SVSM_NO_DEADLINE) == -ECHILD);
}

static int spawn_until_refused(const char *path, const char *what, const struct svsm_spawn *how)
{
	const char *arguments[] = { path, what, NULL };

	for (int children = 0;; children++) {
		long child = svsm_spawn(path, arguments, NULL, how);

		if (child > 0)
			continue;
		CHECK(child == -EAGAIN || child == -ENOMEM);
		return children;
	}
}

static void tree(const char *path)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64, .children = 8,
				  .capabilities = SVSM_CAP_SPAWN };

	wait_for_all(spawn_until_refused(path, "tree", &how));
}

int main(int argc, char **argv, char **envp)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64 };
	struct svsm_task_info before, after;

	(void)envp;
	if (argc > 1 && strcmp(argv[1], "leaf") == 0)
		return 0;
	if (argc > 1) {
		tree(argv[0]);
		return 0;
	}
	CHECK(svsm_task_info(0, &before) == 0);
	for (int round = 0; round < 3; round++) {
		int children = spawn_until_refused(argv[0], "leaf", &how);

		CHECK(children == 8);
		wait_for_all(children);
	}
	tree(argv[0]);
	/* Killed before they have run at all. */
	for (int round = 0; round < 20; round++) {
		const char *arguments[] = { argv[0], "leaf", NULL };
		long child = svsm_spawn(argv[0], arguments, NULL, &how);
		int status;

		CHECK(child > 0);
		CHECK(kill((int)child, SIGKILL) == 0);
		CHECK(svsm_wait((int)child, &status, SVSM_NO_DEADLINE) == child);
		CHECK(status == 0 || status == SVSM_STATUS_KILLED);
	}
	CHECK(svsm_task_info(0, &after) == 0);
	CHECK(before.pages == after.pages);
	printf("passed\n");
	return 0;
}
