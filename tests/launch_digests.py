# SPDX-License-Identifier: Apache-2.0
"""Launch measurements computed from the specifications, for comparison: shares no code with sevkit.

SEV API 55766 (LAUNCH_UPDATE, LAUNCH_MEASURE), SEV-SNP ABI 56860 section 8.17.2 (PAGE_INFO), AMD APM
volume 2 table B-4 (the save area), target/i386/sev.c of QEMU (hash table, order of the pages),
arch/x86/kvm/svm/sev.c of Linux (what of a vCPU is synchronised), sev/ld_from_ovmf.go of
google/gce-tcb-verifier (GCE), pull requests 13 and 60 of virtee/sev-snp-measure (EC2, by its
makers). Addresses and sizes in bytes.
"""

import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence

PAGE = 4096
_MODELS = {
    (0x17, 0x01, 2): ("EPYC", "EPYC-v1", "EPYC-v2", "EPYC-v3", "EPYC-v4", "EPYC-IBPB"),
    (0x17, 0x31, 0): ("EPYC-Rome", "EPYC-Rome-v1", "EPYC-Rome-v2", "EPYC-Rome-v3"),
    (0x19, 0x01, 1): ("EPYC-Milan", "EPYC-Milan-v1", "EPYC-Milan-v2"),
    (0x19, 0x11, 0): ("EPYC-Genoa", "EPYC-Genoa-v1"),
    (0x1A, 0x00, 0): ("EPYC-Turin",),
}
MODELS = {name: numbers for numbers, names in _MODELS.items() for name in names}
"""Name of a CPU model → family, model, stepping: target/i386/cpu.c of QEMU."""


def _signature(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001_EAX: AMD APM volume 3, appendix E.3.2. A family above 15 is 15 and the rest
    in bits 27:20; the upper half of a model is in bits 19:16."""
    extended_model, base_model = divmod(model, 16)
    return (family - 15) << 20 | extended_model << 16 | 15 << 8 | base_model << 4 | stepping


SIGNATURES = {name: _signature(*numbers) for name, numbers in MODELS.items()}

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
_FIRST_ENTRY = 0xFFFFFFF0

EC2_UNTIL_2026, EC2, GCE = "ec2-until-2026", "ec2", "gce"


def _patches(vmm: str, entry: int) -> Mapping[int, tuple[str, int]]:
    """What another monitor than QEMU starts a vCPU with: offset → (struct format, value)."""
    if vmm == GCE:
        return {0x268: ("<Q", 0x70106), _RDX: ("<Q", 0x600)}
    rdx = 0 if vmm == EC2_UNTIL_2026 else 0x600
    made = {0x022: ("<H", 0x92), 0x092: ("<H", 0x83), _RDX: ("<Q", rdx)}
    return {**made, 0x012: ("<H", 0x9A)} if entry == _FIRST_ENTRY else made


def save_area(
    entry: int, signature: int, features: int, *, with_fpu: bool = True, vmm: str = "qemu"
) -> bytes:
    """A VMSA page of a vCPU that starts at `entry`."""
    page = bytearray(PAGE)
    for offset, (size, value) in _RESET_STATE.items():
        page[offset : offset + size] = value.to_bytes(size, "little")
    for offset, (attributes, limit) in _SEGMENTS.items():
        struct.pack_into("<HI", page, offset + 2, attributes, limit)
    struct.pack_into("<Q", page, 0x018, entry & 0xFFFF0000)  # CS base
    struct.pack_into("<Q", page, _RIP, entry & 0xFFFF)
    struct.pack_into("<Q", page, _RDX, signature)
    struct.pack_into("<Q", page, _FEATURES, features)
    if with_fpu and vmm == "qemu":
        struct.pack_into("<I", page, _MXCSR, 0x1F80)
        struct.pack_into("<H", page, _FCW, 0x37F)
    if vmm != "qemu":
        for offset, (form, value) in _patches(vmm, entry).items():
            struct.pack_into(form, page, offset, value)
    return bytes(page)


def save_areas(
    vcpus: int,
    reset: int,
    signature: int,
    features: int,
    *,
    with_fpu: bool = True,
    vmm: str = "qemu",
) -> list[bytes]:
    """The pages of all vCPUs: the first starts at the reset vector."""
    return [
        save_area(
            reset if number else _FIRST_ENTRY, signature, features, with_fpu=with_fpu, vmm=vmm
        )
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

    def sections(
        self,
        sections: Sequence[tuple[int, int, int]],
        table: bytes,
        place: int,
        vmm: str = "qemu",
    ) -> None:
        """Pages of base, size and type; `table` goes to the address `place`.

        EC2 adds the CPUID page after all others; GCE adds memory without measuring what is in it.
        """
        if vmm in (EC2, EC2_UNTIL_2026):
            sections = sorted(sections, key=lambda section: section[2] == 3)
        for base, size, kind in sections:
            if kind == 16 and table:
                page = bytearray(PAGE)
                page[place - base : place - base + len(table)] = table
                self.page(1, base, bytes(page))
            elif kind in (2, 3):
                self.page({2: 5, 3: 6}[kind], base, None)
            else:
                for address in range(base, base + size, PAGE):
                    self.page(4 if vmm == GCE and kind == 1 else 3, address, None)

    def save_areas(self, areas: Sequence[bytes]) -> str:
        for area in areas:
            self.page(2, 0xFFFFFFFFF000, area)
        return self.digest.hex()
