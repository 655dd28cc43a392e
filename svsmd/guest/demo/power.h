/* SPDX-License-Identifier: MIT */
#ifndef DEMO_POWER_H
#define DEMO_POWER_H

void power_off(void) __attribute__((noreturn));
void reboot(void) __attribute__((noreturn));

#endif
