/* SPDX-License-Identifier: Apache-2.0 */
/* One-line messages for whoever reads the guest's console. Never blocks, never fails. */
#ifndef SEVKIT_CONSOLE_H
#define SEVKIT_CONSOLE_H

/* Writes "sevkit-agent: <message>" to the kernel log, from where it reaches every console; to
 * /dev/console where there is no kernel log. Safe in a signal handler only through console_raw(). */
void console_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for a message that is ready: calls nothing that is not async-signal-safe. */
void console_raw(const char *message);

#endif
