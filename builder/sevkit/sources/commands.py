# SPDX-License-Identifier: Apache-2.0
"""Runs what brings sources here (apt, git), and leaves none of it running when interrupted.

Build steps are another matter: they run in the sandbox and have no network.
"""

import errno
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_LOOK_SECONDS = 0.2


def run_watched(
    argv: Sequence[str | Path],
    environment: Mapping[str, str],
    watch: Callable[[], None],
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end; its status, and what it said on standard error.

    `watch` is called several times a second. When it raises, or the thread is interrupted, the
    command is killed with its children. Raises `FileNotFoundError` when there is no such command,
    and `OSError` (ENOSPC) when it failed because the disk is full.
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
        try:
            while True:
                watch()
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
