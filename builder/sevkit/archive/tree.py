# SPDX-License-Identifier: Apache-2.0
"""A folder that is being filled with paths that nobody vouches for.

Every folder on the way to a path is opened from the one above it and never through a symbolic
link (openat(2), O_NOFOLLOW), so nothing lands outside, whatever the links inside say. Uses
neither the working directory nor the umask, which other threads share.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE = 0o755

Parts = Sequence[bytes]
_Made = TypeVar("_Made")


class PlacementError(Exception):
    """A path that can't be placed; the text goes on from "the entry 'x' …"."""


class Tree:
    """The folder `root` and what is put below it. Use as a context."""

    def __init__(self, root: Path):
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: list[tuple[bytes, int]] = []
        self.made = 0
        """How many folders were made so far, those on the way to something included."""

    def __enter__(self) -> "Tree":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_below(0)
        os.close(self._root)

    def folder(self, parts: Parts, mode: int) -> None:
        """Make a folder, or set the mode of the one that is there."""
        os.fchmod(self._folder(parts), mode)

    def file(self, parts: Parts, mode: int) -> int:
        """A descriptor of a new file, in place of a file or link of this name."""
        descriptor = self._replacing(
            parts, lambda name, folder: os.open(name, _FILE, 0o600, dir_fd=folder)
        )
        os.fchmod(descriptor, mode)
        return descriptor

    def symlink(self, parts: Parts, target: bytes) -> None:
        """Make a symbolic link; `target` is kept as it is and never followed."""
        self._replacing(parts, lambda name, folder: os.symlink(target, name, dir_fd=folder))

    def hard_link(self, parts: Parts, target: Parts) -> None:
        """Make another name of the file or link `target`, which was put here earlier."""
        try:
            place = os.dup(self._folder(target[:-1], make=False))
        except FileNotFoundError as error:
            raise PlacementError("is a hard link to something that is not in it") from error
        try:
            if stat.S_ISDIR(os.stat(target[-1], dir_fd=place, follow_symlinks=False).st_mode):
                raise PlacementError("is a hard link to a folder")
            if tuple(parts) != tuple(target):
                self._replacing(
                    parts,
                    lambda name, folder: os.link(
                        target[-1],
                        name,
                        src_dir_fd=place,
                        dst_dir_fd=folder,
                        follow_symlinks=False,
                    ),
                )
        except FileNotFoundError as error:
            raise PlacementError("is a hard link to something that is not in it") from error
        finally:
            os.close(place)

    def rewrite(self, parts: Parts) -> int:
        """A descriptor of the regular file that is there, emptied."""
        folder = self._folder(parts[:-1], make=False)
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(parts[-1], flags, dir_fd=folder)
        except OSError as error:
            raise PlacementError("has data for something that is no file") from error

    def _replacing(self, parts: Parts, make: Callable[[bytes, int], _Made]) -> _Made:
        folder = self._folder(parts[:-1])
        try:
            return make(parts[-1], folder)
        except FileExistsError:
            there = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                raise PlacementError("would replace a folder") from None
            os.unlink(parts[-1], dir_fd=folder)
            return make(parts[-1], folder)

    def _folder(self, parts: Parts, *, make: bool = True) -> int:
        """A descriptor of a folder below the root; the tree keeps it, with those on the way."""
        common = 0
        for (name, _), part in zip(self._open, parts, strict=False):
            if name != part:
                break
            common += 1
        self._close_below(common)
        current = self._open[-1][1] if self._open else self._root
        for part in parts[common:]:
            current = self._step(current, part, make)
            self._open.append((part, current))
        return current

    def _step(self, folder: int, name: bytes, make: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                shown = os.fsdecode(name)
                raise PlacementError(f"goes through {shown}, which is no folder") from error
            raise
        os.mkdir(name, 0o700, dir_fd=folder)
        self.made += 1
        made = os.open(name, _FOLDER, dir_fd=folder)
        os.fchmod(made, _PARENT_MODE)
        return made

    def _close_below(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])
