/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "rootfs.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYERS "/run/sevkit/layers"
#define ROOT "/run/sevkit/root"

static bool fail(struct failure *failure, const char *what, const char *name)
{
    const int error = errno;
    failure_set(failure, error, "cannot %s '%.100s': %s", what, name, strerror(error));
    return false;
}

static bool make_folder(const char *path)
{
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

/* The overlay holds private copies of the mounts of its layers, so these can go at once. */
static bool mount_overlay(const char *tag, struct failure *failure)
{
    if (!make_folder("/run/sevkit") || !make_folder(LAYERS) || !make_folder(ROOT))
        return fail(failure, "make a folder in", "/run");
    if (mount("tmpfs", LAYERS, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") != 0)
        return fail(failure, "mount tmpfs on", LAYERS);
    if (!make_folder(LAYERS "/lower") || !make_folder(LAYERS "/upper") ||
        !make_folder(LAYERS "/work"))
        return fail(failure, "make a folder in", LAYERS);
    if (mount(tag, LAYERS "/lower", "9p", MS_RDONLY | MS_NODEV,
              "trans=virtio,version=9p2000.L,cache=loose") != 0)
        return fail(failure, "mount the 9p share", tag);
    if (mount("overlay", ROOT, "overlay", MS_NODEV,
              "lowerdir=" LAYERS "/lower,upperdir=" LAYERS "/upper,workdir=" LAYERS "/work") != 0)
        return fail(failure, "mount the overlay on", ROOT);
    if (umount2(LAYERS, MNT_DETACH) != 0)
        return fail(failure, "detach", LAYERS);
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

bool rootfs_enter(const char *tag, struct failure *failure)
{
    static const char *const brought[] = {"/proc", "/sys", "/dev"};

    if (unshare(CLONE_NEWNS) != 0)
        return fail(failure, "enter a mount namespace for", tag);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return fail(failure, "make private the mount", "/");
    if (!mount_overlay(tag, failure))
        return false;
    const int root_fd = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return fail(failure, "open", ROOT);
    for (size_t i = 0; i < sizeof brought / sizeof brought[0]; i++) {
        if (!bring_along(root_fd, brought[i], failure))
            return false;
    }
    if (fchdir(root_fd) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 ||
        chdir("/") != 0)
        return fail(failure, "move onto / the root", ROOT);
    close(root_fd);
    return true;
}
