# SPDX-License-Identifier: Apache-2.0
"""The system calls that a container may make: everything else is refused.

A list of what is allowed, by purpose. What is not named does not exist for the container: ENOSYS,
so that a C library falls back to an older call. What is refused on purpose says EPERM, which is
what programs expect of it. Names: the x86-64 table of Linux 6.12 (arch/x86/entry/syscalls), as far
as libseccomp 2.5.4 knows them. The form: OCI runtime specification 1.0.2, config-linux.md, seccomp.
Never applies anything.
"""

from sevkit.canonical import Json

EPERM = 1
ENOSYS = 38

_ALLOWED: dict[str, str] = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl
        fdatasync flock fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64
        ioctl lchown link linkat lseek lstat mkdir mkdirat newfstatat open openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
        rename renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat sync
        sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice
        write writev mknod mknodat name_to_handle_at""",
    "extended attributes": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr
        lremovexattr lsetxattr removexattr setxattr""",
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
        inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll pselect6 select
        signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime io_cancel io_destroy
        io_getevents io_pgetevents io_setup io_submit fanotify_mark""",
    "memory": """
        brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
        mprotect mremap msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
        remap_file_pages get_mempolicy """,
    "processes": """
        arch_prctl execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority
        getrlimit getrusage getsid gettid prctl prlimit64 rseq sched_getaffinity sched_getattr
        sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
        sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield setpgid setpriority setrlimit setsid set_robust_list get_robust_list
        set_tid_address vfork wait4 waitid ioprio_get ioprio_set futex
        futex_waitv getcpu pidfd_open pidfd_send_signal restart_syscall
        seccomp landlock_add_rule landlock_create_ruleset landlock_restrict_self alarm pause
        set_thread_area get_thread_area""",
    "signals": """
        kill rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill""",
    "users": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid
        setgid setgroups setregid setresgid setresuid setreuid setuid""",
    "time": """
        clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime times adjtimex""",
    "sockets, once made": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketpair pipe pipe2""",
    "System V and POSIX messages": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
        msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget""",
    "the machine": """
        getrandom sysinfo uname""",
    "its own root": """
        chroot""",
}
_REFUSED = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init
    finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl
    lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl
    open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
    process_madvise process_mrelease process_vm_readv process_vm_writev ptrace query_module
    quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname
    sethostname setns settimeofday swapoff swapon sysfs umount2 unshare uselib
    userfaultfd ustat vhangup"""
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
"""Address families of sockets. AF_VSOCK (40) is not one: the agent listens there, and the host."""
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET of linux/sched.h."""
_READING_THE_LOG = (2, 3, 9, 10)
"""syslog(2): read, read all, and two sizes; not to clear the log or to move its level."""
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""personality(2): Linux, 32 bits, an old uname, both, and the question."""


def allowed_calls() -> frozenset[str]:
    """The names of the calls that are allowed whatever their arguments."""
    return frozenset(name for names in _ALLOWED.values() for name in names.split())


def profile() -> dict[str, Json]:
    """The `linux.seccomp` object of an OCI runtime configuration."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            _allow(*sorted(allowed_calls())),
            {"names": sorted(_REFUSED.split()), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            *(_allow("socket", first=_equal(family)) for family in _FAMILIES.values()),
            *(_allow("syslog", first=_equal(action)) for action in _READING_THE_LOG),
            *(_allow("personality", first=_equal(persona)) for persona in _PERSONALITIES),
            _allow("clone", first=_without_bits(_NEW_NAMESPACES)),
        ],
    }


def _allow(*names: str, first: Json = None) -> dict[str, Json]:
    rule: dict[str, Json] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    return rule if first is None else {**rule, "args": [first]}


def _equal(value: int) -> dict[str, Json]:
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}


def _without_bits(mask: int) -> dict[str, Json]:
    return {"index": 0, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
