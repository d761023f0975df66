/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "service.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "listener.h"
#include "memory.h"
#include "state.h"

enum { RETRY_MS = 20, POOL_LEAST = 256 };

/* A host that sends what is no frame or no request can't be understood any more. */
static void refuse_host(struct service *service, struct connection *connection,
                        const struct failure *failure)
{
    connection_refuse(connection, failure);
    if (connection->is_owner)
        *service->failure = *failure;
}

static void handle_control(struct service *service, struct connection *connection,
                           const struct frame *frame)
{
    const char *problem = NULL;
    struct envelope envelope;
    struct request request = {.id = 0};
    struct failure failure = {.error = 0};

    const struct json *message =
        json_read(&service->pool, frame->payload, frame->length, &problem);
    if (frame->process != 0)
        problem = "a control message for a process";
    else if (message && !envelope_read(message, &envelope))
        problem = "not a request, an object of id, method and params";
    else if (message && connection_is_open_id(connection, envelope.id))
        problem = "the id of another open request";
    if (problem) {
        failure_set(&failure, EPROTO, "a malformed message: %s", problem);
        refuse_host(service, connection, &failure);
        return;
    }
    bool is_good = request_read(&envelope, &service->words, &request, &failure);
    if (is_good && !connection_open_id(connection, envelope.id)) {
        failure_set(&failure, EBUSY, "%d requests are open, and no more can be",
                    OPEN_REQUESTS_MAX);
        is_good = false;
    }
    if (is_good)
        methods_handle(service, connection, &request);
    else
        connection_send_failure(connection, envelope.id, &failure);
}

static uint32_t read_u32(const char *bytes)
{
    const unsigned char *byte = (const unsigned char *)bytes;
    return (uint32_t)byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 |
           (uint32_t)byte[3] << 24;
}

/* Stdin and credit. Both may cross the end of their process, and then mean nothing. */
static void handle_stream(struct service *service, struct connection *connection,
                          const struct frame *frame)
{
    struct process *process = process_find(&service->processes, connection, frame->process);
    struct failure failure = {.error = 0};

    if (!process_number_is_known(&service->processes, frame->process))
        failure_set(&failure, EPROTO, "a frame for process %u, which never was", frame->process);
    else if (frame->type == FRAME_CREDIT && frame->length != 8)
        failure_set(&failure, EPROTO, "a credit frame of %zu bytes", frame->length);
    else if (process && frame->type == FRAME_STDIN &&
             !process_feed(process, frame->payload, frame->length))
        failure_set(&failure, EPROTO, "more stdin for process %u than was granted",
                    frame->process);
    else if (process && frame->type == FRAME_CREDIT &&
             !process_grant(process, read_u32(frame->payload), read_u32(frame->payload + 4)))
        failure_set(&failure, EPROTO, "credit for process %u that cannot be", frame->process);
    if (failure.error)
        refuse_host(service, connection, &failure);
}

static bool take_frame(struct service *service, struct connection *connection)
{
    struct frame frame;
    struct failure failure;

    /* An answer must always fit, so a host that does not read is not heard either. */
    if (!connection_has_room(connection))
        return false;
    switch (channel_frame(&connection->channel, &frame, &failure)) {
    case FRAME_NONE:
        return false;
    case FRAME_MALFORMED:
        refuse_host(service, connection, &failure);
        return true;
    case FRAME_READY:
        break;
    }
    if (frame.type == FRAME_CONTROL)
        handle_control(service, connection, &frame);
    else
        handle_stream(service, connection, &frame);
    channel_consume(&connection->channel, &frame);
    return true;
}

/* What the connection started loses its streams; of the owner, everything ends. */
static void close_connection(struct service *service, struct connection *connection)
{
    if (connection->is_owner) {
        service_end(service, connection->state == CONNECTION_CLOSING ? SERVICE_FAILED
                                                                     : SERVICE_HOST_LEFT);
        return;
    }
    for (size_t i = 0; i < JOBS_MAX; i++) {
        if (service->jobs[i].connection == connection)
            service->jobs[i].connection = NULL;
    }
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        struct process *process = &service->processes.all[i];
        if (process->is_used && process->connection == connection)
            process_abandon(process);
    }
    connection_close(connection);
}

static bool progress_connection(struct service *service, struct connection *connection)
{
    if (connection->state == CONNECTION_NONE)
        return false;
    bool progress = channel_flush(&connection->channel);
    if (connection->state == CONNECTION_OPEN) {
        progress |= channel_fill(&connection->channel);
        progress |= take_frame(service, connection);
    }
    const bool is_over = connection->state == CONNECTION_CLOSING ? connection_is_done(connection)
                                                                 : connection->channel.closed;
    if (is_over)
        close_connection(service, connection);
    return progress;
}

static void accept_host(struct service *service)
{
    struct connection *connection = &service->connections[CONNECTION_VSOCK];
    int fd;

    while ((fd = listener_accept(&service->listener, service->setup->any_peer)) >= 0) {
        if (connection->state != CONNECTION_NONE || service->is_ending) {
            close(fd); /* one at a time */
            continue;
        }
        connection->is_owner = service->setup->port_fd < 0;
        if (!connection_open(connection, &service->events, fd))
            close(fd);
    }
}

static void take_signals(struct service *service)
{
    struct signalfd_siginfo information;

    while (read(service->signals.fd, &information, sizeof information) > 0) {
        if (information.ssi_signo != SIGCHLD)
            service_end(service, SERVICE_SIGNALLED);
    }
    service->signals.ready = 0;
    service_reap(service);
}

/* Does once whatever can be done without waiting. Returns whether that was anything. */
static bool make_progress(struct service *service)
{
    bool progress = false;

    if (service->signals.ready)
        take_signals(service);
    if (service->listener.ready)
        accept_host(service);
    for (size_t i = 0; i < CONNECTIONS; i++)
        progress |= progress_connection(service, &service->connections[i]);
    for (size_t i = 0; i < JOBS_MAX; i++) {
        if (service->jobs[i].is_used)
            progress |= methods_finish(service, &service->jobs[i]);
    }
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        struct process *process = &service->processes.all[i];
        const struct connection *connection = process->connection;
        if (process->is_used && (!connection || connection->state == CONNECTION_OPEN))
            progress |= process_progress(process);
    }
    return progress;
}

/* A write that failed for want of memory is tried again; a closing connection has an end. */
static int longest_wait(const struct service *service)
{
    for (size_t i = 0; i < CONNECTIONS; i++) {
        const struct connection *connection = &service->connections[i];
        if (connection->state == CONNECTION_CLOSING ||
            (connection->state == CONNECTION_OPEN && connection->channel.stalled))
            return RETRY_MS;
    }
    return -1;
}

/* What a burst needed is given back before the next wait. */
static void trim(struct service *service)
{
    for (size_t i = 0; i < CONNECTIONS; i++)
        channel_trim(&service->connections[i].channel);
    if (service->pool.used > POOL_LEAST) {
        memory_release(&service->pool, sizeof service->pool);
        service->pool.used = 0;
    }
}

static bool open_service(struct service *service)
{
    const struct setup *setup = service->setup;
    sigset_t heard;

    sigemptyset(&heard);
    sigaddset(&heard, SIGCHLD);
    sigaddset(&heard, SIGTERM);
    sigaddset(&heard, SIGINT);
    sigaddset(&heard, SIGPWR);
    if (!events_open(&service->events))
        return false;
    service->connections[CONNECTION_PORT].is_owner = true;
    if (setup->port_fd >= 0 && !connection_open(&service->connections[CONNECTION_PORT],
                                                &service->events, setup->port_fd))
        return false;
    if (setup->listener_fd >= 0 &&
        !events_watch(&service->events, &service->listener, setup->listener_fd))
        return false;
    const int signal_fd = signalfd(-1, &heard, SFD_NONBLOCK | SFD_CLOEXEC);
    return signal_fd >= 0 && events_watch(&service->events, &service->signals, signal_fd);
}

enum service_end service_run(const struct setup *setup, struct failure *failure)
{
    static struct service service; /* too large for the stack */

    service.setup = setup;
    service.failure = failure;
    if (!open_service(&service)) {
        failure_set(failure, errno, "cannot watch for the host: %s", strerror(errno));
        return SERVICE_FAILED;
    }
    report_gather(&service.facts, setup->is_sealed, setup->is_debug);
    while (!service.is_ending) {
        while (make_progress(&service) && !service.is_ending)
            ;
        if (service.is_ending)
            break;
        trim(&service);
        if (!events_wait(&service.events, longest_wait(&service))) {
            failure_set(failure, errno, "cannot wait for events: %s", strerror(errno));
            service_end(&service, SERVICE_FAILED);
        }
    }
    return service.end;
}
