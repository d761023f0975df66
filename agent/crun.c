/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "crun.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bundle.h"
#include "cgroup.h"
#include "job.h"
#include "launch.h"
#include "rootfs.h"
#include "terminal.h"
#include "textfile.h"

#define CRUN "/usr/bin/crun"
#define PLACE "/run/sevkit/containers"
#define STATE "/run/sevkit/crun"

/* In the container's folder, each job's own: PREFIX followed by its pid. */
#define LOG "log-"
#define PID "pid-"
#define CONSOLE "console-"

enum { WORDS_MAX = 2 * JSON_VALUES_MAX + 32, STATUS_NO_CRUN = 127 };

struct command {
    const char *words[WORDS_MAX];
    size_t count;
    char log_option[64];
    char log[32];
    char pid_file[32];
    char console[32];
    char user[32];
};

static bool fail(struct failure *failure, const char *what)
{
    failure_set(failure, errno, "cannot %s: %s", what, strerror(errno));
    return false;
}

static void add(struct command *command, const char *word)
{
    if (command->count < WORDS_MAX - 1)
        command->words[command->count++] = word;
}

static void add_option(struct command *command, const char *option, const char *value)
{
    add(command, option);
    add(command, value);
}

static void begin(struct command *command, const char *verb)
{
    const int own = getpid();

    command->count = 0;
    snprintf(command->log, sizeof command->log, LOG "%d", own);
    snprintf(command->log_option, sizeof command->log_option, "--log=file:" LOG "%d", own);
    snprintf(command->pid_file, sizeof command->pid_file, PID "%d", own);
    snprintf(command->console, sizeof command->console, CONSOLE "%d", own);
    add(command, CRUN);
    add(command, command->log_option);
    add_option(command, "--root", STATE);
    add(command, "--cgroup-manager=cgroupfs");
    add(command, verb);
}

/* What crun wrote, in one line; "" when it wrote nothing. */
static void read_log(const struct command *command, char *text, size_t size)
{
    text[0] = '\0';
    if (!textfile_read(AT_FDCWD, command->log, text, size))
        text[0] = '\0';
    for (char *newline = strchr(text, '\n'); newline; newline = strchr(newline, '\n'))
        *newline = ';';
}

/* Waits for the end of crun; this is a child of the agent, and may. */
static bool run(struct command *command, struct failure *failure)
{
    static const char *const env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    char words[400];
    int status = 0;

    command->words[command->count] = NULL;
    const pid_t pid = fork();
    if (pid == 0) {
        execve(CRUN, (char *const *)(size_t)command->words, (char *const *)(size_t)env);
        _exit(STATUS_NO_CRUN);
    }
    if (pid < 0)
        return fail(failure, "start crun");
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    read_log(command, words, sizeof words);
    unlink(command->log);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    if (WIFSIGNALED(status))
        failure_set(failure, ECANCELED, "crun was ended by signal %d", WTERMSIG(status));
    else if (access(CRUN, X_OK) != 0)
        failure_set(failure, errno, "this guest has no %s to run containers with", CRUN);
    else
        failure_set(failure, EINVAL, "crun: %s",
                    words[0] ? words : "it failed and did not say why");
    return false;
}

static int listen_for_console(const struct command *command)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof address.sun_path, "%s", command->console);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
        listen(fd, 1) == 0)
        return fd;
    return -1;
}

/* crun has connected and sent the terminal's master before it ended well. */
static int take_console(const struct command *command, int listener)
{
    union {
        struct cmsghdr header; /* aligns */
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char name[256];
    struct iovec part = {name, sizeof name};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    int fd = -1;

    unlink(command->console);
    const int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0 || recvmsg(peer, &message, MSG_CMSG_CLOEXEC) < 0)
        return -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

/* Runs a `crun create` or `crun exec`, to which it adds where to tell the pid and the terminal;
 * `last` are its last words. */
static bool run_process(struct command *command, const struct request *request, bool has_terminal,
                        const char *const *last, struct outcome *outcome, int *terminal,
                        struct failure *failure)
{
    int64_t pid = 0;
    int listener = -1;

    add_option(command, "--pid-file", command->pid_file);
    if (has_terminal) {
        listener = listen_for_console(command);
        if (listener < 0)
            return fail(failure, "make a socket for the terminal");
        add_option(command, "--console-socket", command->console);
    }
    for (; *last; last++)
        add(command, *last);
    if (!run(command, failure)) {
        unlink(command->console);
        unlink(command->pid_file);
        return false;
    }
    const bool told = textfile_read_integer(AT_FDCWD, command->pid_file, &pid) && pid > 1;
    unlink(command->pid_file);
    if (!told)
        return fail(failure, "read the pid that crun wrote");
    if (has_terminal) {
        *terminal = take_console(command, listener);
        if (*terminal < 0 || !terminal_resize(*terminal, request->rows, request->columns))
            return fail(failure, "take the terminal from crun");
    }
    outcome->pid = (pid_t)pid;
    outcome->has_tty = has_terminal;
    return true;
}

static bool enter_folder(const char *id)
{
    char path[128];

    snprintf(path, sizeof path, PLACE "/%s", id);
    return chdir(path) == 0;
}

static bool make_folder(const char *id)
{
    char path[128];

    snprintf(path, sizeof path, PLACE "/%s", id);
    return rootfs_make_folder("/run/sevkit") && rootfs_make_folder(PLACE) &&
           mkdir(path, 0700) == 0 && chdir(path) == 0;
}

/* What is left of a container that crun has deleted, or never made. The mounts are there for
 * whoever has just made them. */
static void remove_folder(const char *id)
{
    char path[128];

    umount2("layers", MNT_DETACH);
    umount2(ROOTFS_FOLDER, MNT_DETACH);
    unlink("config.json");
    rmdir("layers");
    rmdir(ROOTFS_FOLDER);
    snprintf(path, sizeof path, PLACE "/%s", id);
    rmdir(path);
    snprintf(path, sizeof path, CGROUP_PARENT "/%s", id);
    rmdir(path);
}

static bool delete(struct command *command, const char *id, struct failure *failure)
{
    char path[128];

    snprintf(path, sizeof path, STATE "/%s", id);
    if (access(path, F_OK) != 0)
        return true;
    begin(command, "delete");
    add(command, "--force");
    add(command, id);
    return run(command, failure);
}

static bool create(struct command *command, const struct request *request,
                   struct outcome *outcome, int *terminal, struct failure *failure)
{
    const char *last[] = {request->container, NULL};
    struct bundle bundle = {0};

    if (!rootfs_mount_layers(request, failure) ||
        !bundle_write(ROOTFS_IMAGE_CONFIG, request->config, request->container, &bundle,
                      failure) ||
        !rootfs_mount_overlay(request, failure))
        return false;
    begin(command, "create");
    add(command, "--no-pivot");
    add(command, "--no-new-keyring"); /* the kernel has none */
    return run_process(command, request, bundle.has_terminal, last, outcome, terminal, failure);
}

static void say(int outcome_fd, bool is_good, struct outcome *outcome, int terminal,
                const struct failure *failure)
{
    if (!is_good)
        outcome->failure = *failure;
    job_say(outcome_fd, outcome, is_good ? terminal : -1, "", 0);
}

static bool prepare(const struct launch *launch, int outcome_fd)
{
    struct failure failure;

    if (launch_prepare(&launch->stdio))
        return true;
    fail(&failure, "prepare the process");
    job_say_failure(outcome_fd, &failure);
    return false;
}

void crun_create(void *context, int outcome_fd)
{
    static struct command command;
    const struct launch *launch = context;
    const char *id = launch->request->container;
    struct outcome outcome = {.pid = 0};
    struct failure failure = {.error = 0};
    struct failure ignored;
    int terminal = -1;

    if (!prepare(launch, outcome_fd))
        return;
    const bool has_folder = make_folder(id);
    if (!has_folder)
        fail(&failure, "make a folder for the container");
    const bool is_good =
        has_folder && create(&command, launch->request, &outcome, &terminal, &failure);
    if (!is_good && has_folder) {
        delete(&command, id, &ignored);
        remove_folder(id);
    }
    say(outcome_fd, is_good, &outcome, terminal, &failure);
}

void crun_start(void *context, int outcome_fd)
{
    static struct command command;
    const struct launch *launch = context;
    struct outcome outcome = {.pid = 0};
    struct failure failure = {.error = 0};

    if (!prepare(launch, outcome_fd))
        return;
    begin(&command, "start");
    add(&command, launch->request->container);
    const bool is_good = (enter_folder(launch->request->container) ||
                          fail(&failure, "enter the container's folder")) &&
                         run(&command, &failure);
    say(outcome_fd, is_good, &outcome, -1, &failure);
}

static bool exec(struct command *command, const struct request *request, struct outcome *outcome,
                 int *terminal, struct failure *failure)
{
    struct bundle bundle = {0};

    if (!enter_folder(request->container))
        return fail(failure, "enter the container's folder");
    if (!bundle_read(&bundle, failure))
        return false;
    begin(command, "exec");
    add(command, "--detach");
    if (bundle.forbids_new_privileges)
        add(command, "--no-new-privs");
    if (request->has_tty)
        add(command, "--tty");
    snprintf(command->user, sizeof command->user, "%u:%u", request->uid, request->gid);
    add_option(command, "--user", command->user);
    add_option(command, "--cwd", request->cwd);
    for (const char *const *one = request->env; *one; one++)
        add_option(command, "--env", *one);
    /* The id comes last of crun's own words; all that follows is the command's. */
    static const char *last[WORDS_MAX];
    size_t count = 0;
    last[count++] = request->container;
    for (const char *const *one = request->argv; *one && count < WORDS_MAX - 1; one++)
        last[count++] = *one;
    return run_process(command, request, request->has_tty, last, outcome, terminal, failure);
}

void crun_exec(void *context, int outcome_fd)
{
    static struct command command;
    const struct launch *launch = context;
    struct outcome outcome = {.pid = 0};
    struct failure failure = {.error = 0};
    int terminal = -1;

    if (!prepare(launch, outcome_fd))
        return;
    const bool is_good = exec(&command, launch->request, &outcome, &terminal, &failure);
    say(outcome_fd, is_good, &outcome, terminal, &failure);
}

void crun_delete(void *context, int outcome_fd)
{
    static struct command command;
    const struct launch *launch = context;
    const char *id = launch->request->container;
    struct outcome outcome = {.pid = 0};
    struct failure failure = {.error = 0};

    if (!prepare(launch, outcome_fd))
        return;
    const bool is_good = (enter_folder(id) || fail(&failure, "enter the container's folder")) &&
                         delete(&command, id, &failure);
    if (is_good)
        remove_folder(id);
    say(outcome_fd, is_good, &outcome, -1, &failure);
}
