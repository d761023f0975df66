/* SPDX-License-Identifier: Apache-2.0 */
/* The end of the guest. PID 1 must never exit, since the kernel panics then. */
#ifndef SEVKIT_POWER_H
#define SEVKIT_POWER_H

#include <stdbool.h>

/* From now on a crash of the agent says so on the console and powers the guest off. */
bool power_guard_crashes(void);

/* Kills every other process, writes back what is cached, and powers the guest off. Takes a few
 * seconds at most, however stuck a process or a file system is. */
_Noreturn void power_off(void);

#endif
