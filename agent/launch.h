/* SPDX-License-Identifier: Apache-2.0 */
/* From fork to exec: the child's side of starting a command. */
#ifndef SEVKIT_LAUNCH_H
#define SEVKIT_LAUNCH_H

#include "request.h"

/* The status of a command that was not found, and of one that cannot be executed, as a shell has
 * them. Either comes with a line on stderr. */
enum { STATUS_NOT_FOUND = 127, STATUS_NOT_EXECUTABLE = 126 };

/* Runs the command in the calling process, with `stdio` as its stdin (-1: /dev/null), stdout and
 * stderr. When the root file system, the working directory or the like cannot be had, writes a
 * `struct failure` to `failure_fd` and exits. */
_Noreturn void launch(const struct run_request *request, const int stdio[3], int failure_fd);

#endif
