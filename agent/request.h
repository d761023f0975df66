/* SPDX-License-Identifier: Apache-2.0 */
/* What the host's control messages ask for, checked. Does nothing about it. */
#ifndef SEVKIT_REQUEST_H
#define SEVKIT_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "json.h"

enum method {
    METHOD_RUN,
    METHOD_WAIT,
    METHOD_SIGNAL,
    METHOD_RESIZE,
    METHOD_CREATE,
    METHOD_START,
    METHOD_EXEC,
    METHOD_STATS,
    METHOD_DELETE,
    METHOD_REPORT,
    METHOD_ATTEST,
    METHOD_MARKER,
    METHOD_SHUTDOWN,
    METHODS,
};

enum root_type { ROOT_GUEST, ROOT_9P, ROOT_IMAGE };

enum { CONTAINER_ID_MAX = 64, TAG_MAX = 31, REPORT_DATA_BYTES = 64 };

/* One request of any method. What its method does not take has its default. */
struct request {
    int64_t id;
    enum method method;
    const char *const *argv; /* at least one, ended by NULL */
    const char *const *env;  /* "NAME=value", ended by NULL */
    const char *cwd;         /* absolute, inside the root */
    enum root_type root;
    const char *tag; /* of the 9p share */
    bool relays_stdin;
    bool has_tty;
    uint16_t rows;
    uint16_t columns;
    int64_t process;
    int signal;
    const char *container;
    const char *config; /* NULL: that of the workload image */
    uint32_t uid;
    uint32_t gid;
    uint8_t data[REPORT_DATA_BYTES];
    uint64_t seed;
};

/* Room for the pointers that a `request` refers to. */
struct request_words {
    const char *pointers[JSON_VALUES_MAX + 2];
};

/* The parts of a control message that is a request. */
struct envelope {
    int64_t id;
    const struct json *method;
    const struct json *params;
};

/* False when the message is no request at all. */
bool envelope_read(const struct json *message, struct envelope *envelope);

/* Reads what is in the envelope. The result lives as long as the message and `words`. False with
 * ENOSYS for an unknown method, EINVAL for wrong params. */
bool request_read(const struct envelope *envelope, struct request_words *words,
                  struct request *request, struct failure *failure);

#endif
