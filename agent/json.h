/* SPDX-License-Identifier: Apache-2.0 */
/* A strict JSON reader (RFC 8259) and writer that never allocate.
 *
 * Stricter than the RFC where doubt would be: a key may occur once in an object, numbers are
 * whole and fit int64_t, text is valid UTF-8, depth and the count of values are limited. */
#ifndef SEVKIT_JSON_H
#define SEVKIT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH_MAX = 16, JSON_VALUES_MAX = 4096 };

enum json_type { JSON_NULL, JSON_BOOLEAN, JSON_INTEGER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json_text {
    const char *bytes; /* UTF-8, followed by a NUL; may hold NULs of its own (\u0000) */
    size_t length;
};

struct json {
    enum json_type type;
    union {
        bool boolean;
        int64_t integer;
        struct json_text string;
        struct json *first; /* of an array or object: its members in order */
    };
    struct json_text key; /* when inside an object */
    struct json *next;    /* the next member of the same parent */
};

struct json_pool {
    size_t used;
    struct json values[JSON_VALUES_MAX];
};

/* Parses exactly one value from `text`, which is overwritten: strings are decoded in place. The
 * result lives as long as `text` and `pool`, until the pool is used again. NULL on bad input,
 * with the reason in `*problem`. */
const struct json *json_read(struct json_pool *pool, char *text, size_t length,
                             const char **problem);

/* The string as a C string; NULL when it is no string or holds a NUL. */
const char *json_c_string(const struct json *value);

/* Whether the member's key is `key`. */
bool json_key_is(const struct json *member, const char *key);

struct json_writer {
    char *text;
    size_t size;
    size_t length;
    bool full;  /* something did not fit: the text is worthless */
    bool comma; /* the next value needs one before it */
};

void json_begin(struct json_writer *writer, char bracket);
void json_end(struct json_writer *writer, char bracket);
void json_key(struct json_writer *writer, const char *key);
void json_put_null(struct json_writer *writer);
void json_put_boolean(struct json_writer *writer, bool value);
void json_put_integer(struct json_writer *writer, int64_t value);
/* Bytes that are no UTF-8 come out as U+FFFD. */
void json_put_string(struct json_writer *writer, const char *value);
/* Text that is JSON already. */
void json_put_ready(struct json_writer *writer, const char *text, size_t length);

#endif
