# SPDX-License-Identifier: Apache-2.0
"""A container's life as the host sees it, and the user's terminal and signals meanwhile.

The guest is a double; the terminal is a pseudo-terminal and real.
"""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest_double import write_double

CONTAINER = """
import threading
greet()
request = asked("create")
answer(request, process=1, tty=TTY)
def show(text):
    frame(2, text.encode(), 1)
"""
RUNS = (
    CONTAINER
    + """
def tell(heard):
    if heard["method"] in ("resize", "signal"):
        answer(heard)
        wanted = heard["params"]
        show("[%s]" % " ".join(str(wanted[key]) for key in sorted(wanted) if key != "process"))
    return heard["method"]
while tell(heard := hear()) != "start":
    pass
answer(heard)
waits.append(asked("wait"))
show("ready")
while True:
    heard = hear()
    if isinstance(heard, bytes):
        show(repr(heard))
        if b"q" in heard:
            break
    elif isinstance(heard, dict) and tell(heard) == "signal" and heard["params"]["signal"] == 15:
        break
answer(waits.pop(), **END)
say(id=asked("stats")["id"], error=dict(what="gone", errno=3))
reports()
answer(asked("delete"))
asked("shutdown")
"""
)
USER = """
import sys
from pathlib import Path
from sevkit.guest.boot import Setting, writer
from sevkit.guest.container import run_container
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.qemu import GuestSpec
from sevkit.guest.running import Limits, Streams
from sevkit.guest.session import Session
tty = sys.argv[2] == "tty"
setting = Setting(Qemu(Path(sys.argv[1]), (9, 1, 0)), Launch("tcg"), Limits(20, 20, 20))
session = Session(None, GuestSpec(Path("/k"), "x"), setting)
pass_on = writer(1)
streams = Streams(pass_on, pass_on, stdin=0, tty=(24, 80) if tty else None)
outcome = run_container(session, streams, config={})
sys.exit(outcome.ending.exit_status)
"""


@dataclass
class Terminal:
    """The far end of a pseudo-terminal, and who sits at its near end."""

    master: int
    slave: int
    process: "subprocess.Popen[bytes]"
    seen: bytes = b""

    def sees(self, text: str) -> str:
        """Wait until the user sees `text`; all that was seen since."""
        deadline = time.monotonic() + 30
        while not (match := re.search(text.encode(), self.seen)):
            assert time.monotonic() < deadline, self.seen
            with contextlib.suppress(BlockingIOError):
                self.seen += os.read(self.master, 4096)
            time.sleep(0.005)
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before.decode()

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)


@contextlib.contextmanager
def user(folder: Path, body: str, kind: str) -> Iterator[Terminal]:
    script = write_double(folder / "qemu", body)
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    termios.tcsetwinsize(slave, (30, 100))
    near = slave if kind == "tty" else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", USER, script, kind], stdin=near, stdout=slave, stderr=slave
    )
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
        if process.stdin is not None:
            process.stdin.close()


def guest(*, tty: bool, end: str = "dict(status=7)") -> str:
    return RUNS.replace("TTY", str(tty)).replace("END", end)


def test_a_terminal_is_raw_while_the_container_runs_and_as_before_in_the_end(
    tmp_path: Path,
) -> None:
    with user(tmp_path, guest(tty=True), "tty") as terminal:
        before = termios.tcgetattr(terminal.slave)
        assert not terminal.is_raw()
        assert "[100 30]" in terminal.sees("ready")
        assert terminal.is_raw()
        os.write(terminal.master, b"\x03\x1b[A\xff")
        terminal.sees(re.escape(r"b'\x03\x1b[A\xff'"))
        termios.tcsetwinsize(terminal.slave, (50, 132))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.sees(re.escape("[132 50]"))
        os.write(terminal.master, b"q")
        assert terminal.process.wait(20) == 7
        assert termios.tcgetattr(terminal.slave) == before


@pytest.mark.parametrize(
    "ending",
    [
        "frame(7, b'')",
        "os.kill(os.getpid(), 9)",
        "say(event='malformed', params={})",
        "frame(2, bytes(40000), 1)",
    ],
)
def test_a_terminal_is_restored_when_the_guest_fails(tmp_path: Path, ending: str) -> None:
    body = guest(tty=True).replace('if b"q" in heard:\n            break', ending)
    assert ending in body
    with user(tmp_path, body, "tty") as terminal:
        before = termios.tcgetattr(terminal.slave)
        terminal.sees("ready")
        os.write(terminal.master, b"q")
        assert terminal.process.wait(20) == 1
        assert termios.tcgetattr(terminal.slave) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_terminal_is_restored_when_sevkit_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    with user(tmp_path, guest(tty=True), "tty") as terminal:
        before = termios.tcgetattr(terminal.slave)
        terminal.sees("ready")
        terminal.process.send_signal(number)
        assert terminal.process.wait(20) != 0
        assert termios.tcgetattr(terminal.slave) == before


def test_signals_are_passed_on_and_the_status_says_which_ended_it(tmp_path: Path) -> None:
    with user(tmp_path, guest(tty=False, end="dict(signal=15)"), "pipe") as terminal:
        terminal.sees("ready")
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            terminal.process.send_signal(number)
            terminal.sees(re.escape(f"[{number.value}]"))
        assert terminal.process.wait(20) == 128 + 15


def test_the_third_ctrl_c_ends_sevkit_whatever_the_guest_does(tmp_path: Path) -> None:
    with user(tmp_path, guest(tty=False), "pipe") as terminal:
        terminal.sees("ready")
        for _ in range(2):
            terminal.process.send_signal(signal.SIGINT)
            terminal.sees(re.escape("[2]"))
        assert terminal.process.poll() is None
        terminal.process.send_signal(signal.SIGINT)
        terminal.process.wait(20)
        terminal.sees("KeyboardInterrupt")


def test_a_refused_container_is_said_in_the_agents_words(tmp_path: Path) -> None:
    refusal = """
    greet()
    say(id=asked("create")["id"], error=dict(what="crun: no \\x1b[2J such thing", errno=22))
    sleep(20)
    """
    with user(tmp_path, refusal, "tty") as terminal:
        said = terminal.sees(re.escape("could not create: crun: no \\x1b[2J such thing (errno 22)"))
        assert "\x1b" not in said
        assert terminal.process.wait(20) == 1
