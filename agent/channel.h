/* SPDX-License-Identifier: Apache-2.0 */
/* Frames to and from the host over one connection; docs/agent-protocol.md has the format.
 *
 * Owns the two bounded buffers and knows when the host is there. Never blocks, never allocates,
 * and knows nothing of what frames mean beyond their headers. */
#ifndef SEVKIT_CHANNEL_H
#define SEVKIT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "events.h"
#include "failure.h"

enum frame_type {
    FRAME_CONTROL = 0,
    FRAME_STDIN = 1,
    FRAME_STDOUT = 2,
    FRAME_STDERR = 3,
    FRAME_CREDIT = 4,
};

enum {
    FRAME_HEADER = 8,
    FRAME_PAYLOAD_MAX = 65536,
    CHANNEL_IN_BYTES = FRAME_HEADER + FRAME_PAYLOAD_MAX,
    CHANNEL_OUT_BYTES = 2 * CHANNEL_IN_BYTES,
};

struct frame {
    enum frame_type type;
    uint16_t process;
    size_t length;
    char *payload; /* in the channel's buffer; its reader may overwrite it */
};

enum frame_state { FRAME_NONE, FRAME_READY, FRAME_MALFORMED };

struct channel {
    struct source source;
    bool connected; /* the host has been seen; when it goes, it is over */
    bool closed;    /* the host is gone, or the port is unusable */
    bool stalled;   /* the last write failed for want of memory: try again after a while */
    size_t in_start, in_end;
    size_t out_start, out_end;
    size_t in_used, out_used; /* how far the buffers were used since channel_trim() */
    uint8_t in[CHANNEL_IN_BYTES];
    uint8_t out[CHANNEL_OUT_BYTES];
};

/* Takes over `fd`, which must be non-blocking. False with errno set. */
bool channel_open(struct channel *channel, struct events *events, int fd);

/* Reads what has arrived, as far as there is room. Returns whether anything did. */
bool channel_fill(struct channel *channel);

/* The first complete frame that has arrived. It stays until channel_consume(). */
enum frame_state channel_frame(struct channel *channel, struct frame *frame,
                               struct failure *failure);
void channel_consume(struct channel *channel, const struct frame *frame);

/* The largest payload that can be queued now. */
size_t channel_room(const struct channel *channel);

/* Where the payload of the next frame goes, up to channel_room() bytes; channel_commit() then
 * queues it. Between the two nothing else may be done with the channel. */
void *channel_reserve(struct channel *channel);
void channel_commit(struct channel *channel, enum frame_type type, uint16_t process,
                    size_t length);

/* Writes what is queued as far as the host takes it. Returns whether anything was written. */
bool channel_flush(struct channel *channel);

/* Gives back the memory of buffers that are empty and were more than a little used. */
void channel_trim(struct channel *channel);

bool channel_is_flushed(const struct channel *channel);

#endif
