/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "attest.h"
#include "cgroup.h"
#include "crun.h"
#include "launch.h"
#include "marker.h"
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

static bool start_container_job(struct service *service, struct connection *connection,
                                const struct request *request, struct container *container,
                                struct process *process, work *body, struct failure *failure)
{
    struct launch launch = {.request = request, .stdio = {.fds = {-1, -1, -1}}};

    if (process && !process_open_pipes(process, &service->events, request->relays_stdin,
                                       &launch.stdio))
        return fail(failure, errno, "cannot open the streams of a process");
    struct job *job = take_job(service, connection, request, failure);
    const bool is_started = job && start_job(service, job, body, &launch, failure);
    stdio_close(&launch.stdio);
    if (!is_started)
        return false;
    job->container = container;
    job->process = process;
    container->jobs++;
    return true;
}

static bool handle_create(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    if ((request->config && refuse_sealed(service, "config", failure)) ||
        (request->root == ROOT_9P && refuse_sealed(service, "rootfs", failure)))
        return false;
    if (container_find(service->containers, request->container)) {
        failure_set(failure, EEXIST, "container: there is one called %s", request->container);
        return false;
    }
    struct container *container = container_take(service->containers, request->container);
    if (!container) {
        failure_set(failure, EAGAIN, "%d containers exist, and no more can", CONTAINERS_MAX);
        return false;
    }
    struct process *process = process_take(&service->processes, connection, failure);
    if (process && start_container_job(service, connection, request, container, process,
                                       crun_create, failure)) {
        process->tells_oom = true;
        return true;
    }
    if (process)
        process_free(process);
    container->state = CONTAINER_NONE;
    return false;
}

/* The container that a request is about, when it is in that state; CONTAINER_NONE stands for any
 * state that is worth asking about. */
static struct container *find_container(struct service *service, const struct request *request,
                                        enum container_state wanted, struct failure *failure)
{
    struct container *container = container_find(service->containers, request->container);

    if (!container) {
        failure_set(failure, ESRCH, "container: there is none called %s", request->container);
        return NULL;
    }
    if (container->state == CONTAINER_CREATING || container->state == CONTAINER_DELETING) {
        failure_set(failure, EBUSY, "container: %s is being %s", request->container,
                    container->state == CONTAINER_CREATING ? "created" : "deleted");
        return NULL;
    }
    if (wanted != CONTAINER_NONE && container->state != wanted) {
        failure_set(failure, EINVAL, "container: %s %s", request->container,
                    wanted == CONTAINER_CREATED ? "was started before" : "was not started");
        return NULL;
    }
    return container;
}

static bool handle_start(struct service *service, struct connection *connection,
                         const struct request *request, struct failure *failure)
{
    struct container *container = find_container(service, request, CONTAINER_CREATED, failure);

    if (!container)
        return false;
    if (container->jobs > 0)
        return fail(failure, EBUSY, "container");
    return start_container_job(service, connection, request, container, NULL, crun_start, failure);
}

static bool handle_exec(struct service *service, struct connection *connection,
                        const struct request *request, struct failure *failure)
{
    if (refuse_sealed(service, "exec", failure))
        return false;
    struct container *container = find_container(service, request, CONTAINER_STARTED, failure);
    if (!container)
        return false;
    if (!container->first) {
        failure_set(failure, ESRCH, "container: %s has ended", request->container);
        return false;
    }
    struct process *process = process_take(&service->processes, connection, failure);
    if (!process)
        return false;
    if (start_container_job(service, connection, request, container, process, crun_exec, failure))
        return true;
    process_free(process);
    return false;
}

static bool handle_delete(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    struct container *container = find_container(service, request, CONTAINER_NONE, failure);

    if (!container)
        return false;
    if (container->jobs > 0)
        return fail(failure, EBUSY, "container");
    if (!start_container_job(service, connection, request, container, NULL, crun_delete, failure))
        return false;
    container->state = CONTAINER_DELETING;
    return true;
}

static bool handle_stats(struct service *service, struct connection *connection,
                         const struct request *request, struct failure *failure)
{
    const struct container *container = find_container(service, request, CONTAINER_NONE, failure);
    struct json_writer writer;

    if (!container)
        return false;
    connection_begin_answer(connection, &writer, request->id);
    cgroup_write_stats(&writer, container->id);
    connection_end_answer(connection, &writer, request->id);
    return true;
}

static bool handle_attest(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    struct attest attest = {.request = request, .facts = &service->facts};
    struct job *job = take_job(service, connection, request, failure);

    return job && start_job(service, job, attest_report, &attest, failure);
}

static bool handle_marker(struct service *service, struct connection *connection,
                          const struct request *request, struct failure *failure)
{
    if (refuse_sealed(service, "marker", failure))
        return false;
    if (!marker_keep(request->seed))
        return fail(failure, errno, "cannot lock the marker into memory");
    connection_send_done(connection, request->id);
    return true;
}

static handler *const handlers[METHODS] = {
    [METHOD_RUN] = handle_run,       [METHOD_WAIT] = handle_wait,
    [METHOD_SIGNAL] = handle_signal, [METHOD_RESIZE] = handle_resize,
    [METHOD_CREATE] = handle_create, [METHOD_START] = handle_start,
    [METHOD_EXEC] = handle_exec,     [METHOD_STATS] = handle_stats,
    [METHOD_DELETE] = handle_delete, [METHOD_REPORT] = handle_report,
    [METHOD_ATTEST] = handle_attest, [METHOD_MARKER] = handle_marker,
    [METHOD_SHUTDOWN] = handle_shutdown,
};

void methods_handle(struct service *service, struct connection *connection,
                    const struct request *request)
{
    struct failure failure;

    if (!handlers[request->method](service, connection, request, &failure))
        connection_send_failure(connection, request->id, &failure);
}
