# SPDX-License-Identifier: Apache-2.0
"""edk2's source as its stages share it: unpacked, submodules filled in, patched.

What is planned here and what is read here are the same. A Debian source package is several
archives: the tree, and `debian/`, whose own patches come first, as dpkg-source(1) applies them.
Nothing is compiled.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit import patches
from sevkit.archive import unpack
from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError
from sevkit.recipe.model import DebSource
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.patched import only_folder, plan_series, planned_series
from sevkit.within import within

_DEBIAN = re.compile(r"\.debian\.tar\.[a-z0-9]+$")
_CHANGELOG = re.compile(r"^(\S+) \((\S+)\)")
_LINE_BYTES = 4096
_LEFT_OUT = re.compile(
    r"([^/]+/)?CryptoPkg/Library/(OpensslLib/openssl/(demos|doc|fuzz|test)|MbedTlsLib/mbedtls/tests)/"
)
"""A hundred megabytes that no platform description names: tests and manuals of what is embedded."""


@dataclass(frozen=True)
class SourceTree:
    """A patched tree, and what was done to it."""

    path: Path
    version: str | None
    """What debian/changelog says; None for a source that is no Debian package."""
    own: tuple[str, ...]
    """Names of the patches of the Debian package, in their order."""
    series: patches.Series | None
    moved_hunks: tuple[str, ...]


def plan_source(planner: Planner) -> tuple[dict[str, Json], dict[str, str]]:
    """Parameters and inputs of the patched source, for the stages that start from it.

    Raises `RecipeError` for a series that is malformed, and for a source that can't hold a tree.
    """
    recipe, firmware = planner.recipe, planner.recipe.firmware
    trees = {".": firmware.source, **firmware.submodules}
    inputs: dict[str, str] = {}
    roles: dict[str, Json] = {}
    for place, name in sorted(trees.items()):
        source = recipe.sources[name]
        if isinstance(source, DebSource) or getattr(source, "member", None) is not None:
            raise RecipeError(
                f"{recipe.name}: sources.{name}: is no source tree of edk2",
                why="firmware.platform is built from a whole tree, not from a package or member",
                hint=f'name the source package: sources.{name} = {{ deb-src = "edk2" }}',
            )
        files = planner.source_files(name)
        roles[place] = sorted(files)
        inputs |= {f"source/{place}/{file}": reference for file, reference in files.items()}
    params: dict[str, Json] = {"trees": roles}
    more, files = plan_series(planner, firmware.patches)
    return params | more, inputs | files


def prepare_source(
    stage: Stage, inputs: Mapping[str, Path], run: Runner, folder: str = "edk2"
) -> SourceTree:
    """Unpack and patch the source of `stage` in a `folder` of the runner's work folder.

    Raises `BuildError` when it is no tree of edk2, or a patch does not apply.
    """
    trees = stage.params["trees"]
    assert isinstance(trees, Mapping)
    tree = run.work / folder
    for place, files in sorted(trees.items()):
        assert isinstance(files, list | tuple)
        roles = {str(file): f"source/{place}/{file}" for file in files}
        archives = {file: inputs[role] for file, role in roles.items()}
        of_git = any(stage.inputs[role].startswith("git:") for role in roles.values())
        _lay_out(archives, tree, str(place), run, has_top=not of_git)
    if not (tree / "BaseTools" / "Source" / "C").is_dir():
        raise BuildError(
            "the firmware's source is no tree of edk2",
            why="it has no folder BaseTools/Source/C at its top",
            hint="check the source that firmware.source names",
        )
    version = _debian_version(tree)
    own = _debian_series(tree)
    if own is not None:
        run.progress(0, None, f"applying {len(own.patches)} patches of Debian")
        subject = f"edk2 {version or ''}".rstrip()
        patches.apply(own, tree, run.work / "patching", run, subject=subject)
    series = planned_series(stage, inputs)
    moved: list[str] = []
    if series is not None:
        run.progress(0, None, f"applying {len(series.patches)} patches")
        subject = f"edk2 {version or ''}".rstrip()
        moved = patches.apply(series, tree, run.work / "patching", run, subject=subject)
    names = () if own is None else tuple(patch.name for patch in own.patches)
    return SourceTree(tree, version, names, series, tuple(moved))


def _lay_out(
    archives: Mapping[str, Path], root: Path, place: str, run: Runner, *, has_top: bool
) -> None:
    """Fill `place` in `root` from a folder, an archive, or the archives of a source package.

    `has_top`: whether an archive may hold everything in one folder, as one of git never does.
    """

    def told(done: int, total: int | None) -> None:
        run.progress(done, total, f"unpacking {'edk2' if place == '.' else place}")

    tree = within(root, place)
    debian = [name for name in archives if _DEBIAN.search(name)]
    mains = [name for name in archives if name not in debian]
    if len(mains) != 1:
        raise BuildError(
            f"the firmware's source has {len(mains)} trees",
            why=", ".join(sorted(archives)),
            hint="a source package with one .orig archive, or one archive, is needed",
        )
    source = archives[mains[0]]
    if tree.exists():  # an empty folder stands for a submodule
        if any(tree.iterdir()):
            raise BuildError(f"{place} in the firmware's source is not empty: no submodule")
        tree.rmdir()
    if source.is_dir():
        shutil.copytree(source, tree, symlinks=True)
        return
    unpacked = run.work / "unpacked"
    unpacked.mkdir()
    unpack(source, unpacked, progress=told, wanted=lambda name: not _LEFT_OUT.match(name))
    tree.parent.mkdir(parents=True, exist_ok=True)
    top = only_folder(unpacked) if has_top else None
    (top or unpacked).rename(tree)
    shutil.rmtree(unpacked, ignore_errors=True)
    for name in debian:
        unpack(archives[name], tree)


def _debian_version(tree: Path) -> str | None:
    changelog = within(tree, "debian/changelog")
    if not changelog.is_file():
        return None
    with changelog.open(encoding="utf-8", errors="replace") as file:
        match = _CHANGELOG.match(file.readline(_LINE_BYTES))
    return match[2] if match else None


def _debian_series(tree: Path) -> patches.Series | None:
    folder = within(tree, "debian/patches")
    if not within(tree, folder, "series").is_file():
        return None
    return patches.read_series(folder, headers=False)
