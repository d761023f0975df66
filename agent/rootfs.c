/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "rootfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "textfile.h"

#define PLACE "/run/sevkit/run"
#define SHARES "/run/sevkit/shares"
#define DEVICE_MAPPER_NAME "workload"

static bool fail(struct failure *failure, const char *what, const char *name)
{
    const int error = errno;
    failure_set(failure, error, "cannot %s '%.100s': %s", what, name, strerror(error));
    return false;
}

bool rootfs_make_folder(const char *path)
{
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

/* "/dev/dm-0", say: there is no udev that would make a link by name. */
static bool find_workload(char *device, size_t size, struct failure *failure)
{
    DIR *devices = opendir("/sys/block");
    bool found = false;

    if (!devices)
        return fail(failure, "read", "/sys/block");
    for (const struct dirent *entry = readdir(devices); entry && !found;
         entry = readdir(devices)) {
        char path[300];
        char name[64];
        snprintf(path, sizeof path, "%s/dm/name", entry->d_name);
        found = strncmp(entry->d_name, "dm-", 3) == 0 &&
                textfile_read(dirfd(devices), path, name, sizeof name) &&
                strcmp(name, DEVICE_MAPPER_NAME) == 0;
        if (found)
            snprintf(device, size, "/dev/%s", entry->d_name);
    }
    closedir(devices);
    if (!found)
        failure_set(failure, ENODEV,
                    "this guest has no workload image: no device-mapper device is called '%s'",
                    DEVICE_MAPPER_NAME);
    return found;
}

static bool is_mount(const char *path)
{
    struct stat own;
    struct stat parent;

    return stat(path, &own) == 0 && stat(SHARES, &parent) == 0 && own.st_dev != parent.st_dev;
}

/* A share can be mounted once, so it is in the agent's own mount namespace, and stays for all who
 * will use it. */
static bool have_share(const struct request *request, struct failure *failure)
{
    char path[sizeof SHARES + TAG_MAX + 1];

    snprintf(path, sizeof path, SHARES "/%s", request->tag);
    if (!rootfs_make_folder("/run/sevkit") || !rootfs_make_folder(SHARES) ||
        !rootfs_make_folder(path))
        return fail(failure, "make the folder", path);
    const int lock = open(SHARES, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) != 0)
        return fail(failure, "lock", SHARES);
    const bool is_mounted = is_mount(path) ||
                            mount(request->tag, path, "9p", MS_RDONLY | MS_NODEV,
                                  "trans=virtio,version=9p2000.L,cache=loose") == 0 ||
                            fail(failure, "mount the 9p share", request->tag);
    close(lock);
    return is_mounted;
}

static bool mount_image(struct failure *failure)
{
    char device[300];

    if (!find_workload(device, sizeof device, failure))
        return false;
    if (mount(device, "layers/lower", "erofs", MS_RDONLY | MS_NODEV, NULL) != 0)
        return fail(failure, "mount the workload image", device);
    return true;
}

bool rootfs_mount_layers(const struct request *request, struct failure *failure)
{
    if (request->root == ROOT_9P && !have_share(request, failure))
        return false;
    if (unshare(CLONE_NEWNS) != 0)
        return fail(failure, "enter a mount namespace for", "the root");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail(failure, "make private the mount", "/");
    if (!rootfs_make_folder("layers") || !rootfs_make_folder(ROOTFS_FOLDER))
        return fail(failure, "make a folder in", "/run/sevkit");
    if (mount("tmpfs", "layers", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") != 0)
        return fail(failure, "mount tmpfs on", "layers");
    if (!rootfs_make_folder("layers/lower") || !rootfs_make_folder("layers/upper") ||
        !rootfs_make_folder("layers/work"))
        return fail(failure, "make a folder in", "layers");
    return request->root == ROOT_9P || mount_image(failure);
}

/* The overlay holds private copies of the mounts of its layers, so these can go at once. */
bool rootfs_mount_overlay(const struct request *request, struct failure *failure)
{
    char options[sizeof SHARES + TAG_MAX + 80];
    const bool is_share = request->root == ROOT_9P;

    snprintf(options, sizeof options, "lowerdir=%s%s,upperdir=layers/upper,workdir=layers/work",
             is_share ? SHARES "/" : "layers/lower/rootfs", is_share ? request->tag : "");
    if (mount("overlay", ROOTFS_FOLDER, "overlay", MS_NODEV, options) != 0)
        return fail(failure, "mount the overlay on", ROOTFS_FOLDER);
    if (umount2("layers", MNT_DETACH) != 0)
        return fail(failure, "detach", "layers");
    return true;
}

/* The share comes from the host, which may have put a symbolic link where a folder belongs:
 * move_mount(2) follows none. */
static bool bring_along(int root_fd, const char *source, struct failure *failure)
{
    const char *name = source + 1;
    const int tree_fd =
        open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (tree_fd < 0)
        return fail(failure, "copy the mounts at", source);
    if (mkdirat(root_fd, name, 0755) != 0 && errno != EEXIST)
        return fail(failure, "make in the root file system the folder", source);
    if (move_mount(tree_fd, "", root_fd, name, MOVE_MOUNT_F_EMPTY_PATH) != 0)
        return fail(failure, "mount in the root file system", source);
    close(tree_fd);
    return true;
}

bool rootfs_enter(const struct request *request, struct failure *failure)
{
    static const char *const brought[] = {"/proc", "/sys", "/dev"};

    if (!rootfs_make_folder("/run/sevkit") || !rootfs_make_folder(PLACE) || chdir(PLACE) != 0)
        return fail(failure, "make the folder", PLACE);
    if (!rootfs_mount_layers(request, failure) || !rootfs_mount_overlay(request, failure))
        return false;
    const int root_fd = open(ROOTFS_FOLDER, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return fail(failure, "open", ROOTFS_FOLDER);
    for (size_t i = 0; i < sizeof brought / sizeof brought[0]; i++) {
        if (!bring_along(root_fd, brought[i], failure))
            return false;
    }
    if (fchdir(root_fd) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 ||
        chdir("/") != 0)
        return fail(failure, "move onto / the root", PLACE);
    close(root_fd);
    return true;
}
