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

static bool find_number(const char *text, const char *key, char separator, int64_t *value)
{
    const size_t length = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0 && line[length] == separator)
            return parse_integer(line + length + 1, value);
    }
    return false;
}

bool textfile_field(const char *text, const char *key, int64_t *value)
{
    return find_number(text, key, ':', value);
}

bool textfile_keyed(const char *text, const char *key, int64_t *value)
{
    return find_number(text, key, ' ', value);
}

bool textfile_has_word(const char *text, const char *word)
{
    static const char space[] = " \t\n";
    const size_t length = strlen(word);

    for (text += strspn(text, space); *text; text += strspn(text, space)) {
        const size_t here = strcspn(text, space);
        if (here == length && memcmp(text, word, length) == 0)
            return true;
        text += here;
    }
    return false;
}
