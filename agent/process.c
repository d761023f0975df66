/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "terminal.h"

/* With its header such a frame is one write to the port, whose driver takes 32 KiB at a time. */
enum { CHUNK_BYTES = WINDOW_BYTES - FRAME_HEADER, GRANT_LEAST = WINDOW_BYTES / 2 };

/* What a terminal can hold: tty_buffer.c's limit and N_TTY_BUF_SIZE of the kernel. */
enum { TERMINAL_BYTES = 65536 + 4096, CTRL_D = 4 };

/* Room for a window, and for the ends of input that a terminal gets as characters. */
enum { STDIN_BYTES = WINDOW_BYTES + 4096 };

enum { CHUNK_LEAST = 512 };

/* Pages that were never used are never had, and what was used is given back. */
static uint8_t stdin_buffers[PROCESSES_MAX][STDIN_BYTES];

static struct process *find_number(struct processes *processes, int64_t number)
{
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        if (processes->all[i].is_used && processes->all[i].number == number)
            return &processes->all[i];
    }
    return NULL;
}

static uint16_t next_number(struct processes *processes)
{
    do {
        if (processes->last_number == UINT16_MAX)
            processes->has_wrapped = true;
        processes->last_number = (uint16_t)(processes->last_number % UINT16_MAX + 1);
    } while (find_number(processes, processes->last_number));
    return processes->last_number;
}

struct process *process_take(struct processes *processes, struct connection *connection,
                             struct failure *failure)
{
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        struct process *process = &processes->all[i];
        if (process->is_used)
            continue;
        *process = (struct process){
            .is_used = true,
            .connection = connection,
            .input.fd = -1,
            .output[0] = {.source.fd = -1, .type = FRAME_STDOUT, .credit = WINDOW_BYTES},
            .output[1] = {.source.fd = -1, .type = FRAME_STDERR, .credit = WINDOW_BYTES},
            .stdin_window = WINDOW_BYTES,
            .stdin_buffer = stdin_buffers[i],
        };
        process->number = next_number(processes);
        return process;
    }
    failure_set(failure, EAGAIN, "%d processes exist, and no more can", PROCESSES_MAX);
    return NULL;
}

static void close_streams(struct process *process)
{
    source_close(&process->input);
    source_close(&process->output[0].source);
    source_close(&process->output[1].source);
}

bool process_open_pipes(struct process *process, struct events *events, bool relays_stdin,
                        struct stdio *stdio)
{
    *stdio = (struct stdio){.fds = {-1, -1, -1}};
    if ((!relays_stdin || stdio_open_pipe(events, &process->input, 0, &stdio->fds[0])) &&
        stdio_open_pipe(events, &process->output[0].source, 1, &stdio->fds[1]) &&
        stdio_open_pipe(events, &process->output[1].source, 1, &stdio->fds[2])) {
        process->output[0].is_open = process->output[1].is_open = true;
        return true;
    }
    const int error = errno;
    close_streams(process);
    stdio_close(stdio);
    errno = error;
    return false;
}

bool process_use_terminal(struct process *process, struct events *events, int fd)
{
    close_streams(process);
    process->has_tty = true;
    process->output[0].is_open = true;
    process->output[1].is_open = false;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) == 0 &&
        events_watch(events, &process->output[0].source, fd))
        return true;
    const int error = errno;
    close(fd);
    process->output[0].source.fd = -1;
    errno = error;
    return false;
}

bool process_open_terminal(struct process *process, struct events *events, uint16_t rows,
                           uint16_t columns, struct stdio *stdio)
{
    int master_fd;
    int slave_fd;

    *stdio = (struct stdio){.fds = {-1, -1, -1}, .is_terminal = true};
    if (!terminal_open(&master_fd, &slave_fd, rows, columns))
        return false;
    if (process_use_terminal(process, events, master_fd)) {
        stdio->fds[0] = stdio->fds[1] = stdio->fds[2] = slave_fd;
        return true;
    }
    const int error = errno;
    close(slave_fd);
    errno = error;
    return false;
}

void process_announce(struct process *process)
{
    process->is_announced = true;
}

/* A process that has ended may have left a child that holds its pipes open and goes on writing:
 * what counts is what was in them when it ended. */
void process_end(struct process *process, int wait_status)
{
    process->has_ended = true;
    process->wait_status = wait_status;
    source_close(&process->input);
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &process->output[i];
        int bytes = process->has_tty ? TERMINAL_BYTES : 0;
        if (stream->source.fd < 0)
            continue;
        if (!process->has_tty)
            ioctl(stream->source.fd, FIONREAD, &bytes);
        stream->left = (size_t)bytes;
        stream->source.ready |= EPOLLIN;
        if (bytes == 0)
            source_close(&stream->source);
    }
}

static void forget_stdin(struct process *process)
{
    if (process->stdin_end > 0)
        memory_release(process->stdin_buffer, STDIN_BYTES);
    process->stdin_start = process->stdin_end = 0;
}

void process_abandon(struct process *process)
{
    close_streams(process);
    forget_stdin(process);
    process->output[0].is_open = process->output[1].is_open = false;
    process->connection = NULL;
    process->wait_id = 0;
}

void process_free(struct process *process)
{
    close_streams(process);
    forget_stdin(process);
    process->is_used = false;
}

struct process *process_find(struct processes *processes, const struct connection *connection,
                             int64_t number)
{
    struct process *process = find_number(processes, number);
    return process && process->is_announced && process->connection == connection ? process : NULL;
}

bool process_number_is_known(const struct processes *processes, uint16_t number)
{
    return number != 0 && (processes->has_wrapped || number <= processes->last_number);
}

static bool wants_stdin(const struct process *process)
{
    return !process->has_ended && !process->stdin_ends &&
           (process->has_tty ? process->output[0].source.fd : process->input.fd) >= 0;
}

static void buffer_stdin(struct process *process, const char *bytes, size_t length)
{
    if (STDIN_BYTES - process->stdin_end < length) {
        process->stdin_end -= process->stdin_start;
        memmove(process->stdin_buffer, process->stdin_buffer + process->stdin_start,
                process->stdin_end);
        process->stdin_start = 0;
    }
    if (STDIN_BYTES - process->stdin_end < length)
        return; /* ends of input alone can get here */
    memcpy(process->stdin_buffer + process->stdin_end, bytes, length);
    process->stdin_end += length;
}

bool process_feed(struct process *process, const char *bytes, size_t length)
{
    static const char end = CTRL_D;

    if (process->has_ended)
        return true;
    if (length > process->stdin_window)
        return false;
    process->stdin_window -= length;
    if (!wants_stdin(process)) {
        process->stdin_due += length;
    } else if (length > 0) {
        buffer_stdin(process, bytes, length);
    } else if (process->has_tty) {
        const size_t before = process->stdin_end - process->stdin_start;
        buffer_stdin(process, &end, 1);
        process->stdin_extra += process->stdin_end - process->stdin_start - before;
    } else {
        process->stdin_ends = true;
    }
    return true;
}

bool process_grant(struct process *process, uint32_t type, uint32_t bytes)
{
    if (bytes == 0 || bytes > WINDOW_BYTES || (type != FRAME_STDOUT && type != FRAME_STDERR))
        return false;
    struct stream *stream = &process->output[type == FRAME_STDERR];
    if (process->has_ended && !stream->is_open)
        return true;
    if (stream->credit + bytes > WINDOW_BYTES)
        return false;
    stream->credit += bytes;
    return true;
}

/* What was in the buffer and is dealt with: all but the ends of input came out of the window. */
static void count_stdin(struct process *process, size_t bytes)
{
    const size_t extra = bytes < process->stdin_extra ? bytes : process->stdin_extra;

    process->stdin_extra -= extra;
    process->stdin_due += bytes - extra;
}

/* What nobody will read counts as dealt with. */
static void drop_stdin(struct process *process)
{
    count_stdin(process, process->stdin_end - process->stdin_start);
    forget_stdin(process);
}

static bool write_stdin(struct process *process)
{
    struct source *source = process->has_tty ? &process->output[0].source : &process->input;
    const size_t length = process->stdin_end - process->stdin_start;

    if (process->has_ended || source->fd < 0) {
        drop_stdin(process);
        return false;
    }
    if (length == 0 && process->stdin_ends)
        source_close(source);
    if (length == 0 || (source->ready & (EPOLLOUT | EPOLLERR)) == 0)
        return false;
    const ssize_t count = write(source->fd, process->stdin_buffer + process->stdin_start, length);
    if (count >= 0) {
        process->stdin_start += (size_t)count;
        count_stdin(process, (size_t)count);
        if (process->stdin_start == process->stdin_end)
            process->stdin_start = process->stdin_end = 0;
        return count > 0;
    }
    if (errno == EAGAIN) {
        source->ready &= ~(uint32_t)EPOLLOUT;
    } else if (errno != EINTR) {
        if (!process->has_tty)
            source_close(source);
        drop_stdin(process);
    }
    return false;
}

static bool grant_stdin(struct process *process)
{
    if (process->stdin_due == 0 || process->has_ended || !process->is_announced ||
        !connection_has_room(process->connection) ||
        (process->stdin_due < GRANT_LEAST && process->stdin_end > 0))
        return false;
    connection_send_credit(process->connection, process->number, FRAME_STDIN,
                           (uint32_t)process->stdin_due);
    process->stdin_window += process->stdin_due;
    process->stdin_due = 0;
    return true;
}

/* Reads a frame's worth into the channel. The stream's source is closed at its end. */
static bool relay(struct process *process, struct stream *stream, size_t room)
{
    struct source *source = &stream->source;
    struct channel *channel = &process->connection->channel;

    if ((source->ready & (EPOLLIN | EPOLLHUP)) == 0)
        return false;
    if (room > CHUNK_BYTES)
        room = CHUNK_BYTES;
    if (room > stream->credit)
        room = stream->credit;
    if (process->has_ended && room > stream->left)
        room = stream->left;
    const ssize_t count = read(source->fd, channel_reserve(channel), room);
    if (count > 0) {
        channel_commit(channel, stream->type, process->number, (size_t)count);
        stream->credit -= (size_t)count;
        if (process->has_ended)
            stream->left -= (size_t)count;
    }
    if (count < 0 && errno == EAGAIN && !process->has_ended)
        source->ready &= ~(uint32_t)(EPOLLIN | EPOLLHUP);
    else if (count == 0 || (count < 0 && errno != EINTR) ||
             (process->has_ended && stream->left == 0))
        source_close(source);
    return count > 0 || source->fd < 0;
}

static bool progress_stream(struct process *process, struct stream *stream)
{
    if (!stream->is_open || !connection_has_room(process->connection))
        return false;
    if (stream->source.fd < 0) {
        channel_reserve(&process->connection->channel);
        channel_commit(&process->connection->channel, stream->type, process->number, 0);
        stream->is_open = false;
        return true;
    }
    const size_t room = channel_room(&process->connection->channel);
    return stream->credit > 0 && room >= CONTROL_RESERVE + CHUNK_LEAST &&
           relay(process, stream, room - CONTROL_RESERVE);
}

static bool tell_end(struct process *process)
{
    struct json_writer writer;
    const bool by_signal = WIFSIGNALED(process->wait_status);

    if (!process->has_ended || process->output[0].is_open || process->output[1].is_open ||
        process->wait_id == 0 || !connection_has_room(process->connection))
        return false;
    connection_begin_answer(process->connection, &writer, process->wait_id);
    json_begin(&writer, '{');
    json_key(&writer, by_signal ? "signal" : "status");
    json_put_integer(&writer, by_signal ? WTERMSIG(process->wait_status)
                                        : WEXITSTATUS(process->wait_status));
    if (process->tells_oom) {
        json_key(&writer, "oom");
        json_put_boolean(&writer, process->oom);
    }
    json_end(&writer, '}');
    connection_end_answer(process->connection, &writer, process->wait_id);
    process_free(process);
    return true;
}

bool process_progress(struct process *process)
{
    if (!process->connection) {
        if (process->has_ended)
            process_free(process);
        return false;
    }
    if (!process->is_announced)
        return false;
    bool progress = write_stdin(process);
    progress |= grant_stdin(process);
    for (int i = 0; i < 2; i++)
        progress |= progress_stream(process, &process->output[i]);
    progress |= tell_end(process);
    return progress;
}
