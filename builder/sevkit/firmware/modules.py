# SPDX-License-Identifier: Apache-2.0
"""The modules in an OVMF image, also those in its compressed volume, by name and digest.

Tells images apart; says nothing of what a module does, and skips what it can't take apart: a volume
that differs is seen by its own digest.

Formats: UEFI Platform Initialization 1.8 volume 3, 3.2 (volumes, files, sections); the GUIDed
section of MdeModulePkg's LzmaCustomDecompressLib in EDK2.
"""

import hashlib
import lzma
from collections.abc import Iterator
from uuid import UUID

from sevkit.errors import ImageError
from sevkit.firmware.ovmf import volume_ranges

LIMIT_BYTES = 64 << 20
"""Of all that is unpacked from one image: OvmfPkg's own come to 16 MiB."""

_LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
_GUIDED, _USER_INTERFACE, _VOLUME = 0x02, 0x15, 0x17
_PADDING = 0xF0
_FILE_HEADER, _LARGE_FILE_HEADER = 24, 32
_LARGE = 0x01
_MOST_NESTED = 4


def modules(data: bytes, name: str) -> dict[str, str]:
    """Name of each file (its user interface section; else its GUID) → length and SHA-256.

    A name that comes again is numbered. Raises `ImageError` for damaged outer volumes; errors call
    the image `name`.
    """
    made: dict[str, str] = {}
    for module, content in contents(data, name):
        number = 1 + sum(key == module or key.startswith(f"{module}, no. ") for key in made)
        key = module if number == 1 else f"{module}, no. {number}"
        made[key] = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    return made


def contents(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file, as `modules` finds them. Raises as it does."""
    return _Walk().volumes(data, name, 0)


class _Walk:
    def __init__(self) -> None:
        self._left = LIMIT_BYTES

    def volumes(self, data: bytes, name: str, depth: int) -> Iterator[tuple[str, bytes]]:
        for start, end, _ in volume_ranges(data, name):
            yield from self._files(data[start:end], name, depth)

    def _files(self, volume: bytes, name: str, depth: int) -> Iterator[tuple[str, bytes]]:
        offset = int.from_bytes(volume[48:50], "little")
        if extension := int.from_bytes(volume[52:54], "little"):
            offset = extension + int.from_bytes(volume[extension + 16 : extension + 20], "little")
        offset += -offset % 8
        while offset + _FILE_HEADER <= len(volume):
            header, size = _FILE_HEADER, int.from_bytes(volume[offset + 20 : offset + 23], "little")
            if volume[offset + 19] & _LARGE:
                header = _LARGE_FILE_HEADER
                size = int.from_bytes(volume[offset + 24 : offset + 32], "little")
            if size < header or offset + size > len(volume):
                return  # the free space after the last file
            guid = str(UUID(bytes_le=volume[offset : offset + 16]))
            content = volume[offset + header : offset + size]
            if volume[offset + 18] != _PADDING:
                inner = list(self._inner(content, name, depth))
                yield from inner or [(_user_name(content) or guid, content)]
            offset += size + -size % 8

    def _inner(self, content: bytes, name: str, depth: int) -> Iterator[tuple[str, bytes]]:
        """The modules of volumes in a file's sections."""
        if depth > _MOST_NESTED:
            return
        for kind, section in _sections(content):
            if kind == _VOLUME:
                try:
                    yield from self.volumes(section, name, depth + 1)
                except ImageError:
                    continue
            elif kind == _GUIDED and section[:16] == _LZMA.bytes_le:
                start = int.from_bytes(section[16:18], "little") - 4
                yield from self._inner(self._unpacked(section[max(start, 0) :]), name, depth + 1)

    def _unpacked(self, data: bytes) -> bytes:
        try:
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LIMIT_BYTES * 2)
            made = unpacker.decompress(data, max_length=self._left)
        except lzma.LZMAError:
            return b""
        self._left -= len(made)
        return made


def _sections(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each section of a file."""
    offset = 0
    while offset + 4 <= len(content):
        header, size = 4, int.from_bytes(content[offset : offset + 3], "little")
        if size == 0xFFFFFF:
            header, size = 8, int.from_bytes(content[offset + 4 : offset + 8], "little")
        if size < header or offset + size > len(content):
            return
        yield content[offset + 3], content[offset + header : offset + size]
        offset += size + -size % 4


def _user_name(content: bytes) -> str:
    for kind, section in _sections(content):
        if kind == _USER_INTERFACE:
            text = section.decode("utf-16-le", "replace").rstrip("\0")
            return text if text.isprintable() else ""
    return ""
