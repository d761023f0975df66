# SPDX-License-Identifier: Apache-2.0
"""The table of kernel hashes that a SEV host puts into guest memory for the firmware to check.

With it firmware that refuses what it can't check boots, and refuses, without SEV as with it.
Computes bytes; starts nothing. Layout: struct SevHashTable in QEMU's target/i386/sev.c and
OvmfPkg/AmdSev/BlobVerifierLibSevHashes/BlobVerifierSevHashes.c.
"""

import hashlib
import struct
from collections.abc import Sequence
from uuid import UUID

SIZE = 176
"""Bytes: a header, three entries, and padding to a multiple of 16."""

CMDLINE = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
INITRD = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
KERNEL = UUID("4de79437-abd2-427f-b835-d5b172d2045b")
"""Names of the entries."""

_TABLE = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_HEADER = struct.Struct("<16sH")
_DIGEST_BYTES = 32
_ENTRY_BYTES = _HEADER.size + _DIGEST_BYTES
_USED_BYTES = _HEADER.size + 3 * _ENTRY_BYTES

_UNPATCHED_FROM = (10, 0)
"""The first QEMU that offers the kernel as it is in its file too (fw_cfg etc/boot/kernel, in
hw/i386/x86-common.c); firmware from edk2-stable202502 on takes that one."""

_MIB = 1 << 20
_Q35_LOW_BYTES = 0x8000_0000
_Q35_GAP_FROM_BYTES = 0xB000_0000
_ACPI_BYTES = 0x28000


def hash_table(kernel: bytes, initrd: bytes, cmdline: str) -> bytes:
    """The table: SHA-256 of the command line with its NUL, of the initrd (of nothing when there
    is none) and of the kernel, as the firmware will see them."""
    entries = [(CMDLINE, cmdline.encode() + b"\0"), (INITRD, initrd), (KERNEL, kernel)]
    table = _HEADER.pack(_TABLE.bytes_le, _USED_BYTES)
    for guid, data in entries:
        table += _HEADER.pack(guid.bytes_le, _ENTRY_BYTES)
        table += hashlib.sha256(data).digest()
    return table.ljust(SIZE, b"\0")


def table_without_sev(
    kernel: bytes, initrd: bytes, cmdline: str, *, memory_mib: int, qemu_version: Sequence[int]
) -> bytes:
    """The table for a launch without SEV by a QEMU of that version, which decides which kernel the
    firmware sees; 7.2 when nobody says."""
    if tuple(qemu_version) < _UNPATCHED_FROM:
        kernel = patched_kernel(kernel, initrd_bytes=len(initrd), memory_mib=memory_mib)
    return hash_table(kernel, initrd, cmdline)


def patched_kernel(kernel: bytes, *, initrd_bytes: int, memory_mib: int) -> bytes:
    """The kernel as QEMU's machine q35 hands it on without SEV: with its setup header filled in.

    x86_load_linux() in QEMU's hw/i386/x86.c; Documentation/arch/x86/boot.rst names the fields.
    With SEV the kernel is hashed as it is in its file.
    """
    if kernel[0x202:0x206] != b"HdrS":
        return kernel
    memory = memory_mib * _MIB
    low = min(memory, _Q35_LOW_BYTES if memory >= _Q35_GAP_FROM_BYTES else _Q35_GAP_FROM_BYTES)
    patched = bytearray(kernel)
    patched[0x210] = 0xB0  # type_of_loader: QEMU
    patched[0x211] |= 0x80  # loadflags: CAN_USE_HEAP
    struct.pack_into("<H", patched, 0x224, 0xFE00)  # heap_end_ptr
    struct.pack_into("<I", patched, 0x228, 0x20000)  # cmd_line_ptr
    if initrd_bytes:
        address = (low - _ACPI_BYTES - 1 - initrd_bytes) & ~0xFFF
        struct.pack_into("<II", patched, 0x218, address, initrd_bytes)  # ramdisk_image, _size
    return bytes(patched)
