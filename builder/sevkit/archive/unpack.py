# SPDX-License-Identifier: Apache-2.0
"""Archives put below a folder, or one file taken out of one; every entry judged first."""

import contextlib
import difflib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sevkit.archive.deb import DebControl, deb_parts, is_deb, read_control
from sevkit.archive.reader import Entry, Reader, Slice, opened
from sevkit.archive.tree import PlacementError, Tree
from sevkit.errors import SourceError

LIMIT_BYTES = 16 << 30
LIMIT_ENTRIES = 1_000_000
_HEADER_BYTES = 1024
_DEPTH = 200
_NAMES = 100_000
_PROGRESS_BYTES = 1 << 20
_HARD_LINKS = 8

Progress = Callable[[int, int | None], None]


def unpack(
    archive: Path,
    destination: Path,
    *,
    progress: Progress | None = None,
    wanted: Callable[[str], bool] = lambda _: True,
    limit_bytes: int = LIMIT_BYTES,
    limit_entries: int = LIMIT_ENTRIES,
) -> None:
    """Unpack a tar, cpio or zip archive, compressed or not, into the folder `destination`.

    `progress` is given the bytes of the archive read so far and in all. `wanted` is asked of each
    path in the archive, without ``./`` and closing ``/``; what it does not want is left out. Raises
    `SourceError` naming archive and entry for what is damaged, too large, or refused; what was
    unpacked until then stays for the caller to delete. Entries and folders together are held to
    `limit_entries`; to `limit_bytes` what is written, and what is decompressed for it.
    """
    unpacking = _Unpacking(Slice.whole(archive), progress, limit_bytes, limit_entries, wanted)
    if unpacking.run(destination) == 0:
        raise SourceError(f"{archive.name} is an empty archive")


def unpack_deb(
    deb: Path,
    destination: Path,
    *,
    limit_bytes: int = LIMIT_BYTES,
    limit_entries: int = LIMIT_ENTRIES,
) -> DebControl:
    """Unpack the files of a Debian binary package (deb(5)) into `destination`.

    Raises `SourceError` as `unpack` does, and for what is no package.
    """
    parts = deb_parts(deb)
    control = read_control(deb, parts["control"])
    _Unpacking(parts["data"], None, limit_bytes, limit_entries).run(destination)
    return control


def extract_member(
    archive: Path,
    member: str,
    destination: Path,
    *,
    limit_bytes: int = LIMIT_BYTES,
    limit_entries: int = LIMIT_ENTRIES,
) -> None:
    """Write the regular file `member` of an archive or Debian package to the file `destination`.

    The first entry of that name is taken; a hard link is the file that it names. Raises
    `SourceError` when there is none, or it is no regular file, or the limits don't let it be
    reached (see `unpack`); then nothing is written.
    """
    part = deb_parts(archive)["data"] if is_deb(archive) else Slice.whole(archive)
    wanted = _plain(os.fsencode(member))
    try:
        for _ in range(_HARD_LINKS):
            target = _extract(part, wanted, destination, limit_bytes, limit_entries)
            if target is None:
                return
            wanted = target
        raise SourceError(f"{archive.name}: {member} is a ring of hard links")
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def _extract(
    part: Slice, wanted: bytes, destination: Path, limit_bytes: int, limit_entries: int
) -> bytes | None:
    """Write one file; or, when it is a hard link, nothing but the name that it links to."""
    names = []
    with opened(part, _stream_bytes(limit_bytes, limit_entries)) as reader:
        for count, entry in enumerate(reader, 1):
            if count > limit_entries:
                raise SourceError(f"{part.file.name} has more than {limit_entries} entries")
            name = _plain(entry.name)
            if name != wanted:
                if count <= _NAMES:
                    names.append(os.fsdecode(name))
                continue
            if entry.hard_link is not None and not entry.size:
                return _plain(entry.hard_link)
            if entry.type != stat.S_IFREG:
                raise _no_file(part, entry)
            try:
                with destination.open("wb") as file:
                    _write_data(reader, entry, file.fileno(), limit_bytes)
            except PlacementError as error:
                raise SourceError(f"{part.file.name}: {os.fsdecode(wanted)!a} {error}") from error
            return None
    shown = os.fsdecode(wanted)
    close = difflib.get_close_matches(shown, names, n=3, cutoff=0.4)
    guess = f": did you mean {' or '.join(close)}?" if close else ""
    raise SourceError(f"{part.file.name} holds no {shown}{guess}")


def _stream_bytes(limit_bytes: int, limit_entries: int) -> int:
    """How much may be decompressed: contents, and header and padding of each entry."""
    return limit_bytes + limit_entries * _HEADER_BYTES


def _no_file(part: Slice, entry: Entry) -> SourceError:
    shown = os.fsdecode(_plain(entry.name))
    if entry.symlink is None:
        return SourceError(f"{part.file.name}: {shown} is no regular file")
    return SourceError(
        f"{part.file.name}: {shown} is a symbolic link to {os.fsdecode(entry.symlink)}",
        hint="name the file that it leads to",
    )


class _Unpacking:
    """One archive on its way to the disk."""

    def __init__(
        self,
        part: Slice,
        progress: Progress | None,
        limit_bytes: int,
        limit_entries: int,
        wanted: Callable[[str], bool] = lambda _: True,
    ):
        self._part = part
        self._wanted = wanted
        self._progress = progress
        self._limit_bytes = limit_bytes
        self._limit_entries = limit_entries
        self._written = 0
        self._told = 0

    def run(self, destination: Path) -> int:
        """Write everything below `destination`; the number of entries."""
        count = 0
        limit = self._limit_entries
        stream_bytes = _stream_bytes(self._limit_bytes, limit)
        with opened(self._part, stream_bytes) as reader, Tree(destination) as tree:
            for entry in reader:
                count += 1
                with self._explained(entry):
                    if count + tree.made > limit:
                        raise PlacementError(f"is one more than the {limit} allowed, with folders")
                    self._put(reader, entry, tree)
                self._tell(reader)
        return count

    def _put(self, reader: Reader, entry: Entry, tree: Tree) -> None:
        parts = _parts(entry.name)
        if not parts:
            if entry.type != stat.S_IFDIR:
                raise PlacementError("has no name")
        elif not self._wanted(os.fsdecode(b"/".join(parts))):
            return
        elif entry.hard_link is not None:
            tree.hard_link(parts, _link_parts(entry.hard_link))
            if entry.size:  # cpio keeps the data with the last link
                self._fill(reader, entry, tree.rewrite(parts))
        elif entry.type == stat.S_IFREG:
            mode = entry.mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR
            self._fill(reader, entry, tree.file(parts, mode))
        elif entry.type == stat.S_IFDIR:
            tree.folder(parts, entry.mode & 0o777 | stat.S_IRWXU)
        elif entry.type == stat.S_IFLNK and entry.symlink:
            tree.symlink(parts, entry.symlink)
        else:
            raise PlacementError("is neither a file, a folder nor a link")

    def _fill(self, reader: Reader, entry: Entry, descriptor: int) -> None:
        try:
            left = self._limit_bytes - self._written
            self._written += _write_data(reader, entry, descriptor, left)
        finally:
            os.close(descriptor)

    def _tell(self, reader: Reader) -> None:
        if self._progress is not None and reader.taken - self._told >= _PROGRESS_BYTES:
            self._told = reader.taken
            self._progress(min(self._told, self._part.size), self._part.size)

    @contextlib.contextmanager
    def _explained(self, entry: Entry) -> Iterator[None]:
        """Name archive and entry in what goes wrong, unless it is the disk's fault."""
        try:
            yield
        except PlacementError as error:
            raise self._refused(entry, str(error)) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise self._refused(entry, "has too long a name") from error

    def _refused(self, entry: Entry, why: str) -> SourceError:
        shown = os.fsdecode(entry.name[:200]).encode("unicode_escape").decode("ascii")
        return SourceError(
            f"{self._part.file.name}: the entry '{shown}' {why}",
            hint="this archive is not to be trusted; check where it comes from",
        )


def _write_data(reader: Reader, entry: Entry, descriptor: int, limit: int) -> int:
    """Write the data of `entry` to an empty file; its size in bytes. Keeps holes."""
    if (entry.size or 0) > limit:
        raise PlacementError(f"is too large: {entry.size} bytes, {limit} are left of the limit")
    end = 0
    for offset, block in reader.blocks():
        end = offset + len(block)
        if end > limit:
            raise PlacementError(f"is too large: more than the {limit} bytes left of the limit")
        done = 0
        while done < len(block):
            done += os.pwrite(descriptor, memoryview(block)[done:], offset + done)
    if entry.size is not None and end < entry.size:
        os.ftruncate(descriptor, entry.size)
    return max(end, entry.size or 0)


def _plain(name: bytes) -> bytes:
    """A name without the ``./`` before and the ``/`` after it that archives add."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _parts(name: bytes) -> list[bytes]:
    if name.startswith(b"/"):
        raise PlacementError("has an absolute path")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise PlacementError("climbs out with '..'")
    if len(parts) > _DEPTH:
        raise PlacementError(f"lies more than {_DEPTH} folders deep")
    return parts


def _link_parts(target: bytes) -> list[bytes]:
    try:
        parts = _parts(target)
    except PlacementError as error:
        shown = os.fsdecode(target)
        raise PlacementError(f"is a hard link to {shown}, outside the archive") from error
    if not parts:
        raise PlacementError("is a hard link to the folder itself")
    return parts
