# SPDX-License-Identifier: Apache-2.0
"""A build step that asks the user something: it has their keys, and not their terminal.

And what is written for whoever reads it: all of it.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.terminal import write_all

SEVKIT = """
import os, select, sys
from pathlib import Path
from sevkit.errors import BuildError
from sevkit.sandbox import Processes, SandboxRunner
work = Path(sys.argv[1])
runner = SandboxRunner(
    title="step", work=work, inputs={}, log=work / "log", jobs=1, confined=True,
    processes=Processes(), on_progress=lambda *_: None,
)
print("ready", flush=True)
try:
    runner.interactively(sys.argv[2:], cwd=work)
    print("done", flush=True)
except BuildError as error:
    print("failed:", error, flush=True)
typed = os.read(0, 100) if select.select([0], [], [], 1)[0] else b""
print("left for the shell:", typed, flush=True)
"""
TYPES_COMMANDS = """
import fcntl, termios
for place in ("/dev/tty", "/proc/self/fd/0", "/proc/self/fd/1"):
    try:
        with open(place, "wb", buffering=0) as terminal:
            for key in b"rm -r x\\n":
                fcntl.ioctl(terminal, termios.TIOCSTI, bytes([key]))
    except OSError as error:
        print(place, error)
"""


def on_a_terminal(
    work: Path,
    *command: str,
    typed: bytes = b"",
    resized: bool = False,
    size: tuple[int, int] = (41, 123),
) -> str:
    """What sevkit shows whose user has the command in front of them."""
    child, descriptor = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", SEVKIT, str(work), *command])
    shown, deadline, sent = b"", time.monotonic() + 30, False
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    try:
        while time.monotonic() < deadline:
            if not select.select([descriptor], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(descriptor, 4096)
            except OSError:
                break
            if b"started" in shown and not sent:
                sent = True
                if resized:
                    larger = struct.pack("HHHH", 51, 151, 0, 0)
                    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, larger)
                    time.sleep(0.5)
                os.write(descriptor, typed)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(descriptor)
    return shown.decode()


def test_the_user_types_and_sees(tmp_path: Path) -> None:
    script = "stty size; echo started; read x; echo got $x; stty size; tty"
    shown = on_a_terminal(tmp_path, "sh", "-c", script, typed=b"keys\n", resized=True)
    assert "41 123" in shown
    assert "got keys" in shown
    assert "51 151" in shown
    assert "done" in shown
    assert "left for the shell: b''" in shown


def test_a_terminal_that_says_no_size_has_the_usual_one(tmp_path: Path) -> None:
    """A serial line says 0 by 0, in which no menu can be drawn."""
    assert "24 80" in on_a_terminal(tmp_path, "stty", "size", size=(0, 0))
    assert "30 90" in on_a_terminal(tmp_path, "stty", "size", size=(30, 90))


def test_an_interrupt_ends_the_step_and_not_sevkit(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "sh", "-c", "echo started; sleep 60", typed=b"\x03")
    assert "failed: step: " in shown
    assert "killed by SIGINT" in shown
    assert "left for the shell: b''" in shown


@pytest.mark.parametrize("apart", [True, False])
def test_a_step_types_nothing_for_the_users_shell(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal of its own it would, where the kernel still lets anybody."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if not apart and setting.exists() and setting.read_text().strip() == "0":
        pytest.skip(
            "this kernel lets nobody type into a terminal: the attack itself was not tested"
        )
    if not apart:
        plain = "import subprocess, sevkit.sandbox\n"
        plain += (
            "sevkit.sandbox.run_apart = lambda argv, cwd, env: subprocess.call(argv, cwd=cwd)\n"
        )
        monkeypatch.setattr(sys.modules[__name__], "SEVKIT", plain + SEVKIT)
    shown = on_a_terminal(tmp_path, "python3", "-c", TYPES_COMMANDS)
    assert ("left for the shell: b''" in shown) is apart, shown


DATA = bytes(range(256)) * 8192
BLOCKING = pytest.mark.parametrize("blocks", [True, False])


def pipe(*, blocks: bool) -> tuple[int, int]:
    """A pipe that holds one page, whose far end waits or not."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, blocks)
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    return ours, theirs


def received(read: Callable[[int], bytes], *, blocks: bool) -> bytes:
    """What a reader has of `DATA`."""
    ours, theirs = pipe(blocks=blocks)
    chunks: list[bytes] = []

    def take() -> None:
        while data := read(ours):
            chunks.append(data)

    reader = threading.Thread(target=take)
    reader.start()
    try:
        write_all(theirs, DATA)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return b"".join(chunks)


@BLOCKING
def test_a_reader_that_is_slow_gets_every_byte(blocks: bool) -> None:
    def slowly(descriptor: int) -> bytes:
        time.sleep(0.0002)
        return os.read(descriptor, 5000)

    assert received(slowly, blocks=blocks) == DATA


@BLOCKING
def test_signals_lose_nothing(blocks: bool) -> None:
    """A write that a signal interrupts has taken a part."""
    signalled = 0

    def count(_number: int, _frame: object) -> None:
        nonlocal signalled
        signalled += 1

    def signals(descriptor: int) -> bytes:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.0002)
        return os.read(descriptor, 5000)

    before = signal.signal(signal.SIGUSR1, count)
    try:
        assert received(signals, blocks=blocks) == DATA
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signalled > 10


@BLOCKING
def test_a_reader_that_goes_is_told_apart_from_one_that_is_slow(blocks: bool) -> None:
    ours, theirs = pipe(blocks=blocks)
    threading.Timer(0.2, os.close, [ours]).start()
    with pytest.raises(BrokenPipeError):
        write_all(theirs, DATA)
    os.close(theirs)


@BLOCKING
def test_an_interrupt_ends_the_wait_for_a_reader(blocks: bool) -> None:
    ours, theirs = pipe(blocks=blocks)
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        write_all(theirs, DATA)
    os.close(ours)
    os.close(theirs)
