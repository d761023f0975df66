/* SPDX-License-Identifier: Apache-2.0 */
#include "connection.h"

#include <errno.h>
#include <time.h>

#include "version.h"

enum { LINGER_MS = 2000 };

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void begin_message(struct connection *connection, struct json_writer *writer)
{
    *writer = (struct json_writer){
        .text = channel_reserve(&connection->channel),
        .size = channel_room(&connection->channel),
    };
    json_begin(writer, '{');
}

static bool end_message(struct connection *connection, struct json_writer *writer)
{
    json_end(writer, '}');
    if (!writer->full)
        channel_commit(&connection->channel, FRAME_CONTROL, 0, writer->length);
    return !writer->full;
}

static void begin_event(struct connection *connection, struct json_writer *writer,
                        const char *name)
{
    begin_message(connection, writer);
    json_key(writer, "event");
    json_put_string(writer, name);
    json_key(writer, "params");
    json_begin(writer, '{');
}

static void end_event(struct connection *connection, struct json_writer *writer)
{
    json_end(writer, '}');
    end_message(connection, writer);
}

bool connection_open(struct connection *connection, struct events *events, int fd)
{
    struct json_writer writer;

    if (!channel_open(&connection->channel, events, fd))
        return false;
    connection->state = CONNECTION_OPEN;
    connection->open_count = 0;
    begin_event(connection, &writer, "hello");
    json_key(&writer, "protocol");
    json_put_integer(&writer, PROTOCOL);
    json_key(&writer, "agent");
    json_put_string(&writer, AGENT_VERSION);
    end_event(connection, &writer);
    return true;
}

void connection_close(struct connection *connection)
{
    source_close(&connection->channel.source);
    connection->channel.in_start = connection->channel.in_end = 0;
    connection->channel.out_start = connection->channel.out_end = 0;
    channel_trim(&connection->channel);
    connection->state = CONNECTION_NONE;
}

bool connection_has_room(const struct connection *connection)
{
    return channel_room(&connection->channel) >= CONTROL_RESERVE;
}

bool connection_is_open_id(const struct connection *connection, int64_t id)
{
    for (size_t i = 0; i < connection->open_count; i++) {
        if (connection->open_ids[i] == id)
            return true;
    }
    return false;
}

bool connection_open_id(struct connection *connection, int64_t id)
{
    if (connection->open_count == OPEN_REQUESTS_MAX)
        return false;
    connection->open_ids[connection->open_count++] = id;
    return true;
}

static void close_id(struct connection *connection, int64_t id)
{
    for (size_t i = 0; i < connection->open_count; i++) {
        if (connection->open_ids[i] == id)
            connection->open_ids[i] = connection->open_ids[--connection->open_count];
    }
}

static void begin_reply(struct connection *connection, struct json_writer *writer, int64_t id,
                        const char *key)
{
    begin_message(connection, writer);
    json_key(writer, "id");
    json_put_integer(writer, id);
    json_key(writer, key);
}

void connection_begin_answer(struct connection *connection, struct json_writer *writer, int64_t id)
{
    begin_reply(connection, writer, id, "result");
}

void connection_end_answer(struct connection *connection, struct json_writer *writer, int64_t id)
{
    static const struct failure too_long = {EMSGSIZE, "the answer does not fit a frame"};

    if (end_message(connection, writer))
        close_id(connection, id);
    else
        connection_send_failure(connection, id, &too_long);
}

void connection_send_failure(struct connection *connection, int64_t id,
                             const struct failure *failure)
{
    struct json_writer writer;

    begin_reply(connection, &writer, id, "error");
    json_begin(&writer, '{');
    json_key(&writer, "what");
    json_put_string(&writer, failure->what);
    json_key(&writer, "errno");
    json_put_integer(&writer, failure->error);
    json_end(&writer, '}');
    end_message(connection, &writer);
    close_id(connection, id);
}

void connection_send_done(struct connection *connection, int64_t id)
{
    struct json_writer writer;

    connection_begin_answer(connection, &writer, id);
    json_begin(&writer, '{');
    json_end(&writer, '}');
    connection_end_answer(connection, &writer, id);
}

void connection_send_process(struct connection *connection, int64_t id, uint16_t number)
{
    struct json_writer writer;

    connection_begin_answer(connection, &writer, id);
    json_begin(&writer, '{');
    json_key(&writer, "process");
    json_put_integer(&writer, number);
    json_end(&writer, '}');
    connection_end_answer(connection, &writer, id);
}

void connection_send_credit(struct connection *connection, uint16_t number, enum frame_type type,
                            uint32_t bytes)
{
    uint8_t *payload = channel_reserve(&connection->channel);
    const uint32_t numbers[] = {type, bytes};

    for (size_t i = 0; i < 8; i++)
        payload[i] = (uint8_t)(numbers[i / 4] >> 8 * (i % 4));
    channel_commit(&connection->channel, FRAME_CREDIT, number, 8);
}

void connection_refuse(struct connection *connection, const struct failure *failure)
{
    struct json_writer writer;

    begin_event(connection, &writer, "malformed");
    json_key(&writer, "what");
    json_put_string(&writer, failure->what);
    end_event(connection, &writer);
    connection->state = CONNECTION_CLOSING;
    connection->deadline_ms = now_ms() + LINGER_MS;
}

bool connection_is_done(const struct connection *connection)
{
    return connection->channel.closed || now_ms() >= connection->deadline_ms;
}
