/* SPDX-License-Identifier: Apache-2.0 */
/* One host at the other end of a channel: its open requests, answers and events to it, its end.
 *
 * Knows the form of control messages and nothing of what they are about. */
#ifndef SEVKIT_CONNECTION_H
#define SEVKIT_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "channel.h"
#include "json.h"

enum { PROTOCOL = 2, OPEN_REQUESTS_MAX = 64 };

/* Room that output leaves for control messages: a report fits. */
enum { CONTROL_RESERVE = 24576 };

enum connection_state {
    CONNECTION_NONE,
    CONNECTION_OPEN,
    CONNECTION_CLOSING, /* the last message is on its way; what the host sends is not heard */
};

struct connection {
    enum connection_state state;
    bool is_owner;
    struct channel channel;
    int64_t open_ids[OPEN_REQUESTS_MAX];
    size_t open_count;
    int64_t deadline_ms; /* of a connection that is closing */
};

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* Takes over `fd`, which must be non-blocking, and says hello. False with errno set. */
bool connection_open(struct connection *connection, struct events *events, int fd);
void connection_close(struct connection *connection);

/* Whether any answer but that to `attest` fits now. */
bool connection_has_room(const struct connection *connection);

bool connection_is_open_id(const struct connection *connection, int64_t id);
/* False when too many are open. */
bool connection_open_id(struct connection *connection, int64_t id);

/* An answer: begin, write one value as the result, end. Between the two nothing else may be done
 * with the connection. An answer that does not fit becomes an error. */
void connection_begin_answer(struct connection *connection, struct json_writer *writer,
                             int64_t id);
void connection_end_answer(struct connection *connection, struct json_writer *writer, int64_t id);
void connection_send_failure(struct connection *connection, int64_t id,
                             const struct failure *failure);
/* `{}` as the result. */
void connection_send_done(struct connection *connection, int64_t id);
void connection_send_process(struct connection *connection, int64_t id, uint16_t number);
void connection_send_credit(struct connection *connection, uint16_t number, enum frame_type type,
                            uint32_t bytes);

/* Tells a host that can't be understood any more, and gives it a while to read that. */
void connection_refuse(struct connection *connection, const struct failure *failure);

/* Whether a closing connection has nothing left to wait for. */
bool connection_is_done(const struct connection *connection);

#endif
