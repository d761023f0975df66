/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <string.h>

#include "utf8.h"

struct reader {
    struct json_pool *pool;
    char *at;
    char *end;
    const char *problem;
};

static struct json *read_value(struct reader *reader, int depth);

static bool refuse(struct reader *reader, const char *problem)
{
    reader->problem = problem;
    return false;
}

static void skip_space(struct reader *reader)
{
    while (reader->at < reader->end && memchr(" \t\n\r", *reader->at, 4))
        reader->at++;
}

/* Takes `byte` when it is next, after white space. */
static bool take(struct reader *reader, char byte)
{
    skip_space(reader);
    if (reader->at == reader->end || *reader->at != byte)
        return false;
    reader->at++;
    return true;
}

static bool take_word(struct reader *reader, const char *word)
{
    const size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

static bool read_hex4(struct reader *reader, uint32_t *code)
{
    if (reader->end - reader->at < 4)
        return false;
    *code = 0;
    for (int i = 0; i < 4; i++) {
        const char digit = *reader->at++;
        uint32_t value;
        if (digit >= '0' && digit <= '9')
            value = (uint32_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            value = (uint32_t)(digit - 'a') + 10;
        else if (digit >= 'A' && digit <= 'F')
            value = (uint32_t)(digit - 'A') + 10;
        else
            return false;
        *code = *code << 4 | value;
    }
    return true;
}

/* After "\u": one code unit, or two that make a surrogate pair. */
static bool read_unicode_escape(struct reader *reader, uint32_t *code)
{
    uint32_t low;
    if (!read_hex4(reader, code))
        return false;
    if (*code < 0xD800 || *code > 0xDFFF)
        return true;
    if (*code > 0xDBFF || !take_word(reader, "\\u") || !read_hex4(reader, &low) || low < 0xDC00 ||
        low > 0xDFFF)
        return false;
    *code = 0x10000 + ((*code - 0xD800) << 10) + (low - 0xDC00);
    return true;
}

/* After the opening quote. The decoded form is never longer than the written one, so it and its
 * NUL fit where the written one and its closing quote were. */
static bool read_string(struct reader *reader, struct json_text *text)
{
    static const char escapes[] = "\"\\/bfnrt";
    static const char meanings[] = "\"\\/\b\f\n\r\t";
    char *out = reader->at;

    text->bytes = out;
    while (reader->at < reader->end) {
        const unsigned char byte = (unsigned char)*reader->at;
        if (byte == '"') {
            reader->at++;
            *out = '\0';
            text->length = (size_t)(out - text->bytes);
            return true;
        }
        if (byte < 0x20)
            return refuse(reader, "a control character inside a string");
        if (byte != '\\') {
            const size_t size = utf8_character(reader->at, (size_t)(reader->end - reader->at));
            if (size == 0)
                return refuse(reader, "a string that is not UTF-8");
            memmove(out, reader->at, size);
            reader->at += size;
            out += size;
            continue;
        }
        reader->at++;
        if (reader->at == reader->end)
            break;
        const char escape = *reader->at++;
        const char *known = memchr(escapes, escape, sizeof escapes - 1);
        uint32_t code;
        if (known)
            *out++ = meanings[known - escapes];
        else if (escape == 'u' && read_unicode_escape(reader, &code))
            out += utf8_encode(code, out);
        else
            return refuse(reader, "an escape that JSON does not have");
    }
    return refuse(reader, "a string without an end");
}

static bool read_integer(struct reader *reader, int64_t *integer)
{
    const bool negative = take_word(reader, "-");
    const char *digits = reader->at;
    int64_t value = 0; /* kept negative: its range is the larger one */

    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9') {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_sub_overflow(value, *reader->at - '0', &value))
            return refuse(reader, "a number over 64 bits");
        reader->at++;
    }
    const long count = reader->at - digits;
    if (count == 0 || (count > 1 && *digits == '0'))
        return refuse(reader, "not a JSON value");
    if (reader->at < reader->end && memchr(".eE", *reader->at, 3))
        return refuse(reader, "a number that is not whole");
    if (!negative && __builtin_sub_overflow((int64_t)0, value, &value))
        return refuse(reader, "a number over 64 bits");
    *integer = value;
    return true;
}

static bool key_is_new(const struct json *object, const struct json_text *key)
{
    for (const struct json *member = object->first; member; member = member->next) {
        if (member->key.length == key->length &&
            memcmp(member->key.bytes, key->bytes, key->length) == 0)
            return false;
    }
    return true;
}

/* The members of an array or object, after its opening bracket. */
static bool read_members(struct reader *reader, struct json *parent, char closing, int depth)
{
    struct json *last = NULL;

    if (depth == JSON_DEPTH_MAX)
        return refuse(reader, "values nested too deeply");
    if (take(reader, closing))
        return true;
    do {
        struct json_text key = {0};
        if (parent->type == JSON_OBJECT) {
            if (!take(reader, '"'))
                return refuse(reader, "an object member without a key");
            if (!read_string(reader, &key))
                return false;
            if (!key_is_new(parent, &key))
                return refuse(reader, "the same key twice in an object");
            if (!take(reader, ':'))
                return refuse(reader, "a key without a colon");
        }
        struct json *member = read_value(reader, depth + 1);
        if (!member)
            return false;
        member->key = key;
        if (last)
            last->next = member;
        else
            parent->first = member;
        last = member;
    } while (take(reader, ','));
    if (!take(reader, closing))
        return refuse(reader, "an array or object without an end");
    return true;
}

static struct json *read_value(struct reader *reader, int depth)
{
    if (reader->pool->used == JSON_VALUES_MAX) {
        refuse(reader, "too many values");
        return NULL;
    }
    struct json *value = &reader->pool->values[reader->pool->used++];
    *value = (struct json){0};

    bool read = true;
    skip_space(reader);
    if (take(reader, '{')) {
        value->type = JSON_OBJECT;
        read = read_members(reader, value, '}', depth);
    } else if (take(reader, '[')) {
        value->type = JSON_ARRAY;
        read = read_members(reader, value, ']', depth);
    } else if (take(reader, '"')) {
        value->type = JSON_STRING;
        read = read_string(reader, &value->string);
    } else if (take_word(reader, "true")) {
        value->type = JSON_BOOLEAN;
        value->boolean = true;
    } else if (take_word(reader, "false")) {
        value->type = JSON_BOOLEAN;
    } else if (take_word(reader, "null")) {
        value->type = JSON_NULL;
    } else {
        value->type = JSON_INTEGER;
        read = read_integer(reader, &value->integer);
    }
    return read ? value : NULL;
}

const struct json *json_read(struct json_pool *pool, char *text, size_t length,
                             const char **problem)
{
    struct reader reader = {.pool = pool, .at = text, .end = text + length};

    pool->used = 0;
    const struct json *value = read_value(&reader, 0);
    if (value) {
        skip_space(&reader);
        if (reader.at != reader.end) {
            refuse(&reader, "something after the value");
            value = NULL;
        }
    }
    *problem = reader.problem;
    return value;
}

const char *json_c_string(const struct json *value)
{
    if (value->type != JSON_STRING || strlen(value->string.bytes) != value->string.length)
        return NULL;
    return value->string.bytes;
}

bool json_key_is(const struct json *member, const char *key)
{
    return member->key.length == strlen(key) &&
           memcmp(member->key.bytes, key, member->key.length) == 0;
}
