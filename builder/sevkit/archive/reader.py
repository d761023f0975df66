# SPDX-License-Identifier: Apache-2.0
"""Entries of an archive, one after the other, through libarchive.

Only zip, tar and cpio are understood, the latter two compressed with gzip, bzip2, xz or zstd:
libarchive knows formats that read other files of the host (mtree) and filters that start programs
(lrzip), and an archive must not choose those. Memory stays bounded whatever the archive says, and
so does what it unpacks to, wanted or skipped. Writes nothing.
"""

import contextlib
import ctypes
import fcntl
import functools
import locale
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sevkit.errors import HostError, SourceError

_EOF, _OK, _WARN = 1, 0, -20  # archive.h
_READ_BYTES = 1 << 18
_PIPE_BYTES = 1 << 20
_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_FILTERS = ("gzip", "bzip2", "xz", "zstd")
_FORMATS = ("tar", "cpio")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_TAIL_BYTES = 64 << 20


@dataclass(frozen=True)
class Slice:
    """A run of bytes of a file: an archive, or a member of an ar archive."""

    file: Path
    offset: int
    size: int

    @classmethod
    def whole(cls, file: Path) -> "Slice":
        """All of `file`."""
        return cls(file, 0, file.stat().st_size)


@dataclass(frozen=True, slots=True)
class Entry:
    """What an archive says of one path. Names are the bytes of the archive, not yet judged."""

    name: bytes
    type: int
    """As in st_mode: `stat.S_IFREG` and its like."""
    mode: int
    size: int | None
    hard_link: bytes | None
    symlink: bytes | None


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an archive says of one path beside its content."""

    uid: int
    gid: int
    mtime: int
    """Whole seconds since 1970."""
    device: tuple[int, int]
    """Major and minor number."""
    extended: tuple[tuple[bytes, bytes], ...]
    """Extended attributes, name and value, sorted."""


class Reader:
    """The entries of one archive, and the data of the entry that was given last."""

    def __init__(self, archive: int, source: "_Feed | _Pump", name: str):
        self._library = _library()
        self._archive = archive
        self._source = source
        self._name = name
        self._entry = self._library.archive_entry_new()
        self.at_end = False

    @property
    def taken(self) -> int:
        """How many bytes of the archive, as it is on the disk, were read so far."""
        return self._source.taken

    def __iter__(self) -> Iterator[Entry]:
        library, archive, entry = self._library, self._archive, self._entry
        while (answer := library.archive_read_next_header2(archive, entry)) != _EOF:
            self.check(answer)
            has_size = library.archive_entry_size_is_set(entry)
            yield Entry(
                name=library.archive_entry_pathname(entry) or b"",
                type=library.archive_entry_filetype(entry),
                mode=library.archive_entry_perm(entry),
                size=library.archive_entry_size(entry) if has_size else None,
                hard_link=library.archive_entry_hardlink(entry),
                symlink=library.archive_entry_symlink(entry),
            )
        self.at_end = True

    def attributes(self) -> Attributes:
        """Those of the current entry."""
        library, entry = self._library, self._entry
        extended = []
        name, value, size = ctypes.c_char_p(), ctypes.c_void_p(), ctypes.c_size_t()
        library.archive_entry_xattr_reset(entry)
        while library.archive_entry_xattr_next(entry, name, value, size) == _OK:
            content = ctypes.string_at(value, size.value) if size.value else b""
            extended.append((name.value or b"", content))
        return Attributes(
            uid=library.archive_entry_uid(entry),
            gid=library.archive_entry_gid(entry),
            mtime=library.archive_entry_mtime(entry),
            device=(library.archive_entry_rdevmajor(entry), library.archive_entry_rdevminor(entry)),
            extended=tuple(sorted(extended)),
        )

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """The data of the current entry as (offset, bytes); holes are left out."""
        read, archive = self._library.archive_read_data_block, self._archive
        place, size, offset = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_longlong()
        while (answer := read(archive, place, size, offset)) != _EOF:
            self.check(answer)
            if size.value:
                yield offset.value, ctypes.string_at(place, size.value)

    def copy(self, descriptor: int) -> None:
        """Write the data of the current entry to a pipe."""
        self.check(self._library.archive_read_data_into_fd(self._archive, descriptor))

    def check(self, answer: int) -> None:
        """Raise `SourceError` unless libarchive's `answer` says that it can go on.

        A warning is no failure: it is given for a name that is not UTF-8.
        """
        if answer not in (_OK, _WARN):
            message = self._library.archive_error_string(self._archive) or b"it is damaged"
            raise SourceError(
                f"{self._name} can't be read as an archive",
                why=message.decode("utf-8", "replace"),
                hint="fetch it again, and check where it comes from",
            )

    def close(self) -> None:
        """Free what libarchive holds."""
        self._library.archive_entry_free(self._entry)
        self._library.archive_read_free(self._archive)


@contextlib.contextmanager
def opened(part: Slice, limit_bytes: int) -> Iterator[Reader]:
    """The archive in `part`; what is compressed is decompressed in a thread of its own.

    Whoever reads to the end has it checked to the last byte. Raises `SourceError` when it is
    damaged, no archive, or unpacks to more than `limit_bytes`, of which headers and entries that
    nobody wants are a part.
    """
    with part.file.open("rb") as file:
        file.seek(part.offset)
        compressed = file.read(6).startswith(_COMPRESSED)
    if not compressed:
        with _read_directly(part, (*_FORMATS, "zip")) as reader:
            yield reader
        return
    source, sink = os.pipe()
    pump = _Pump(part, sink)
    name = part.file.name
    with os.fdopen(source, "rb", buffering=0) as pipe:
        with contextlib.suppress(OSError):  # an ordinary user may be over the limit: slower
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        feed = _PipeFeed(source, limit_bytes, name)
        pump.start()
        try:
            with _reading(feed, pump, name, _FORMATS) as reader:
                yield reader
            if not reader.at_end:
                return
            _read_to_end(pipe, name)
        except SourceError:
            if feed.at_end:  # then the cause is why there was no more
                pump.join()
                pump.check()
            feed.check()
            raise
        finally:
            pipe.close()
            pump.join()
    pump.check()


@contextlib.contextmanager
def _read_directly(
    part: Slice, formats: Sequence[str], filters: Sequence[str] = ()
) -> Iterator[Reader]:
    with part.file.open("rb", buffering=0) as file:
        feed = _SliceFeed(file.fileno(), part)
        try:
            with _reading(feed, feed, part.file.name, formats, filters) as reader:
                yield reader
        except SourceError:
            feed.check()
            raise


def _read_to_end(pipe: BinaryIO, name: str) -> None:
    """Have what follows the archive's end decompressed too, so that its checksum is looked at."""
    left = _TAIL_BYTES
    while block := pipe.read(_READ_BYTES):
        left -= len(block)
        if left < 0:
            raise SourceError(f"{name} goes on for more than {_TAIL_BYTES >> 20} MiB after its end")


@contextlib.contextmanager
def _reading(
    feed: "_Feed",
    source: "_Feed | _Pump",
    name: str,
    formats: Sequence[str],
    filters: Sequence[str] = (),
) -> Iterator[Reader]:
    library = _library()
    archive = library.archive_read_new()
    for one in filters:
        getattr(library, f"archive_read_support_filter_{one}")(archive)
    for one in formats:
        getattr(library, f"archive_read_support_format_{one}")(archive)
    reader = Reader(archive, source, name)
    try:
        library.archive_read_set_seek_callback(archive, feed.seek_callback)
        reader.check(library.archive_read_open(archive, None, None, feed.read_callback, None))
        yield reader
    finally:
        reader.close()


class _Feed:
    """Gives libarchive bytes, as `_fill` puts them into the buffer."""

    def __init__(self, seek: Callable[[object, object, int, int], int] | None = None):
        binding = _binding()
        self._position = 0
        self._buffer = ctypes.create_string_buffer(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._trouble: OSError | SourceError | None = None
        self.taken = 0
        self.at_end = False
        self.read_callback = binding.READ_CALLBACK(self._read)
        self.seek_callback = binding.SEEK_CALLBACK(seek or 0)

    def _read(self, _archive: object, _context: object, place: Any) -> int:
        try:
            count = self._fill()
        except (OSError, SourceError) as error:  # an exception must not pass through C
            self._trouble = error
            return -1
        self._position += count
        self.taken = max(self.taken, self._position)
        self.at_end = count == 0
        place[0] = ctypes.addressof(self._buffer)
        return count

    def _fill(self) -> int:
        raise NotImplementedError

    def check(self) -> None:
        """Raise why it could not read on."""
        if self._trouble is not None:
            raise self._trouble


class _SliceFeed(_Feed):
    """The bytes of a slice of a file, in any order."""

    def __init__(self, descriptor: int, part: Slice):
        super().__init__(self._seek)
        self._descriptor = descriptor
        self._part = part

    def _fill(self) -> int:
        room = max(0, min(self._part.size - self._position, _READ_BYTES))
        place = self._part.offset + self._position
        return os.preadv(self._descriptor, [self._view[:room]], place)

    def _seek(self, _archive: object, _context: object, offset: int, whence: int) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}
        self._position = min(max(0, start[whence] + offset), self._part.size)
        return self._position


class _PipeFeed(_Feed):
    """What a pipe gives, up to its end or a limit."""

    def __init__(self, descriptor: int, limit_bytes: int, name: str):
        super().__init__()
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._name = name

    def _fill(self) -> int:
        if self.taken > self._limit_bytes:
            raise SourceError(
                f"{self._name} unpacks to more than {self._limit_bytes} bytes",
                hint="this archive is not to be trusted; check where it comes from",
            )
        return os.readv(self._descriptor, [self._view])


class _Pump(threading.Thread):
    """Decompresses a slice of a file into a pipe."""

    def __init__(self, part: Slice, sink: int):
        super().__init__(name=f"unpack {part.file.name}", daemon=True)
        self._part = part
        self._sink = sink
        self._reader: Reader | None = None
        self._trouble: Exception | None = None

    @property
    def taken(self) -> int:
        """How many compressed bytes were read so far."""
        return self._reader.taken if self._reader else 0

    def run(self) -> None:
        """Copy until the end, or until nobody reads any more."""
        try:
            with _read_directly(self._part, ("raw",), _FILTERS) as self._reader:
                for _ in self._reader:
                    self._reader.copy(self._sink)
        except Exception as error:  # for the thread that reads
            self._trouble = error
        finally:
            os.close(self._sink)

    def check(self) -> None:
        """Raise why decompression ended early."""
        if self._trouble is not None:
            raise self._trouble


@functools.cache
def _binding() -> Any:
    """libarchive-c's types of callbacks. Raises `HostError` where it finds no libarchive."""
    try:
        from libarchive import ffi
    except (AttributeError, OSError, TypeError) as error:
        raise HostError(
            "libarchive is missing, through which archives are read",
            why=str(error),
            hint="apt-get install libarchive13, or say where it is in LIBARCHIVE",
        ) from error
    return ffi


@functools.cache
def _library() -> Any:
    """libarchive with the prototypes used here.

    A handle of its own, because libarchive-c's own one writes every warning to the log. Names of
    archives that state their encoding are converted to that of the process's LC_CTYPE, which is
    therefore set here: what is unpacked must not depend on the user's. Raises `HostError` where the
    host has no such locale.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error as error:
        raise HostError(
            "the locale C.UTF-8 is missing, in which archives are read",
            why=str(error),
            hint="apt-get install libc-bin",
        ) from error
    ffi = _binding()
    library = ctypes.CDLL(ffi.libarchive_path)
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("archive_read_new", pointer, ()),
        ("archive_read_free", ctypes.c_int, (pointer,)),
        ("archive_read_set_seek_callback", ctypes.c_int, (pointer, ffi.SEEK_CALLBACK)),
        (
            "archive_read_open",
            ctypes.c_int,
            (pointer, pointer, pointer, ffi.READ_CALLBACK, pointer),
        ),
        ("archive_read_next_header2", ctypes.c_int, (pointer, pointer)),
        (
            "archive_read_data_block",
            ctypes.c_int,
            (
                pointer,
                ctypes.POINTER(pointer),
                ctypes.POINTER(ctypes.c_size_t),
                ctypes.POINTER(ctypes.c_longlong),
            ),
        ),
        ("archive_read_data_into_fd", ctypes.c_int, (pointer, ctypes.c_int)),
        ("archive_error_string", text, (pointer,)),
        ("archive_entry_new", pointer, ()),
        ("archive_entry_free", None, (pointer,)),
        ("archive_entry_pathname", text, (pointer,)),
        ("archive_entry_hardlink", text, (pointer,)),
        ("archive_entry_symlink", text, (pointer,)),
        ("archive_entry_filetype", ctypes.c_uint, (pointer,)),
        ("archive_entry_perm", ctypes.c_uint, (pointer,)),
        ("archive_entry_size", ctypes.c_longlong, (pointer,)),
        ("archive_entry_size_is_set", ctypes.c_int, (pointer,)),
        ("archive_entry_uid", ctypes.c_longlong, (pointer,)),
        ("archive_entry_gid", ctypes.c_longlong, (pointer,)),
        ("archive_entry_mtime", ctypes.c_longlong, (pointer,)),
        ("archive_entry_rdevmajor", ctypes.c_ulonglong, (pointer,)),
        ("archive_entry_rdevminor", ctypes.c_ulonglong, (pointer,)),
        ("archive_entry_xattr_reset", ctypes.c_int, (pointer,)),
        (
            "archive_entry_xattr_next",
            ctypes.c_int,
            (
                pointer,
                ctypes.POINTER(text),
                ctypes.POINTER(pointer),
                ctypes.POINTER(ctypes.c_size_t),
            ),
        ),
        *((f"archive_read_support_filter_{name}", ctypes.c_int, (pointer,)) for name in _FILTERS),
        *(
            (f"archive_read_support_format_{name}", ctypes.c_int, (pointer,))
            for name in ("raw", "zip", *_FORMATS)
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
