/* SPDX-License-Identifier: Apache-2.0 */
/* Pseudo-terminals. */
#ifndef SEVKIT_TERMINAL_H
#define SEVKIT_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>

/* Opens a terminal; both ends close on exec, and the master does not block. False with errno. */
bool terminal_open(int *master_fd, int *slave_fd, uint16_t rows, uint16_t columns);

/* False with errno. */
bool terminal_resize(int fd, uint16_t rows, uint16_t columns);

#endif
