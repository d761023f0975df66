/* SPDX-License-Identifier: Apache-2.0 */
/* All that the service keeps, for the files that make it: service.c, the loop; methods.c, what it
 * does when it is asked; finish.c, what it does when that is done. */
#ifndef SEVKIT_STATE_H
#define SEVKIT_STATE_H

#include "connection.h"
#include "container.h"
#include "events.h"
#include "job.h"
#include "process.h"
#include "report.h"
#include "request.h"
#include "service.h"

enum { JOBS_MAX = 64, DEATHS_MAX = 128 };

/* The port's, and one of vsock. */
enum { CONNECTION_PORT, CONNECTION_VSOCK, CONNECTIONS };

struct job {
    bool is_used;
    enum method method;
    int64_t id;
    struct connection *connection; /* NULL: nobody is interested */
    pid_t pid;
    struct source outcome;
    struct process *process;     /* that it starts, or NULL */
    struct container *container; /* that it is about, or NULL */
};

struct death {
    pid_t pid;
    int wait_status;
};

struct service {
    const struct setup *setup;
    struct events events;
    struct source signals;
    struct source listener;
    struct connection connections[CONNECTIONS];
    struct processes processes;
    struct container containers[CONTAINERS_MAX];
    struct job jobs[JOBS_MAX];
    struct death deaths[DEATHS_MAX]; /* of children that were nobody's when they died */
    size_t death_count;              /* ever; the last DEATHS_MAX are kept */
    struct json_pool pool;
    struct request_words words;
    struct report_facts facts;
    bool is_ending;
    enum service_end end;
    struct failure *failure;
};

void service_end(struct service *service, enum service_end end);

/* Takes note of every child that has died. The agent is PID 1, so all that dies comes here: its
 * processes, its jobs, and orphans, among which is a container's process whose job has not told
 * of it yet. */
void service_reap(struct service *service);

/* Gives the process its pid: a child of the agent since crun is gone, which may be dead already. */
void service_adopt(struct service *service, struct process *process, pid_t pid);

/* Does what the request asks for, and answers it or leaves it open. */
void methods_handle(struct service *service, struct connection *connection,
                    const struct request *request);

/* Takes what the job says, when it does. Returns whether it did. */
bool methods_finish(struct service *service, struct job *job);

#endif
