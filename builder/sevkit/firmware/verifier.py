# SPDX-License-Identifier: Apache-2.0
"""Whether firmware holds the code that compares kernel, initramfs and command line with hashes.

A look, never a proof: code that names all three hashes may still go on after a bad one, as EDK2's
did before edk2-stable202408. Only a guest that was seen to be refused shows that it does not.

Source: OvmfPkg/AmdSev/BlobVerifierLibSevHashes/BlobVerifierSevHashes.c of EDK2, linked into
OvmfPkg/QemuKernelLoaderFsDxe; a verifier that checks nothing (BlobVerifierLibNull) names no hash.
"""

import re
from collections.abc import Sequence
from enum import Enum

from sevkit.firmware import hash_table
from sevkit.firmware.modules import contents
from sevkit.firmware.ovmf import FirmwareFacts, Mode, parse

LOADER = "QemuKernelLoaderFsDxe"
"""The module that takes the kernel from QEMU."""

_HASHES = (hash_table.CMDLINE, hash_table.INITRD, hash_table.KERNEL)
_HALTS_FROM = (2024, 8)
"""edk2-stable202408: the loader stops at a blob that fits no hash, instead of leaving it out."""
_CODE_HALVES = (0xE0000, 0x1E0000, 0x37C000)
"""CODE_SIZE in OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc, of images of 1, 2 and 4 MiB."""
_VERSION = re.compile(r"(20[0-9]{2})\.([0-9]{2})\b")


class Verifier(Enum):
    """What was found. The values are what JSON says."""

    NO_PLACE = "no-place"
    """There is no place for the hashes: a host can't hand them over."""
    NONE = "advertises-but-does-not-verify"
    """There is a place, and a loader that looks at no hash."""
    PRESENT = "holds-verifier"
    """There is a place, and a loader that knows all three hashes."""
    UNKNOWN = "unknown"
    """There is a place, and no loader was found: its volume can't be read, or it has none."""


def verifier(data: bytes, name: str) -> Verifier:
    """What the image `data` does about hashes. Raises `ImageError` when it is no OVMF image."""
    if parse(data, name).kernel_hashes is None:
        return Verifier.NO_PLACE
    loaders = [content for module, content in contents(data, name) if module == LOADER]
    if not loaders:
        return Verifier.UNKNOWN
    knows = all(guid.bytes_le in loader for loader in loaders for guid in _HASHES)
    return Verifier.PRESENT if knows else Verifier.NONE


def halts(version: str | None) -> bool | None:
    """Whether a verifier of that edk2 version stops at a bad hash; None when it can't be told.

    `version` is that of a Debian package: ``2025.02-8+deb13u1``, after edk2's stable tags.
    """
    match = _VERSION.match((version or "").rpartition(":")[2])
    return None if match is None else (int(match[1]), int(match[2])) >= _HALTS_FROM


def lacks_verifier(found: Verifier) -> bool:
    """Whether firmware is known to start what fits no hash."""
    return found in (Verifier.NO_PLACE, Verifier.NONE)


def measured_boot_problems(
    facts: FirmwareFacts, found: Verifier, version: str | None, modes: Sequence[Mode]
) -> list[str]:
    """Why boot can't be called measured in `modes` with this firmware, a line each.

    That there is no reason here does not mean that it can: a guest that was refused shows that.
    """
    problems = []
    if found is Verifier.NO_PLACE:
        problems.append("it has no table of hashes: a host can't hand them over")
    if found is Verifier.NONE:
        problems.append("it takes hashes and checks none: any kernel boots with a good digest")
    if found is Verifier.UNKNOWN:
        problems.append(f"it takes hashes, and holds no {LOADER} that could check them")
    if found is Verifier.PRESENT and halts(version) is False:
        problems.append(f"its verifier, of edk2 {version}, goes on after a bad hash: 2024.08 stops")
    places = facts.kernel_hashes
    if places is not None and not places.for_snp and "sev-snp" in modes:
        problems.append("its SEV metadata has no section for kernel hashes, which sev-snp needs")
    if "bios" not in facts.loads_as or _is_code_half(facts):
        problems.append("it is one half of a split build, and one whole file is needed")
    return problems


def _is_code_half(facts: FirmwareFacts) -> bool:
    return not facts.has_variable_store and facts.size in _CODE_HALVES
