/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "terminal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool terminal_resize(int fd, uint16_t rows, uint16_t columns)
{
    const struct winsize size = {.ws_row = rows, .ws_col = columns};
    return ioctl(fd, TIOCSWINSZ, &size) == 0;
}

bool terminal_open(int *master_fd, int *slave_fd, uint16_t rows, uint16_t columns)
{
    int unlocked = 0;

    *master_fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (*master_fd < 0)
        return false;
    *slave_fd = -1;
    if (ioctl(*master_fd, TIOCSPTLCK, &unlocked) == 0 &&
        terminal_resize(*master_fd, rows, columns))
        *slave_fd = ioctl(*master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave_fd >= 0)
        return true;
    close(*master_fd);
    return false;
}
