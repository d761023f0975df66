# SPDX-License-Identifier: Apache-2.0
"""The modules in an OVMF image, also those in its compressed volume, by name and digest.

Tells images apart; says nothing of what a module does, and skips what it can't take apart: a volume
that differs is seen by its own digest.

Format: the GUIDed section of MdeModulePkg's LzmaCustomDecompressLib in EDK2.
"""

import hashlib
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from uuid import UUID

from sevkit.errors import ImageError
from sevkit.firmware.volumes import files, sections, volumes

LIMIT_BYTES = 64 << 20
"""Of all that is unpacked from one image: OvmfPkg's own come to 16 MiB."""

_LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
_GUIDED, _USER_INTERFACE, _VOLUME = 0x02, 0x15, 0x17
_PADDING = 0xF0
_MOST_NESTED = 4


def modules(data: bytes, name: str) -> dict[str, str]:
    """Name of each file (its user interface section; else its GUID), as `described`.

    Raises `ImageError` for damaged outer volumes; errors call
    the image `name`.
    """
    return described(contents(data, name))


def described(parts: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Name of each part → length and SHA-256; one that comes again is ``name, no. 2`` and so on."""
    made: dict[str, str] = {}
    again: Counter[str] = Counter()
    for name, content in parts:
        key = name
        while key in made:
            again[name] += 1
            key = f"{name}, no. {again[name] + 1}"
        made[key] = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
    return made


def contents(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file, as `modules` finds them. Raises as it does."""
    return _Walk().volumes(data, name, 0)


class _Walk:
    def __init__(self) -> None:
        self._left = LIMIT_BYTES

    def volumes(self, data: bytes, name: str, depth: int) -> Iterator[tuple[str, bytes]]:
        for volume in volumes(data, name):
            for file in files(data, volume):
                if file.kind != _PADDING:
                    inner = list(self._inner(file.content, name, depth))
                    own = (_user_name(file.content) or str(file.guid), file.content)
                    yield from inner or [own]

    def _inner(self, content: bytes, name: str, depth: int) -> Iterator[tuple[str, bytes]]:
        """The modules of volumes in a file's sections."""
        if depth > _MOST_NESTED:
            return
        for kind, section in sections(content):
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


def _user_name(content: bytes) -> str:
    for kind, section in sections(content):
        if kind == _USER_INTERFACE:
            text = section.decode("utf-16-le", "replace").rstrip("\0")
            return text if text.isprintable() else ""
    return ""
