# SPDX-License-Identifier: Apache-2.0
"""Commands that bring sources: their words, and that none outlives an interruption."""

import errno
import os
import time
from pathlib import Path

import pytest

from sevkit.sources.commands import run_watched

ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C"}


def shell(script: str, watch: object = None) -> tuple[int, str]:
    return run_watched(["sh", "-c", script], ENVIRONMENT, watch or (lambda: None))  # type: ignore[arg-type]


def test_status_and_words_of_a_command_come_back_however_many_there_are() -> None:
    assert shell("echo what; echo why >&2; exit 7") == (7, "what\nwhy\n")
    status, said = shell("head -c 3000000 /dev/zero | tr '\\0' x >&2")
    assert (status, len(said)) == (0, 3_000_000)


def test_an_interrupted_command_is_killed_with_its_children(tmp_path: Path) -> None:
    seen = tmp_path / "child"

    def stop() -> None:
        if seen.exists() and seen.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell(f"sleep 600 & echo $! > {seen}; wait", stop)
    status = Path("/proc") / seen.read_text().strip() / "status"
    deadline = time.monotonic() + 5
    while status.exists() and "(zombie)" not in status.read_text():
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.01)


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError, match="what sh fetches") as caught:
        shell("echo 'fatal: write error: No space left on device' >&2; exit 1")
    assert caught.value.errno == errno.ENOSPC
    assert shell("echo 'No space left on device' >&2")[0] == 0


def test_a_command_that_is_missing_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        run_watched(["no-such-command"], ENVIRONMENT, lambda: None)
