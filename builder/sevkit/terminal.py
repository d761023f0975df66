# SPDX-License-Identifier: Apache-2.0
"""The user's terminal, and the signals that they send, while something else has both.

A terminal is in raw mode for the length of a block and restored however that ends; its keys, Ctrl-C
among them, go to a guest, or to a program on a terminal of its own. Without one, signals that
sevkit gets are passed on. Handlers only write a byte to a pipe: what it means is done where the
guest is waited for.
"""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

SIZE = (24, 80)
"""Of a terminal whose size nobody knows: rows, columns."""
PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_CHUNK = 65536
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LAST_INTERRUPT = 3
"""The third Ctrl-C is for sevkit: a guest may ignore what it is sent."""


def size_of(descriptor: int) -> tuple[int, int]:
    """Rows and columns of a terminal, 1 to 65535 each; `SIZE` of one that has or says none."""
    with contextlib.suppress(OSError):
        found = os.get_terminal_size(descriptor)
        if found.lines and found.columns:
            return found.lines, found.columns
    return SIZE


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """The terminal in raw mode, as it was before in the end.

    Signals that would end sevkit at once are interrupts meanwhile.
    """
    before = termios.tcgetattr(descriptor)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(termios.tcsetattr, descriptor, termios.TCSADRAIN, before)
        for number in _ENDING:
            cleanup.callback(signal.signal, number, signal.signal(number, _interrupt))
        tty.setraw(descriptor)
        yield


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def signals(
    numbers: tuple[signal.Signals, ...],
    watch: Callable[[int, Callable[[bytes], None]], None],
    on_signal: Callable[[int], None],
) -> Iterator[None]:
    """Have `on_signal` called for each signal of `numbers` in place of what it does else.

    `watch` is told the descriptor that becomes readable then. The third SIGINT is an interrupt.
    """
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    interrupts = 0

    def note(number: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts >= _LAST_INTERRUPT:
            raise KeyboardInterrupt
        with contextlib.suppress(BlockingIOError):
            os.write(theirs, bytes([number]))

    def take(data: bytes) -> None:
        for number in data:
            on_signal(number)

    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, ours)
        cleanup.callback(os.close, theirs)
        watch(ours, take)
        for number in numbers:
            cleanup.callback(signal.signal, number, signal.signal(number, note))
        yield


def run_apart(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> int:
    """Run `command` with the user in front of it; its exit status, negative for a signal.

    It has a terminal of its own, or none where the user has none: on theirs it could type commands
    for their shell (TIOCSTI, ioctl_tty(2)).
    """
    if not os.isatty(0):
        done = subprocess.run(
            command, cwd=cwd, env=environment, start_new_session=True, check=False
        )
        return done.returncode
    ours, theirs = pty.openpty()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, ours)
        try:
            _take_size(theirs)
            process = subprocess.Popen(
                ["setsid", "--ctty", "--wait", *command],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=cwd,
                env=environment,
            )
        finally:
            os.close(theirs)
        cleanup.callback(process.wait)
        cleanup.callback(process.kill)
        cleanup.enter_context(raw(0))
        before = signal.signal(signal.SIGWINCH, lambda *_: _take_size(ours))
        cleanup.callback(signal.signal, signal.SIGWINCH, before)
        _relay(ours)
        return process.wait()


def _take_size(descriptor: int) -> None:
    rows, columns = size_of(0)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _relay(other: int) -> None:
    """Copy between the user's terminal and `other` until nobody has that open any more."""
    reading = [0, other]
    while True:
        ready, _, _ = select.select(reading, [], [])
        if 0 in ready:
            typed = os.read(0, _CHUNK)
            if not typed:
                reading.remove(0)
            write_all(other, typed)
        if other in ready:
            try:
                printed = os.read(other, _CHUNK)
            except OSError:  # EIO, which is a pseudo-terminal's end of file
                return
            if not printed:
                return
            write_all(1, printed)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however little is taken at once and however long nothing is.

    Who reads slowly is waited for, also where the descriptor itself does not wait (O_NONBLOCK).
    Raises `OSError`; `BrokenPipeError` when nobody reads any more.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
