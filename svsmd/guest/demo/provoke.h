/* SPDX-License-Identifier: MIT */
/* Exceptions on demand. */
#ifndef DEMO_PROVOKE_H
#define DEMO_PROVOKE_H

#include "trap.h"

struct provocation {
	const char *name;
	const char *what;
	void (*provoke)(uint64_t unused);
};

extern const struct provocation provocations[]; /* ends with a null name */

void provoke_de(uint64_t unused);
void provoke_db(uint64_t unused);
void provoke_bp(uint64_t unused);
void provoke_ud(uint64_t unused);
void provoke_nm(uint64_t unused);
void provoke_df(uint64_t unused);
void provoke_np(uint64_t unused);
void provoke_ss(uint64_t unused);
void provoke_gp(uint64_t unused);
void provoke_gp_selector(uint64_t unused);
void provoke_read(uint64_t address); /* of 8 bytes */
void provoke_write(uint64_t address);
void provoke_jump(uint64_t address);
void provoke_vc(uint64_t unused); /* reads a page that is not validated */

/* Take back what a provocation leaves behind: CR0.TS, a page that is not validated. */
void provoke_undo(void);

/* The page that provoke_vc rescinds; read it only while that is undone. */
#define PROVOKE_VC_PAGE (ARENA_BASE + 0x3ff000)

#endif
