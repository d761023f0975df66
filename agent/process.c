/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.h"

/* With its header such a frame is one write to the port, whose driver takes 32 KiB at a time. */
enum { CHUNK_BYTES = 32768 - FRAME_HEADER, CHUNK_LEAST = 512 };

enum pipe_name { PIPE_STDIN, PIPE_STDOUT, PIPE_STDERR, PIPE_FAILURE, PIPES };

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* The ends that stay with the agent are non-blocking; the child's are as a program expects. */
static bool open_pipes(int agent_ends[PIPES], int child_ends[PIPES], bool relays_stdin)
{
    for (int i = relays_stdin ? PIPE_STDIN : PIPE_STDOUT; i < PIPES; i++) {
        const int child_end = i == PIPE_STDIN ? 0 : 1;
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0)
            return false;
        child_ends[i] = ends[child_end];
        agent_ends[i] = ends[1 - child_end];
        if (fcntl(agent_ends[i], F_SETFL, O_NONBLOCK) != 0)
            return false;
    }
    return true;
}

/* Returns 0 or an errno value. */
static int start(struct process *process, struct events *events,
                 const struct run_request *request, int agent_ends[PIPES], int child_ends[PIPES])
{
    if (!open_pipes(agent_ends, child_ends, request->relays_stdin))
        return errno;
    if (request->relays_stdin &&
        !events_watch(events, &process->stdin_pipe, agent_ends[PIPE_STDIN]))
        return errno;
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &process->output[i];
        stream->type = i == 0 ? FRAME_STDOUT : FRAME_STDERR;
        if (!events_watch(events, &stream->source, agent_ends[PIPE_STDOUT + i]))
            return errno;
    }
    const pid_t pid = fork();
    if (pid < 0)
        return errno;
    if (pid == 0)
        launch(request, child_ends, child_ends[PIPE_FAILURE]);
    process->pid = pid;
    return 0;
}

bool process_start(struct process *process, struct events *events,
                   const struct run_request *request, struct failure *failure)
{
    int agent_ends[PIPES] = {-1, -1, -1, -1};
    int child_ends[PIPES] = {-1, -1, -1, -1};

    process->stdin_pipe.fd = -1;
    const int error = start(process, events, request, agent_ends, child_ends);
    for (int i = 0; i < PIPES; i++) {
        close_if_open(child_ends[i]);
        if (error)
            close_if_open(agent_ends[i]);
    }
    if (error) {
        failure_set(failure, error, "cannot start a process: %s", strerror(error));
        return false;
    }
    process->failure_fd = agent_ends[PIPE_FAILURE];
    process->state = PROCESS_RUNNING;
    return true;
}

/* A process that has ended may have left a child that holds its pipes open and goes on writing:
 * what counts is what was in them when it ended. */
static void mark_ended(struct process *process, int wait_status)
{
    process->state = PROCESS_ENDED;
    process->wait_status = wait_status;
    source_close(&process->stdin_pipe);
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &process->output[i];
        int bytes = 0;
        if (stream->source.fd >= 0 && ioctl(stream->source.fd, FIONREAD, &bytes) == 0)
            stream->left = (size_t)bytes;
        stream->source.ready |= EPOLLIN;
        if (bytes == 0)
            source_close(&stream->source);
    }
}

void processes_reap(struct process *processes, size_t count)
{
    int wait_status;
    pid_t pid;

    while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0) {
        for (size_t i = 0; i < count; i++) {
            if (processes[i].state == PROCESS_RUNNING && processes[i].pid == pid)
                mark_ended(&processes[i], wait_status);
        }
    }
}

size_t process_feed(struct process *process, const char *bytes, size_t length)
{
    struct source *source = &process->stdin_pipe;

    if (process->state != PROCESS_RUNNING || source->fd < 0)
        return length;
    if ((source->ready & (EPOLLOUT | EPOLLERR)) == 0)
        return 0;
    const ssize_t count = write(source->fd, bytes, length);
    if (count >= 0)
        return (size_t)count;
    if (errno == EAGAIN) {
        source->ready &= ~(uint32_t)EPOLLOUT;
        return 0;
    }
    if (errno == EINTR)
        return 0;
    source_close(source);
    return length;
}

void process_end_stdin(struct process *process)
{
    source_close(&process->stdin_pipe);
}

bool process_relay(struct process *process, struct stream *stream, struct channel *channel,
                   size_t reserve)
{
    struct source *source = &stream->source;
    const bool ended = process->state == PROCESS_ENDED;
    size_t room = channel_room(channel);

    if (source->fd < 0 || (source->ready & (EPOLLIN | EPOLLHUP)) == 0)
        return false;
    if (room < reserve + CHUNK_LEAST)
        return false;
    room -= reserve;
    if (room > CHUNK_BYTES)
        room = CHUNK_BYTES;
    if (ended && room > stream->left)
        room = stream->left;
    const ssize_t count = read(source->fd, channel_reserve(channel), room);
    if (count > 0)
        channel_commit(channel, stream->type, process->number, (size_t)count);
    if (count > 0 && ended)
        stream->left -= (size_t)count;
    if (count < 0 && errno == EAGAIN && !ended)
        source->ready &= ~(uint32_t)(EPOLLIN | EPOLLHUP);
    else if (count == 0 || (count < 0 && errno != EINTR) || (ended && stream->left == 0))
        source_close(source);
    return count > 0;
}

bool process_is_over(const struct process *process)
{
    return process->state == PROCESS_ENDED && process->output[0].source.fd < 0 &&
           process->output[1].source.fd < 0;
}

bool process_collect(struct process *process, struct failure *failure)
{
    struct failure told;
    const bool failed = read(process->failure_fd, &told, sizeof told) == (ssize_t)sizeof told;

    if (failed)
        *failure = told;
    close(process->failure_fd);
    process->state = PROCESS_FREE;
    return !failed;
}
