# SPDX-License-Identifier: Apache-2.0
"""Firmware whose verifier does not do its work: the module is there, its code is changed.

Takes AmdSev firmware as sev-guest builds it, changes a few instructions of QemuKernelLoaderFsDxe in
its compressed volume, and packs that again. To look at, nothing is wrong with it.
"""

import lzma
import re
from collections.abc import Callable

from sevkit.firmware.modules import contents
from sevkit.firmware.verifier import LOADER
from sevkit.firmware.volumes import sections

LZMA = bytes.fromhex("98584eee143959429d6edc7bd79403cf")
_PE32 = 0x10
_EXTREME = {
    "id": lzma.FILTER_LZMA1,
    "preset": 9 | lzma.PRESET_EXTREME,
    "dict_size": 1 << 24,
    "nice_len": 273,
    "depth": 1000,
}

Change = Callable[[bytes], bytes]


def recompressed(module: bytes) -> bytes:
    """Nothing is changed: what is left of a refusal then is not the packing's doing."""
    return module


def accepting(module: bytes) -> bytes:
    """A hash that differs is taken for one that fits.

    BlobVerifierSevHashes.c: test %rax, %rax (of CompareMem); je; sub $32, %rsp; call CpuDeadLoop.
    """
    return _changed(module, rb"\x48\x85\xc0\x0f\x84(?=....\x48\x83\xec\x20\xe8)", b"\x90\xe9", 3)


def passing_over(module: bytes) -> bytes:
    """A bad hash is an error as any other, after which EDK2 looks for something else to start.

    CpuDeadLoop.c: pause; jmp back; leave; ret.
    """
    return _changed(module, rb"\xf3\x90\xeb.(?=\xc9\xc3)", b"\x90\x90", 2)


def weakened(firmware: bytes, change: Change) -> bytes:
    """The image with its loader changed. Raises `LookupError` when the code is another."""
    [loader] = [content for name, content in contents(firmware, "x") if name == LOADER]
    [module] = [section for kind, section in sections(loader) if kind == _PE32]
    start = firmware.index(LZMA)
    head = int.from_bytes(firmware[start - 4 : start - 1], "little")
    size = head if head != 0xFFFFFF else int.from_bytes(firmware[start - 8 : start - 4], "little")
    before = 4 if head != 0xFFFFFF else 8
    data = start - before + int.from_bytes(firmware[start + 16 : start + 18], "little")
    room = start - before + size - data
    unpacked = lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(firmware[data : data + room])
    assert unpacked.count(module) == 1
    changed = unpacked.replace(module, change(module))
    packed = bytearray(lzma.compress(changed, lzma.FORMAT_ALONE, filters=[_EXTREME]))
    packed[5:13] = len(changed).to_bytes(8, "little")  # else "unknown", which EDK2 can't read
    assert len(packed) <= room, (len(packed), room)
    return firmware[:data] + packed.ljust(room, b"\0") + firmware[data + room :]


def _changed(module: bytes, code: bytes, new: bytes, at: int) -> bytes:
    found = list(re.finditer(code, module, re.DOTALL))
    if len(found) != 1:
        raise LookupError(f"the code to change is there {len(found)} times")
    place = found[0].start() + at
    return module[:place] + new + module[place + len(new) :]
