/* SPDX-License-Identifier: MIT */
/*
 * Spec: Linux Documentation/arch/x86/boot.rst and zero-page.rst (boot_params, setup_data, e820),
 * AMD 56860 (secrets page, CPUID page); CC blob: Linux arch/x86/include/asm/sev.h.
 */
#include "boot.h"

#include "ghcb.h"
#include "string.h"

#define BP_RSDP 0x070
#define BP_E820_ENTRIES 0x1e8
#define BP_CMD_LINE_PTR 0x228
#define BP_SETUP_DATA 0x250
#define BP_E820_TABLE 0x2d0
#define E820_MAX 128
#define E820_RAM 1

#define SETUP_CC_BLOB 7
#define SETUP_DATA_MAX 64 /* nodes followed before we call it a loop */
#define CC_BLOB_MAGIC 0x45444d41 /* 'AMDE' */

struct setup_data {
	uint64_t next;
	uint32_t type;
	uint32_t length;
	uint32_t cc_blob; /* GPA, for SETUP_CC_BLOB */
} __attribute__((packed));

struct cc_blob {
	uint32_t magic;
	uint16_t version;
	uint16_t reserved0;
	uint64_t secrets;
	uint32_t secrets_length;
	uint32_t reserved1;
	uint64_t cpuid;
	uint32_t cpuid_length;
	uint32_t reserved2;
};

struct e820_entry {
	uint64_t base;
	uint64_t size;
	uint32_t type;
} __attribute__((packed));

struct boot_info boot_info;

static struct e820_entry e820[E820_MAX];
static unsigned int e820_entries;

static void read_cc_blob(const struct cc_blob *blob)
{
	if (blob->magic != CC_BLOB_MAGIC || blob->secrets_length != PAGE_SIZE || blob->cpuid_length < PAGE_SIZE)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
	boot_info.secrets_gpa = blob->secrets;
	boot_info.cpuid_gpa = blob->cpuid;
	boot_info.secrets = (const struct secrets_page *)blob->secrets;
	boot_info.cpuid = (const struct cpuid_page *)blob->cpuid;
	if (boot_info.cpuid->count == 0 || boot_info.cpuid->count > CPUID_PAGE_MAX)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
}

void boot_init(uint64_t boot_params)
{
	const uint8_t *bp = (const uint8_t *)boot_params;
	uint64_t node = *(const uint64_t *)(bp + BP_SETUP_DATA);
	uint64_t text = *(const uint32_t *)(bp + BP_CMD_LINE_PTR);

	memcpy(&boot_info.rsdp, bp + BP_RSDP, sizeof(boot_info.rsdp));
	e820_entries = bp[BP_E820_ENTRIES];
	if (e820_entries > E820_MAX)
		e820_entries = E820_MAX;
	memcpy(e820, bp + BP_E820_TABLE, e820_entries * sizeof(*e820));

	for (size_t i = 0; text && i < sizeof(boot_info.command_line) - 1; i++) {
		boot_info.command_line[i] = ((const char *)text)[i];
		if (!boot_info.command_line[i])
			break;
	}
	for (unsigned int i = 0; node && i < SETUP_DATA_MAX; i++) {
		const struct setup_data *data = (const struct setup_data *)node;

		if (data->type == SETUP_CC_BLOB)
			read_cc_blob((const struct cc_blob *)(uint64_t)data->cc_blob);
		node = data->next;
	}
	if (!boot_info.cpuid)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
}

bool boot_is_ram(uint64_t gpa, uint64_t size)
{
	for (unsigned int i = 0; i < e820_entries; i++)
		if (e820[i].type == E820_RAM && gpa >= e820[i].base && size <= e820[i].size &&
		    gpa - e820[i].base <= e820[i].size - size)
			return true;
	return false;
}

uint64_t boot_ram_end(void)
{
	uint64_t end = 0;

	for (unsigned int i = 0; i < e820_entries; i++)
		if (e820[i].type == E820_RAM && e820[i].base + e820[i].size > end)
			end = e820[i].base + e820[i].size;
	return end;
}

/* Leaves whose answer depends on ECX (24594, appendix E). */
static bool has_subleaves(uint32_t leaf)
{
	switch (leaf) {
	case 0x4:
	case 0x7:
	case 0xb:
	case 0xd:
	case 0xf:
	case 0x10:
	case 0x8000001d:
	case 0x80000020:
	case 0x80000026:
		return true;
	default:
		return false;
	}
}

bool boot_cpuid(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *regs)
{
	const struct cpuid_page *page = boot_info.cpuid;

	*regs = (struct cpuid_regs){ 0 };
	for (uint32_t i = 0; i < page->count && i < CPUID_PAGE_MAX; i++) {
		const struct cpuid_entry *e = &page->entry[i];

		if (e->eax_in != leaf || (has_subleaves(leaf) && e->ecx_in != subleaf))
			continue;
		*regs = (struct cpuid_regs){ e->eax, e->ebx, e->ecx, e->edx };
		return true;
	}
	return false;
}
