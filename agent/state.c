/* SPDX-License-Identifier: Apache-2.0 */
#include "state.h"

#include <signal.h>
#include <sys/wait.h>

#include "cgroup.h"

void service_end(struct service *service, enum service_end end)
{
    if (!service->is_ending)
        service->end = end;
    service->is_ending = true;
}

/* The kernel tells of a container's memory only as long as it has a cgroup. */
static void bury(struct service *service, struct process *process, int wait_status)
{
    for (size_t i = 0; i < CONTAINERS_MAX; i++) {
        struct container *container = &service->containers[i];
        if (container->state == CONTAINER_NONE || container->first != process)
            continue;
        process->oom = cgroup_had_oom(container->id);
        container->first = NULL;
    }
    process_end(process, wait_status);
}

void service_reap(struct service *service)
{
    int wait_status;
    pid_t pid;

    while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0) {
        bool is_known = false;
        for (size_t i = 0; i < PROCESSES_MAX; i++) {
            struct process *process = &service->processes.all[i];
            if (!process->is_used || process->has_ended || process->pid != pid)
                continue;
            is_known = true;
            bury(service, process, wait_status);
        }
        if (!is_known)
            service->deaths[service->death_count++ % DEATHS_MAX] =
                (struct death){pid, wait_status};
    }
}

static bool find_death(const struct service *service, pid_t pid, int *wait_status)
{
    for (size_t i = 0; i < DEATHS_MAX && i < service->death_count; i++) {
        const struct death *death =
            &service->deaths[(service->death_count - 1 - i) % DEATHS_MAX];
        if (death->pid == pid) {
            *wait_status = death->wait_status;
            return true;
        }
    }
    return false;
}

void service_adopt(struct service *service, struct process *process, pid_t pid)
{
    int wait_status;

    process->pid = pid;
    const pid_t dead = waitpid(pid, &wait_status, WNOHANG);
    if (dead == pid || (dead < 0 && find_death(service, pid, &wait_status)))
        bury(service, process, wait_status);
    else if (dead < 0)
        bury(service, process, SIGKILL); /* as the status of wait(2): by that signal */
}
