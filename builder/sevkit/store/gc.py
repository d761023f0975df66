# SPDX-License-Identifier: Apache-2.0
"""Collects what a store no longer needs: by age, by size, and what points nowhere.

Nothing that a running process has looked up or added goes (leases.py); what goes first is what was
used longest ago. Everything vanishes by one rename and is deleted afterwards, so a build never
meets half of it. Sizes are what the disk gives back. Never touches apt's lists and what is known
of hosts, which no result rests on.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sevkit.store.leases import open_lock, still_at, try_lock
from sevkit.store.store import Store
from sevkit.store.uptodate import VALID_SECONDS

UNFINISHED_SECONDS = 24 * 3600.0
"""How long is kept what may still come in useful: half a download, a lookup nobody built from."""

_AT_ONCE = 32


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be."""

    counts: Counter[str]
    """How many of each kind."""
    freed_bytes: int
    left_bytes: int
    """What the blobs, entries and leftovers that stayed take of the disk."""
    in_use: int
    """How many were due but are used by a running build."""
    not_ours: tuple[Path, ...]
    """What another user made and only that user or root can remove."""


@dataclass(frozen=True)
class _Item:
    kind: str
    path: Path
    leased_as: str
    used: float
    """When it was used last, in seconds since 1970."""
    size_bytes: int


def collect(
    store: Store,
    *,
    older_than_seconds: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> Collected:
    """Remove what was not used for so long, then what was used longest ago until the rest fits.

    What killed builds left and records that point nowhere go in any case.
    """
    collector = _Collector(store, dry_run=dry_run)
    removed, unremovable = (store.unfinished(), []) if dry_run else store.sweep()
    collector.count("unfinished builds", removed)
    left_bytes = collector.remove_items(older_than_seconds, max_bytes)
    collector.remove_partial()
    collector.remove_records()
    collector.remove_locks()
    return Collected(
        counts=+collector.counts,
        freed_bytes=collector.freed_bytes,
        left_bytes=left_bytes,
        in_use=collector.in_use,
        not_ours=(*collector.not_ours, *unremovable),
    )


class _Collector:
    """One collection, and the account of it."""

    def __init__(self, store: Store, *, dry_run: bool):
        self._store = store
        self._root = store.root
        self._dry_run = dry_run
        self._now = time.time()
        self.counts: Counter[str] = Counter()
        self.freed_bytes = 0
        self.in_use = 0
        self.not_ours: list[Path] = []

    def count(self, kind: str, number: int = 1, size_bytes: int = 0) -> None:
        self.counts[kind] += number
        self.freed_bytes += size_bytes

    # --- blobs, entries, leftovers -----------------------------------------------------------

    def remove_items(self, older_than_seconds: float | None, max_bytes: int | None) -> int:
        """Remove by age and size, a few at a time so that nobody waits; the bytes that stay."""
        items = sorted(self._items(), key=lambda item: item.used)
        total = sum(item.size_bytes for item in items)

        def due(item: _Item) -> bool:
            old = older_than_seconds is not None and self._now - item.used > older_than_seconds
            return old or (max_bytes is not None and total > max_bytes)

        for start in range(0, len(items), _AT_ONCE):
            few = items[start : start + _AT_ONCE]
            if not any(map(due, few)):
                break
            with self._trash() as trash, self._store.leases.alone() as used:
                for number, item in enumerate(few):
                    if not due(item) or not _unused_since(item.path, item.used):
                        continue
                    if item.leased_as in used:
                        self.in_use += 1
                    elif self._dispose(item.path, trash and trash / str(number)):
                        total -= item.size_bytes
                        self.count(item.kind, 1, item.size_bytes)
        return total

    def _items(self) -> Iterator[_Item]:
        for kind, pattern in (
            ("entries", "entries/*/*"),
            ("blobs", "blobs/*/*"),
            ("leftovers", "leftovers/*/*"),
        ):
            for path in self._root.glob(pattern):
                leased = path.parent if kind == "leftovers" else path
                with contextlib.suppress(FileNotFoundError):
                    yield _Item(
                        kind,
                        path,
                        leased.relative_to(self._root).as_posix(),
                        path.stat().st_mtime,
                        _disk_bytes(path),
                    )

    @contextlib.contextmanager
    def _trash(self) -> Iterator[Path | None]:
        """A folder that is deleted with its content at the end; None where no room is left."""
        with contextlib.ExitStack() as stack:
            folder = None
            if not self._dry_run:
                try:
                    folder = stack.enter_context(self._store.scratch())
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
            yield folder

    def _dispose(self, path: Path, trash: Path | None) -> bool:
        """Take `path` away, to `trash` where there is such a place; whether it could be."""
        if self._dry_run:
            return True
        try:
            if trash is not None:
                path.rename(trash)
            elif path.is_dir():
                (path / "content.json").unlink(missing_ok=True)  # from here on nobody sees it
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return False
        except PermissionError:
            self.not_ours.append(path)
            return False
        return True

    # --- fetches -----------------------------------------------------------------------------

    def remove_partial(self) -> None:
        """Remove what fetches began that nobody is at, and has not been for a day."""
        for path in sorted((self._root / "partial").iterdir()):
            name = path.name.removesuffix(".FAILED")
            with (
                self._trash() as trash,
                _alone_with(self._root / "locks" / name) as is_alone,
                contextlib.suppress(FileNotFoundError),
            ):
                if is_alone and self._now - _newest(path) > UNFINISHED_SECONDS:
                    size_bytes = _disk_bytes(path)
                    if self._dispose(path, trash and trash / "partial"):
                        self.count("partial fetches", 1, size_bytes)

    # --- records and locks -------------------------------------------------------------------

    def remove_records(self) -> None:
        """Remove notes about entries and files that are not here."""
        named = set(self._named_by_entries())

        def is_idle_pin(path: Path) -> bool:
            old = self._now - path.stat().st_mtime > UNFINISHED_SECONDS
            half_written = path.suffix != ".json"
            return old and (
                half_written
                or not any(
                    reference in named or self._blob(reference.partition(":")[2]).exists()
                    for reference in _references(path)
                )
            )

        def is_void(path: Path) -> bool:
            return self._now - path.stat().st_mtime > VALID_SECONDS

        for pattern, points_nowhere in (
            ("last/*/*", lambda path: not self._entry(_text(path)).exists()),
            ("commits/*", lambda path: not self._blob(_text(path)).exists()),
            ("pins/*", is_idle_pin),
            ("uptodate/*", is_void),
        ):
            self._remove_records(pattern, points_nowhere)

    def _remove_records(self, pattern: str, points_nowhere: Callable[[Path], bool]) -> None:
        paths = list(self._root.glob(pattern))
        for start in range(0, len(paths), _AT_ONCE):
            with self._store.leases.alone():
                for path in paths[start : start + _AT_ONCE]:
                    with contextlib.suppress(FileNotFoundError):
                        if points_nowhere(path) and self._dispose(path, None):
                            self.count("records")

    def _named_by_entries(self) -> Iterator[str]:
        for path in self._root.glob("entries/*/*/key.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                yield from map(str, json.loads(path.read_bytes())["inputs"].values())

    def _entry(self, key: str) -> Path:
        return self._root / "entries" / key[:2] / key / "content.json"

    def _blob(self, digest: str) -> Path:
        return self._root / "blobs" / digest[:2] / digest

    def remove_locks(self) -> None:
        """Remove the lock files that nobody holds; who waits for one makes a new one."""
        for path in (self._root / "locks").iterdir():
            with _alone_with(path) as is_alone:
                if is_alone and self._dispose(path, None):
                    self.count("lock files")


@contextlib.contextmanager
def _alone_with(lock: Path) -> Iterator[bool]:
    """Hold a lock of the store unless somebody else does; whether we do."""
    descriptor = open_lock(lock, stat.S_IMODE(lock.parent.stat().st_mode) & 0o666)
    try:
        yield try_lock(descriptor) and still_at(lock, descriptor)
    finally:
        os.close(descriptor)


def _unused_since(path: Path, used: float) -> bool:
    try:
        return path.stat().st_mtime == used
    except FileNotFoundError:
        return False


def _everything_in(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    for folder, folder_names, file_names in os.walk(path):
        for name in [*folder_names, *file_names]:
            with contextlib.suppress(FileNotFoundError):
                yield Path(folder, name).lstat()


def _disk_bytes(path: Path) -> int:
    """What a file or folder takes of the disk; stat(2) counts in blocks of 512 bytes."""
    return sum(status.st_blocks for status in _everything_in(path)) * 512


def _newest(path: Path) -> float:
    return max(status.st_mtime for status in _everything_in(path))


def _text(path: Path) -> str:
    """The name that a record consists of; one that names nothing where it is damaged."""
    text = path.read_text(encoding="ascii", errors="replace").strip()
    return text if text.isalnum() and len(text) == 64 else "-"


def _references(path: Path) -> list[str]:
    """What a pin names; nothing where it is damaged."""
    try:
        return [str(pin["reference"]) for pin in json.loads(path.read_bytes())["pins"]]
    except (ValueError, KeyError, TypeError):
        return []
