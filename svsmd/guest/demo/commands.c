/* SPDX-License-Identifier: MIT */
#include "commands.h"

#include <stdbool.h>

#include "acpi.h"
#include "bench.h"
#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "power.h"
#include "print.h"
#include "provoke.h"
#include "selftest.h"
#include "smp.h"
#include "string.h"
#include "svsm.h"
#include "uart.h"

#define PEEK_MAX 4096 /* bytes at most */
#define BUSY_ROUNDS 100000

volatile unsigned long demo_counter;

void __attribute__((noinline)) demo_busy_loop(unsigned long rounds)
{
	for (unsigned long i = 0; i < rounds; i++)
		demo_counter++;
}

/* An argument that must be a number; says so if it is none. */
static bool number(const char *text, uint64_t *value)
{
	if (parse_hex(text, value))
		return true;
	print("%s: not a hexadecimal number\n", text);
	return false;
}

static void print_fault(const struct fault *fault)
{
	print("%s, error code %lx, at %lx", vector_name(fault->vector), fault->error_code, fault->rip);
	if (fault->vector == VECTOR_PF || fault->error_code == SVM_EXIT_PAGE_NOT_VALIDATED)
		print(", address %lx", fault->cr2);
	print("\n");
}

static void command_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	for (const struct command *c = commands; c->name; c++) {
		print("  %-10s%-23s%s\n", c->name, c->arguments, c->help);
	}
}

static void print_cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid_regs r = cpuid(leaf, subleaf);

	print("%08x.%x: eax %08x ebx %08x ecx %08x edx %08x\n", leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
}

static void command_cpuid(int argc, char **argv)
{
	uint64_t leaf, subleaf = 0;

	if (argc == 1) {
		for (uint32_t i = 0; i < boot_info.cpuid->count && i < CPUID_PAGE_MAX; i++)
			print_cpuid(boot_info.cpuid->entry[i].eax_in, boot_info.cpuid->entry[i].ecx_in);
		return;
	}
	if (number(argv[1], &leaf) && (argc < 3 || number(argv[2], &subleaf)))
		print_cpuid((uint32_t)leaf, (uint32_t)subleaf);
}

static void command_svsm(int argc, char **argv)
{
	static const struct {
		uint32_t number;
		const char *name;
	} protocols[] = {
		{ SVSM_CORE, "core" },	 { SVSM_ATTEST, "attestation" }, { SVSM_VTPM, "vTPM" },
		{ SVSM_APIC, "APIC" }, { SVSM_UEFI_MM, "UEFI MM" },	 { SVSM_ECHO, "echo" },
	};

	(void)argc;
	(void)argv;
	if (!svsm.present) {
		print("no SVSM: this is VMPL0\n");
		return;
	}
	print("VMPL %u under the SVSM at %lx..%lx, calling area at %lx\n", svsm.vmpl, svsm.base,
	      svsm.base + svsm.size - 1, this_cpu()->caa_gpa);
	for (unsigned int i = 0; i < sizeof(protocols) / sizeof(*protocols); i++) {
		uint64_t versions = svsm_query(protocols[i].number, 1);

		print("  protocol %x, %s: ", protocols[i].number, protocols[i].name);
		if (versions)
			print("versions %lu to %lu\n", versions & 0xffffffff, versions >> 32);
		else
			print("not offered\n");
	}
}

static void command_call(int argc, char **argv)
{
	uint64_t values[6] = { 0 }, start, code;
	struct svsm_regs regs;

	for (int i = 1; i < argc; i++)
		if (!number(argv[i], &values[i - 1]))
			return;
	if (!svsm.present) {
		print("no SVSM: this is VMPL0\n");
		return;
	}
	regs = (struct svsm_regs){ .rcx = values[2], .rdx = values[3], .r8 = values[4], .r9 = values[5] };
	start = rdtsc();
	code = svsm_call((uint32_t)values[0], (uint32_t)values[1], &regs);
	print("%lx, %s: rcx %lx rdx %lx r8 %lx, %lu ticks\n", code, svsm_result_name(code), regs.rcx, regs.rdx, regs.r8,
	      rdtsc() - start);
}

static void command_pvalidate(int argc, char **argv)
{
	bool rescind = argc > 2;
	uint64_t gpa, code;

	if (!number(argv[1], &gpa))
		return;
	if (rescind && strcmp(argv[2], "rescind")) {
		print("%s: what is that?\n", argv[2]);
		return;
	}
	if (svsm.present) {
		code = svsm_pvalidate((gpa & ~(PAGE_SIZE - 1)) | (rescind ? 0 : PVALIDATE_VALIDATE));
		print("%lx, %s\n", code, svsm_result_name(code));
	} else {
		struct pvalidate_result r = pvalidate(gpa & ~(PAGE_SIZE - 1), 0, !rescind);

		print("%x, CF %u\n", r.code, r.unchanged);
	}
}

struct peek {
	uint8_t *to;
	const volatile uint8_t *from;
	size_t size, done;
};

static void copy_out(uint64_t argument)
{
	struct peek *peek = (struct peek *)argument;

	for (; peek->done < peek->size; peek->done++)
		peek->to[peek->done] = peek->from[peek->done];
}

static void command_peek(int argc, char **argv)
{
	static uint8_t bytes[PEEK_MAX];
	uint64_t address, size = 64;
	struct peek peek = { .to = bytes };
	struct fault fault;
	bool caught;

	if (!number(argv[1], &address) || (argc > 2 && !number(argv[2], &size)))
		return;
	peek.from = (const volatile uint8_t *)address;
	peek.size = size < PEEK_MAX ? size : PEEK_MAX;
	caught = fault_catch(&fault, copy_out, (uint64_t)&peek);
	for (size_t i = 0; i < peek.done; i += 16) {
		print("%016lx ", address + i);
		for (size_t j = i; j < i + 16; j++)
			if (j < peek.done)
				print(" %02x", bytes[j]);
			else
				print("   ");
		print("  ");
		for (size_t j = i; j < i + 16 && j < peek.done; j++)
			print("%c", bytes[j] >= ' ' && bytes[j] < 0x7f ? bytes[j] : '.');
		print("\n");
	}
	if (caught)
		print_fault(&fault);
}

struct poke {
	volatile uint64_t *to;
	uint64_t value;
};

static void copy_in(uint64_t argument)
{
	struct poke *poke = (struct poke *)argument;

	*poke->to = poke->value;
}

static void command_poke(int argc, char **argv)
{
	uint64_t address, value;
	struct poke poke;
	struct fault fault;

	(void)argc;
	if (!number(argv[1], &address) || !number(argv[2], &value))
		return;
	poke = (struct poke){ (volatile uint64_t *)address, value };
	if (fault_catch(&fault, copy_in, (uint64_t)&poke))
		print_fault(&fault);
}

static void command_caa(int argc, char **argv)
{
	struct cpu *cpu = this_cpu();

	(void)argc;
	(void)argv;
	if (!svsm.present) {
		print("no SVSM, no calling area\n");
		return;
	}
	print("at %lx (the SVSM's choice was %lx): call_pending %u, mem_available %u, no_eoi_required %u\n",
	      cpu->caa_gpa, svsm.boot_caa, cpu->caa->call_pending, cpu->caa->mem_available,
	      cpu->caa->no_eoi_required);
}

static void command_fault(int argc, char **argv)
{
	struct fault fault;

	for (const struct provocation *p = provocations; p->name; p++) {
		if (argc < 2) {
			print("  fault %s  %s\n", p->name, p->what);
			continue;
		}
		if (strcmp(argv[1], p->name))
			continue;
		if (p->provoke == provoke_vc && !arena_present()) {
			print("this machine has too little memory\n");
			return;
		}
		if (fault_catch(&fault, p->provoke, 0))
			print_fault(&fault);
		else
			print("nothing happened\n");
		provoke_undo();
		return;
	}
	if (argc > 1)
		print("%s: no such fault; `fault` lists them\n", argv[1]);
}

static void command_vcpu(int argc, char **argv)
{
	uint32_t apic_id = acpi_info.apic_id[1];
	uint64_t code, before;

	(void)argc;
	(void)argv;
	if (acpi_info.cpus < 2) {
		print("this machine has one CPU; start it with --cpus 2\n");
		return;
	}
	code = smp_start(apic_id, true);
	if (code != SVSM_SUCCESS) {
		print("start: %lx, %s\n", code, svsm_result_name(code));
		return;
	}
	before = smp_report.counter;
	for (uint64_t end = rdtsc() + 1000000; rdtsc() < end;)
		cpu_pause();
	print("it counted to %lu, and %lu further while we waited\n", before, smp_report.counter - before);
	code = smp_stop(apic_id);
	print("stop: %lx, %s\n", code, svsm_result_name(code));
}

static void command_bench(int argc, char **argv)
{
	if (!bench(argc > 1 ? argv[1] : NULL))
		print("%s: no such benchmark\n", argv[1]);
}

static void command_busy(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	print("counting in demo_counter; any key stops\n");
	while (!uart_has_input())
		demo_busy_loop(BUSY_ROUNDS);
	uart_read();
	print("demo_counter is %lu\n", demo_counter);
}

static void command_selftest(int argc, char **argv)
{
	selftest_run(argc > 1 ? argv[1] : NULL);
}

static void command_off(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	power_off();
}

static void command_reboot(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	reboot();
}

const struct command commands[] = {
	{ "help", "", "this list; all numbers are hexadecimal", 0, 0, command_help },
	{ "cpuid", "[LEAF [SUBLEAF]]", "one leaf, or all that the CPUID page has", 0, 2, command_cpuid },
	{ "svsm", "", "the SVSM: where it is, what it offers", 0, 0, command_svsm },
	{ "call", "PROTOCOL CALL [REG...]", "call the SVSM: RCX, RDX, R8, R9", 2, 6, command_call },
	{ "caa", "", "the calling area", 0, 0, command_caa },
	{ "pvalidate", "GPA [rescind]", "validate or rescind a page", 1, 2, command_pvalidate },
	{ "peek", "ADDRESS [SIZE]", "show memory", 1, 2, command_peek },
	{ "poke", "ADDRESS VALUE", "write 8 bytes", 2, 2, command_poke },
	{ "fault", "[NAME]", "provoke an exception, or list what there is", 0, 1, command_fault },
	{ "vcpu", "", "start and stop a second CPU", 0, 0, command_vcpu },
	{ "bench", "[NAME]", "alu, sha256, copy, svsm, module, cpuid, rdtsc", 0, 1, command_bench },
	{ "busy", "", "count until a key is pressed", 0, 0, command_busy },
	{ "selftest", "[PREFIX]", "run the checks", 0, 1, command_selftest },
	{ "off", "", "power off", 0, 0, command_off },
	{ "reboot", "", "reset the machine", 0, 0, command_reboot },
	{ 0 },
};
