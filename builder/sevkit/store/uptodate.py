# SPDX-License-Identifier: Apache-2.0
"""Remembers that a command line had nothing to do, and which files that answer rests on.

A record holds the status (time of change, size, inode) of everything that was read or looked for,
files that were not there included, and of sevkit's own modules. While all of it is as it was, the
same command line in the same folder has the same answer, and no recipe needs to be read to know
it. This is what git's index and ninja's log do. Nothing here decides what is built: without a
record the full way is taken. Imports only what costs next to nothing.
"""

import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence

from sevkit import __version__

_SCHEMA = 1
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
_TICK_NS = 20_000_000
"""Coarser than the time stamps of any file system in use: two changes within it may look alike."""

VALID_SECONDS = 24 * 3600
"""An answer is worked out anew once a day, so that the store learns that its results are in use."""

Status = list[int] | None


def status(path: str) -> Status:
    """What changes when the file or folder does; None when it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode]


def known_answer(arguments: Sequence[str]) -> str | None:
    """The answer to a command line that would find nothing to do; None when that isn't sure."""
    try:
        with open(_record_path(arguments), "rb") as file:  # noqa: PTH123
            check, _, text = file.read().partition(b"\n")
            age = time.time() - os.fstat(file.fileno()).st_mtime
        if check != _check(text) or not 0 <= age < VALID_SECONDS:
            return None
        record = json.loads(text)
        if record["schema"] != _SCHEMA or record["context"] != _context(arguments):
            return None
        if all(status(path) == expected for path, expected in record["files"].items()):
            return str(record["answer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def remember(
    arguments: Sequence[str],
    *,
    answer: str,
    inputs: Iterable[str],
    results: Iterable[str],
    read_since_ns: int,
) -> None:
    """Record that `arguments` has nothing to do as long as `inputs` and `results` stay.

    `read_since_ns` is the time (`time.time_ns()`) from which on the inputs were read: one that
    changed after it, or just before, may have been read half, and then nothing is recorded.
    """
    files: dict[str, Status] = {}
    for path in (*inputs, *_modules()):
        found = files[path] = status(path)
        if found is not None and max(found[:2]) >= read_since_ns - _TICK_NS:
            return
    files |= {path: status(path) for path in results}
    record = {
        "schema": _SCHEMA,
        "context": _context(arguments),
        "answer": answer,
        "files": files,
    }
    path = _record_path(arguments)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        draft = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
        text = json.dumps(record).encode()
        with open(draft, "wb") as file:  # noqa: PTH123
            file.write(_check(text) + b"\n" + text)
        os.replace(draft, path)  # noqa: PTH105
    except OSError:
        return  # the next build takes the full way


def _modules() -> Iterator[str]:
    """The files of sevkit's own code: another sevkit may answer otherwise."""
    for folder, _, names in os.walk(_PACKAGE):
        yield from (f"{folder}/{name}" for name in names if name.endswith(".py"))


def _check(text: bytes) -> bytes:
    """What tells a record that was damaged; nobody forges one."""
    return b"%08x%08x" % (zlib.crc32(text), zlib.adler32(text))


def _context(arguments: Sequence[str]) -> list[str]:
    names = ("SEVKIT_STORE", "XDG_CACHE_HOME", "HOME", "PATH")
    surroundings = (os.environ.get(name, "") for name in names)
    return [__version__, os.getcwd(), *surroundings, *arguments]  # noqa: PTH109


def _record_path(arguments: Sequence[str]) -> str:
    text = "\0".join(_context(arguments)).encode("utf-8", "surrogateescape")
    home = os.environ.get("HOME", "/")
    cache = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    store = os.environ.get("SEVKIT_STORE") or f"{cache}/sevkit"
    return f"{store}/uptodate/{zlib.crc32(text):08x}{zlib.adler32(text):08x}.json"
