/* SPDX-License-Identifier: Apache-2.0 */
#include "container.h"

#include <stdio.h>
#include <string.h>

struct container *container_find(struct container *containers, const char *id)
{
    for (size_t i = 0; i < CONTAINERS_MAX; i++) {
        if (containers[i].state != CONTAINER_NONE && strcmp(containers[i].id, id) == 0)
            return &containers[i];
    }
    return NULL;
}

struct container *container_take(struct container *containers, const char *id)
{
    for (size_t i = 0; i < CONTAINERS_MAX; i++) {
        if (containers[i].state != CONTAINER_NONE)
            continue;
        containers[i] = (struct container){.state = CONTAINER_CREATING};
        snprintf(containers[i].id, sizeof containers[i].id, "%s", id);
        return &containers[i];
    }
    return NULL;
}
