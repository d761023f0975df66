# SPDX-License-Identifier: Apache-2.0
"""Archives read through libarchive: unpacked below one folder, or one file taken out.

An entry that would land outside the folder (an absolute path, `..`, a path or hard link through a
symbolic link), and anything but files, folders and links, is refused by name. A symbolic link's own
text is data and may say anything; nothing is ever written through it. Modes keep only rwx, owners
and times are dropped. Never changes the working directory or the umask.
"""

import ctypes
import difflib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevkit.errors import SourceError

LIMIT_BYTES = 16 << 30
LIMIT_ENTRIES = 1_000_000
_DEPTH = 256
_NAME_BYTES = 4096
_CONTROL_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_PROGRESS_EVERY = 500

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DebControl:
    """What a binary package says of itself (deb-control(5))."""

    package: str
    version: str
    architecture: str
    source: str
    """Name of the source package."""


def unpack(
    archive: Path,
    destination: Path,
    *,
    progress: Progress | None = None,
    limit_bytes: int = LIMIT_BYTES,
    limit_entries: int = LIMIT_ENTRIES,
) -> None:
    """Unpack a tar, cpio or zip archive, compressed or not, into the folder `destination`.

    `progress` is given the bytes of the archive read so far and in all. Raises `SourceError` naming
    archive and entry for what is damaged, too large, or refused; what was unpacked until then
    stays for the caller to delete.
    """
    with archive.open("rb") as file:
        _unpack(file.fileno(), archive, destination, progress, limit_bytes, limit_entries)


def unpack_deb(deb: Path, destination: Path) -> DebControl:
    """Unpack the files of a Debian binary package (deb(5)) into `destination`.

    Raises `SourceError` as `unpack` does, and for what is no package.
    """
    with _part(deb, "control.tar", destination) as control, _entries(control, deb) as entries:
        text = next((_content(e, _CONTROL_BYTES) for e in entries if _plain(e) == "control"), b"")
    fields: dict[str, str] = dict(
        re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", text.decode("utf-8", "replace"), re.M)
    )
    missing = [name for name in ("Package", "Version", "Architecture") if not fields.get(name)]
    if missing:
        raise SourceError(f"{deb.name}: its control file lacks {', '.join(missing)}")
    with _part(deb, "data.tar", destination) as data:
        _unpack(data, deb, destination, None, LIMIT_BYTES, LIMIT_ENTRIES)
    return DebControl(
        package=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        source=(fields.get("Source") or fields["Package"]).partition(" ")[0],
    )


def extract_member(archive: Path, member: str, destination: Path) -> None:
    """Write the regular file `member` of an archive or Debian package to the file `destination`.

    Raises `SourceError` when there is none of this name, or it is no regular file.
    """
    if is_deb(archive):
        with _part(archive, "data.tar", destination.parent) as data:
            _extract(data, archive, member, destination)
    else:
        with archive.open("rb") as file:
            _extract(file.fileno(), archive, member, destination)


def is_deb(path: Path) -> bool:
    """Whether a file is a Debian binary package: an ar archive that begins with debian-binary."""
    with path.open("rb") as file:
        return file.read(21) == b"!<arch>\ndebian-binary"


def _extract(descriptor: int, archive: Path, member: str, destination: Path) -> None:
    wanted = member.removeprefix("./").strip("/")
    names = []
    with _entries(descriptor, archive) as entries:
        for entry in entries:
            name = _plain(entry)
            if name != wanted:
                names.append(name)
                continue
            if not entry.isreg or entry.islnk:
                raise SourceError(f"{archive.name}: {member} is no regular file")
            with destination.open("wb") as file:
                for block in entry.get_blocks(_READ_BYTES):
                    file.write(block)
            return
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    raise SourceError(
        f"{archive.name} holds no {member}",
        hint=f"did you mean {' or '.join(close)}?" if close else "",
    )


@contextmanager
def _part(deb: Path, prefix: str, scratch: Path) -> Iterator[int]:
    """A copy, without a name, of the member of a package that begins with `prefix`."""
    if not is_deb(deb):
        raise SourceError(f"{deb.name} is no Debian package")
    with tempfile.TemporaryFile(dir=scratch) as copy, deb.open("rb") as file:
        with _entries(file.fileno(), deb, formats="ar") as entries:
            for entry in entries:
                if _plain(entry).startswith(prefix):
                    for block in entry.get_blocks(_READ_BYTES):
                        copy.write(block)
                    copy.flush()
                    copy.seek(0)
                    break
            else:
                raise SourceError(f"{deb.name} has no {prefix}: it is no Debian package")
        yield copy.fileno()


@contextmanager
def _entries(descriptor: int, archive: Path, formats: str = "all") -> Iterator[Iterator[Any]]:
    """The entries of the archive at `descriptor`; libarchive's complaints as `SourceError`."""
    import libarchive

    try:
        with libarchive.fd_reader(
            descriptor, format_name=formats, block_size=_READ_BYTES
        ) as reader:
            yield iter(reader)
    except libarchive.ArchiveError as error:
        raise _unreadable(archive, error) from error


def _unreadable(archive: Path, error: Exception) -> SourceError:
    message = str(error).partition(" (errno")[0]
    return SourceError(
        f"{archive.name} can't be read as an archive", why=message, hint="fetch it again"
    )


def _content(entry: Any, limit: int) -> bytes:
    content = bytearray()
    for block in entry.get_blocks(_READ_BYTES):
        content += block
        if len(content) > limit:
            break
    return bytes(content)


def _plain(entry: Any) -> str:
    name = str(entry.pathname)
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name.rstrip("/")


def _unpack(
    descriptor: int,
    archive: Path,
    destination: Path,
    progress: Progress | None,
    limit_bytes: int,
    limit_entries: int,
) -> None:
    import libarchive
    from libarchive import extract, ffi

    total = os.fstat(descriptor).st_size
    flags = extract.EXTRACT_PERM | extract.EXTRACT_SECURE_SYMLINKS | extract.EXTRACT_SECURE_NODOTDOT
    root = str(destination.resolve())
    written = count = 0
    with (
        _entries(descriptor, archive) as entries,
        extract.new_archive_write_disk(flags) as disk,
    ):
        for entry in entries:
            count += 1
            name = _checked_name(entry, archive)
            if count > limit_entries:
                raise _refused(archive, name, f"is one entry more than the {limit_entries} allowed")
            if not name:
                continue  # the top folder itself
            _place(entry, archive, name, root)
            try:
                ffi.write_header(disk, entry._entry_p)
                written += _copy_data(ffi, entry, disk, limit_bytes - written)
                ffi.write_finish_entry(disk)
            except libarchive.ArchiveError as error:
                _raise_disk_error(error)
                raise _refused(archive, name, str(error).partition(" (errno")[0]) from error
            if written > limit_bytes:
                raise _refused(archive, name, f"goes over the {limit_bytes >> 20} MiB allowed")
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(min(os.lseek(descriptor, 0, os.SEEK_CUR), total), total)
    if count == 0:
        raise SourceError(f"{archive.name} is an empty archive, or none")


def _checked_name(entry: Any, archive: Path) -> str:
    """The entry's path below the destination; empty for the destination itself."""
    name = str(entry.pathname)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise _refused(archive, name, "has an absolute path")
    if ".." in parts:
        raise _refused(archive, name, "climbs out with '..'")
    if len(parts) > _DEPTH or len(os.fsencode(name)) > _NAME_BYTES:
        raise _refused(archive, name[:80] + "…", "has too long a path")
    if not (entry.isreg or entry.isdir or entry.issym or entry.islnk):
        raise _refused(archive, name, "is neither a file, a folder nor a link")
    return "/".join(parts)


def _place(entry: Any, archive: Path, name: str, root: str) -> None:
    """Turn the entry's paths into absolute ones below `root`, and its mode into rwx only."""
    if entry.islnk:
        target = str(entry.linkpath)
        parts = [part for part in target.split("/") if part not in ("", ".")]
        if target.startswith("/") or ".." in parts or not parts:
            raise _refused(archive, name, f"is a hard link to {target}, outside the archive")
        place = Path(root, *parts)
        try:
            is_file = stat.S_ISREG(place.lstat().st_mode)
        except OSError:
            is_file = False
        if not is_file or str(place.parent.resolve()) != str(place.parent):
            raise _refused(archive, name, f"is a hard link to {target}, which is no file in it")
        entry.linkpath = str(place)
    entry.pathname = f"{root}/{name}"
    entry.perm = (entry.perm & 0o777) | (0o700 if entry.isdir else 0o600)


def _copy_data(ffi: Any, entry: Any, disk: Any, limit: int) -> int:
    """Copy the entry's data, a block beyond `limit` at most; the number of bytes."""
    buffer, size, offset = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_longlong()
    written = 0
    source = entry._archive_p
    while written <= limit:
        answer = ffi.read_data_block(
            source, ctypes.byref(buffer), ctypes.byref(size), ctypes.byref(offset)
        )
        if answer == ffi.ARCHIVE_EOF:
            break
        ffi.write_data_block(disk, buffer, size, offset)
        written += size.value
    return written


def _raise_disk_error(error: Any) -> None:
    """Let what is the disk's fault and not the archive's be told as such."""
    import errno

    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        raise OSError(number, os.strerror(number)) from error


def _refused(archive: Path, name: str, why: str) -> SourceError:
    shown = name.encode("unicode_escape").decode("ascii")
    return SourceError(
        f"{archive.name}: the entry '{shown}' {why}",
        hint="this archive is not to be trusted; check where it comes from",
    )
