# SPDX-License-Identifier: Apache-2.0
"""Launch measurements computed from the specifications, for comparison: shares no code with sevkit.

SEV API 55766 (LAUNCH_UPDATE, LAUNCH_MEASURE), SEV-SNP ABI 56860 section 8.17.2 (PAGE_INFO), AMD APM
volume 2 table B-4 (the save area), target/i386/sev.c of QEMU (hash table, order of the pages),
arch/x86/kvm/svm/sev.c of Linux (what of a vCPU is synchronised). Addresses and sizes in bytes.
"""

import hashlib
import struct
import uuid
from collections.abc import Sequence

PAGE = 4096
SIGNATURES = {"EPYC-v4": 0x800F12, "EPYC-Milan": 0xA00F11, "EPYC-Genoa": 0xA10F10}
"""CPUID Fn0000_0001_EAX of QEMU's models, target/i386/cpu.c."""

# APM volume 2, table B-4: offset in the save area → (size, value after INIT), but for CS and RIP.
_RESET_STATE = {
    0x010: (2, 0xF000),  # CS selector
    0x0D0: (8, 0x1000),  # EFER: SVME
    0x148: (8, 0x40),  # CR4: MCE
    0x158: (8, 0x10),  # CR0: ET
    0x160: (8, 0x400),  # DR7
    0x168: (8, 0xFFFF0FF0),  # DR6
    0x170: (8, 2),  # RFLAGS
    0x268: (8, 0x7040600070406),  # G_PAT
    0x3E8: (8, 1),  # XCR0
}
_SEGMENTS = {  # offset → (attributes, limit)
    0x000: (0x93, 0xFFFF),  # ES
    0x010: (0x9B, 0xFFFF),  # CS
    0x020: (0x93, 0xFFFF),  # SS
    0x030: (0x93, 0xFFFF),  # DS
    0x040: (0x93, 0xFFFF),  # FS
    0x050: (0x93, 0xFFFF),  # GS
    0x060: (0, 0xFFFF),  # GDTR
    0x070: (0x82, 0xFFFF),  # LDTR
    0x080: (0, 0xFFFF),  # IDTR
    0x090: (0x8B, 0xFFFF),  # TR
}
_RDX, _FEATURES, _RIP, _MXCSR, _FCW = 0x310, 0x3B0, 0x178, 0x408, 0x410


def save_area(entry: int, signature: int, features: int, *, with_fpu: bool = True) -> bytes:
    """A VMSA page of a vCPU of QEMU that starts at `entry`."""
    page = bytearray(PAGE)
    for offset, (size, value) in _RESET_STATE.items():
        page[offset : offset + size] = value.to_bytes(size, "little")
    for offset, (attributes, limit) in _SEGMENTS.items():
        struct.pack_into("<HI", page, offset + 2, attributes, limit)
    struct.pack_into("<Q", page, 0x018, entry & 0xFFFF0000)  # CS base
    struct.pack_into("<Q", page, _RIP, entry & 0xFFFF)
    struct.pack_into("<Q", page, _RDX, signature)
    struct.pack_into("<Q", page, _FEATURES, features)
    if with_fpu:
        struct.pack_into("<I", page, _MXCSR, 0x1F80)
        struct.pack_into("<H", page, _FCW, 0x37F)
    return bytes(page)


def save_areas(
    vcpus: int, reset: int, signature: int, features: int, *, with_fpu: bool = True
) -> list[bytes]:
    """The pages of all vCPUs: the first starts at the reset vector."""
    return [
        save_area(reset if number else 0xFFFFFFF0, signature, features, with_fpu=with_fpu)
        for number in range(vcpus)
    ]


def hash_table(kernel: bytes, initrd: bytes, cmdline: str) -> bytes:
    """The 176 bytes that QEMU puts where the firmware says."""
    rows = [
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", cmdline.encode("ascii") + b"\0"),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd),
        ("4de79437-abd2-427f-b835-d5b172d2045b", kernel),
    ]
    made = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le + (168).to_bytes(2, "little")
    for guid, data in rows:
        made += uuid.UUID(guid).bytes_le + (50).to_bytes(2, "little")
        made += hashlib.sha256(data).digest()
    return made + bytes(8)


def sev(firmware: bytes, table: bytes, areas: Sequence[bytes] = ()) -> str:
    """The launch measurement before its HMAC: SHA-256 of all that is encrypted, in order."""
    return hashlib.sha256(firmware + table + b"".join(areas)).hexdigest()


class Snp:
    """The launch digest, grown page by page."""

    def __init__(self, digest: bytes = bytes(48)):
        self.digest = digest

    def page(self, kind: int, address: int, data: bytes | None) -> None:
        contents = bytes(48) if data is None else hashlib.sha384(data).digest()
        info = self.digest + contents + struct.pack("<HBBBBBB", 0x70, kind, 0, 0, 0, 0, 0)
        self.digest = hashlib.sha384(info + struct.pack("<Q", address)).digest()

    def firmware(self, data: bytes) -> None:
        for offset in range(0, len(data), PAGE):
            self.page(1, (1 << 32) - len(data) + offset, data[offset : offset + PAGE])

    def sections(self, sections: Sequence[tuple[int, int, int]], table: bytes, place: int) -> None:
        """Pages of base, size and type; `table` goes to the address `place`."""
        for base, size, kind in sections:
            if kind == 16 and table:
                page = bytearray(PAGE)
                page[place - base : place - base + len(table)] = table
                self.page(1, base, bytes(page))
            elif kind in (2, 3):
                self.page({2: 5, 3: 6}[kind], base, None)
            else:
                for address in range(base, base + size, PAGE):
                    self.page(3, address, None)

    def save_areas(self, areas: Sequence[bytes]) -> str:
        for area in areas:
            self.page(2, 0xFFFFFFFFF000, area)
        return self.digest.hex()
