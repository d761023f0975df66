# SPDX-License-Identifier: Apache-2.0
"""Runs one command that no sandbox holds, and ends all that it started when it ends.

A program of its own, between sevkit and the command: orphans of the command become its children
(prctl(2), PR_SET_CHILD_SUBREAPER), whatever session they moved to, and SIGTERM, which it also gets
when sevkit dies in any way (PR_SET_PDEATHSIG), ends it together with them. What has become another
user (sudo) is out of its reach. Runs without the packages of the environment that sevkit is in.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h."""
_WATCHED = (signal.SIGCHLD, signal.SIGTERM)
_NOT_STARTED = 127


def supervised(command: Sequence[str]) -> list[str]:
    """What runs `command` supervised, and ends as it ended, by the same signal too.

    SIGTERM is to stop it. To be started by this process, from a thread that outlives it.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _run(parent: int, command: Sequence[str]) -> int:
    """The status of `command`, negative for a signal, when nothing of it is left."""
    import ctypes

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        return -signal.SIGTERM  # it died before the kernel was told to say so
    child = os.fork()
    if child == 0:
        _become(command, mask)
    try:
        status = None
        while status is None:
            number = signal.sigwait(_WATCHED)
            status = -signal.SIGTERM if number == signal.SIGTERM else _status_of(child)
        return status
    finally:
        while _kill_children():
            os.wait()


def _become(command: Sequence[str], mask: Iterable[int]) -> NoReturn:
    """The command, in a session of its own: what it sends its process group reaches nobody else."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # which Python sets
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], [*command])
    except OSError as error:
        print(f"{command[0]} can't be started: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(_NOT_STARTED)


def _status_of(child: int) -> int | None:
    """How `child` ended, None while it runs. Orphans that ended are reaped on the way."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended in (0, child):
            return os.waitstatus_to_exitcode(status) if ended else None


def _kill_children() -> int:
    """Kill every child; how many there were that could be. Theirs are ours when they are gone."""
    killed = 0
    for child in _children():
        try:
            os.kill(child, signal.SIGKILL)
        except (PermissionError, ProcessLookupError):
            continue
        killed += 1
    return killed


def _children() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it is gone
            continue
        if int(fields[1]) == os.getpid():  # proc(5): state, ppid
            yield int(folder.name)


def _end_as(status: int) -> None:
    """Exit with `status`, or where it is negative by that signal."""
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL, whose action is fixed
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    _end_as(_run(int(sys.argv[1]), sys.argv[2:]))
