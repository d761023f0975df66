# SPDX-License-Identifier: Apache-2.0
"""Where inputs are put for readers of files: in memory where this host has such a place."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

_IN_MEMORY = Path("/dev/shm")


def scratch() -> TemporaryDirectory[str]:
    """A folder that goes when it is left."""
    return TemporaryDirectory(dir=_IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None)


def put(path: Path, data: bytes) -> Path:
    """Make `path` a new file: a file system may take its time over one that is written again."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
