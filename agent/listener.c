/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { BACKLOG = 4, FIRST_GUEST_CID = 3 };

bool listener_guest_cid(uint32_t *cid)
{
    const int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const bool told = ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, cid) == 0;
    close(fd);
    return told && *cid >= FIRST_GUEST_CID && *cid != VMADDR_CID_ANY;
}

int listener_open(void)
{
    const struct sockaddr_vm address = {
        .svm_family = AF_VSOCK,
        .svm_port = VSOCK_PORT,
        .svm_cid = VMADDR_CID_ANY,
    };

    const int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
        listen(fd, BACKLOG) == 0)
        return fd;
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int listener_accept(struct source *listener, bool any_peer)
{
    for (;;) {
        struct sockaddr_vm peer = {0};
        socklen_t size = sizeof peer;
        const int fd = accept4(listener->fd, (struct sockaddr *)&peer, &size,
                               SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0) {
            /* Out of descriptors, say: whoever is in the queue waits for the next one. */
            listener->ready = 0;
            return -1;
        }
        if (any_peer || (peer.svm_family == AF_VSOCK && peer.svm_cid == VMADDR_CID_HOST))
            return fd;
        close(fd);
    }
}
