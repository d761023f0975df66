/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for many descriptors at once.
 *
 * Edge-triggered: a source remembers what it is ready for until its user finds otherwise
 * (EAGAIN) and clears the bit. A virtio port without a host is hung up for as long as nobody
 * connects; a level-triggered loop would spin on that. */
#ifndef SEVKIT_EVENTS_H
#define SEVKIT_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

struct events {
    int epoll_fd;
};

struct source {
    int fd; /* -1: closed */
    int epoll_fd;
    uint32_t ready; /* EPOLLIN, EPOLLOUT, EPOLLHUP, … since they were last cleared */
};

/* All three return false with errno set. */
bool events_open(struct events *events);
bool events_watch(struct events *events, struct source *source, int fd);
/* Waits up to `timeout_ms` (-1: for ever). True also when the time is over. */
bool events_wait(struct events *events, int timeout_ms);

/* Closes the descriptor, and with it the watch. Harmless when already closed. */
void source_close(struct source *source);

#endif
