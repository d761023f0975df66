# SPDX-License-Identifier: Apache-2.0
"""Made-up images for tests of exports."""

import shutil
from pathlib import Path
from typing import Any

from sevkit.image.manifest import load, text_of, write_sums
from sevkit.image.shape import Manifest

HASHED = {
    "kernel_hashes": {"base": 0x810C00, "size": 1024, "for_snp": True},
    "verifies_kernel_hashes": True,
}


def changed(image: Path, to: Path, **facts: Any) -> Path:
    """A copy of an image whose manifest says something else, and whose sums agree."""
    shutil.copytree(image, to)
    made = load(image).model_dump(mode="python")
    for path, value in facts.items():
        place = made
        *folders, last = path.split("__")
        for name in folders:
            place = place[name]
        place[last] = {**place[last], **value} if isinstance(value, dict) else value
    (to / "manifest.json").chmod(0o644)
    (to / "manifest.json").write_text(text_of(Manifest.model_validate(made)))
    write_sums(to)
    return to


def hashed_image(plain: Path, to: Path) -> Path:
    """A copy of an image as if its firmware measured and checked the kernel."""
    rows = [row.model_dump() | {"covers": "kernel"} for row in load(plain).measurements]
    modes = load(plain).launch.modes
    return changed(
        plain,
        to,
        firmware=HASHED,
        measurements=tuple(rows),
        launch__modes={
            mode: facts.model_dump() | {"kernel_hashes": True} for mode, facts in modes.items()
        },
    )
