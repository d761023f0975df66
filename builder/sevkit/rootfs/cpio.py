# SPDX-License-Identifier: Apache-2.0
"""A newc cpio archive from a list of entries, and back: what the kernel unpacks as its root.

The format is that of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst, the
limits are those of its init/initramfs.c, which drops what it can't unpack without a word. Nothing
is staged on a disk and no privilege is needed: owners, device nodes and links are only numbers in
a header. The same entries give the same bytes. It never compresses.
"""

import hashlib
import mmap
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, Literal

from sevkit.errors import BuildError, ImageError

_MAGIC = b"070701"
_HEADER_BYTES = 110
_TRAILER = b"TRAILER!!!"
_PATH_MAX = 4096
_NAME_MAX = 255
_SIZE_MAX = 2**32 - 1
_ID_MAX = 2**32 - 2
"""One more is -1, which chown(2), by which the kernel gives files away, takes for "as it is"."""
_BLOCK = 512
_CHUNK = 1 << 20

Data = bytes | memoryview | Path
NodeKind = Literal["char", "block", "fifo", "socket"]


@dataclass(frozen=True, kw_only=True)
class Directory:
    """A directory. Paths are those of the guest, absolute: ``/usr/lib``; the root is ``/``."""

    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, kw_only=True)
class File:
    """A regular file with its bytes, or the path of a file on this machine that holds them.

    `links` are further names of the same file (hard links).
    """

    path: str
    data: Data
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    links: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Symlink:
    """A symbolic link; the target is kept as it is."""

    path: str
    target: str
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A device node, or a FIFO or socket (whose numbers are 0)."""

    path: str
    kind: NodeKind
    major: int = 0
    minor: int = 0
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


Entry = Directory | File | Symlink | Node

_NODE_TYPES: Mapping[NodeKind, int] = {
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


@dataclass(frozen=True)
class Written:
    """What an archive holds under each path, and how long it is."""

    archive_bytes: int
    digests: Mapping[str, str]
    """Path of each regular file, hard links included → SHA-256 of its content."""
    sizes: Mapping[str, int]
    """Path of each regular file, hard links included → its bytes."""


def write(entries: Iterable[Entry], stream: BinaryIO) -> Written:
    """Write an archive of `entries`, whatever their order.

    Paths are sorted by their bytes; inode numbers count from 1 in that order; times are 0; a
    directory that only follows from the paths below it is made with mode 0755. The data of a hard
    link group is at its last name, as GNU cpio writes it.

    Raises `BuildError` for a path that appears twice, that the kernel can't unpack (a name over
    255 bytes, a path over 4095), that is below something else than a directory, or that is not
    absolute and plain; for a root that is no directory; for an owner or group over 2^32 - 2; for a
    file of 4 GiB or more; and for one that changes while it is read.
    """
    by_path = _with_parents(entries)
    writer = _Writer(stream)
    for number, path in enumerate(sorted(by_path, key=_encoded), start=1):
        writer.add(number, path, by_path[path])
    return writer.finish()


def _with_parents(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Every path of the archive with its entry; those of one hard link group share theirs."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        names = (entry.path, *entry.links) if isinstance(entry, File) else (entry.path,)
        for path in names:
            _check_path(path)
            if path in by_path:
                raise BuildError(f"{path} would be in the archive twice")
            by_path[path] = entry
        if "/" in names and not isinstance(entry, Directory):
            raise BuildError("/ can't be in the archive: the root is a directory")
        if not 0 <= entry_mode(entry) <= 0o7777:
            raise BuildError(f"{entry.path}: {entry_mode(entry):o} is not a file mode")
        if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
            raise BuildError(f"{entry.path}: {entry.uid}:{entry.gid} is not an owner and a group")
    for path in list(by_path):
        parent = path.rpartition("/")[0]
        while parent:
            above = by_path.setdefault(parent, Directory(path=parent))
            if not isinstance(above, Directory):
                kind = "a symbolic link" if isinstance(above, Symlink) else "not a directory"
                raise BuildError(f"{path} can't be in the archive: {parent} is {kind}")
            parent = parent.rpartition("/")[0]
    return by_path


def _check_path(path: str) -> None:
    name = _encoded(path)
    parts = name.split(b"/")[1:]
    if path == "/":
        return
    if not path.startswith("/") or any(part in (b"", b".", b"..") for part in parts):
        raise BuildError(f"{path!r} is not an absolute path without '.', '..' and '//'")
    if b"\0" in name:
        raise BuildError(f"{path!r} has a NUL byte in it")
    if len(name) > _PATH_MAX - 1 or max(map(len, parts)) > _NAME_MAX:
        raise BuildError(f"{path[:60]}… is longer than a path or a name may be")
    if parts[0] == _TRAILER:  # the kernel would pass over the directory, then over what is in it
        raise BuildError(f"{path} can't be in the archive: it is the mark of an archive's end")


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def entry_mode(entry: Entry) -> int:
    """The permission bits of an entry; all of them for a symbolic link."""
    return 0o777 if isinstance(entry, Symlink) else entry.mode


class _Writer:
    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._written = 0
        self._groups: dict[int, tuple[int, int]] = {}  # entry → inode number, names still to come
        self._digests: dict[str, str] = {}
        self._sizes: dict[str, int] = {}

    def add(self, number: int, path: str, entry: Entry) -> None:
        if isinstance(entry, File):
            self._add_file(number, path, entry)
        elif isinstance(entry, Directory):
            self._header(number, path, entry, stat.S_IFDIR, links=2)
        elif isinstance(entry, Symlink):
            target = _encoded(entry.target)
            if not 0 < len(target) < _PATH_MAX or b"\0" in target:
                raise BuildError(f"{path}: {entry.target[:60]!r} can't be a link's target")
            self._header(number, path, entry, stat.S_IFLNK, size=len(target))
            self._put(target)
            self._pad(4)
        else:
            if not (0 <= entry.major < 2**12 and 0 <= entry.minor < 2**20):
                raise BuildError(f"{path}: {entry.major}:{entry.minor} is not a device number")
            device = (entry.major, entry.minor)
            self._header(number, path, entry, _NODE_TYPES[entry.kind], device=device)

    def _add_file(self, number: int, path: str, entry: File) -> None:
        links = 1 + len(entry.links)
        number, remaining = self._groups.get(id(entry), (number, links))
        self._groups[id(entry)] = number, remaining - 1
        if remaining > 1:
            self._header(number, path, entry, stat.S_IFREG, links=links)
            return
        source = entry.data
        if isinstance(source, Path):
            try:
                with source.open("rb", buffering=0) as file:
                    size = file.seek(0, 2)
                    file.seek(0)
                    self._header(number, path, entry, stat.S_IFREG, links=links, size=size)
                    digest = self._copy(file, size, source)
            except OSError as error:
                raise BuildError(f"{path}: {source} can't be read: {error.strerror}") from error
        else:
            size = len(source)
            self._header(number, path, entry, stat.S_IFREG, links=links, size=size)
            self._put(source)
            digest = hashlib.sha256(source).hexdigest()
        self._pad(4)
        for name in (entry.path, *entry.links):
            self._digests[name] = digest
            self._sizes[name] = size

    def _header(
        self,
        number: int,
        path: str,
        entry: Entry,
        kind: int,
        *,
        links: int = 1,
        size: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if size > _SIZE_MAX:
            raise BuildError(f"{path} is over 4 GiB, which the newc format can't hold")
        name = _encoded(path)[1:] or b"."
        fields = (number, kind | entry_mode(entry), entry.uid, entry.gid, links, 0, size, 0, 0)
        self._put(_MAGIC + b"%08X" * 13 % (*fields, *device, len(name) + 1, 0) + name + b"\0")
        self._pad(4)

    def _copy(self, file: IO[bytes], size: int, source: Path) -> str:
        hasher = hashlib.sha256()
        remaining = size
        while chunk := file.read(_CHUNK):
            remaining -= len(chunk)
            if remaining < 0:
                break
            hasher.update(chunk)
            self._put(chunk)
        if remaining:
            raise BuildError(f"{source} changed while it was read", hint="build again")
        return hasher.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._written += len(data)

    def _pad(self, alignment: int) -> None:
        self._put(bytes(-self._written % alignment))

    def finish(self) -> Written:
        trailer = (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(_TRAILER) + 1, 0)
        self._put(_MAGIC + b"%08X" * 13 % trailer + _TRAILER + b"\0")
        self._pad(_BLOCK)
        return Written(self._written, self._digests, self._sizes)


def read(archive: Path) -> list[Entry]:
    """The entries of an uncompressed newc archive, in its order; the data are views of the file.

    Hard links are gathered into the entry of their first name. Archives that follow one another
    are read as one, as the kernel does. Raises `ImageError` for anything that is not such an
    archive, naming the byte where it goes wrong.
    """
    try:
        with archive.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ImageError(f"{archive} is empty: a newc archive has at least an end mark")
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except OSError as error:
        raise ImageError(f"{archive} can't be read: {error.strerror}") from error
    return list(_Reader(view, archive).entries())


@dataclass(frozen=True)
class _Header:
    inode: tuple[int, int, int]
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    device: tuple[int, int]


class _Reader:
    def __init__(self, view: memoryview, archive: Path):
        self._view = view
        self._archive = archive
        self._at = 0

    def entries(self) -> Iterator[Entry]:
        found: list[Entry] = []
        groups: dict[tuple[int, int, int], int] = {}
        ended = False
        while not (ended and self._only_padding_follows()):
            header, name = self._header()
            ended = name == _TRAILER
            if ended:
                groups.clear()
                continue
            entry = self._entry(header, name, self._take(header.size))
            self._align()
            if isinstance(entry, File) and header.links > 1:
                first = groups.setdefault(header.inode, len(found))
                if first < len(found):
                    known = found[first]
                    assert isinstance(known, File)
                    data = entry.data if header.size else known.data
                    found[first] = replace(known, links=(*known.links, entry.path), data=data)
                    continue
            found.append(entry)
        return iter(found)

    def _only_padding_follows(self) -> bool:
        while self._at < len(self._view) and self._view[self._at] == 0:
            self._at += 1
        return self._at == len(self._view)

    def _header(self) -> tuple[_Header, bytes]:
        start = self._at
        raw = bytes(self._take(_HEADER_BYTES))
        if raw[:6] != _MAGIC:
            self._at = start
            raise self._damaged("no newc header")
        try:
            fields = [_hexadecimal(raw[at : at + 8]) for at in range(6, _HEADER_BYTES, 8)]
        except ValueError:
            self._at = start
            raise self._damaged("a header with a field that is not hexadecimal") from None
        inode, mode, uid, gid, links, _, size, major, minor, rmajor, rminor, length, _ = fields
        if not 1 < length <= _PATH_MAX:
            raise self._damaged(f"a name of {length} bytes")
        name = bytes(self._take(length))
        self._align()
        if name.find(b"\0") != length - 1:
            raise self._damaged("a name that does not end where its length says")
        header = _Header((major, minor, inode), mode, uid, gid, links, size, (rmajor, rminor))
        return header, name[:-1]

    def _entry(self, header: _Header, name: bytes, data: memoryview) -> Entry:
        path = self._path(name)
        kind, mode = stat.S_IFMT(header.mode), stat.S_IMODE(header.mode)
        uid, gid = header.uid, header.gid
        if kind == stat.S_IFREG:
            return File(path=path, data=data, mode=mode, uid=uid, gid=gid)
        if kind == stat.S_IFDIR:
            return Directory(path=path, mode=mode, uid=uid, gid=gid)
        if kind == stat.S_IFLNK:
            target = bytes(data).decode("utf-8", "surrogateescape")
            return Symlink(path=path, target=target, uid=uid, gid=gid)
        for node, number in _NODE_TYPES.items():
            if kind == number:
                major, minor = header.device
                return Node(
                    path=path, kind=node, major=major, minor=minor, mode=mode, uid=uid, gid=gid
                )
        raise self._damaged(f"an entry of type {kind:o}")

    def _path(self, name: bytes) -> str:
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise self._damaged("a name with '..' in it")
        return "/" + b"/".join(parts).decode("utf-8", "surrogateescape")

    def _take(self, count: int) -> memoryview:
        if self._at + count > len(self._view):
            raise self._damaged("its end in the middle of an entry")
        self._at += count
        return self._view[self._at - count : self._at]

    def _align(self) -> None:
        self._at += -self._at % 4

    def _damaged(self, what: str) -> ImageError:
        return ImageError(
            f"{self._archive} is not a whole newc archive", why=f"at byte {self._at} it has {what}"
        )


def _hexadecimal(field: bytes) -> int:
    if not field.isalnum():  # int() would take signs, spaces and underscores
        raise ValueError
    return int(field, 16)
