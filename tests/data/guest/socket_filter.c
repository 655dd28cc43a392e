// SPDX-License-Identifier: MIT
// Loads an eBPF program that lets a packet pass if its bytes add up to an even number, and sends
// packets through it. Prints "filter: N of M passed, K bytes of machine code"; 1 if anything fails.
//
// Spec: bpf(2), socket(7) (SO_ATTACH_BPF), Linux Documentation/bpf/standardization/
// instruction-set.rst.

#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PACKETS 256
#define PACKET_SIZE 16

#define INSN(op, dst, src, offset, value) \
	{ .code = (op), .dst_reg = (dst), .src_reg = (src), .off = (offset), .imm = (value) }

// r6 = the packet; r7 = the sum so far; r8 = where the next byte is. LD_IND gives its byte in r0.
static const struct bpf_insn program[] = {
	INSN(BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0),
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 7, 0, 0, 0),
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 8, 0, 0, 0),
	INSN(BPF_LD | BPF_IND | BPF_B, 0, 8, 0, 0),
	INSN(BPF_ALU64 | BPF_ADD | BPF_X, 7, 0, 0, 0),
	INSN(BPF_ALU64 | BPF_ADD | BPF_K, 8, 0, 0, 1),
	INSN(BPF_JMP | BPF_JLT | BPF_K, 8, 0, -4, PACKET_SIZE),
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
	INSN(BPF_ALU64 | BPF_AND | BPF_K, 7, 0, 0, 1),
	INSN(BPF_JMP | BPF_JNE | BPF_K, 7, 0, 1, 0),
	INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, PACKET_SIZE),
	INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
};

static int bpf(int command, union bpf_attr *attributes)
{
	return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int failed(const char *what)
{
	printf("filter: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(void)
{
	static char log[1 << 16];
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
		.insn_cnt = sizeof program / sizeof *program,
		.insns = (unsigned long)program,
		.license = (unsigned long)"MIT",
		.log_level = 1,
		.log_size = sizeof log,
		.log_buf = (unsigned long)log,
	};
	int filter = bpf(BPF_PROG_LOAD, &load);

	if (filter < 0) {
		fputs(log, stdout);
		return failed("BPF_PROG_LOAD");
	}

	struct bpf_prog_info info = { 0 };
	union bpf_attr query = {
		.info = { .bpf_fd = filter, .info_len = sizeof info, .info = (unsigned long)&info },
	};

	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &query) < 0)
		return failed("BPF_OBJ_GET_INFO_BY_FD");

	int ends[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0)
		return failed("socketpair");
	if (setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter) < 0)
		return failed("SO_ATTACH_BPF");

	int passed = 0;

	for (int number = 0; number < PACKETS; number++) {
		unsigned char packet[PACKET_SIZE] = { (unsigned char)number, 3 };
		unsigned char answer[PACKET_SIZE];
		// The sender is not told what becomes of a packet.
		if (send(ends[0], packet, sizeof packet, 0) != sizeof packet)
			return failed("send");
		ssize_t size = recv(ends[1], answer, sizeof answer, MSG_DONTWAIT);

		if ((size == sizeof answer) != ((number + 3) % 2 == 0))
			return failed("a packet went the wrong way");
		if (size != sizeof answer)
			continue;
		if (memcmp(answer, packet, sizeof packet) != 0)
			return failed("a packet came through changed");
		passed++;
	}
	printf("filter: %d of %d passed, %u bytes of machine code\n", passed, PACKETS,
	       info.jited_prog_len);
	return info.jited_prog_len == 0;
}
