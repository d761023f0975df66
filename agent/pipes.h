/* SPDX-License-Identifier: Apache-2.0 */
/* The ends of streams: those that a started process gets, and the pipes behind them. */
#ifndef SEVKIT_PIPES_H
#define SEVKIT_PIPES_H

#include <stdbool.h>

#include "events.h"

/* What a started process has as its own ends; -1: /dev/null. */
struct stdio {
    int fds[3];
    bool is_terminal; /* all three are one, which is to become the controlling terminal */
};

void stdio_close(const struct stdio *stdio);

/* A pipe of which `child_end` (0: to read from, 1: to write to) goes to `*child_fd`, as a program
 * expects it; the other, which does not block, is watched as `source`. False with errno set. */
bool stdio_open_pipe(struct events *events, struct source *source, int child_end, int *child_fd);

#endif
