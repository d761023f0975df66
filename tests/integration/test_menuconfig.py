# SPDX-License-Identifier: Apache-2.0
"""menuconfig on a real terminal: what the user changes, and no more, becomes a fragment."""

import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]

REPOSITORY = Path(__file__).resolve().parents[2]
ESCAPE = b"\x1b\x1b"
DOWN = b"\x1bOB"
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\([0B]")


class Terminal:
    """A program on a pseudo-terminal: what it shows, and what is typed."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.shown = b""

    def wait_for(self, text: bytes, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        self.shown = b""
        while text not in CONTROL.sub(b"", self.shown):
            assert time.monotonic() < deadline, self.shown[-2000:]
            if select.select([self._descriptor], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._descriptor, 65536)
                except OSError:
                    break
        assert text in CONTROL.sub(b"", self.shown), self.shown[-2000:]

    def type(self, keys: bytes) -> None:
        time.sleep(0.5)
        os.write(self._descriptor, keys)


@contextmanager
def menuconfig(project: Path) -> Iterator[Terminal]:
    child, descriptor = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        command = [sys.executable, "-m", "sevkit", "-C", str(project), "menuconfig", "sev-guest"]
        os.execv(sys.executable, command)
    terminal = Terminal(descriptor)
    try:
        yield terminal
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, terminal.shown[-2000:]
    finally:
        os.close(descriptor)


def test_what_is_changed_is_saved_as_a_fragment_of_only_that(tmp_path: Path) -> None:
    with menuconfig(tmp_path) as terminal:
        terminal.wait_for(b"General setup")
        terminal.type(b"\r")
        terminal.wait_for(b"warnings as errors")
        terminal.type(DOWN)
        terminal.type(b"y")
        terminal.wait_for(b"[*]", 20)
        terminal.type(ESCAPE)
        time.sleep(1)
        terminal.type(ESCAPE)
        terminal.wait_for(b"save your new", 20)
        terminal.type(b"\r")
        terminal.wait_for(b"saved")
    fragment = tmp_path / "kernel-configs" / "sev-guest-menuconfig.config"
    symbols = [line for line in fragment.read_text().splitlines() if "CONFIG_" in line]
    assert symbols == ["CONFIG_WERROR=y"]


def test_leaving_without_a_change_writes_nothing(tmp_path: Path) -> None:
    with menuconfig(tmp_path) as terminal:
        terminal.wait_for(b"General setup")
        terminal.type(ESCAPE)
        terminal.wait_for(b"nothing was changed")
    assert not (tmp_path / "kernel-configs").exists()
