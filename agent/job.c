/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "job.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union descriptor_message {
    struct cmsghdr header; /* aligns */
    char bytes[CMSG_SPACE(sizeof(int))];
};

pid_t job_start(struct events *events, struct source *outcome, work *body, void *context)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return -1;
    pid_t pid = -1;
    if (events_watch(events, outcome, ends[0]))
        pid = fork();
    if (pid == 0) {
        body(context, ends[1]);
        _exit(0);
    }
    const int error = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        outcome->fd = -1;
    }
    errno = error;
    return pid;
}

static int received_descriptor(struct msghdr *message)
{
    int fd = -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);

    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

enum job_state job_result(struct source *source, struct outcome *outcome, int *fd, char *text,
                          size_t *length)
{
    union descriptor_message control;
    struct iovec parts[] = {{outcome, sizeof *outcome}, {text, OUTCOME_TEXT_MAX}};
    struct msghdr message = {
        .msg_iov = parts,
        .msg_iovlen = 2,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };

    if ((source->ready & (EPOLLIN | EPOLLHUP)) == 0)
        return JOB_RUNNING;
    const ssize_t count = recvmsg(source->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        source->ready &= ~(uint32_t)(errno == EAGAIN ? EPOLLIN | EPOLLHUP : 0);
        return JOB_RUNNING;
    }
    *fd = count > 0 ? received_descriptor(&message) : -1;
    source_close(source);
    if (count < (ssize_t)sizeof *outcome)
        return JOB_SILENT;
    *length = (size_t)count - sizeof *outcome;
    return JOB_SAID;
}

void job_say(int outcome_fd, const struct outcome *outcome, int fd, const char *text,
             size_t length)
{
    union descriptor_message control = {0};
    struct iovec parts[] = {
        {(void *)(size_t)outcome, sizeof *outcome},
        {(void *)(size_t)text, length},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    /* Without an agent to hear it there is nobody to tell either. */
    if (sendmsg(outcome_fd, &message, MSG_NOSIGNAL) < 0)
        _exit(2);
}

void job_say_failure(int outcome_fd, const struct failure *failure)
{
    const struct outcome outcome = {.failure = *failure};

    job_say(outcome_fd, &outcome, -1, "", 0);
}
