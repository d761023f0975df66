/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

static void put(struct json_writer *writer, const char *bytes, size_t length)
{
    if (writer->full || writer->size - writer->length < length) {
        writer->full = true;
        return;
    }
    memcpy(writer->text + writer->length, bytes, length);
    writer->length += length;
}

static void put_value(struct json_writer *writer, const char *bytes, size_t length)
{
    if (writer->comma)
        put(writer, ",", 1);
    put(writer, bytes, length);
    writer->comma = true;
}

void json_begin(struct json_writer *writer, char bracket)
{
    put_value(writer, &bracket, 1);
    writer->comma = false;
}

void json_end(struct json_writer *writer, char bracket)
{
    put(writer, &bracket, 1);
    writer->comma = true;
}

void json_key(struct json_writer *writer, const char *key)
{
    json_put_string(writer, key);
    put(writer, ":", 1);
    writer->comma = false;
}

void json_put_null(struct json_writer *writer)
{
    put_value(writer, "null", 4);
}

void json_put_boolean(struct json_writer *writer, bool value)
{
    put_value(writer, value ? "true" : "false", value ? 4 : 5);
}

void json_put_integer(struct json_writer *writer, int64_t value)
{
    char digits[24];
    const int length = snprintf(digits, sizeof digits, "%" PRId64, value);
    put_value(writer, digits, (size_t)length);
}

void json_put_string(struct json_writer *writer, const char *value)
{
    size_t left = strlen(value);

    put_value(writer, "\"", 1);
    while (left > 0) {
        const unsigned char byte = (unsigned char)*value;
        const size_t size = utf8_character(value, left);
        char escape[8];
        if (size == 0) {
            put(writer, "\\ufffd", 6);
        } else if (byte < 0x20 || byte == 0x7F) {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned int)byte);
            put(writer, escape, 6);
        } else {
            if (byte == '"' || byte == '\\')
                put(writer, "\\", 1);
            put(writer, value, size);
        }
        const size_t step = size ? size : 1;
        value += step;
        left -= step;
    }
    put(writer, "\"", 1);
}

void json_put_ready(struct json_writer *writer, const char *text, size_t length)
{
    put_value(writer, text, length);
}
