/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "launch.h"
#include "state.h"
#include "terminal.h"

/* Answers later; true when there is nothing to answer yet but no failure either. */
typedef bool handler(struct service *service, struct connection *connection,
                     const struct request *request, struct failure *failure);

static bool fail(struct failure *failure, int error, const char *what)
{
    failure_set(failure, error, "%s: %s", what, strerror(error));
    return false;
}

static bool refuse_sealed(const struct service *service, const char *what,
                          struct failure *failure)
{
    if (service->setup->is_sealed)
        failure_set(failure, EPERM, "%s: this guest is sealed", what);
    return service->setup->is_sealed;
}

static struct job *take_job(struct service *service, struct connection *connection,
                            const struct request *request, struct failure *failure)
{
    for (size_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = &service->jobs[i];
        if (job->is_used)
            continue;
        *job = (struct job){.is_used = true,
                            .method = request->method,
                            .id = request->id,
                            .connection = connection,
                            .outcome.fd = -1};
        return job;
    }
    failure_set(failure, EAGAIN, "%d jobs are at work, and no more can be", JOBS_MAX);
    return NULL;
}

static bool start_job(struct service *service, struct job *job, work *body, void *context,
                      struct failure *failure)
{
    job->pid = job_start(&service->events, &job->outcome, body, context);
    if (job->pid < 0) {
        fail(failure, errno, "cannot start a process");
        job->is_used = false;
    }
    return job->pid >= 0;
}

static bool handle_run(struct service *service, struct connection *connection,
                       const struct request *request, struct failure *failure)
{
    struct launch launch = {.request = request};

    if (refuse_sealed(service, "run", failure))
        return false;
    struct process *process = process_take(&service->processes, connection, failure);
    if (!process)
        return false;
    const bool is_open =
        request->has_tty ? process_open_terminal(process, &service->events, request->rows,
                                                 request->columns, &launch.stdio)
                         : process_open_pipes(process, &service->events, request->relays_stdin,
                                              &launch.stdio);
    if (!is_open)
        fail(failure, errno, "cannot open the streams of a process");
    struct job *job = is_open ? take_job(service, connection, request, failure) : NULL;
    const bool is_started = job && start_job(service, job, launch_command, &launch, failure);
    if (is_open)
        stdio_close(&launch.stdio);
    if (!is_started) {
        process_free(process);
        return false;
    }
    job->process = process;
    process->pid = job->pid;
    return true;
}

static struct process *find_process(struct service *service, struct connection *connection,
                                    const struct request *request, struct failure *failure)
{
    struct process *process =
        process_find(&service->processes, connection, request->process);
    if (!process)
        failure_set(failure, ESRCH, "process: this connection has none of that number");
    return process;
}

static bool handle_wait(struct service *service, struct connection *connection,
                        const struct request *request, struct failure *failure)
{
    struct process *process = find_process(service, connection, request, failure);

    if (!process)
        return false;
    if (process->wait_id != 0) {
        failure_set(failure, EBUSY, "process: it is being waited for");
        return false;
    }
    process->wait_id = request->id;
    return true;
}

static bool handle_signal(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    const struct process *process = find_process(service, connection, request, failure);

    if (!process)
        return false;
    if (process->has_ended)
        return fail(failure, ESRCH, "signal");
    if (kill(process->pid, request->signal) != 0)
        return fail(failure, errno, "signal");
    connection_send_done(connection, request->id);
    return true;
}

static bool handle_resize(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    const struct process *process = find_process(service, connection, request, failure);

    if (!process)
        return false;
    if (!process->has_tty)
        return fail(failure, ENOTTY, "resize");
    if (process->output[0].source.fd < 0)
        return fail(failure, ESRCH, "resize");
    if (!terminal_resize(process->output[0].source.fd, request->rows, request->columns))
        return fail(failure, errno, "resize");
    connection_send_done(connection, request->id);
    return true;
}

static bool handle_report(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    struct json_writer writer;

    (void)failure;
    connection_begin_answer(connection, &writer, request->id);
    report_write(&writer, &service->facts);
    connection_end_answer(connection, &writer, request->id);
    return true;
}

static bool handle_shutdown(struct service *service, struct connection *connection,
                            const struct request *request, struct failure *failure)
{
    (void)request;
    if (!connection->is_owner) {
        failure_set(failure, EPERM, "shutdown: this connection is not the owner");
        return false;
    }
    service_end(service, SERVICE_SHUTDOWN);
    return true;
}

static handler *const handlers[METHODS] = {
    [METHOD_RUN] = handle_run,       [METHOD_WAIT] = handle_wait,
    [METHOD_SIGNAL] = handle_signal, [METHOD_RESIZE] = handle_resize,
    [METHOD_REPORT] = handle_report, [METHOD_SHUTDOWN] = handle_shutdown,
};

void methods_handle(struct service *service, struct connection *connection,
                    const struct request *request)
{
    struct failure failure;

    if (!handlers[request->method])
        failure_set(&failure, ENOSYS, "not there yet");
    else if (handlers[request->method](service, connection, request, &failure))
        return;
    connection_send_failure(connection, request->id, &failure);
}

static bool take_process(struct service *service, struct process *process,
                         const struct outcome *outcome, int fd, struct failure *failure)
{
    if (outcome->has_tty && process->connection &&
        (fd < 0 || !process_use_terminal(process, &service->events, fd)))
        return fail(failure, errno, "cannot use the terminal");
    if (outcome->has_tty && !process->connection && fd >= 0)
        close(fd);
    if (outcome->pid != 0)
        process->pid = outcome->pid;
    return true;
}

bool methods_finish(struct service *service, struct job *job)
{
    static char text[OUTCOME_TEXT_MAX];
    struct outcome outcome = {.pid = 0};
    size_t length = 0;
    int fd = -1;

    if (job->connection && (job->connection->state != CONNECTION_OPEN ||
                            !connection_has_room(job->connection)))
        return false;
    const enum job_state state = job_result(&job->outcome, &outcome, &fd, text, &length);
    if (state == JOB_RUNNING)
        return false;
    struct failure failure = outcome.failure;
    if (state == JOB_SILENT && job->method != METHOD_RUN)
        fail(&failure, ECANCELED, "the agent's helper died");
    else if (state == JOB_SILENT)
        failure.error = 0;
    bool is_good = failure.error == 0;
    if (is_good && job->process)
        is_good = take_process(service, job->process, &outcome, fd, &failure);
    if (job->process && is_good)
        process_announce(job->process);
    else if (job->process)
        process_free(job->process);
    if (job->connection && !is_good)
        connection_send_failure(job->connection, job->id, &failure);
    else if (job->connection && job->process)
        connection_send_process(job->connection, job->id, job->process->number);
    job->is_used = false;
    return true;
}
