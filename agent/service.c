/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "service.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "events.h"
#include "json.h"
#include "process.h"
#include "report.h"
#include "request.h"
#include "version.h"

enum {
    PROTOCOL = 1,
    PROCESSES = 1,
    CONTROL_RESERVE = 24576, /* room that output leaves for control messages: a report fits */
    RETRY_MS = 20,
    LINGER_MS = 2000, /* how long the host has to fetch a last error */
};

struct service {
    struct events events;
    struct source signals;
    struct channel channel;
    struct process processes[PROCESSES];
    size_t stdin_taken; /* bytes of the stdin frame at hand that are dealt with */
    struct json_pool pool;
    struct run_words words;
    struct report_facts facts;
    bool is_ending;
    enum service_end end;
    struct failure *failure;
};

static void end_service(struct service *service, enum service_end end)
{
    if (!service->is_ending)
        service->end = end;
    service->is_ending = true;
}

static void open_message(struct service *service, struct json_writer *writer, const char *name)
{
    *writer = (struct json_writer){
        .text = channel_reserve(&service->channel),
        .size = channel_room(&service->channel),
    };
    json_begin(writer, '{');
    json_key(writer, name);
}

static void send_message(struct service *service, struct json_writer *writer)
{
    json_end(writer, '}');
    if (writer->full) {
        failure_set(service->failure, EMSGSIZE, "a message did not fit its buffer");
        end_service(service, SERVICE_FAILED);
        return;
    }
    channel_commit(&service->channel, FRAME_CONTROL, 0, writer->length);
}

static void send_hello(struct service *service)
{
    struct json_writer writer;

    open_message(service, &writer, "hello");
    json_begin(&writer, '{');
    json_key(&writer, "protocol");
    json_put_integer(&writer, PROTOCOL);
    json_key(&writer, "agent");
    json_put_string(&writer, AGENT_VERSION);
    json_end(&writer, '}');
    send_message(service, &writer);
}

static void send_report(struct service *service)
{
    struct json_writer writer;

    open_message(service, &writer, "report");
    report_write(&writer, &service->facts);
    send_message(service, &writer);
}

static void send_exited(struct service *service, int wait_status)
{
    struct json_writer writer;
    const bool by_signal = WIFSIGNALED(wait_status);

    open_message(service, &writer, "exited");
    json_begin(&writer, '{');
    json_key(&writer, by_signal ? "signal" : "status");
    json_put_integer(&writer, by_signal ? WTERMSIG(wait_status) : WEXITSTATUS(wait_status));
    json_end(&writer, '}');
    send_message(service, &writer);
}

/* `request` is NULL when what arrived was no request at all. */
static void send_error(struct service *service, const char *request,
                       const struct failure *failure)
{
    struct json_writer writer;
    char name[64];

    open_message(service, &writer, "error");
    json_begin(&writer, '{');
    json_key(&writer, "request");
    snprintf(name, sizeof name, "%s", request ? request : "");
    if (request)
        json_put_string(&writer, name);
    else
        json_put_null(&writer);
    json_key(&writer, "what");
    json_put_string(&writer, failure->what);
    json_key(&writer, "errno");
    json_put_integer(&writer, failure->error);
    json_end(&writer, '}');
    send_message(service, &writer);
}

static bool handle_run(struct service *service, const struct json *body, struct failure *failure)
{
    struct process *process = &service->processes[0];
    struct run_request request;

    if (!run_request_read(body, &service->words, &request, failure))
        return false;
    if (process->state != PROCESS_FREE) {
        failure_set(failure, EBUSY, "a command is running already");
        return false;
    }
    return process_start(process, &service->events, &request, failure);
}

static bool handle_shutdown(struct service *service, const struct json *body,
                            struct failure *failure)
{
    if (body->type != JSON_OBJECT || body->first) {
        failure_set(failure, EINVAL, "shutdown: must be an empty object");
        return false;
    }
    end_service(service, SERVICE_SHUTDOWN);
    return true;
}

static const struct {
    const char *name;
    bool (*handle)(struct service *service, const struct json *body, struct failure *failure);
} requests[] = {
    {"run", handle_run},
    {"shutdown", handle_shutdown},
};

/* A host that sends what is no frame or no message can't be understood any more. */
static void refuse_host(struct service *service, const struct failure *failure)
{
    send_error(service, NULL, failure);
    *service->failure = *failure;
    end_service(service, SERVICE_FAILED);
}

static void handle_control(struct service *service, const struct frame *frame)
{
    const char *problem;
    struct failure failure;

    const struct json *message =
        json_read(&service->pool, frame->payload, frame->length, &problem);
    const struct json *body = message ? message_body(message) : NULL;
    if (frame->process != 0)
        problem = "a control message for a process";
    else if (message && !body)
        problem = "not an object with exactly one key";
    if (!body || frame->process != 0) {
        failure_set(&failure, EPROTO, "a malformed message: %s", problem);
        refuse_host(service, &failure);
        return;
    }
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        if (!json_key_is(body, requests[i].name))
            continue;
        if (!requests[i].handle(service, body, &failure))
            send_error(service, requests[i].name, &failure);
        return;
    }
    failure_set(&failure, ENOSYS, "no such request");
    send_error(service, body->key.bytes, &failure);
}

/* Returns whether the frame is dealt with; it is not while the process does not read. */
static bool handle_stdin(struct service *service, const struct frame *frame)
{
    struct failure failure;

    if (frame->process == 0 || frame->process > PROCESSES) {
        failure_set(&failure, EPROTO, "stdin for process %u, which cannot exist", frame->process);
        refuse_host(service, &failure);
        return true;
    }
    struct process *process = &service->processes[frame->process - 1];
    if (frame->length == 0) {
        process_end_stdin(process);
        return true;
    }
    service->stdin_taken += process_feed(process, frame->payload + service->stdin_taken,
                                         frame->length - service->stdin_taken);
    if (service->stdin_taken < frame->length)
        return false;
    service->stdin_taken = 0;
    return true;
}

static bool take_frame(struct service *service)
{
    struct frame frame;
    struct failure failure;

    /* An answer must always fit, so a host that does not read is not heard either. */
    if (channel_room(&service->channel) < CONTROL_RESERVE)
        return false;
    switch (channel_frame(&service->channel, &frame, &failure)) {
    case FRAME_NONE:
        return false;
    case FRAME_MALFORMED:
        refuse_host(service, &failure);
        return false;
    case FRAME_READY:
        break;
    }
    if (frame.type == FRAME_STDIN) {
        const size_t taken = service->stdin_taken;
        if (!handle_stdin(service, &frame))
            return service->stdin_taken > taken;
    } else {
        handle_control(service, &frame);
    }
    channel_consume(&service->channel, &frame);
    return true;
}

static bool finish_process(struct service *service, struct process *process)
{
    struct failure failure;

    if (!process_is_over(process) || channel_room(&service->channel) < CONTROL_RESERVE)
        return false;
    if (process_collect(process, &failure)) {
        send_exited(service, process->wait_status);
        send_report(service);
    } else {
        send_error(service, "run", &failure);
    }
    return true;
}

static void take_signals(struct service *service)
{
    struct signalfd_siginfo information;

    while (read(service->signals.fd, &information, sizeof information) > 0) {
        if (information.ssi_signo != SIGCHLD)
            end_service(service, SERVICE_SIGNALLED);
    }
    service->signals.ready = 0;
    processes_reap(service->processes, PROCESSES);
}

/* Does once whatever can be done without waiting. Returns whether that was anything. */
static bool make_progress(struct service *service)
{
    bool progress = channel_flush(&service->channel);

    if (service->signals.ready)
        take_signals(service);
    progress |= channel_fill(&service->channel);
    progress |= take_frame(service);
    for (size_t i = 0; i < PROCESSES; i++) {
        struct process *process = &service->processes[i];
        if (process->state == PROCESS_FREE)
            continue;
        for (size_t j = 0; j < 2; j++)
            progress |= process_relay(process, &process->output[j], &service->channel,
                                      CONTROL_RESERVE);
        progress |= finish_process(service, process);
    }
    return progress;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Lets the host fetch what is queued, and hang up when it has. */
static void linger(struct service *service)
{
    const int64_t end = now_ms() + LINGER_MS;

    while (!service->channel.closed) {
        while (channel_flush(&service->channel))
            ;
        const int64_t left = end - now_ms();
        if (left <= 0 || service->channel.closed)
            return;
        events_wait(&service->events, left < RETRY_MS ? (int)left : RETRY_MS);
    }
}

static bool open_service(struct service *service, int port_fd)
{
    sigset_t heard;

    sigemptyset(&heard);
    sigaddset(&heard, SIGCHLD);
    sigaddset(&heard, SIGTERM);
    sigaddset(&heard, SIGINT);
    sigaddset(&heard, SIGPWR);
    if (!events_open(&service->events) ||
        !channel_open(&service->channel, &service->events, port_fd))
        return false;
    const int signal_fd = signalfd(-1, &heard, SFD_NONBLOCK | SFD_CLOEXEC);
    return signal_fd >= 0 && events_watch(&service->events, &service->signals, signal_fd);
}

enum service_end service_run(int port_fd, struct failure *failure)
{
    static struct service service; /* too large for the stack */

    service.failure = failure;
    for (uint16_t i = 0; i < PROCESSES; i++)
        service.processes[i].number = (uint16_t)(i + 1);
    if (!open_service(&service, port_fd)) {
        failure_set(failure, errno, "cannot watch the port: %s", strerror(errno));
        return SERVICE_FAILED;
    }
    report_gather(&service.facts);
    send_hello(&service);
    send_report(&service);
    while (!service.is_ending) {
        while (make_progress(&service) && !service.is_ending)
            ;
        if (service.channel.closed)
            end_service(&service, SERVICE_HOST_LEFT);
        if (service.is_ending)
            break;
        if (!events_wait(&service.events, service.channel.stalled ? RETRY_MS : -1)) {
            failure_set(failure, errno, "cannot wait for events: %s", strerror(errno));
            end_service(&service, SERVICE_FAILED);
        }
    }
    if (service.end == SERVICE_FAILED)
        linger(&service);
    return service.end;
}
