# SPDX-License-Identifier: Apache-2.0
"""The kernel's source as its stages share it: unpacked, without its top folder, patched.

What is planned here and what is read here are the same: the archive, its member, the series.
Nothing is configured or compiled.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sevkit import patches
from sevkit.archive import extract_member, unpack
from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.kconfig import version_of
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.patched import only_folder, plan_series, planned_series

_OTHERS = re.compile(
    r"arch/(?!x86/)[^/]+/|Documentation/|"
    r"tools/(?!(arch/x86|bpf/resolve_btfids|build|include|lib|objtool|scripts)/)[^/]+/"
)


def serves_compiling(path: PurePosixPath) -> bool:
    """Whether a kernel for x86 may need `path` of the tree: a third of the files is for others."""
    return path.name.startswith(("Kconfig", "Makefile", "Kbuild")) or not _OTHERS.match(str(path))


@dataclass(frozen=True)
class SourceTree:
    """A patched kernel tree, its version, and what was done to it."""

    path: Path
    version: str
    patches: tuple[patches.Patch, ...]
    moved_hunks: tuple[str, ...]


def plan_source(planner: Planner) -> tuple[dict[str, Json], dict[str, str]]:
    """Parameters and inputs of the patched source, for the stages that start from it.

    Raises `RecipeError` for a series that is malformed.
    """
    kernel = planner.recipe.kernel
    source = planner.recipe.sources[kernel.source]
    member = getattr(source, "member", None)
    if getattr(source, "deb", None) is not None and member is None:
        raise RecipeError(
            f"{planner.recipe.name}: sources.{kernel.source}: a package is no kernel source",
            why="a package that holds the source has it as one file among others",
            hint='name the file: member = "usr/src/linux-source-….tar.xz"',
        )
    params: dict[str, Json] = {"member": member}
    inputs = {"source": planner.source(kernel.source)}
    more, files = plan_series(planner, kernel.patches)
    return params | more, inputs | files


def prepare_source(
    stage: Stage,
    inputs: Mapping[str, Path],
    run: Runner,
    wanted: Callable[[PurePosixPath], bool] = serves_compiling,
) -> SourceTree:
    """Unpack and patch the source of `stage` in the runner's work folder.

    Of an archive only what is `wanted`, or touched by a patch, is unpacked. Raises `BuildError`
    when it is no kernel tree, or a patch does not apply.
    """
    series = planned_series(stage, inputs)
    touched = series.touched if series is not None else frozenset()
    tree = _unpacked(stage, inputs["source"], run, lambda path: wanted(path) or path in touched)
    version = version_of(tree)
    if series is None:
        return SourceTree(tree, version, (), ())
    run.progress(0, None, f"applying {len(series.patches)} patches")
    moved = patches.apply(series, tree, run.work / "patching", run, subject=f"linux {version}")
    return SourceTree(tree, version, series.patches, tuple(moved))


def _unpacked(
    stage: Stage, source: Path, run: Runner, wanted: Callable[[PurePosixPath], bool]
) -> Path:
    place = run.work / "source"
    if source.is_dir():
        shutil.copytree(source, place, symlinks=True)
        return place
    member = stage.params["member"]
    if member is not None:
        archive = run.work / "source-archive"
        extract_member(source, str(member), archive)
        source = archive

    def told(done: int, total: int | None) -> None:
        run.progress(done, total, "unpacking")

    def below_top(name: str) -> bool:
        path = PurePosixPath(*PurePosixPath(name).parts[1:])
        return not path.parts or wanted(path)

    place.mkdir()
    unpack(source, place, progress=told, wanted=below_top)
    top = only_folder(place)
    if top is None:  # the tree begins at the archive's top: all of it
        shutil.rmtree(place)
        place.mkdir()
        unpack(source, place, progress=told)
        top = only_folder(place) or place
    if member is not None:
        source.unlink()
    return top
