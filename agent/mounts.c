/* SPDX-License-Identifier: Apache-2.0 */
#include "mounts.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "console.h"

enum { CONFINED = MS_NOSUID | MS_NODEV | MS_NOEXEC };

static const struct {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *data;
    bool is_needed;
} mounts[] = {
    {"proc", "/proc", CONFINED, NULL, true},
    {"sysfs", "/sys", CONFINED, NULL, true},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755", true},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", false},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777", false},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755", false},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777", false},
    {"cgroup2", "/sys/fs/cgroup", CONFINED, "nsdelegate", false},
};

static const struct {
    const char *path;
    const char *target;
} links[] = {
    {"/dev/ptmx", "pts/ptmx"},           {"/dev/fd", "/proc/self/fd"},
    {"/dev/stdin", "/proc/self/fd/0"},   {"/dev/stdout", "/proc/self/fd/1"},
    {"/dev/stderr", "/proc/self/fd/2"},
};

/* In /sys there are no folders to make, and the kernel has made the one it is about. */
static bool make_mount(const char *type, const char *target, unsigned long flags, const char *data)
{
    if (mkdir(target, 0755) != 0 && errno != EEXIST && errno != EPERM)
        return false;
    return mount(type, target, type, flags, data) == 0 || errno == EBUSY;
}

static bool make_link(const char *path, const char *target)
{
    if (unlink(path) != 0 && errno != ENOENT)
        return false;
    return symlink(target, path) == 0;
}

bool mounts_make(struct failure *failure)
{
    for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
        if (make_mount(mounts[i].type, mounts[i].target, mounts[i].flags, mounts[i].data))
            continue;
        failure_set(failure, errno, "cannot mount %s on %s: %s", mounts[i].type, mounts[i].target,
                    strerror(errno));
        if (mounts[i].is_needed)
            return false;
        console_say("%s", failure->what);
    }
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        if (!make_link(links[i].path, links[i].target))
            console_say("cannot make the link %s: %s", links[i].path, strerror(errno));
    }
    return true;
}
