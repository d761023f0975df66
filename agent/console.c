/* SPDX-License-Identifier: Apache-2.0 */
#include "console.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* A record of /dev/kmsg is one writev(); <3> is KERN_ERR, which `quiet` lets through. */
static bool write_line(const char *path, const char *prefix, const char *message)
{
    const int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const struct iovec parts[] = {
        {(void *)(size_t)prefix, strlen(prefix)},
        {(void *)(size_t)message, strlen(message)},
        {(void *)(size_t)"\n", 1},
    };
    const bool written = writev(fd, parts, 3) > 0;
    close(fd);
    return written;
}

void console_raw(const char *message)
{
    if (!write_line("/dev/kmsg", "<3>sevkit-agent: ", message))
        write_line("/dev/console", "sevkit-agent: ", message);
}

void console_say(const char *format, ...)
{
    char message[400];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    console_raw(message);
}
