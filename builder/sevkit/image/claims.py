# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of its firmware, held against the firmware's bytes.

Refuses what the bytes contradict. That firmware stops at a bad hash shows only in a guest, so a
claim that fits the bytes is not proven by that; whose claim it is says the signature.
"""

import json
from collections.abc import Iterator
from typing import Any

from sevkit.firmware.ovmf import parse
from sevkit.firmware.verifier import LOADER, Verifier, verifier
from sevkit.image.shape import Manifest

_FOUND = {
    Verifier.NO_PLACE: "has no place for them",
    Verifier.NONE: f"holds a {LOADER} that looks at none",
    Verifier.UNKNOWN: f"holds no {LOADER} that could look at them",
}


def contradictions(manifest: Manifest, firmware: bytes, name: str) -> Iterator[str]:
    """What `manifest` says, and `firmware`, the bytes of the file `name`, is not, a line each.

    Raises `ImageError` when it is no OVMF image.
    """
    facts = parse(firmware, name)
    stated = manifest.firmware.model_dump(mode="json")
    found: dict[str, Any] = json.loads(json.dumps(facts.record()))
    del found["verifies_kernel_hashes"]
    for key, value in found.items():
        if stated[key] != value:
            yield f"firmware.{key} is {_text(value)}, not {_text(stated[key])}"
    places = facts.kernel_hashes
    for mode, launch in manifest.launch.modes.items():
        has_place = places is not None and (mode != "sev-snp" or places.for_snp)
        if launch.kernel_hashes != has_place:
            yield f"launch.modes.{mode}.kernel_hashes is {_text(has_place)}"
    claims = {
        "firmware.verifies_kernel_hashes": manifest.firmware.verifies_kernel_hashes,
        "launch.measured": manifest.launch.measured,
    }
    if any(claims.values()) and (verdict := verifier(firmware, name)) in _FOUND:
        for claim in filter(claims.get, claims):
            yield f"{claim} is not true: it {_FOUND[verdict]}"


def _text(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
