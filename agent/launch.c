/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "job.h"
#include "rootfs.h"

enum { SIGNAL_LAST = 64 };

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static bool set_up_stdio(const struct stdio *stdio)
{
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || (stdio->is_terminal && ioctl(stdio->fds[0], TIOCSCTTY, 0) != 0))
        return false;
    for (int i = 0; i < 3; i++) {
        if (dup2(stdio->fds[i] < 0 ? null : stdio->fds[i], i) < 0)
            return false;
    }
    return true;
}

/* rt_sigaction(2) itself: the C library's functions refuse the signals that it keeps for its own
 * use, 32 and 33, which whoever started the agent may have left ignored. */
static bool reset_signal(int number)
{
    /* The kernel's struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL
     * (arch/x86/include/uapi/asm/signal.h). */
    static const unsigned long ordinary[4];
    long result;
    register unsigned long mask_bytes __asm__("r10") = sizeof ordinary[0];

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"((long)SYS_rt_sigaction), "D"((long)number), "S"(ordinary), "d"(0L),
                       "r"(mask_bytes)
                     : "rcx", "r11", "memory");
    return result == 0;
}

/* What the agent or its parent changed goes back to what a program may expect. Dispositions of
 * handled signals are reset by exec; ignored ones are not. */
static bool undo_agent(void)
{
    sigset_t none;

    for (int number = 1; number <= SIGNAL_LAST; number++) {
        if (number != SIGKILL && number != SIGSTOP && !reset_signal(number))
            return false;
    }
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0)
        return false;
    const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    /* EACCES: this is no guest, nothing was changed, and whoever runs it may not change it. */
    const bool written = write(fd, "0", 1) == 1 || errno == EACCES;
    close(fd);
    return written;
}

static const char *search_path(const char *const *env)
{
    for (; *env; env++) {
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    }
    return DEFAULT_PATH;
}

static void try_exec(const char *path, const struct request *request)
{
    execve(path, (char *const *)(size_t)request->argv, (char *const *)(size_t)request->env);
    /* A file that is there, and still not found: its interpreter is not. */
    if (errno == ENOENT && access(path, F_OK) == 0)
        errno = ELIBBAD;
}

/* Returns the errno value that says best why nothing could be executed. */
static int exec_anything(const struct request *request)
{
    const char *name = request->argv[0];
    int best = ENOENT;

    if (strchr(name, '/')) {
        try_exec(name, request);
        return errno;
    }
    const char *folder = search_path(request->env);
    for (;;) {
        const size_t length = strcspn(folder, ":");
        char path[PATH_MAX];
        const int size = snprintf(path, sizeof path, "%.*s/%s", (int)(length ? length : 1),
                                  length ? folder : ".", name);
        if (size > 0 && (size_t)size < sizeof path) {
            try_exec(path, request);
            if (errno != ENOENT && errno != ENOTDIR)
                best = errno;
            if (best != ENOENT && best != EACCES)
                return best;
        }
        if (folder[length] == '\0')
            return best;
        folder += length + 1;
    }
}

bool launch_prepare(const struct stdio *stdio)
{
    setsid();
    return set_up_stdio(stdio) && undo_agent();
}

static bool enter(const struct request *request, struct failure *failure)
{
    if (request->root == ROOT_9P && !rootfs_enter(request, failure))
        return false;
    if (chdir(request->cwd) == 0)
        return true;
    failure_set(failure, errno, "cannot change to '%.150s': %s", request->cwd, strerror(errno));
    return false;
}

void launch_command(void *context, int outcome_fd)
{
    const struct launch *launch = context;
    const struct request *request = launch->request;
    struct failure failure;

    if (!launch_prepare(&launch->stdio) || close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) {
        failure_set(&failure, errno, "cannot prepare the process: %s", strerror(errno));
        job_say_failure(outcome_fd, &failure);
        return;
    }
    if (!enter(request, &failure)) {
        job_say_failure(outcome_fd, &failure);
        return;
    }
    const int error = exec_anything(request);
    const char *reason = error == ELIBBAD ? "its interpreter is missing" : strerror(error);
    if (error == ENOENT)
        reason = "not found";
    dprintf(STDERR_FILENO, "sevkit-agent: %.150s: %s\n", request->argv[0], reason);
    _exit(error == ENOENT || error == ENOTDIR ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTABLE);
}
