/* SPDX-License-Identifier: Apache-2.0 */
/* All that the service keeps, for the two files that make it: service.c, the loop, and methods.c,
 * what it does when it is asked. */
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

/* Notes that the process has died. */
void service_bury(struct service *service, struct process *process, int wait_status);

/* Does what the request asks for, and answers it or leaves it open. */
void methods_handle(struct service *service, struct connection *connection,
                    const struct request *request);

/* Takes what the job says, when it does. Returns whether it did. */
bool methods_finish(struct service *service, struct job *job);

#endif
