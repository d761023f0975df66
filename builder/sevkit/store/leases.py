# SPDX-License-Identifier: Apache-2.0
"""What running processes use of a store, so that nobody collects it under their hands.

    gate            locked shared while something is looked up or added, alone while removing
    leases/<name>   what one user of the store has looked up or added so far, a path a line; its
                    owner holds it locked, so a lease dies with its process

Locks are flock(2): they vanish with the last descriptor. Whoever waits for a lock whose file was
removed meanwhile takes the new one. Removes nothing but leases.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sevkit.errors import HostError

_TRIES = 100
_PAUSE_SECONDS = 0.02


def try_lock(descriptor: int) -> bool:
    """Lock an open file against everybody else, unless somebody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def still_at(path: Path, descriptor: int) -> bool:
    """Whether `path` still is the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None, *, mode: int) -> Iterator[None]:
    """Hold the lock file `path`, made with `mode` where there is none.

    `waiting` is called again and again while somebody else holds it, and may raise.
    """
    while True:
        descriptor = open_lock(path, mode)
        try:
            while not try_lock(descriptor):
                if waiting is not None:
                    waiting()
                time.sleep(_PAUSE_SECONDS)
            if still_at(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def open_lock_of_another(path: Path) -> int | None:
    """A descriptor of a lock file that is there; None where it has gone or can't be opened yet.

    Makes and removes nothing: a file that its maker has not yet opened to others is in use.
    """
    for access in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            return os.open(path, access | os.O_CLOEXEC)
    return None


def open_lock(path: Path, mode: int) -> int:
    """A descriptor of a file that is only locked, never written, whoever made it.

    Opened for writing where that is allowed, because NFS asks for it (flock(2)). Raises `HostError`
    when another user's file can't even be read.
    """
    for remaining in reversed(range(_TRIES)):
        for access in (os.O_RDWR, os.O_RDONLY):
            with contextlib.suppress(PermissionError):
                descriptor = os.open(path, access | os.O_CREAT | os.O_CLOEXEC, mode)
                widen(path, mode)
                return descriptor
        if remaining == 1:  # its maker died before it could widen what the umask narrowed
            with contextlib.suppress(OSError):
                path.unlink()
        time.sleep(_PAUSE_SECONDS)
    raise HostError(
        f"{path} belongs to another user",
        hint="share the store between users as docs/store.md says, or set SEVKIT_STORE to your own",
    )


def widen(path: Path, bits: int) -> None:
    """Add `bits` to the mode of a file or folder of ours; other users' are left as they are."""
    with contextlib.suppress(FileNotFoundError):  # a lock file that somebody has just removed
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & bits != bits:
            path.chmod(stat.S_IMODE(status.st_mode) | bits)


class Leases:
    """The leases of a store, one of them our own. Safe for many threads."""

    def __init__(self, root: Path, mode: int):
        self._root = root
        self._mode = mode
        self._mine: int | None = None
        self._held: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        """Keep everything in its place while the block runs; it must be short."""
        with self._passing(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[Counter[str]]:
        """Hold everybody else up while the block runs; gives how many living users each name has.

        We are one of them for what we hold.
        """
        with self._passing(fcntl.LOCK_EX):
            yield Counter(self._used())

    def is_held(self, name: str) -> bool:
        """Whether our own lease has `name` already, so that nobody can take it away."""
        return name in self._held

    def hold(self, name: str) -> None:
        """Add `name` to our lease. To be called within `gate`.

        Raises `OSError` when it can't be written; the lease is as before then.
        """
        with self._lock:
            if name in self._held:
                return
            if self._mine is None:
                self._mine = self._take()
            _append(self._mine, f"{name}\n".encode())
            self._held.add(name)

    def _take(self) -> int:
        path = self._root / "leases" / secrets.token_hex(8)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, self._mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        widen(path, self._mode)
        weakref.finalize(self, _let_go, descriptor, path, os.getpid())
        return descriptor

    @contextlib.contextmanager
    def _passing(self, how: int) -> Iterator[None]:
        path = self._root / "gate"
        while True:
            descriptor = open_lock(path, self._mode)
            try:
                fcntl.flock(descriptor, how)
                if still_at(path, descriptor):
                    yield
                    return
            finally:
                os.close(descriptor)

    def _used(self) -> Iterator[str]:
        for path in (self._root / "leases").iterdir():
            with contextlib.suppress(FileNotFoundError):
                descriptor = open_lock(path, self._mode)
                try:
                    if try_lock(descriptor):
                        path.unlink(missing_ok=True)  # its owner is gone
                    else:
                        yield from path.read_text(encoding="utf-8").splitlines()
                finally:
                    os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    """Write all of `data` at the end of a file, or raise `OSError` and leave the file as it was."""
    size_bytes = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        os.ftruncate(descriptor, size_bytes)
        raise


def _let_go(descriptor: int, path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork of it holds the same lock
        path.unlink(missing_ok=True)
        os.close(descriptor)
