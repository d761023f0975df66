# SPDX-License-Identifier: Apache-2.0
"""The OVMF images that a host has for other programs, and whether they check kernel hashes.

No image of ours needs them. Who lets libvirt choose firmware should know what it chooses from: a
descriptor says "amd-sev" of firmware that boots any kernel too.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sevkit.errors import ImageError
from sevkit.firmware.ovmf import parse, read_bytes
from sevkit.firmware.verifier import verifier

_DESCRIPTORS = ("usr/share/qemu/firmware", "etc/qemu/firmware")
"""docs/interop/firmware.json of QEMU: a file in the latter hides one of that name in the former."""
_IMAGES = ("usr/share/ovmf", "usr/share/OVMF", "usr/share/edk2/ovmf")
"""Where Debian and Fedora put them."""
_DESCRIPTOR_LIMIT_BYTES = 1 << 20


def host_firmware(host: Path) -> dict[str, str]:
    """Path → modes that the firmware can be launched in, its verifier, what a descriptor claims.

    Of images that a descriptor says are for SEV, and of those in the usual folders. `host` is where
    /usr and /etc are. What is damaged is told in place of the modes.
    """
    claims = dict(_claims(host))
    usual = {
        f"/{folder}/{path.name}"
        for folder in _IMAGES
        for path in (host / folder).glob("OVMF*.fd")
        if "VARS" not in path.name
    }
    found = {}
    for name in sorted(usual | claims.keys()):
        words = [_said_of(host / name.removeprefix("/"))]
        if name in claims:
            words.append(f"described as {', '.join(claims[name])}")
        found[name] = "; ".join(words)
    return found


def _said_of(path: Path) -> str:
    try:
        data = read_bytes(path)
        problems = parse(data, "it").problems
        verdict = verifier(data, "it").value
    except ImageError as error:
        return ": ".join([error.what.replace(str(path), "it"), *error.why.splitlines()[:1]])
    modes = [mode for mode, found in problems.items() if not found]
    return f"{', '.join(modes) or 'no SEV'}; {verdict}"


def _claims(host: Path) -> Iterator[tuple[str, list[str]]]:
    """Path of an image, and the features of SEV that its descriptor lists."""
    files = {path.name: path for folder in _DESCRIPTORS for path in (host / folder).glob("*.json")}
    for path in files.values():
        try:
            with path.open("rb") as file:
                record = json.loads(file.read(_DESCRIPTOR_LIMIT_BYTES))
            mapping = record["mapping"]
            name = mapping.get("filename") or mapping["executable"]["filename"]
            features = [str(each) for each in record["features"] if "amd-sev" in str(each)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        if features and isinstance(name, str):
            yield name, features
