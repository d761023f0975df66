/* SPDX-License-Identifier: Apache-2.0 */
/* Everything that the host's bytes pass through before anything is done about them: frames, JSON,
 * requests, windows, and what is echoed in an answer.
 *
 * For libFuzzer (clang -fsanitize=fuzzer,address,undefined) as it is; with -DREPLAY a program that
 * replays the files it is given. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"
#include "json.h"
#include "process.h"
#include "request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_back(const struct json *value, struct json_writer *writer)
{
    switch (value->type) {
    case JSON_NULL:
        json_put_null(writer);
        return;
    case JSON_BOOLEAN:
        json_put_boolean(writer, value->boolean);
        return;
    case JSON_INTEGER:
        json_put_integer(writer, value->integer);
        return;
    case JSON_STRING:
        json_put_string(writer, value->string.bytes);
        return;
    case JSON_ARRAY:
    case JSON_OBJECT:
        break;
    }
    json_begin(writer, value->type == JSON_OBJECT ? '{' : '[');
    for (const struct json *member = value->first; member; member = member->next) {
        if (value->type == JSON_OBJECT)
            json_key(writer, member->key.bytes);
        write_back(member, writer);
    }
    json_end(writer, value->type == JSON_OBJECT ? '}' : ']');
}

static void take_message(const struct frame *frame)
{
    static struct json_pool pool;
    static struct json_pool second_pool;
    static struct request_words words;
    static char text[8 * FRAME_PAYLOAD_MAX];
    struct json_writer writer = {.text = text, .size = sizeof text};
    struct envelope envelope;
    struct request request;
    struct failure failure;
    const char *problem = NULL;

    /* In memory of its own, so that a sanitizer sees a read past its end. */
    char *payload = malloc(frame->length ? frame->length : 1);
    if (!payload)
        return;
    memcpy(payload, frame->payload, frame->length);
    const struct json *message = json_read(&pool, payload, frame->length, &problem);
    if (!message && !problem)
        abort();
    if (!message) {
        free(payload);
        return;
    }
    if (envelope_read(message, &envelope) &&
        !request_read(&envelope, &words, &request, &failure) && !failure.what[0])
        abort();
    write_back(message, &writer);
    /* Keys and strings lose what follows a NUL, so keys may now collide; nothing else may fail. */
    if (!writer.full && !json_read(&second_pool, text, writer.length, &problem) &&
        strcmp(problem, "the same key twice in an object") != 0)
        abort();
    free(payload);
}

/* A process that reads nothing: whatever the host sends, its windows hold. */
static void take_stream(struct process *process, const struct frame *frame)
{
    if (frame->type == FRAME_STDIN) {
        process_feed(process, frame->payload, frame->length);
    } else if (frame->length == 8) {
        uint32_t numbers[2];
        memcpy(numbers, frame->payload, sizeof numbers);
        process_grant(process, numbers[0], numbers[1]);
    }
    if (process->stdin_window > WINDOW_BYTES ||
        process->stdin_end - process->stdin_start - process->stdin_extra + process->stdin_due +
                process->stdin_window !=
            WINDOW_BYTES ||
        process->output[0].credit > WINDOW_BYTES || process->output[1].credit > WINDOW_BYTES)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct channel channel;
    static struct connection connection;
    static struct processes processes;
    struct frame frame;
    struct failure failure;

    if (size > sizeof channel.in)
        return 0;
    channel.in_start = 0;
    channel.in_end = size;
    memcpy(channel.in, data, size);
    struct process *process = process_take(&processes, &connection, &failure);
    if (!process)
        abort();
    process->has_tty = size % 2 == 1;
    process->input.fd = process->output[0].source.fd = INT_MAX; /* open, and never touched */
    while (channel_frame(&channel, &frame, &failure) == FRAME_READY) {
        if (frame.type == FRAME_CONTROL)
            take_message(&frame);
        else
            take_stream(process, &frame);
        channel_consume(&channel, &frame);
    }
    process->input.fd = process->output[0].source.fd = -1;
    process_free(process);
    return 0;
}

#ifdef REPLAY
#include <stdio.h>

int main(int argc, char *argv[])
{
    static uint8_t data[CHANNEL_IN_BYTES];

    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file)
            return 1;
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    return 0;
}
#endif
