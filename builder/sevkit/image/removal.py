# SPDX-License-Identifier: Apache-2.0
"""Says what of an output folder a build has put there: images, proofs and logs, file by file.

The folder is whatever the user named, so what is ours is told by name and by content.
"""

import re
from pathlib import Path

from sevkit.clearing import Clearing, is_folder
from sevkit.errors import RecipeError
from sevkit.image.manifest import MANIFEST, SIGNATURE, SUMS
from sevkit.image.output import BUILD_ID_DIGITS

_IMAGE = re.compile(rf".+-[0-9a-f]{{{BUILD_ID_DIGITS}}}")
_LOG = re.compile(r".+\.log|reproduce-.+\.txt")
_DIGEST_AND_BLANKS = 64 + 2


def images_to_remove(output: Path) -> Clearing:
    """All images, proofs and logs in `output`.

    Raises `RecipeError` where there is something in it, and none of these.
    """
    clearing = Clearing()
    for path in sorted(output.iterdir()):
        if path.name == ".log" and is_folder(path):
            clearing.sort(path, lambda name: _LOG.fullmatch(name) is not None)
        elif is_folder(path) and any(map(_is_of_recipe, path.iterdir())):
            _add_recipe(path, clearing)
        else:
            clearing.left.append(path)
    if clearing.left and not clearing.ours:
        raise RecipeError(
            f"{output} holds no image and no log of sevkit: nothing was deleted",
            why="\n".join(map(str, clearing.left[:5])),
            hint="sevkit --output FOLDER clean, with the folder that images were built into",
        )
    clearing.close(output)
    return clearing


def _add_recipe(folder: Path, clearing: Clearing) -> None:
    for path in sorted(folder.iterdir()):
        if not _is_of_recipe(path):
            clearing.left.append(path)
        elif _is_image(path):
            clearing.sort(path, {MANIFEST, SIGNATURE, SUMS, *_listed(path / SUMS)}.__contains__)
        else:
            clearing.ours.append(path)
    clearing.close(folder)


def _is_of_recipe(path: Path) -> bool:
    """Whether a build, or `prove`, has put `path` into the folder of a recipe."""
    if path.name == "latest":
        return path.is_symlink() and _IMAGE.fullmatch(path.readlink().name) is not None
    if path.name.endswith(".proof.json"):
        return _IMAGE.fullmatch(path.name.removesuffix(".proof.json")) is not None
    return path.name.startswith(".draft-") or _is_image(path)


def _is_image(path: Path) -> bool:
    named = _IMAGE.fullmatch(path.name) is not None
    return named and is_folder(path) and (path / MANIFEST).is_file()


def _listed(sums: Path) -> list[str]:
    """The names in SHA256SUMS; none where it is damaged, and what it listed is left then."""
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [line[_DIGEST_AND_BLANKS:] for line in lines]
