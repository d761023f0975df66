/* SPDX-License-Identifier: Apache-2.0 */
/* What the host's control messages ask for, checked. Does nothing about it. */
#ifndef SEVKIT_REQUEST_H
#define SEVKIT_REQUEST_H

#include <stdbool.h>

#include "failure.h"
#include "json.h"

struct run_request {
    const char *const *argv; /* at least one, ended by NULL */
    const char *const *env;  /* "NAME=value", ended by NULL */
    const char *cwd;         /* absolute, inside the root */
    const char *rootfs_tag;  /* of the 9p share that becomes the root; NULL: the initramfs is */
    bool relays_stdin;
};

/* Room for the pointers that a `run_request` refers to. */
struct run_words {
    const char *pointers[JSON_VALUES_MAX + 2];
};

/* Splits a control message into its name and its body. NULL when it is not an object with exactly
 * one key. */
const struct json *message_body(const struct json *message);

/* Reads the body of "run". The result lives as long as `body` and `words`. */
bool run_request_read(const struct json *body, struct run_words *words,
                      struct run_request *request, struct failure *failure);

#endif
