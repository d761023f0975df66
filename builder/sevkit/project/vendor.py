# SPDX-License-Identifier: Apache-2.0
"""One folder with all that an image is built from, for a build without network, apt or this store.

    recipes/ kernel-configs/ patches/ agent/   each file where it is in the project, and the lock
    built-in/                                  the same of what is built into sevkit
    sources/<reference>                        each fetched file: blob-<sha256>, git-<commit>
    sources/SHA256SUMS                         of sha256sum(1)

It is a project like any other: ``sevkit -C FOLDER build`` finds the files that it would fetch in
sources/, and hashes each before it is used. Equal inputs make equal folders. A folder is planned
before it is left to anyone: one that would not give the project's image is refused.
"""

import contextlib
import os
import re
import shlex
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sevkit.canonical import sha256_of
from sevkit.engine import Settings, Task, Work
from sevkit.errors import ImageError, RecipeError, SevkitError
from sevkit.project.lock import Lock
from sevkit.recipe.library import BUILT_IN, Library
from sevkit.recipe.model import Recipe
from sevkit.sources.pins import Pin
from sevkit.stage import Local, Plan, changes
from sevkit.stages.kernel import LOCKED_CONFIG
from sevkit.store.store import Store

if TYPE_CHECKING:
    from sevkit.project.project import Project

SOURCES = "sources"
SUMS = "SHA256SUMS"

_README = """\
# {name} {version}, with all that it is built from

    {command}

needs sevkit, and the tools that it names where they are missing; no network and no filled store.
`sources/` holds every file that would be fetched, `recipes/{name}.lock` says what each of them is.
"""


def vendor(
    recipe: Recipe, variables: Mapping[str, str], project: "Project", settings: Settings, to: Path
) -> int:
    """Write the folder `to`, which must not be there; how many fetched files are in it.

    `variables` are those that `recipe` was asked for with. What the store lacks is fetched. Raises
    `RecipeError` for what lies outside of the project or would give another image in `to`,
    `SourceError` for what can't be fetched, `ImageError` for a damaged store.
    """
    if os.path.lexists(to):
        raise RecipeError(f"{to} is there already", hint="name a folder that is not")
    main = _place(project.files(recipe)[0], project.library)
    project.fetch(recipe, settings)
    plan, lock = project.plan(recipe), project.whole_lock(recipe)
    draft = to.resolve().with_name(f".{to.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        for place, source in _project_files(recipe, plan, project).items():
            _copy(source, draft / place)
        (draft / SOURCES).mkdir(exist_ok=True)
        sums = []
        for reference in sorted(plan.pins):
            name = reference.replace(":", "-")
            shutil.copyfile(project.store.blob(reference), draft / SOURCES / name)
            sums.append(f"{sha256_of(draft / SOURCES / name)}  {name}\n")
        (draft / SOURCES / SUMS).write_text("".join(sums))
        replace(lock, path=draft / "recipes" / f"{recipe.name}.lock").write(_configs(lock))
        there = _alone(project, draft, locked=LOCKED_CONFIG in plan.stage("kernel").inputs)
        command = _command(there, draft / main, variables)
        readme = _README.format(name=recipe.name, version=recipe.version, command=command)
        (draft / "README.md").write_text(readme, encoding="utf-8")
        differs = _differences(plan, there, draft / main, variables)
        if differs:
            raise RecipeError(
                f"{recipe.name} can't be vendored: {to} would not give the same image",
                why=differs.replace(str(draft), str(to)),
            )
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


def _project_files(recipe: Recipe, plan: Plan, project: "Project") -> Mapping[Path, Local]:
    """Place in the folder → the file or folder that the plan rests on; folders come first."""
    library, found = project.library, dict[Path, Local]()
    names = [name for name in (recipe.kernel.patches, recipe.firmware.patches) if name is not None]
    series = [library.patches(name) for name in names]
    for local in [*map(Local, [*project.files(recipe), *series]), *plan.local.values()]:
        place = _place(local.path, library)
        other = found.setdefault(place, local)
        if other.path.resolve() != local.path.resolve():
            raise RecipeError(
                f"{other.path} and {local.path} can't be vendored together",
                why=f"both would be {place}",
            )
        # Of two that share a folder each must find what it takes.
        found[place] = replace(other, leave_out=local.leave_out & other.leave_out)
    return dict(sorted(found.items(), key=lambda row: (not row[1].path.is_dir(), row[0])))


def _place(path: Path, library: Library) -> Path:
    """Where what lies in the project, or is built in, is in the folder. Raises `RecipeError`."""
    for seen in (path, path.resolve()):
        roots = [root for root in library.roots if seen.is_relative_to(root)]
        if roots and ".." not in seen.parts:
            root = max(roots, key=lambda root: len(root.parts))
            return Path("" if root == library.roots[0] else BUILT_IN, seen.relative_to(root))
    raise RecipeError(
        f"{path} lies outside of the project",
        hint="only what is in the project's folder can be vendored",
    )


def _alone(project: "Project", folder: Path, *, locked: bool) -> "Project":
    """`folder` as the project of one who has nothing else: no network, store or built-in recipe."""
    there = replace(
        project,
        folder=folder,
        store_root=folder / "no-store",
        listener=lambda _: None,
        locked=locked,
        offline=True,
    )
    there.library = Library((folder, folder / BUILT_IN))
    return there


def _command(there: "Project", path: Path, variables: Mapping[str, str]) -> str:
    """What builds the recipe in `path` for one who stands in the folder that is `there`."""
    asked = f"./{path.relative_to(there.folder)}"
    with contextlib.suppress(RecipeError):
        if there.library.recipe(path.stem) == path:
            asked = path.stem
    words = [asked, *(f"{name}={value}" for name, value in variables.items())]
    words += ["--locked", "--offline"] if there.locked else ["--offline"]
    return shlex.join(["sevkit", "-C", ".", "build", *words, *there.toolchain.flags])


def _differences(plan: Plan, there: "Project", path: Path, variables: Mapping[str, str]) -> str:
    """Why the recipe in `path` gives another image than `plan`; nothing where it does not."""
    try:
        planned = there.plan(there.recipe(str(path), variables))
    except SevkitError as error:
        return f"{error.what}\n{error.why}"
    for ours, theirs in zip(plan.stages, planned.stages, strict=False):
        if ours.key != theirs.key:
            lines = changes(ours.record(), theirs.record(), str)
            return "\n".join(f"{ours.name}: {line}" for line in lines)
    return ""


def _copy(source: Local, target: Path) -> None:
    def left_out(folder: str, names: Collection[str]) -> Collection[str]:
        return source.leave_out if Path(folder) == source.path else ()

    if os.path.lexists(target):  # in a folder that was copied
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.path.is_dir():
        _copy_file(source.path, target)
    elif target.resolve().is_relative_to(source.path.resolve()):
        raise RecipeError(f"{source.path} can't be vendored into itself")
    else:
        shutil.copytree(
            *(source.path, target), symlinks=True, ignore=left_out, copy_function=_copy_file
        )


def _copy_file(source: str | Path, target: str | Path) -> None:
    """Copy the bytes and whether the owner may run them, which is part of an initramfs."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if Path(source).stat().st_mode & 0o100 else 0o644)
