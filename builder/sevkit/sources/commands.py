# SPDX-License-Identifier: Apache-2.0
"""Runs what brings sources here (apt, git), and leaves none of it running when interrupted.

Build steps are another matter: they run in the sandbox and have no network.
"""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sevkit.errors import SourceError

_LOOK_SECONDS = 0.2
_SAID_BYTES = 16 << 20
_DATA_BYTES = 4 << 30
_SLOW_SECONDS = 60
_SLOW_BYTES_A_SECOND = 1024
_WORK_BYTES_A_SECOND = 1 << 20


class Intake:
    """Watches what comes through a command: no more than allowed, and never too little for long.

    The server may send nothing to speak of for a minute, and for what the command needs meanwhile:
    when all has come it works on it for a time that grows with its size, in which nothing comes.
    `source` is what messages call the server or its file, `received` counts the bytes that are
    here, `progress` is told of them.
    """

    def __init__(
        self,
        source: str,
        limit_bytes: int,
        received: Callable[[], int],
        progress: Callable[[int], None] = lambda received: None,
        *,
        hint: str = "",
    ):
        self._source = source
        self._limit_bytes = limit_bytes
        self._received = received
        self._progress = progress
        self._hint = hint
        self._since = time.monotonic()
        self._before = 0

    def __call__(self) -> None:
        """Look. Raises `SourceError` when too much came, or too little for too long."""
        now, received = time.monotonic(), self._received()
        if received > self._limit_bytes:
            raise self._refused(f"has more than the {self._limit_bytes} bytes allowed")
        self._before = min(self._before, received)  # the command may have begun anew
        if received - self._before >= _SLOW_SECONDS * _SLOW_BYTES_A_SECOND:
            self._since, self._before = now, received
        elif now - self._since > _SLOW_SECONDS + received / _WORK_BYTES_A_SECOND:
            raise self._refused(f"sends less than {_SLOW_BYTES_A_SECOND} bytes a second")
        self._progress(received)

    def _refused(self, why: str) -> SourceError:
        return SourceError(f"{self._source} {why}", hint=self._hint)


def bytes_at(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; those that are no more count nothing."""
    total = 0
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in below if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def run_watched(
    argv: Sequence[str | Path],
    environment: Mapping[str, str],
    watch: Callable[[], None],
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end; its status, and what it said.

    `watch`, an `Intake` for one, is called several times a second and once when all is over. When
    it raises, or the thread is interrupted, the command is killed with its children. A server that
    has it talk without end, or keep what fits no memory, gets it ended too. Raises
    `FileNotFoundError` when there is no such command, `SourceError` when it says more than 16 MiB,
    and `OSError` (ENOSPC) when it failed because the disk is full.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
        try:
            while True:
                watch()
                if os.fstat(said.fileno()).st_size > _SAID_BYTES:
                    raise SourceError(f"{Path(argv[0]).name} says more than {_SAID_BYTES} bytes")
                try:
                    status = process.wait(_LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        watch()
        said.seek(0)
        words = said.read()
    if status != 0 and os.strerror(errno.ENOSPC) in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"what {Path(argv[0]).name} fetches")
    return status, words
