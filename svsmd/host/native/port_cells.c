/* SPDX-License-Identifier: MIT */
/*
 * Port accesses that the host answers without Python: what a kernel polls by the ten thousand while
 * it boots.
 *
 * A cell holds what a register's answer depends on, taken from the device in Python before VMRUN and
 * given back to it after VMRUN (svsmd/host/port_cells.py). While it is closed, and for every access
 * that is not exactly one of the kinds below, the device itself answers; the guest cannot tell.
 *
 * Spec: GHCB 56421, 2.3 (layout), 4.1 (IOIO_PROT); 24593, 15.10.2 (SW_EXITINFO1).
 */
#include <stdint.h>
#include <string.h>

enum {
	GHCB_RAX = 0x1f8,
	GHCB_EXIT_CODE = 0x390, /* code, info 1, info 2 */
	GHCB_VALID = 0x3f0,     /* two quadwords of 64 bits, one for each quadword of the save area */
	GHCB_VERSION = 0xffa,   /* u16; then u32 usage */
	EXIT_IOIO = 0x7b,
	INFO_A64 = 1 << 9,      /* 64-bit addresses: means nothing for a single access */
	SENT_SIZE = 4096,
};

/* Bits of the second quadword: the exit code and its two operands. */
static const uint64_t request_valid = (uint64_t)7 << (GHCB_EXIT_CODE / 8 - 64);
/* Of the answer: the two operands. */
static const uint64_t answer_valid = (uint64_t)6 << (GHCB_EXIT_CODE / 8 - 64);
static const uint64_t rax_valid = (uint64_t)1 << (GHCB_RAX / 8);

/* Shared with svsmd/host/port_cells.py: class _Cells. Keep the order. */
struct cells {
	uint8_t *ghcb;         /* host address of the world's registered GHCB */
	uint64_t ghcb_gpa;     /* its GPA, or all ones if there is none that may be used */
	uint32_t vector_given; /* an interrupt came along with VMRUN */
	uint32_t version;      /* of the GHCB protocol; others are rare */

	/* SW_EXITINFO1 of the accesses without INFO_A64, 0 where the cell is closed. */
	uint32_t transmit, line_status, timer;

	/* COM1 */
	uint32_t status;       /* what LSR reads as */
	uint32_t polls;        /* LSR reads since any other register was touched */
	uint32_t count;        /* characters in `sent` */

	/* Counter 2 of the PIT in mode 0 */
	uint32_t high_next;    /* the high byte is read next */
	uint32_t pit_hz;
	uint64_t start;        /* clock of the PIT when counting started */
	uint64_t reload;
	uint64_t ticks_per_second;

	uint64_t served;
	uint8_t sent[SENT_SIZE];
};

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

static uint8_t read_timer(struct cells *c, uint64_t ticks)
{
	uint64_t clock = (uint64_t)((unsigned __int128)ticks * c->pit_hz / c->ticks_per_second);
	uint16_t count = (uint16_t)(c->reload - (clock - c->start));
	uint32_t high = c->high_next;

	c->high_next = !high;
	return (uint8_t)(high ? count >> 8 : count);
}

/*
 * Serves the event in the GHCB, if it is one of ours; returns whether it was. `ticks` is the clock,
 * `v_irq` the vector that still waits to be taken, negative if none does.
 */
int svsmd_serve_ports(struct cells *c, uint64_t ghcb_msr, uint64_t ticks, int v_irq)
{
	uint8_t *ghcb = c->ghcb;
	uint64_t valid, info;
	uint16_t version;
	uint32_t usage;
	int reads = 1;
	uint8_t value;

	if (ghcb_msr != c->ghcb_gpa)
		return 0;
	/* What was to be taken has been taken: the interrupt controller has to hear of it first. */
	if (c->vector_given && v_irq < 0)
		return 0;
	memcpy(&version, ghcb + GHCB_VERSION, sizeof(version));
	memcpy(&usage, ghcb + GHCB_VERSION + 2, sizeof(usage));
	if (version != c->version || usage)
		return 0;
	if (~get64(ghcb + GHCB_VALID + 8) & request_valid || get64(ghcb + GHCB_EXIT_CODE) != EXIT_IOIO)
		return 0;
	info = get64(ghcb + GHCB_EXIT_CODE + 8) & ~(uint64_t)INFO_A64;
	valid = get64(ghcb + GHCB_VALID);
	if (!info)
		return 0;
	if (info == c->line_status) {
		c->polls++;
		value = (uint8_t)c->status;
	} else if (info == c->transmit) {
		if (!(valid & rax_valid) || c->count == SENT_SIZE)
			return 0;
		c->sent[c->count++] = ghcb[GHCB_RAX];
		c->polls = 0;
		reads = 0;
	} else if (info == c->timer) {
		value = read_timer(c, ticks);
	} else {
		return 0;
	}
	memset(ghcb + GHCB_EXIT_CODE + 8, 0, 16);
	put64(ghcb + GHCB_VALID, reads ? rax_valid : 0);
	put64(ghcb + GHCB_VALID + 8, answer_valid);
	if (reads)
		put64(ghcb + GHCB_RAX, value);
	c->served++;
	return 1;
}
