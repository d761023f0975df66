/* SPDX-License-Identifier: Apache-2.0 */
/* From fork to exec: the child's side of starting a command. */
#ifndef SEVKIT_LAUNCH_H
#define SEVKIT_LAUNCH_H

#include <stdbool.h>

#include "process.h"
#include "request.h"

/* The status of a command that was not found, and of one that cannot be executed, as a shell has
 * them. Either comes with a line on stderr. */
enum { STATUS_NOT_FOUND = 127, STATUS_NOT_EXECUTABLE = 126 };

struct launch {
    const struct request *request;
    struct stdio stdio;
};

/* The `work` of a job: runs the command that a `struct launch` holds in the calling process. When
 * the root file system, the working directory or the like cannot be had, says so and ends. */
void launch_command(void *context, int outcome_fd);

/* Gives the calling process, a child of the agent, what a program may expect: its streams (in a
 * session of its own), signals as they are by default, an ordinary place in the OOM killer's list.
 * False with errno set. */
bool launch_prepare(const struct stdio *stdio);

#endif
