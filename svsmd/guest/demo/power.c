/* SPDX-License-Identifier: MIT */
/* Ports as on QEMU's q35: ACPI PM1a control block, reset control register. */
#include "power.h"

#include "ghcb.h"

#define PM1A_CONTROL 0x604
#define PM1_SLEEP_ENABLE (1 << 13)
#define PM1_SLEEP_TYPE_S5 (0 << 10)
#define RESET_CONTROL 0xcf9
#define RESET_FULL 0x06

void power_off(void)
{
	ghcb_out(PM1A_CONTROL, 2, PM1_SLEEP_ENABLE | PM1_SLEEP_TYPE_S5);
	ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL); /* it had its chance */
}

void reboot(void)
{
	ghcb_out(RESET_CONTROL, 1, RESET_FULL);
	ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
}
