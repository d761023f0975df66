# SPDX-License-Identifier: Apache-2.0
"""QEMU's firmware descriptor, by which libvirt finds firmware for a domain.

Format: docs/interop/firmware.json of QEMU. One file has one mapping, so it is for one mode: SEV and
SEV-ES take a stateless flash, SEV-SNP takes memory (-bios).
"""

import json

from sevkit.exports.subject import Subject

FEATURES = {"sev": "amd-sev", "sev-es": "amd-sev-es", "sev-snp": "amd-sev-snp"}
_FLASH_MODES = ("sev", "sev-es")


def descriptor(subject: Subject) -> bytes:
    """The descriptor of the image's firmware for the mode of `subject`."""
    path = str(subject.spec.firmware)
    in_flash = subject.mode in _FLASH_MODES or (
        subject.mode is None and subject.spec.firmware_is_flash
    )
    alike = _FLASH_MODES if in_flash else ("sev-snp",)
    modes = [mode for mode in subject.manifest.possible_modes if mode in alike]
    record = {
        "description": "; ".join(subject.notes()),
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "mode": "stateless",
            "executable": {"filename": path, "format": "raw"},
        }
        if in_flash
        else {"device": "memory", "filename": path},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [FEATURES[mode] for mode in modes],
        "tags": [f"sha256={subject.manifest.firmware.sha256}"],
    }
    return json.dumps(record, indent=4).encode() + b"\n"
