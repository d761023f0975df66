# SPDX-License-Identifier: Apache-2.0
"""The user's side of a container that runs: their terminal, and the signals that they send.

A terminal is in raw mode for the length of a block and restored however that ends; its keys, Ctrl-C
among them, go to the guest. Without one, signals that sevkit gets are passed on. Handlers only
write a byte to a pipe: what it means is done where the guest is waited for.
"""

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator

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
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LAST_INTERRUPT = 3
"""The third Ctrl-C is for sevkit: a guest may ignore what it is sent."""


def size_of(descriptor: int) -> tuple[int, int]:
    """Rows and columns of a terminal, 1 to 65535 each."""
    with contextlib.suppress(OSError):
        found = os.get_terminal_size(descriptor)
        return max(1, found.lines), max(1, found.columns)
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
