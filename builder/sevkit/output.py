# SPDX-License-Identifier: Apache-2.0
"""Image directories: `output/<name>/<version>-<build id>/`, published at once, never changed.

A debug image says so in the name of its directory: `<version>-debug-<build id>`. `latest` in the
same folder is a symbolic link to the one published last.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from sevkit.errors import ImageError, RecipeError
from sevkit.stage import Plan, Stage

BUILD_ID_DIGITS = 12


def image_dir(output: Path, plan: Plan) -> Path:
    """Where the image of `plan` is or will be published."""
    recipe, stage = plan.recipe, plan.stage("image")
    variant = "debug-" if recipe.debug else ""
    return output / recipe.name / f"{recipe.version}-{variant}{build_id(stage)}"


def build_id(stage: Stage) -> str:
    """The first 12 hex digits of the image stage's key."""
    return stage.key[:BUILD_ID_DIGITS]


def publish(data: Path, image: Path) -> bool:
    """Copy the files of `data` to the new directory `image`, visible all at once.

    Returns False when the same image is there already. Raises `ImageError` when the directory is
    there with other bytes: a published image is never overwritten.
    """
    from sevkit.manifest import verify

    if image.exists():
        differences = verify(image)
        if differences:
            raise ImageError(
                f"{image} was changed after it was published",
                why="\n".join(differences),
                hint=f"move it away or delete it, then build again: rm -r {image}",
            )
        return False
    image.parent.mkdir(parents=True, exist_ok=True)
    draft = image.parent / f".{image.name}.{secrets.token_hex(4)}"
    try:
        draft.mkdir()
        for file in sorted(data.iterdir()):
            shutil.copyfile(file, draft / file.name)
            (draft / file.name).chmod(0o444)
            _fsync(draft / file.name)
        differences = verify(draft)
        if differences:
            raise ImageError(f"{image} could not be written whole", why="\n".join(differences))
        _fsync(draft)
        try:
            draft.rename(image)
        except OSError:
            if not image.exists():
                raise
            return publish(data, image)
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return True


def point_latest(image: Path) -> None:
    """Make `latest` beside `image` point at it."""
    link = image.parent / "latest"
    with contextlib.suppress(OSError):
        if os.readlink(link) == image.name:  # noqa: PTH115
            return
    draft = image.parent / f".latest.{secrets.token_hex(4)}"
    draft.symlink_to(image.name)
    draft.replace(link)


def find_image(name: str, output: Path) -> Path:
    """The image directory that `name` means: a path, or the latest image of a recipe's name.

    Raises `RecipeError` when there is none.
    """
    path = Path(name)
    for candidate in (path, output / name / "latest"):
        if (candidate / "manifest.json").is_file():
            return candidate.resolve()
    if path.is_dir() and (path / "latest" / "manifest.json").is_file():
        return (path / "latest").resolve()
    raise RecipeError(
        f"there is no image '{name}'",
        why=f"neither {path}/manifest.json nor {output / name}/latest/manifest.json exists",
        hint=f"sevkit build {path.name}",
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
