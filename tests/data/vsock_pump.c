/* SPDX-License-Identifier: Apache-2.0 */
/* Connects to a vsock address in the guest and pumps stdin to it and from it to stdout.
 *
 *   vsock_pump CID PORT */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static int pump(int from, int to)
{
    char buffer[16384];
    const ssize_t count = read(from, buffer, sizeof buffer);

    for (ssize_t done = 0; done < count;) {
        const ssize_t written = write(to, buffer + done, (size_t)(count - done));
        if (written < 0)
            return 0;
        done += written;
    }
    return count > 0;
}

int main(int argc, char *argv[])
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK};

    if (argc != 3)
        return 64;
    address.svm_cid = (unsigned int)strtoul(argv[1], NULL, 10);
    address.svm_port = (unsigned int)strtoul(argv[2], NULL, 10);
    const int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        perror("vsock_pump");
        return 1;
    }
    struct pollfd ends[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    while (poll(ends, 2, -1) > 0) {
        if (ends[1].revents && !pump(fd, STDOUT_FILENO))
            return 0;
        if (ends[0].revents && !pump(STDIN_FILENO, fd))
            return 0;
    }
    return 1;
}
