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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sevkit.errors import SourceError

_LOOK_SECONDS = 0.2
_SAID_BYTES = 16 << 20
_DATA_BYTES = 4 << 30


def run_watched(
    argv: Sequence[str | Path],
    environment: Mapping[str, str],
    watch: Callable[[], None],
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end; its status, and what it said on standard error.

    `watch` is called several times a second. When it raises, or the thread is interrupted, the
    command is killed with its children. A server that has it talk without end, or keep what fits
    no memory, gets it ended too. Raises `FileNotFoundError` when there is no such command,
    `SourceError` when it says more than 16 MiB, and `OSError` (ENOSPC) when it failed because the
    disk is full.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
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
        said.seek(0)
        words = said.read()
    if status != 0 and os.strerror(errno.ENOSPC) in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"what {Path(argv[0]).name} fetches")
    return status, words
