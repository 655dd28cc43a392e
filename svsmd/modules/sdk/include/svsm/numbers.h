/* SPDX-License-Identifier: MIT */
/* Made by tools/make_sdk_header.py: do not edit. */
#ifndef SVSM_NUMBERS_H
#define SVSM_NUMBERS_H

/* Class 0: posix */
#define SVSM_SYS_read 0x0
#define SVSM_SYS_write 0x1
#define SVSM_SYS_open 0x2
#define SVSM_SYS_close 0x3
#define SVSM_SYS_lseek 0x8
#define SVSM_SYS_mmap 0x9
#define SVSM_SYS_mprotect 0xa
#define SVSM_SYS_munmap 0xb
#define SVSM_SYS_brk 0xc
#define SVSM_SYS_writev 0x14
#define SVSM_SYS_sched_yield 0x18
#define SVSM_SYS_nanosleep 0x23
#define SVSM_SYS_getpid 0x27
#define SVSM_SYS_exit 0x3c
#define SVSM_SYS_kill 0x3e
#define SVSM_SYS_getppid 0x6e
#define SVSM_SYS_arch_prctl 0x9e
#define SVSM_SYS_gettid 0xba
#define SVSM_SYS_set_tid_address 0xda
#define SVSM_SYS_clock_gettime 0xe4
#define SVSM_SYS_exit_group 0xe7
#define SVSM_SYS_openat 0x101
#define SVSM_SYS_getrandom 0x13e

/* Class 1: task */
#define SVSM_SYS_spawn 0x100000000
#define SVSM_SYS_wait 0x100000001
#define SVSM_SYS_set_priority 0x100000002
#define SVSM_SYS_set_affinity 0x100000003
#define SVSM_SYS_task_info 0x100000004
#define SVSM_SYS_batch 0x100000005

/* Class 2: ipc */
#define SVSM_SYS_channel_create 0x200000000
#define SVSM_SYS_send 0x200000001
#define SVSM_SYS_receive 0x200000002
#define SVSM_SYS_call 0x200000003
#define SVSM_SYS_reply 0x200000004
#define SVSM_SYS_reply_receive 0x200000005
#define SVSM_SYS_event_create 0x200000006
#define SVSM_SYS_event_signal 0x200000007
#define SVSM_SYS_event_clear 0x200000008
#define SVSM_SYS_wait_many 0x200000009
#define SVSM_SYS_memory_create 0x20000000a
#define SVSM_SYS_duplicate 0x20000000b
#define SVSM_SYS_service_register 0x20000000c
#define SVSM_SYS_service_accept 0x20000000d
#define SVSM_SYS_service_connect 0x20000000e

/* Class 3: protocol */
#define SVSM_SYS_protocol_register 0x300000000
#define SVSM_SYS_protocol_receive 0x300000001
#define SVSM_SYS_protocol_answer 0x300000002
#define SVSM_SYS_protocol_answer_receive 0x300000003
#define SVSM_SYS_guest_read 0x300000004
#define SVSM_SYS_guest_write 0x300000005

/* A call that fails returns one of these, negative. */
#ifndef EPERM
#define EPERM 1
#define ENOENT 2
#define ESRCH 3
#define E2BIG 7
#define ENOEXEC 8
#define EBADF 9
#define ECHILD 10
#define EAGAIN 11
#define ENOMEM 12
#define EACCES 13
#define EFAULT 14
#define EBUSY 16
#define EEXIST 17
#define ENOTDIR 20
#define EISDIR 21
#define EINVAL 22
#define ENFILE 23
#define EMFILE 24
#define ESPIPE 29
#define EROFS 30
#define EPIPE 32
#define ERANGE 34
#define ENAMETOOLONG 36
#define ENOSYS 38
#define ELOOP 40
#define EMSGSIZE 90
#define ETIMEDOUT 110
#define ECANCELED 125
#endif

#endif
