/* SPDX-License-Identifier: Apache-2.0 */
/* Work that may block, in a child of the agent: mounting, crun, attestation, and the set-up of a
 * command up to its exec.
 *
 * The child says how it went in one message; without one, a command's exec has succeeded, and
 * anything else has died. Never waits for it. */
#ifndef SEVKIT_JOB_H
#define SEVKIT_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "events.h"
#include "failure.h"
#include "json.h"

/* What a child says. A file descriptor and text may come with it. */
struct outcome {
    struct failure failure; /* error 0: it went well */
    pid_t pid;              /* of the process that was started in a container; 0: none */
    bool has_tty;           /* that process has a terminal, whose master comes along */
};

enum { OUTCOME_TEXT_MAX = 60000 };

/* What the child is to do. It may return; the child ends then. */
typedef void work(void *context, int outcome_fd);

/* Forks. Returns the pid, or -1 with errno set; `outcome` then watches for the child's message. */
pid_t job_start(struct events *events, struct source *outcome, work *body, void *context);

enum job_state { JOB_RUNNING, JOB_SAID, JOB_SILENT };

/* Takes the child's message: its descriptor, -1 without one, to `fd`, and its text to `text`,
 * at least OUTCOME_TEXT_MAX bytes large. */
enum job_state job_result(struct source *source, struct outcome *outcome, int *fd, char *text,
                          size_t *length);

/* In the child: says how it went. */
void job_say(int outcome_fd, const struct outcome *outcome, int fd, const char *text,
             size_t length);
void job_say_failure(int outcome_fd, const struct failure *failure);

#endif
