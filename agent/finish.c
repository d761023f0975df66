/* SPDX-License-Identifier: Apache-2.0 */
/* The other half of methods.c: what is done when a job has been. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "state.h"

static bool take_process(struct service *service, struct process *process,
                         const struct outcome *outcome, int terminal, struct failure *failure)
{
    bool is_good = true;

    if (outcome->has_tty && process->connection) {
        is_good = terminal >= 0 && process_use_terminal(process, &service->events, terminal);
        if (!is_good)
            failure_set(failure, errno, "cannot use the terminal: %s", strerror(errno));
    } else if (terminal >= 0) {
        close(terminal);
    }
    if (is_good && outcome->pid != 0)
        service_adopt(service, process, outcome->pid);
    return is_good;
}

static void move_container(struct job *job, bool is_good)
{
    struct container *container = job->container;

    container->jobs--;
    switch (job->method) {
    case METHOD_CREATE:
        container->state = is_good ? CONTAINER_CREATED : CONTAINER_NONE;
        break;
    case METHOD_START:
        if (is_good)
            container->state = CONTAINER_STARTED;
        break;
    case METHOD_DELETE: /* one that failed may be tried again, and nothing else */
        container->state = is_good ? CONTAINER_NONE : CONTAINER_STARTED;
        break;
    default:
        break;
    }
}

static void answer(struct job *job, bool has_tty, const char *text, size_t length)
{
    struct json_writer writer;

    if (job->method == METHOD_CREATE || length > 0) {
        connection_begin_answer(job->connection, &writer, job->id);
        if (length > 0) {
            json_put_ready(&writer, text, length);
        } else {
            json_begin(&writer, '{');
            json_key(&writer, "process");
            json_put_integer(&writer, job->process->number);
            json_key(&writer, "tty");
            json_put_boolean(&writer, has_tty);
            json_end(&writer, '}');
        }
        connection_end_answer(job->connection, &writer, job->id);
    } else if (job->process) {
        connection_send_process(job->connection, job->id, job->process->number);
    } else {
        connection_send_done(job->connection, job->id);
    }
}

bool methods_finish(struct service *service, struct job *job)
{
    static char text[OUTCOME_TEXT_MAX];
    struct outcome outcome = {.pid = 0};
    struct process *process = job->process;
    size_t length = 0;
    int terminal = -1;
    const size_t room = job->method == METHOD_ATTEST ? FRAME_PAYLOAD_MAX : CONTROL_RESERVE;

    if (job->connection && (job->connection->state != CONNECTION_OPEN ||
                            channel_room(&job->connection->channel) < room))
        return false;
    const enum job_state state = job_result(&job->outcome, &outcome, &terminal, text, &length);
    if (state == JOB_RUNNING)
        return false;
    if (state == JOB_SILENT)
        outcome = (struct outcome){.pid = 0};
    if (state == JOB_SILENT && job->method != METHOD_RUN)
        failure_set(&outcome.failure, ECANCELED, "what the agent started for it has died");
    if (job->container && job->method == METHOD_CREATE)
        job->container->first = process;
    bool is_good = outcome.failure.error == 0;
    if (is_good && process)
        is_good = take_process(service, process, &outcome, terminal, &outcome.failure);
    if (job->container)
        move_container(job, is_good);
    if (process && is_good)
        process_announce(process);
    if (job->connection && is_good)
        answer(job, outcome.has_tty, text, length);
    else if (job->connection)
        connection_send_failure(job->connection, job->id, &outcome.failure);
    if (process && !is_good)
        process_free(process);
    job->is_used = false;
    return true;
}
