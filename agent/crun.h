/* SPDX-License-Identifier: Apache-2.0 */
/* Containers by crun: each function is the `work` of a job, whose context is a `struct launch`, and
 * says how it went.
 *
 * crun makes the container's processes and is gone; they become children of the agent, which
 * knows them by the pid in the outcome. */
#ifndef SEVKIT_CRUN_H
#define SEVKIT_CRUN_H

void crun_create(void *context, int outcome_fd);
void crun_start(void *context, int outcome_fd);
void crun_exec(void *context, int outcome_fd);
void crun_delete(void *context, int outcome_fd);

#endif
