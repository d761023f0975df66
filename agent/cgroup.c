/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "textfile.h"

/* Documentation/admin-guide/cgroup-v2.rst: "<key> <value>" lines. */
static bool read_keyed(int folder, const char *file, const char *key, int64_t *value)
{
    char text[4096];
    return textfile_read(folder, file, text, sizeof text) && textfile_keyed(text, key, value);
}

static int open_cgroup(const char *id)
{
    char path[128];

    snprintf(path, sizeof path, CGROUP_PARENT "/%s", id);
    return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

bool cgroup_had_oom(const char *id)
{
    int64_t kills = 0;

    const int folder = open_cgroup(id);
    if (folder < 0)
        return false;
    const bool told = read_keyed(folder, "memory.events", "oom_kill", &kills);
    close(folder);
    return told && kills > 0;
}

static void put(struct json_writer *writer, const char *key, bool is_known, int64_t value)
{
    json_key(writer, key);
    if (is_known)
        json_put_integer(writer, value);
    else
        json_put_null(writer);
}

/* A file of one number; "max" is no number. */
static void put_file(struct json_writer *writer, const char *key, int folder, const char *file)
{
    int64_t value = 0;
    const bool is_known = textfile_read_integer(folder, file, &value);
    put(writer, key, is_known, value);
}

static void put_keyed(struct json_writer *writer, const char *key, int folder, const char *file,
                      const char *name)
{
    int64_t value = 0;
    const bool is_known = read_keyed(folder, file, name, &value);
    put(writer, key, is_known, value);
}

void cgroup_write_stats(struct json_writer *writer, const char *id)
{
    const int folder = open_cgroup(id);

    json_begin(writer, '{');
    json_key(writer, "memory");
    json_begin(writer, '{');
    put_file(writer, "current", folder, "memory.current");
    put_file(writer, "peak", folder, "memory.peak");
    put_file(writer, "limit", folder, "memory.max");
    put_keyed(writer, "oom_kills", folder, "memory.events", "oom_kill");
    json_end(writer, '}');
    json_key(writer, "pids");
    json_begin(writer, '{');
    put_file(writer, "current", folder, "pids.current");
    put_file(writer, "limit", folder, "pids.max");
    json_end(writer, '}');
    json_key(writer, "cpu");
    json_begin(writer, '{');
    put_keyed(writer, "usage_us", folder, "cpu.stat", "usage_usec");
    put_keyed(writer, "throttled_us", folder, "cpu.stat", "throttled_usec");
    json_end(writer, '}');
    json_end(writer, '}');
    if (folder >= 0)
        close(folder);
}
