# SPDX-License-Identifier: Apache-2.0
"""Whether an image is as it was published: every byte of its files, and every launch digest.

The one meaning of the words, for whoever checks an image, signs it, copies it, or hands on what its
manifest says. Damage and carelessness show here; whose image it is says its signature alone.
"""

from pathlib import Path

from sevkit.errors import ImageError
from sevkit.image.manifest import Manifest, load, verify
from sevkit.image.measured import measurement_differences


def differences(folder: Path) -> list[str]:
    """What differs between an image directory and what it says of itself, a line each.

    Launch digests are computed once more where the files are right: without them they say nothing.
    Raises `ImageError` when `folder` can't be read at all.
    """
    return verify(folder) or measurement_differences(folder, load(folder))


def published(folder: Path) -> Manifest:
    """The manifest of an image that is as it was published. Raises `ImageError` for another."""
    manifest = load(folder)
    if found := differences(folder):
        raise ImageError(f"{folder} is not as it was published", why="\n".join(found))
    return manifest
