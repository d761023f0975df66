# SPDX-License-Identifier: Apache-2.0
"""Which module of a firmware image a place in guest memory belongs to.

A loaded module begins on a page with the headers of its file (PE/COFF specification, revision 11),
of which the loader changes nothing but the address that the image is at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sevkit.firmware.modules import contents
from sevkit.firmware.volumes import sections

_PAGE_BYTES = 4096
"""What is read of a module: the linker may put its headers anywhere in its first page."""
_PE32 = 0x10
_IMAGE_LIMIT_BYTES = 16 << 20
_SECTIONS, _OPTIONAL_HEADER_SIZE, _OPTIONAL_HEADER = 6, 20, 24
_SECTION_BYTES = 40
_IMAGE_BASE, _IMAGE_BASE_BYTES = 24, 8
_IMAGE_SIZE = 56
_PE32_PLUS = b"\x0b\x02"

Read = Callable[[int, int], bytes]
"""Address and size in bytes → what is there in guest memory, empty where nothing is."""


@dataclass(frozen=True)
class LoadedModules:
    """The 64-bit modules of an image by their headers; no name where several have the same."""

    names: Mapping[bytes, str]

    @classmethod
    def of_image(cls, data: bytes, name: str) -> "LoadedModules":
        """Of the image `data`. Raises `ImageError`, which calls it `name`, for damaged volumes."""
        found: dict[bytes, str] = {}
        for module, content in contents(data, name):
            for kind, section in sections(content):
                if kind == _PE32 and (headers := _without_address(section[:_PAGE_BYTES])):
                    found[headers] = module if found.get(headers, module) == module else ""
        return cls(found)

    def at(self, address: int, read: Read) -> str:
        """The name of the module that holds `address`; empty when there is none that is known."""
        page = address & -_PAGE_BYTES
        for start in range(page, max(page - _IMAGE_LIMIT_BYTES, 0), -_PAGE_BYTES):
            if read(start, 8)[:2] != b"MZ":
                continue
            headers = read(start, _PAGE_BYTES)
            module = self.names.get(_without_address(headers), "")
            if module and address < start + _size(headers):
                return module
        return ""


def _optional_header(headers: bytes) -> int:
    """Where it is; 0 when these are no headers of a 64-bit image."""
    at = int.from_bytes(headers[0x3C:0x40], "little")
    start = at + _OPTIONAL_HEADER
    is_image = headers[:2] == b"MZ" and headers[at : at + 4] == b"PE\0\0"
    return start if is_image and headers[start : start + 2] == _PE32_PLUS else 0


def _without_address(headers: bytes) -> bytes:
    """All headers up to the last section's; nothing where they are not whole."""
    start = _optional_header(headers)
    if not start:
        return b""
    signature, base = start - _OPTIONAL_HEADER, start + _IMAGE_BASE
    end = start + _u16(headers, signature + _OPTIONAL_HEADER_SIZE)
    end += _u16(headers, signature + _SECTIONS) * _SECTION_BYTES
    if not base + _IMAGE_BASE_BYTES <= end <= len(headers):
        return b""
    return headers[:base] + bytes(_IMAGE_BASE_BYTES) + headers[base + _IMAGE_BASE_BYTES : end]


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _size(headers: bytes) -> int:
    at = _optional_header(headers) + _IMAGE_SIZE
    return int.from_bytes(headers[at : at + 4], "little")
