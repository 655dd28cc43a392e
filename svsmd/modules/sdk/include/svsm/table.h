/* SPDX-License-Identifier: MIT */
/* Made by tools/make_sdk_header.py: do not edit. */
#ifndef SVSM_TABLE_H
#define SVSM_TABLE_H

/* X(name, number, arguments) for each call; of the arguments, p is a pointer, i a number. */
#define SVSM_SYSTEM_CALLS(X) \
	X(read, 0x0, "ipi") \
	X(write, 0x1, "ipi") \
	X(close, 0x3, "i") \
	X(lseek, 0x8, "iii") \
	X(mmap, 0x9, "piiiii") \
	X(mprotect, 0xa, "pii") \
	X(munmap, 0xb, "pi") \
	X(brk, 0xc, "p") \
	X(writev, 0x14, "ipi") \
	X(sched_yield, 0x18, "") \
	X(nanosleep, 0x23, "pp") \
	X(getpid, 0x27, "") \
	X(exit, 0x3c, "i") \
	X(kill, 0x3e, "ii") \
	X(getppid, 0x6e, "") \
	X(arch_prctl, 0x9e, "ii") \
	X(gettid, 0xba, "") \
	X(set_tid_address, 0xda, "p") \
	X(clock_gettime, 0xe4, "ip") \
	X(exit_group, 0xe7, "i") \
	X(openat, 0x101, "ipii") \
	X(open, 0x2, "pii") \
	X(getrandom, 0x13e, "pii") \
	X(svsm_spawn, 0x100000000, "pppp") \
	X(svsm_wait, 0x100000001, "ipi") \
	X(svsm_set_priority, 0x100000002, "ii") \
	X(svsm_set_affinity, 0x100000003, "ipi") \
	X(svsm_task_info, 0x100000004, "ip") \
	X(svsm_batch, 0x100000005, "pii") \
	X(svsm_channel_create, 0x200000000, "p") \
	X(svsm_send, 0x200000001, "ipi") \
	X(svsm_receive, 0x200000002, "ipi") \
	X(svsm_call, 0x200000003, "ippi") \
	X(svsm_reply, 0x200000004, "ip") \
	X(svsm_reply_receive, 0x200000005, "ippi") \
	X(svsm_event_create, 0x200000006, "i") \
	X(svsm_event_signal, 0x200000007, "i") \
	X(svsm_event_clear, 0x200000008, "i") \
	X(svsm_wait_many, 0x200000009, "pii") \
	X(svsm_memory_create, 0x20000000a, "i") \
	X(svsm_duplicate, 0x20000000b, "i") \
	X(svsm_service_register, 0x20000000c, "p") \
	X(svsm_service_accept, 0x20000000d, "ii") \
	X(svsm_service_connect, 0x20000000e, "pi") \
	X(svsm_protocol_register, 0x300000000, "iii") \
	X(svsm_protocol_receive, 0x300000001, "ipi") \
	X(svsm_protocol_answer, 0x300000002, "ip") \
	X(svsm_protocol_answer_receive, 0x300000003, "ippi") \
	X(svsm_guest_read, 0x300000004, "iiipi") \
	X(svsm_guest_write, 0x300000005, "iiipi")

#endif
