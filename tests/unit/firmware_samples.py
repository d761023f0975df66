# SPDX-License-Identifier: Apache-2.0
"""Small OVMF images made byte by byte: volumes, a SEC module, GUIDed table and SEV metadata."""

import struct
from collections.abc import Mapping, Sequence
from uuid import UUID

VARIABLES = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
FILES = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
HASHES = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SECRET = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
RESET = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")

AMD64, I386 = 0x8664, 0x014C
SNP_SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
WITH_HASHES = (*SNP_SECTIONS, (0x810000, 0x1000, 16))

_METADATA_DISTANCE = 4096


def volume(kind: UUID, size: int, content: bytes = b"") -> bytearray:
    """A firmware volume of `size` bytes with a right checksum."""
    header = bytearray(72)
    header[16:32] = kind.bytes_le
    struct.pack_into("<Q4sIHHHBB", header, 32, size, b"_FVH", 0x4FEFF, 72, 0, 0, 0, 2)
    struct.pack_into("<II", header, 56, size // 4096, 4096)
    struct.pack_into("<H", header, 50, -sum(struct.unpack("<36H", header)) & 0xFFFF)
    return bytearray((bytes(header) + content).ljust(size, b"\xff"))


def sec_file(machine: int) -> bytes:
    """A firmware file with a SEC module for `machine`."""
    code = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0" + struct.pack("<H", machine)
    section = (len(code) + 4).to_bytes(3, "little") + b"\x10" + code
    size = (24 + len(section)).to_bytes(3, "little")
    return bytes(range(16)) + b"\0\0" + b"\x03\0" + size + b"\xf8" + section


def table(entries: Mapping[UUID, bytes]) -> bytes:
    """The GUIDed table, its footer included."""
    parts = [
        data + struct.pack("<H", len(data) + 18) + guid.bytes_le for guid, data in entries.items()
    ]
    size = sum(map(len, parts)) + 18
    return b"".join(parts) + struct.pack("<H", size) + FOOTER.bytes_le


def sev_metadata(sections: Sequence[tuple[int, int, int]], version: int = 1) -> bytes:
    """The SEV metadata with sections of base, size and type."""
    rows = b"".join(struct.pack("<III", *section) for section in sections)
    return struct.pack("<4sIII", b"ASEV", 16 + len(rows), version, len(sections)) + rows


def firmware(
    *,
    machine: int = AMD64,
    hashes: tuple[int, int] = (0, 0),
    reset: int = 0x80B004,
    sections: Sequence[tuple[int, int, int]] | None = SNP_SECTIONS,
    version: int = 1,
    more: Mapping[UUID, bytes] | None = None,
    variables: bool = True,
    code_bytes: int = 65536,
) -> bytes:
    """A whole image, laid out as OVMF's."""
    entries = {METADATA: struct.pack("<I", _METADATA_DISTANCE)} if sections is not None else {}
    entries |= {HASHES: struct.pack("<II", *hashes), SECRET: bytes(8)}
    entries |= {RESET: struct.pack("<I", reset), **(more or {})}
    code = volume(FILES, code_bytes, sec_file(machine))
    end = len(code) - 32
    made = table(entries)
    code[end - len(made) : end] = made
    if sections is not None:
        made = sev_metadata(sections, version)
        start = len(code) - _METADATA_DISTANCE
        code[start : start + len(made)] = made
    return bytes((volume(VARIABLES, 65536) if variables else b"") + code)
