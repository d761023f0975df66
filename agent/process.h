/* SPDX-License-Identifier: Apache-2.0 */
/* The processes that the host asked for: starting them, moving their streams, how they ended.
 *
 * The agent is PID 1, so it also reaps whatever else dies; those are nobody's processes and leave
 * no trace here. */
#ifndef SEVKIT_PROCESS_H
#define SEVKIT_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "channel.h"
#include "events.h"
#include "failure.h"
#include "request.h"

enum process_state { PROCESS_FREE, PROCESS_RUNNING, PROCESS_ENDED };

struct stream {
    struct source source;
    enum frame_type type;
    size_t left; /* once the process has ended: bytes that it left in the pipe */
};

struct process {
    enum process_state state;
    uint16_t number; /* in frames; from 1 */
    pid_t pid;
    int wait_status; /* once it has ended */
    int failure_fd;  /* holds a `struct failure` when the command was never tried */
    struct source stdin_pipe;
    struct stream output[2]; /* stdout, stderr */
};

/* Starts the command. False when not even the fork worked; everything later shows in how the
 * process ends. */
bool process_start(struct process *process, struct events *events,
                   const struct run_request *request, struct failure *failure);

/* Reaps every child that has died, and marks those of `processes` among them as ended. */
void processes_reap(struct process *processes, size_t count);

/* Writes to the process's stdin. Returns how many of the bytes are dealt with: none when the pipe
 * is full, all when nobody reads it any more. */
size_t process_feed(struct process *process, const char *bytes, size_t length);
void process_end_stdin(struct process *process);

/* Queues one frame of what the process has written, if `reserve` bytes of the channel stay free.
 * Returns whether there was anything to do. */
bool process_relay(struct process *process, struct stream *stream, struct channel *channel,
                   size_t reserve);

/* Whether the process has ended and all its output is queued. */
bool process_is_over(const struct process *process);

/* Frees the table entry of a process that is over. Returns false, with the reason, when its
 * surroundings could not be set up, so that the command was never tried. */
bool process_collect(struct process *process, struct failure *failure);

#endif
