/* SPDX-License-Identifier: Apache-2.0 */
/* PID 1 of a sevkit guest: makes an initramfs habitable, serves the host, powers off. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "console.h"
#include "failure.h"
#include "listener.h"
#include "mounts.h"
#include "port.h"
#include "power.h"
#include "report.h"
#include "service.h"
#include "textfile.h"
#include "version.h"

enum { PORT_TIMEOUT_MS = 10000, EXIT_USAGE = 64 };

static bool write_file(const char *path, const char *text)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return written;
}

/* The kernel gives PID 1 the console as its streams, or nothing at all when there is none. */
static bool occupy_stdio(void)
{
    const int null = open("/dev/null", O_RDWR);
    if (null < 0)
        return false;
    for (int fd = 0; fd <= 2; fd++) {
        if (fd != null && dup2(null, fd) < 0)
            return false;
    }
    if (null > 2)
        close(null);
    return true;
}

/* Children inherit the limits, and no more than them. */
static bool set_limits(void)
{
    static const struct rlimit files = {1024, 524288};
    static const struct rlimit core = {0, RLIM_INFINITY};

    umask(022);
    return setrlimit(RLIMIT_NOFILE, &files) == 0 && setrlimit(RLIMIT_CORE, &core) == 0 &&
           prctl(PR_SET_DUMPABLE, 0) == 0 && write_file("/proc/self/oom_score_adj", "-1000");
}

static bool set_signals(void)
{
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGPWR);
    return sigprocmask(SIG_SETMASK, &blocked, NULL) == 0 && signal(SIGPIPE, SIG_IGN) != SIG_ERR;
}

static bool run(struct failure *failure)
{
    struct setup setup = {.port_fd = -1, .listener_fd = -1};
    char cmdline[4096];

    if (!power_guard_crashes() || !mounts_make(failure))
        return false;
    if (!occupy_stdio() || !set_limits() || !set_signals()) {
        failure_set(failure, errno, "cannot set up the agent's process: %s", strerror(errno));
        return false;
    }
    if (!textfile_read(AT_FDCWD, "/proc/cmdline", cmdline, sizeof cmdline)) {
        failure_set(failure, errno, "cannot read the kernel command line: %s", strerror(errno));
        return false;
    }
    setup.is_sealed = textfile_has_word(cmdline, "sevkit.sealed");
    setup.is_debug = report_is_debug_image();
    setup.any_peer = setup.is_debug && textfile_has_word(cmdline, "sevkit.vsock=any");
    uint32_t cid;
    const bool has_vsock = listener_guest_cid(&cid);
    if (has_vsock || setup.any_peer) {
        setup.listener_fd = listener_open();
        if (setup.listener_fd < 0)
            console_say("cannot listen on vsock: %s", strerror(errno));
    }
    const bool needs_port = !has_vsock || setup.listener_fd < 0;
    setup.port_fd = port_open(needs_port, PORT_TIMEOUT_MS, failure);
    return (setup.port_fd >= 0 || !needs_port) && service_run(&setup, failure) != SERVICE_FAILED;
}

int main(int argc, char *argv[])
{
    struct failure failure = {0};

    if (getpid() != 1) {
        if (argc == 2 && strcmp(argv[1], "--version") == 0)
            return puts("sevkit-agent " AGENT_VERSION) == EOF;
        fputs("sevkit-agent: this is PID 1 of a guest and nothing to run by hand\n", stderr);
        return EXIT_USAGE;
    }
    if (!run(&failure))
        console_say("%s; powering off", failure.what);
    power_off();
}
