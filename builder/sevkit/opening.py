# SPDX-License-Identifier: Apache-2.0
"""Files that a user names, opened without waiting: a FIFO that nobody writes to is empty."""

import os
from io import BufferedReader
from pathlib import Path


def open_at_once(path: Path) -> BufferedReader:
    """`path` opened for reading bytes. A pipe that somebody writes to is read to its end.

    Raises `OSError` as open() does.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
        return descriptor

    return open(path, "rb", opener=opener)
