# SPDX-License-Identifier: Apache-2.0
"""What an OVMF image says of itself: its GUIDed table, its SEV metadata, how it starts.

Reads claims and never runs the firmware. That it has a place for kernel hashes does not mean that
it looks at them, so nothing here calls a boot measured.

Formats: OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and X64/OvmfSevMetadata.asm of EDK2 (table and
metadata); hw/i386/pc_sysfw_ovmf.c and target/i386/sev.c of QEMU (who reads them).
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from sevkit.errors import ImageError
from sevkit.firmware import hash_table
from sevkit.firmware.volumes import Volume, damaged, files, sections, volumes
from sevkit.opening import open_at_once

LIMIT_BYTES = 16 << 20

_QCOW2 = b"QFI\xfb"
_BIOS_UNIT = 65536  # QEMU, hw/i386/x86-common.c: x86_bios_rom_init()
_FLASH_UNIT = 4096  # QEMU, hw/i386/pc_sysfw.c: FLASH_SECTOR_SIZE

_VARIABLES = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_FILE_SYSTEMS = (
    UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3"),
    UUID("5473c07a-3dcb-4dca-bd6f-1e9689e7349a"),
)
_SECURITY_CORE = 0x03
_PE32, _TE = 0x10, 0x12
_MACHINE_BITS = {0x8664: 64, 0x014C: 32}

_TABLE_END = 32
"""Bytes from the end of the table to the end of the image."""
_TAIL = struct.Struct("<H16s")
_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_SEV_HASHES = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_SEV_SECRET = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
_SEV_ES_RESET = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_SEV_METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_TDX_METADATA = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_KNOWN = {
    _SEV_HASHES: ("sev-hash-table", 8),
    _SEV_SECRET: ("sev-secret", 8),
    _SEV_ES_RESET: ("sev-es-reset", 4),
    _SEV_METADATA: ("sev-metadata", 4),
    _TDX_METADATA: ("tdx-metadata", 4),
}
"""GUID of an entry → its name here, and how many bytes of data it has."""

_METADATA = struct.Struct("<4sIII")
_SECTION = struct.Struct("<III")
_METADATA_VERSION = 1
_SECTION_NAMES = {1: "snp-memory", 2: "secrets", 3: "cpuid", 4: "svsm-caa", 16: "kernel-hashes"}
_SNP_SECTIONS = (1, 2, 3)
_KERNEL_HASHES = 16

Mode = Literal["sev", "sev-es", "sev-snp"]
Loader = Literal["bios", "pflash"]


@dataclass(frozen=True)
class TableEntry:
    """An entry of the GUIDed table. `name` is empty for one that is not known here."""

    guid: str
    name: str
    data: str
    """Hex."""


@dataclass(frozen=True)
class MetadataSection:
    """A range of guest memory that an SNP launch prepares. Addresses and sizes in bytes."""

    type: int
    name: str
    base: int
    size: int


@dataclass(frozen=True)
class KernelHashes:
    """Where the host may put the hashes of kernel, initramfs and command line."""

    base: int
    size: int
    for_snp: bool
    """Whether the place is in the SEV metadata too, without which an SNP launch has none."""


@dataclass(frozen=True)
class FirmwareFacts:
    """What an image was found to be."""

    size: int
    sha256: str
    sec_bits: Literal[32, 64] | None
    """Width of the first module's code; None when there is no such module."""
    has_variable_store: bool
    """Whether variables are in the same file, as in a build that is not split."""
    loads_as: tuple[Loader, ...]
    """How QEMU takes it: -bios wants a multiple of 64 KiB."""
    problems: Mapping[Mode, tuple[str, ...]]
    """Why it can't be launched in a mode; empty when nothing speaks against it."""
    kernel_hashes: KernelHashes | None
    verifies_kernel_hashes: bool | None
    """Whether it was shown to refuse what does not fit the hashes; None: nobody has shown it."""
    table: tuple[TableEntry, ...]
    """From the last entry to the first, the order in which they are found."""
    metadata: tuple[MetadataSection, ...] | None

    def record(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)


def read_firmware(path: Path, name: str = "") -> FirmwareFacts:
    """The facts of the image in the file `path`; errors call it `name`.

    Raises `ImageError` when it is no OVMF image or damaged.
    """
    return parse(read_bytes(path, name), name or str(path))


def read_bytes(path: Path, name: str = "") -> bytes:
    """At most one byte more than an image may have. Raises `ImageError` when it can't be read."""
    try:
        with open_at_once(path) as file:
            return file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{name or path} can't be read", why=str(error.strerror)) from error


def parse(data: bytes, name: str) -> FirmwareFacts:
    """The facts of an image that was read. Raises `ImageError` as `read_firmware` does."""
    _check_kind(data, name)
    found = list(volumes(data, name))
    _check_holds_code(found, name)
    table = _table(data, name)
    entries = {UUID(entry.guid): bytes.fromhex(entry.data) for entry in table}
    metadata = _metadata(data, entries.get(_SEV_METADATA), name)
    bits = _sec_bits(data, found)
    loads_as = _loads_as(len(data))
    return FirmwareFacts(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sec_bits=bits,
        has_variable_store=any(volume.kind == _VARIABLES for volume in found),
        loads_as=loads_as,
        problems=_problems(entries, metadata, bits, loads_as),
        kernel_hashes=_kernel_hashes(entries, metadata),
        verifies_kernel_hashes=None,
        table=table,
        metadata=metadata,
    )


def _not_ovmf(name: str, why: str, hint: str) -> ImageError:
    return ImageError(f"{name} is not an OVMF image", why=why, hint=hint)


_USUAL = "name an OVMF image: OVMF.fd or OVMF_CODE*.fd of the package ovmf"


def _check_kind(data: bytes, name: str) -> None:
    if not data:
        raise _not_ovmf(name, "it is empty", _USUAL)
    if len(data) > LIMIT_BYTES:
        raise _not_ovmf(name, f"it is larger than {LIMIT_BYTES >> 20} MiB", _USUAL)
    if data.startswith(_QCOW2):
        raise _not_ovmf(
            name, "it is a qcow2 image", "make it raw: qemu-img convert -O raw FILE OVMF.fd"
        )
    if data[40:44] != b"_FVH":
        raise _not_ovmf(name, "it does not begin with a firmware volume", _USUAL)


def _check_holds_code(found: Sequence[Volume], name: str) -> None:
    if not found:
        raise _not_ovmf(name, "it ends within the header of its first firmware volume", _USUAL)
    if all(volume.kind == _VARIABLES for volume in found):
        raise _not_ovmf(
            name,
            "it is a store of UEFI variables and holds no code",
            "name the code half (OVMF_CODE*.fd) or the whole image (OVMF.fd)",
        )


def _table(data: bytes, name: str) -> tuple[TableEntry, ...]:
    end = len(data) - _TABLE_END
    length, footer = _TAIL.unpack_from(data, end - _TAIL.size)
    if UUID(bytes_le=footer) != _FOOTER:
        raise _not_ovmf(
            name,
            "it has no GUIDed table at its end: it is truncated, another kind of firmware, or "
            "older than edk2-stable202011",
            _USUAL,
        )
    start = end - length
    if length < _TAIL.size or start < 0:
        raise damaged(name, f"its GUIDed table claims {length} bytes")
    end -= _TAIL.size
    entries: dict[UUID, TableEntry] = {}
    while end > start:
        if end - start < _TAIL.size:
            raise damaged(name, f"{end - start} bytes of its GUIDed table belong to no entry")
        size, raw = _TAIL.unpack_from(data, end - _TAIL.size)
        guid = UUID(bytes_le=raw)
        if not _TAIL.size <= size <= end - start:
            raise damaged(name, f"the entry {guid} of its GUIDed table claims {size} bytes")
        content = data[end - size : end - _TAIL.size]
        known, known_size = _KNOWN.get(guid, ("", len(content)))
        if guid in entries or len(content) != known_size:
            raise damaged(name, f"its GUIDed table has a bad entry {known or guid}")
        entries[guid] = TableEntry(str(guid), known, content.hex())
        end -= size
    return tuple(entries.values())


def _metadata(data: bytes, entry: bytes | None, name: str) -> tuple[MetadataSection, ...] | None:
    """The sections of the SEV metadata; None without any, or in a version that is not known."""
    if entry is None:
        return None
    distance = int.from_bytes(entry, "little")
    if not _METADATA.size <= distance <= len(data):
        raise damaged(name, f"its SEV metadata are said to be {distance} bytes before its end")
    start = len(data) - distance
    signature, length, version, count = _METADATA.unpack_from(data, start)
    if signature != b"ASEV" or not _METADATA.size <= length <= distance:
        raise damaged(name, f"there are no SEV metadata at {start:#x}, where its table says")
    if version != _METADATA_VERSION:
        return None
    if length != _METADATA.size + count * _SECTION.size:
        raise damaged(name, f"its SEV metadata have {length} bytes for {count} sections")
    rows = _SECTION.iter_unpack(data[start + _METADATA.size : start + length])
    return tuple(
        MetadataSection(kind, _SECTION_NAMES.get(kind, ""), base, size) for base, size, kind in rows
    )


def _sec_bits(data: bytes, found: Sequence[Volume]) -> Literal[32, 64] | None:
    """The width of the code in the SEC module (PI 1.8 volume 3: file type 3), which runs first."""
    for volume in found:
        if volume.kind not in _FILE_SYSTEMS:
            continue
        for file in files(data, volume):
            if file.kind == _SECURITY_CORE:
                for kind, content in sections(file.content):
                    bits = _MACHINE_BITS.get(_machine(kind, content))
                    if bits is not None:
                        return 64 if bits == 64 else 32
    return None


def _machine(section: int, code: bytes) -> int:
    """The machine type (PE/COFF) of an executable section; 0 when there is none."""
    offset = -1
    if section == _TE and code[:2] == b"VZ":
        offset = 2
    elif section == _PE32 and code[:2] == b"MZ" and len(code) >= 64:
        header = int.from_bytes(code[60:64], "little")
        offset = header + 4 if code[header : header + 4] == b"PE\0\0" else -1
    return int.from_bytes(code[offset : offset + 2], "little") if offset > 0 else 0


def _loads_as(size: int) -> tuple[Loader, ...]:
    units: dict[Loader, int] = {"bios": _BIOS_UNIT, "pflash": _FLASH_UNIT}
    return tuple(loader for loader, unit in units.items() if size % unit == 0)


def _kernel_hashes(
    entries: Mapping[UUID, bytes], metadata: Sequence[MetadataSection] | None
) -> KernelHashes | None:
    base, size = struct.unpack("<II", entries.get(_SEV_HASHES, bytes(8)))
    if base == 0 or size < hash_table.SIZE:
        return None
    for_snp = any(
        section.type == _KERNEL_HASHES
        and section.base <= base
        and section.base + section.size >= base + size
        for section in metadata or ()
    )
    return KernelHashes(base, size, for_snp)


def _problems(
    entries: Mapping[UUID, bytes],
    metadata: Sequence[MetadataSection] | None,
    bits: int | None,
    loads_as: Sequence[Loader],
) -> dict[Mode, tuple[str, ...]]:
    plain = [] if "pflash" in loads_as else ["its size is no multiple of 4 KiB: no flash holds it"]
    encrypted_state = []
    if not any(entries.get(_SEV_ES_RESET, b"")):
        encrypted_state.append("its GUIDed table has no SEV-ES reset address")
    if bits != 64:
        what = "starts in 32-bit code" if bits == 32 else "has no module to start in"
        encrypted_state.append(f"it {what}: SEV-ES needs a 64-bit build (OvmfPkgX64, AmdSevX64)")
    nested = list(encrypted_state)
    if metadata is None:
        version = "of a known version " if _SEV_METADATA in entries else ""
        nested.append(f"it has no SEV metadata {version}to prepare an SNP launch from")
    else:
        found = {section.type for section in metadata}
        missing = [_SECTION_NAMES[kind] for kind in _SNP_SECTIONS if kind not in found]
        if missing:
            nested.append(f"its SEV metadata have no section {', '.join(missing)}")
    if "bios" not in loads_as:
        nested.append("its size is no multiple of 64 KiB: -bios, which SNP needs, won't take it")
    return {
        "sev": tuple(plain),
        "sev-es": (*plain, *encrypted_state),
        "sev-snp": tuple(nested),
    }
