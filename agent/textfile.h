/* SPDX-License-Identifier: Apache-2.0 */
/* Small text files of /proc, /sys and /etc. */
#ifndef SEVKIT_TEXTFILE_H
#define SEVKIT_TEXTFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads up to `size` - 1 bytes of the file and ends them with a NUL; a last newline is dropped.
 * `folder_fd` may be AT_FDCWD. False with errno set. */
bool textfile_read(int folder_fd, const char *path, char *text, size_t size);

/* A file that holds one number, in C's notation. */
bool textfile_read_integer(int folder_fd, const char *path, int64_t *value);

/* The number after "<key>:" at the start of a line of `text`, as in /proc/meminfo. */
bool textfile_field(const char *text, const char *key, int64_t *value);
/* The number after "<key> ", as in a cgroup's memory.events. */
bool textfile_keyed(const char *text, const char *key, int64_t *value);

/* Whether `word` is one of the words of `text`, which white space parts. */
bool textfile_has_word(const char *text, const char *word);

#endif
