/* SPDX-License-Identifier: Apache-2.0 */
/* Who may connect. A UNIX socket stands for a peer that is not the host: no test can be CID 2. */
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "expect.h"
#include "listener.h"

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static int connect_peer(void)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        abort();
    return fd;
}

int main(void)
{
    char byte;
    struct events events;
    struct source source;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "sevkit-test-%d", getpid());
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, 4) != 0 || !events_open(&events) || !events_watch(&events, &source, fd))
        return 1;
    const int stranger = connect_peer();
    EXPECT(listener_accept(&source, false) < 0, "a stranger is not let in");
    EXPECT(read(stranger, &byte, 1) == 0, "and is hung up on");
    close(stranger);

    const int guest = connect_peer();
    const int accepted = listener_accept(&source, true);
    EXPECT(accepted >= 0, "anybody is let in where that is asked for");
    EXPECT(write(guest, "x", 1) == 1 && read(accepted, &byte, 1) == 1 && byte == 'x', "connected");
    EXPECT(listener_accept(&source, true) < 0 && source.ready == 0, "and nobody else is there");
    close(accepted);
    close(guest);
    source_close(&source);
    close(events.epoll_fd);
    return expect_failures != 0;
}
