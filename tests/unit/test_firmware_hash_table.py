# SPDX-License-Identifier: Apache-2.0
"""The table of kernel hashes, field by field, and what QEMU writes into a kernel's header."""

import hashlib
import struct
import uuid

import pytest

from sevkit.firmware.hash_table import SIZE, hash_table, patched_kernel

KERNEL = bytes(0x202) + b"HdrS" + bytes(0x100)


def field(kernel: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", kernel, at)[0])


def test_the_table_holds_three_digests_under_their_names_and_is_padded() -> None:
    table = hash_table(b"kernel", b"initrd", "console=ttyS0")
    assert len(table) == SIZE == 176
    assert uuid.UUID(bytes_le=table[:16]) == uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
    assert table[16:18] == (168).to_bytes(2, "little")
    assert table[168:] == bytes(8)
    rows = [table[start : start + 50] for start in (18, 68, 118)]
    assert [row[16:18] for row in rows] == [(50).to_bytes(2, "little")] * 3
    assert {str(uuid.UUID(bytes_le=row[:16])): row[18:].hex() for row in rows} == {
        "97d02dd8-bd20-4c94-aa78-e7714d36ab2a": hashlib.sha256(b"console=ttyS0\0").hexdigest(),
        "44baf731-3a2f-4bd7-9af1-41e29169781d": hashlib.sha256(b"initrd").hexdigest(),
        "4de79437-abd2-427f-b835-d5b172d2045b": hashlib.sha256(b"kernel").hexdigest(),
    }


def test_one_changed_byte_anywhere_is_another_table() -> None:
    tables = {
        hash_table(b"k", b"i", "c"),
        hash_table(b"K", b"i", "c"),
        hash_table(b"k", b"", "c"),
        hash_table(b"k", b"i", "c "),
    }
    assert len(tables) == 4


@pytest.mark.parametrize(
    ("memory_mib", "low"),
    [(512, 512 << 20), (2815, 2815 << 20), (2816, 2048 << 20), (16384, 2048 << 20)],
)
def test_the_initrd_lies_as_high_as_it_can_below_the_acpi_tables(memory_mib: int, low: int) -> None:
    patched = patched_kernel(KERNEL, initrd_bytes=5000, memory_mib=memory_mib)
    address = field(patched, 0x218)
    assert field(patched, 0x21C) == 5000
    assert address % 4096 == 0
    assert address + 5000 < low - 0x28000 <= address + 5000 + 4096 + 1


def test_without_an_initrd_its_fields_stay_and_the_others_are_set() -> None:
    patched = patched_kernel(KERNEL, initrd_bytes=0, memory_mib=512)
    assert patched[0x210:0x212] == b"\xb0\x80"
    assert (field(patched, 0x218), field(patched, 0x228)) == (0, 0x20000)
    assert len(patched) == len(KERNEL)


def test_what_is_no_kernel_is_handed_on_as_it_is() -> None:
    assert patched_kernel(b"short", initrd_bytes=1, memory_mib=512) == b"short"
