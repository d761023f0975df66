# SPDX-License-Identifier: Apache-2.0
"""Whether firmware holds the code that compares kernel, initramfs and command line with hashes.

A look, never a proof: code that names all three hashes may still go on after a bad one, as EDK2's
did before edk2-stable202408. Only a guest that was seen to refuse shows more.

Source: OvmfPkg/AmdSev/BlobVerifierLibSevHashes/BlobVerifierSevHashes.c of EDK2, linked into
OvmfPkg/QemuKernelLoaderFsDxe; a verifier that checks nothing (BlobVerifierLibNull) names no hash.
"""

from enum import Enum
from uuid import UUID

from sevkit.firmware_modules import contents
from sevkit.ovmf import parse

LOADER = "QemuKernelLoaderFsDxe"
"""The module that takes the kernel from QEMU."""

_HASHES = (
    UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a"),
    UUID("44baf731-3a2f-4bd7-9af1-41e29169781d"),
    UUID("4de79437-abd2-427f-b835-d5b172d2045b"),
)
"""Names of the entries for command line, initramfs and kernel."""


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
