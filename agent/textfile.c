/* SPDX-License-Identifier: Apache-2.0 */
#include "textfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool textfile_read(int folder_fd, const char *path, char *text, size_t size)
{
    size_t length = 0;
    ssize_t count;

    const int fd = openat(folder_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    do {
        count = read(fd, text + length, size - 1 - length);
        if (count > 0)
            length += (size_t)count;
    } while (count > 0 || (count < 0 && errno == EINTR));
    const int error = errno;
    close(fd);
    errno = error;
    if (count < 0)
        return false;
    if (length > 0 && text[length - 1] == '\n')
        length--;
    text[length] = '\0';
    return true;
}

static bool parse_integer(const char *text, int64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoll(text, &end, 0);
    return errno == 0 && end != text;
}

bool textfile_read_integer(int folder_fd, const char *path, int64_t *value)
{
    char text[64];
    return textfile_read(folder_fd, path, text, sizeof text) && parse_integer(text, value);
}

bool textfile_field(const char *text, const char *key, int64_t *value)
{
    const size_t length = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0 && line[length] == ':')
            return parse_integer(line + length + 1, value);
    }
    return false;
}
