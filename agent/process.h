/* SPDX-License-Identifier: Apache-2.0 */
/* The processes that the host asked for: their streams with a window each, and how they ended.
 *
 * Starts none (job.c does) and reaps none (service.c does). A slot is taken when a process is to
 * be started; the host hears of it once it is announced, and of its output only after that. */
#ifndef SEVKIT_PROCESS_H
#define SEVKIT_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "connection.h"
#include "events.h"
#include "failure.h"
#include "pipes.h"

enum { PROCESSES_MAX = 64, WINDOW_BYTES = 32768 };

struct stream {
    struct source source;
    enum frame_type type;
    bool is_open;  /* its end has not been told yet */
    size_t credit; /* bytes that the host still takes */
    size_t left;   /* once the process has ended: bytes that it may have left behind */
};

struct process {
    bool is_used;
    bool is_announced; /* the host knows the number */
    bool has_ended;
    bool has_tty;
    uint16_t number;
    pid_t pid; /* 0 while not known */
    int wait_status;
    bool tells_oom; /* the first process of a container */
    bool oom;
    struct connection *connection; /* NULL: nobody's */
    int64_t wait_id;               /* of the request that waits for it; 0: none does */
    struct stream output[2];       /* stdout, stderr; of a terminal the first alone */
    struct source input;           /* a pipe; not used with a terminal */
    bool stdin_ends;               /* after what is buffered */
    size_t stdin_window;           /* bytes that the host may still send */
    size_t stdin_due;              /* bytes to grant */
    size_t stdin_start, stdin_end; /* what is in the buffer */
    size_t stdin_extra;            /* how much of that came out of no window */
    uint8_t *stdin_buffer;
};

struct processes {
    struct process all[PROCESSES_MAX];
    uint16_t last_number;
    bool has_wrapped; /* every number has been given out */
};

/* Takes a slot. NULL when there is none. */
struct process *process_take(struct processes *processes, struct connection *connection,
                             struct failure *failure);
/* Opens its pipes, or its terminal, of which the child's ends go to `stdio`, for the caller to
 * close after the fork. False with errno set, and nothing open. */
bool process_open_pipes(struct process *process, struct events *events, bool relays_stdin,
                        struct stdio *stdio);
bool process_open_terminal(struct process *process, struct events *events, uint16_t rows,
                           uint16_t columns, struct stdio *stdio);
/* Gives the process a terminal's master instead of its pipes; owns `fd` from then on. */
bool process_use_terminal(struct process *process, struct events *events, int fd);

void process_announce(struct process *process);
/* It is dead; what it has written is still relayed. */
void process_end(struct process *process, int wait_status);
/* Nobody is interested any more: it keeps running, without streams. */
void process_abandon(struct process *process);
/* Frees the slot. */
void process_free(struct process *process);

/* NULL when the host has no such process. */
struct process *process_find(struct processes *processes, const struct connection *connection,
                             int64_t number);
/* Whether the number has ever been told to anybody. */
bool process_number_is_known(const struct processes *processes, uint16_t number);

/* Both return false when the host broke the window. */
bool process_feed(struct process *process, const char *bytes, size_t length);
bool process_grant(struct process *process, uint32_t type, uint32_t bytes);

/* Does once whatever can be done for its streams and its waiter. Returns whether that was
 * anything. Frees the slot once its end is told. */
bool process_progress(struct process *process);

#endif
