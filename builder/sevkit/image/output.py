# SPDX-License-Identifier: Apache-2.0
"""Image directories: `output/<name>/<version>-<build id>/`, published at once, never changed.

A debug image says so in the name of its directory: `<version>-debug-<build id>`. `latest` in the
same folder is a symbolic link to the one published last. A killed build leaves nothing visible, and
the next one removes what it left.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sevkit.disk import fsync, full_disk_explained, remove, write_whole
from sevkit.errors import ImageError, RecipeError
from sevkit.stage import Plan, Stage

BUILD_ID_DIGITS = 12
_DRAFT = ".draft-"


def image_dir(output: Path, plan: Plan) -> Path:
    """Where the image of `plan` is or will be published."""
    recipe, stage = plan.recipe, plan.stage("image")
    return output / recipe.name / _dir_name(recipe.version, recipe.debug, build_id(stage))


def _dir_name(version: str, is_debug: bool, build_id: str) -> str:
    return f"{version}-{'debug-' if is_debug else ''}{build_id}"


def build_id(stage: Stage) -> str:
    """The first 12 hex digits of the image stage's key."""
    return stage.key[:BUILD_ID_DIGITS]


def publish(data: Path, image: Path, *, file_mode: int = 0o444) -> bool:
    """Copy the files of `data` to the new directory `image`, visible all at once.

    Returns False when the same image is there already. Raises `ImageError` when the directory is
    there with other bytes: a published image is never overwritten.
    """
    from sevkit.image.manifest import MANIFEST, verify

    with full_disk_explained(image.parent):
        image.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(image.parent):
            if image.exists():
                away = f"move it away or delete it, then try again: rm -r {image}"
                if differences := verify(image):
                    raise ImageError(
                        f"{image} was changed after it was published",
                        why="\n".join(differences),
                        hint=away,
                    )
                if (image / MANIFEST).read_bytes() != (data / MANIFEST).read_bytes():
                    raise ImageError(
                        f"{image} is there with other bytes",
                        why="it was forged, or the same inputs gave other bytes when it was built",
                        hint=away,
                    )
                return False
            draft = image.parent / f"{_DRAFT}{image.name}.{secrets.token_hex(4)}"
            try:
                _copy(data, draft, file_mode)
                if differences := verify(draft):
                    why = "\n".join(differences)
                    raise ImageError(f"{image} could not be written whole", why=why)
                draft.rename(image)
                fsync(image.parent)
            finally:
                remove(draft)
    return True


def install(image: Path, folder: Path) -> Path:
    """Publish a copy of `image` at `folder`/<name>/<version>-<build id>; where it is then.

    A copy that is there already gets the signature that `image` has now, and has none where that
    has none. Files have mode 0644 and new folders 0755, whatever the umask is, as packages want it.
    Raises `ImageError` when the image, or the copy that was there, is not as it was published.
    """
    from sevkit.image.manifest import SIGNATURE
    from sevkit.image.published import published

    manifest = published(image)
    name = _dir_name(manifest.version, manifest.is_debug, manifest.build_id)
    target = folder / manifest.name / name
    with full_disk_explained(folder):
        missing = [each for each in (target.parent, *target.parents[1:]) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            each.chmod(0o755)
        if publish(image, target, file_mode=0o644):
            target.chmod(0o755)
        _give(image / SIGNATURE, target / SIGNATURE)
    point_latest(target)
    return target


def _give(signature: Path, to: Path) -> None:
    """Make `to`, in an image directory, what `signature` is: the same bytes, or not there."""
    if not signature.exists():
        to.unlink(missing_ok=True)
        return
    data = signature.read_bytes()
    if to.is_symlink() or not to.exists() or to.read_bytes() != data:
        write_whole(to, data, mode=0o644, drafts=to.parent.parent)


def _copy(data: Path, draft: Path, file_mode: int) -> None:
    draft.mkdir()
    for file in sorted(data.iterdir()):
        shutil.copyfile(file, draft / file.name)
        (draft / file.name).chmod(file_mode)
        fsync(draft / file.name)
    fsync(draft)


def point_latest(image: Path) -> None:
    """Make `latest` beside `image` point at it."""
    link = image.parent / "latest"
    with contextlib.suppress(OSError):
        if os.readlink(link) == image.name:  # noqa: PTH115
            return
    with full_disk_explained(image.parent), _alone_in(image.parent):
        draft = image.parent / f"{_DRAFT}latest.{secrets.token_hex(4)}"
        draft.symlink_to(image.name)
        draft.replace(link)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other builds from publishing in `folder`; drafts that are there are of killed ones."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # file systems without locks (flock(2)) go without
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for draft in folder.glob(f"{_DRAFT}*"):
                if draft.is_symlink():
                    draft.unlink()
                else:
                    remove(draft)
        yield
    finally:
        os.close(descriptor)


def find_image(name: str, output: Path, hint: str) -> Path:
    """The image directory that `name` means: a path, or the latest image of a recipe's name.

    Raises `RecipeError` with `hint` when there is none.
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
        hint=hint,
    )
