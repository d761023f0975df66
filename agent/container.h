/* SPDX-License-Identifier: Apache-2.0 */
/* The containers that exist, and where each stands. */
#ifndef SEVKIT_CONTAINER_H
#define SEVKIT_CONTAINER_H

#include <stdbool.h>

#include "request.h"

enum { CONTAINERS_MAX = 32 };

enum container_state {
    CONTAINER_NONE,
    CONTAINER_CREATING,
    CONTAINER_CREATED,
    CONTAINER_STARTED,
    CONTAINER_DELETING,
};

struct container {
    enum container_state state;
    char id[CONTAINER_ID_MAX + 1];
    unsigned int jobs;     /* at work on it */
    struct process *first; /* NULL once it has ended */
};

/* NULL when there is none of that id. */
struct container *container_find(struct container *containers, const char *id);

/* NULL when all are in use. */
struct container *container_take(struct container *containers, const char *id);

#endif
