# SPDX-License-Identifier: Apache-2.0
"""The guest's console: its end in memory, its beginning in a file, and text made fit to show.

A guest may print for ever and print anything: both are bounded, and control characters are spelled
out before they reach a terminal.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sevkit.printable import printable

TAIL_BYTES = 32768
TAIL_LINES = 20
LINE_CHARACTERS = 160
LOG_BYTES = 16 << 20

_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\^-~])")
_PANIC = re.compile(rb"(?:^|[\r\n])(?:\[ *\d+\.\d+\] )?(Kernel panic - not syncing[^\r\n]*)[\r\n]")


class Console:
    """What the guest printed: the last 32 KiB in memory, the first 16 MiB in the file `log`."""

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self._tail = bytearray()
        self._room = LOG_BYTES
        self._file: int | None = None
        self.panic = ""
        """The line in which the guest's kernel gave up, fit to show; empty when it did not."""

    def __enter__(self) -> "Console":
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)  # another boot may still write to it
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._file = os.open(self.log, flags, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def feed(self, data: bytes) -> None:
        """Take what the guest printed."""
        if self._file is not None and self._room > 0:
            with contextlib.suppress(OSError):
                os.write(self._file, data[: self._room])
            self._room -= len(data)
        seen = len(self._tail)
        self._tail += data
        if not self.panic and (match := _PANIC.search(self._tail, max(0, seen - 512))):
            self.panic = _shortened(printable(match[1].decode("utf-8", errors="replace")))
        del self._tail[:-TAIL_BYTES]

    def contains(self, text: bytes) -> bool:
        """Whether `text` is in what is remembered."""
        return text in self._tail

    def end(self) -> Iterator[str]:
        """The last 20 lines that say something, fit to show, each up to 160 characters."""
        text = self._tail.decode("utf-8", errors="replace").replace("\r", "\n")
        lines = (printable(_CONTROL_SEQUENCE.sub("", line)).rstrip() for line in text.split("\n"))
        for line in [line for line in lines if line][-TAIL_LINES:]:
            yield _shortened(line)


def _shortened(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1] + "…"
