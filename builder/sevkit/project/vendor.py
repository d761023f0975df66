# SPDX-License-Identifier: Apache-2.0
"""One folder with all that an image is built from, for a build without network, apt or this store.

    recipes/ kernel-configs/ patches/ agent/   as in a project, and the lock of the recipe
    sources/<reference>                        each fetched file: blob-<sha256>, git-<commit>
    sources/SHA256SUMS                         of sha256sum(1)

It is a project like any other: ``sevkit -C FOLDER build`` finds the files that it would fetch in
sources/, and hashes each before it is used. Equal inputs make equal folders.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sevkit.canonical import sha256_of
from sevkit.engine import Task, Work
from sevkit.errors import ImageError, RecipeError
from sevkit.project.lock import Lock
from sevkit.recipe.file import files_of
from sevkit.recipe.library import Library, built_in_root
from sevkit.recipe.model import Recipe
from sevkit.sources.pins import Pin
from sevkit.stage import Plan
from sevkit.store.store import NOT_SOURCES, Store

SOURCES = "sources"
SUMS = "SHA256SUMS"

_README = """\
# {name} {version}, with all that it is built from

    sevkit -C . build {name} {options}

needs sevkit, and the tools that it names where they are missing; no network and no filled store.
`sources/` holds every file that would be fetched, `recipes/{name}.lock` says what each of them is.
"""


def vendor(recipe: Recipe, plan: Plan, lock: Lock, library: Library, store: Store, to: Path) -> int:
    """Write the folder `to`, which must not be there; how many fetched files are in it.

    Every source of `plan` must be in `store`. Raises `RecipeError` for what lies outside of the
    project, `ImageError` for a damaged store.
    """
    if to.exists():
        raise RecipeError(f"{to} is there already", hint="name a folder that is not")
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        (draft / SOURCES).mkdir(parents=True)
        for source, place in _project_files(recipe, plan, library):
            _copy(source, draft / place)
        sums = []
        for reference in sorted(plan.pins):
            name = reference.replace(":", "-")
            shutil.copyfile(store.blob(reference), draft / SOURCES / name)
            sums.append(f"{sha256_of(draft / SOURCES / name)}  {name}\n")
        (draft / SOURCES / SUMS).write_text("".join(sums))
        replace(lock, path=draft / "recipes" / f"{recipe.name}.lock").write(_configs(lock))
        options = "--locked --offline" if lock.configs else "--offline"
        readme = _README.format(name=recipe.name, version=recipe.version, options=options)
        (draft / "README.md").write_text(readme, encoding="utf-8")
        draft.rename(to)
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return len(plan.pins)


def without_vendored(plan: Plan, work: Work, folder: Path, store: Store) -> Work:
    """`work` without the fetches whose files lie in the sources/ of `folder`; `store` has them now.

    Raises `ImageError` for a file that is missing from there or not what SHA256SUMS says.
    """
    if not (folder / SOURCES / SUMS).is_file():
        return work
    sums = _sums(folder / SOURCES / SUMS)
    taken = set()
    for name, task in work.tasks.items():
        file = task.pin.reference.replace(":", "-") if task.pin else ""
        if task.pin is None or file not in sums:
            continue
        _take(folder / SOURCES / file, sums[file], task.pin, store)
        taken.add(name)
    left: dict[str, Task] = {
        name: replace(task, after=task.after - taken)
        for name, task in work.tasks.items()
        if name not in taken
    }
    return Work(left, work.cached)


def _take(path: Path, digest: str, pin: Pin, store: Store) -> None:
    with store.scratch() as scratch:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path, "it is no regular file")
            if pin.size not in (None, status.st_size):
                raise _damaged(path, f"it has {status.st_size} bytes, not {pin.size}")
            shutil.copyfile(path, scratch / "file")
        except OSError as error:
            raise _damaged(path, str(error.strerror)) from error
        found = sha256_of(scratch / "file")
        kind, _, named = pin.reference.partition(":")
        if found != digest or (kind == "blob" and found != named):
            raise _damaged(path, f"its SHA-256 is {found}, not {digest}")
        store.add_blob(scratch / "file", pin.reference)


def _sums(path: Path) -> dict[str, str]:
    sums = {}
    for number, line in enumerate(path.read_text("ascii", "replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  ((?:blob|git)-[0-9a-f]+)", line)
        if match is None:
            raise _damaged(path, f"line {number} is none of sha256sum")
        sums[match[2]] = match[1]
    return sums


def _damaged(path: Path, why: str) -> ImageError:
    return ImageError(f"the vendored file {path} can't be used", why=why, hint="get it again")


def _configs(lock: Lock) -> dict[str, bytes]:
    """The locked configurations, which lie beside the lock."""
    files = {}
    for key in lock.configs:
        path = lock.config(key)
        assert path is not None  # the key is of the lock
        files[path.name] = path.read_bytes()
    return files


def _project_files(recipe: Recipe, plan: Plan, library: Library) -> Iterator[tuple[Path, Path]]:
    """Every file and folder of the project that the plan rests on, and its place in the folder."""
    for path in _recipes(recipe.name, library):
        yield path, Path("recipes", path.name)
    for name in (recipe.kernel.patches, recipe.firmware.patches):
        if name is not None:
            yield library.patches(name), Path("patches", name)
    for path in sorted(set(plan.local.values())):
        roots = [root for root in library.roots if path.is_relative_to(root)]
        if not roots:
            raise RecipeError(
                f"{path} lies outside of the project",
                hint="only what is in the project's folder can be vendored",
            )
        place = path.relative_to(roots[0])
        if place.parts[0] != "patches" and place.name != f"{recipe.name}.lock":
            yield path, place


def _recipes(name: str, library: Library) -> Iterator[Path]:
    """The recipe and those that it extends, but for a built-in one whose name is taken."""
    taken = set[str]()
    for path in files_of(name, library):
        if path.name in taken:
            if not path.is_relative_to(built_in_root()):
                raise RecipeError(f"two recipes called {path.name} can't be vendored together")
            return
        taken.add(path.name)
        yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(
            *(source, target),
            symlinks=True,
            ignore=_left_out,
            copy_function=_copy_file,
            dirs_exist_ok=True,
        )
    else:
        _copy_file(source, target)


def _left_out(folder: str, names: Sequence[str]) -> Sequence[str]:
    return [name for name in names if name in NOT_SOURCES and Path(folder, name).is_dir()]


def _copy_file(source: str | Path, target: str | Path) -> None:
    """Copy the bytes and whether the owner may run them, which is part of an initramfs."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if Path(source).stat().st_mode & 0o100 else 0o644)
