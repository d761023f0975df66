# SPDX-License-Identifier: Apache-2.0
"""Firmware volumes, the files in them, and the sections of a file: walked, not interpreted.

UEFI Platform Initialization 1.8 volume 3: 3.2.1 (volumes), 3.2.3 (files), 3.2.4 (sections).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from sevkit.errors import ImageError

PAGE_BYTES = 4096
"""What lies between volumes is skipped in this step."""

_VOLUME_HEADER, _FILE_HEADER, _LARGE_FILE_HEADER = 56, 24, 32
_LARGE_FILE = 0x01
_SECTION_HEADER, _LARGE_SECTION_HEADER = 4, 8
_LARGE_SECTION = 0xFFFFFF


@dataclass(frozen=True)
class Volume:
    """Where a volume is in the bytes that were searched."""

    start: int
    end: int
    kind: UUID
    """The file system that it holds."""
    guid: UUID
    """Its own name, or `kind` for one without."""
    files: int
    """Offset of its first file."""


@dataclass(frozen=True)
class File:
    """A file of a volume."""

    kind: int
    guid: UUID
    content: bytes


def volumes(data: bytes, name: str) -> Iterator[Volume]:
    """Every volume in `data`. Raises `ImageError`, which calls it `name`, for a damaged one."""
    offset = 0
    while offset + _VOLUME_HEADER <= len(data):
        if data[offset + 40 : offset + 44] != b"_FVH":
            offset += PAGE_BYTES
            continue
        volume = _volume(data, offset, name)
        yield volume
        offset = volume.end + -volume.end % PAGE_BYTES


def _volume(data: bytes, offset: int, name: str) -> Volume:
    kind = UUID(bytes_le=data[offset + 16 : offset + 32])
    length, _, _, header, _, extension = struct.unpack_from("<QIIHHH", data, offset + 32)
    end = offset + length
    if end > len(data):
        raise ImageError(
            f"{name} is truncated",
            why=f"the volume at {offset:#x} ends at {end:#x}, the file at {len(data):#x}",
            hint="get it again",
        )
    if (
        not _VOLUME_HEADER <= header <= length
        or header % 2
        or (extension and extension + 20 > length)
    ):
        raise damaged(name, f"the volume at {offset:#x} has a header of {header} bytes")
    if sum(struct.unpack_from(f"<{header // 2}H", data, offset)) & 0xFFFF:
        raise damaged(name, f"the checksum of the volume at {offset:#x} is wrong")
    files, guid = offset + header, kind
    if extension:
        place = offset + extension
        guid = UUID(bytes_le=data[place : place + 16])
        files = place + int.from_bytes(data[place + 16 : place + 20], "little")
    return Volume(offset, end, kind, guid, files + -(files - offset) % 8)


def files(data: bytes, volume: Volume) -> Iterator[File]:
    """The files of a volume in `data`, up to its free space or the first that is damaged."""
    offset = volume.files
    while offset + _FILE_HEADER <= volume.end:
        header, size = _FILE_HEADER, int.from_bytes(data[offset + 20 : offset + 23], "little")
        if data[offset + 19] & _LARGE_FILE and offset + _LARGE_FILE_HEADER <= volume.end:
            header = _LARGE_FILE_HEADER
            size = int.from_bytes(data[offset + 24 : offset + 32], "little")
        if size < header or offset + size > volume.end:
            return
        guid = UUID(bytes_le=data[offset : offset + 16])
        yield File(data[offset + 18], guid, data[offset + header : offset + size])
        offset += size
        offset += -(offset - volume.start) % 8


def sections(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each section of a file, up to the first that is damaged."""
    offset = 0
    while offset + _SECTION_HEADER <= len(content):
        header, size = _SECTION_HEADER, int.from_bytes(content[offset : offset + 3], "little")
        if size == _LARGE_SECTION:
            header = _LARGE_SECTION_HEADER
            size = int.from_bytes(content[offset + 4 : offset + 8], "little")
        if size < header or offset + size > len(content):
            return
        yield content[offset + 3], content[offset + header : offset + size]
        offset += size + -size % 4


def damaged(name: str, why: str) -> ImageError:
    """The error for an image that can't be what was once built."""
    return ImageError(f"{name} is damaged", why=why, hint="get it again")
