/* SPDX-License-Identifier: MIT */
/* VMGEXIT for ever: what comes of it, and who runs next, is the host's business. */
	.text
	.globl work
work:
1:	rep
	vmmcall /* F3 0F 01 D9: VMGEXIT */
	jmp	1b
	.section .note.GNU-stack, "", @progbits
