# SPDX-License-Identifier: Apache-2.0
"""Made-up images for tests of exports."""

import shutil
from pathlib import Path
from typing import Any

from sevkit.image.manifest import load, text_of, write_sums
from sevkit.image.measured import measure_image
from sevkit.image.shape import Manifest


def changed(image: Path, to: Path, **facts: Any) -> Path:
    """A copy of an image whose manifest says something else, and whose sums agree.

    Its launch digests agree too, unless the facts are `measurements`.
    """
    shutil.copytree(image, to)
    made = load(image).model_dump(mode="python")
    for path, value in facts.items():
        place = made
        *folders, last = path.split("__")
        for name in folders:
            place = place[name]
        place[last] = {**place[last], **value} if isinstance(value, dict) else value
    manifest = Manifest.model_validate(made)
    if "measurements" not in facts:
        made["measurements"] = tuple(row.record() for row in measure_image(to, manifest))
        manifest = Manifest.model_validate(made)
    (to / "manifest.json").chmod(0o644)
    (to / "manifest.json").write_text(text_of(manifest))
    write_sums(to)
    return to
