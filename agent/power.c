/* SPDX-License-Identifier: Apache-2.0 */
#include "power.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "console.h"

enum { STEP_MS = 5, REAP_MS = 2000, SYNC_MS = 5000 };

_Noreturn static void cut_power(void)
{
    reboot(RB_POWER_OFF);
    reboot((int)RB_HALT_SYSTEM);
    for (;;)
        pause();
}

/* A handler takes away the protection from signals that PID 1 has, so those that the workload
 * sends are sorted out here: it may not end the guest by pretending. */
static void on_crash(int number, siginfo_t *information, void *context)
{
    (void)context;
    if (information->si_code <= 0 && information->si_pid != getpid())
        return;
    if (getpid() != 1) /* a child between fork and exec */
        _exit(128 + number);
    console_raw(number == SIGABRT ? "internal error: abort" : "internal error: memory fault");
    cut_power();
}

bool power_guard_crashes(void)
{
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    static char spare_stack[16384];
    const stack_t stack = {.ss_sp = spare_stack, .ss_size = sizeof spare_stack};
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_ONSTACK | SA_SIGINFO;
    if (sigaltstack(&stack, NULL) != 0)
        return false;
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++) {
        if (sigaction(crashes[i], &action, NULL) != 0)
            return false;
    }
    return true;
}

/* Waits up to `timeout_ms` until there are no children. */
static void reap_all(int timeout_ms)
{
    static const struct timespec step = {0, STEP_MS * 1000000L};

    for (;;) {
        const pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0 && errno != EINTR)
            return;
        if (pid > 0)
            continue;
        if (timeout_ms <= 0)
            return;
        nanosleep(&step, NULL);
        timeout_ms -= STEP_MS;
    }
}

void power_off(void)
{
    kill(-1, SIGKILL);
    reap_all(REAP_MS);
    const pid_t pid = fork(); /* sync() has no time limit of its own */
    if (pid == 0) {
        sync();
        _exit(0);
    }
    if (pid > 0)
        reap_all(SYNC_MS);
    cut_power();
}
