# SPDX-License-Identifier: Apache-2.0
"""QEMU's firmware descriptor, by which libvirt finds firmware for a domain.

Format: docs/interop/firmware.json of QEMU. One file has one mapping, so it is for one mode: SEV and
SEV-ES take a stateless flash, SEV-SNP takes memory (-bios).
"""

import json

from sevkit.exports.subject import Subject

FEATURES = {"sev": "amd-sev", "sev-es": "amd-sev-es", "sev-snp": "amd-sev-snp"}


def descriptor(subject: Subject) -> bytes:
    """The descriptor of the image's firmware for the mode of `subject`."""
    spec, path = subject.spec, str(subject.spec.firmware)
    in_flash = spec.in_flash(subject.mode)
    modes = [mode for mode in subject.manifest.possible_modes if spec.in_flash(mode) is in_flash]
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
