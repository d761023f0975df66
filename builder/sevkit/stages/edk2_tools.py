# SPDX-License-Identifier: Apache-2.0
"""edk2's own build tools, compiled once for all firmware that is built from the same source.

A patch of the recipe's series counts only when the series changes the tools themselves, so that
platforms with different patches and macros share them. Builds no firmware.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from sevkit import patches
from sevkit.errors import BuildError
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.edk2_source import plan_source, prepare_source
from sevkit.within import place_within, tree_within

VERSION = 2

TOOLS = {
    "ar": "binutils",
    "g++": "g++",
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "patch": "patch",
    "python3": "python3",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/uuid/uuid.h": "uuid-dev",
}
"""What a host must have: command or file → the Debian package that holds it."""

_KEPT = ("BinWrappers", "Conf", "Scripts", "Source/Python")
_PROGRAMS = "Source/C/bin"


def plan_edk2_tools(planner: Planner) -> Stage:
    """The source and the host's compilers. Raises `RecipeError` as `plan_source` does."""
    params, inputs = plan_source(planner)
    firmware = planner.recipe.firmware
    if firmware.patches is not None:
        series = patches.read_series(planner.patches(firmware.patches))
        if not any(path.parts[0] == "BaseTools" for path in series.touched):
            del params["series"]
            inputs = {role: value for role, value in inputs.items() if role.startswith("source/")}
    params["tools"] = {tool: planner.tool(tool) for tool in ("g++", "gcc", "ld", "python3")}
    return Stage("firmware-tools", "edk2_tools", VERSION, params, inputs)


def build_edk2_tools(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write the folder ``BaseTools`` with its programs and its compiled Python.

    Raises `BuildError` when the source is no edk2, a patch does not apply or a compiler fails.
    """
    source = prepare_source(stage, inputs, run)
    tools = source.path / "BaseTools"
    run.progress(0, None, "compiling BaseTools")
    run(
        [
            *("make", f"-j{run.jobs}", "-C", tools / "Source" / "C"),
            *("HOST_ARCH=X64", f"EXTRA_OPTFLAGS=-ffile-prefix-map={source.path}=edk2"),
        ],
        cwd=source.path,
        on_line=lambda line: run.progress(0, None, f"BaseTools: {line.split(' ', 1)[0]}"),
    )
    made = place_within(run.work, "made")
    made.mkdir()
    kept = made / "BaseTools"
    for name in (*_KEPT, _PROGRAMS):
        shutil.copytree(tree_within(tools, name), kept / name, symlinks=True)
    if not any((kept / _PROGRAMS).iterdir()):
        raise BuildError("edk2's BaseTools made no program")
    run(
        [
            *("python3", "-I", "-m", "compileall", "-q", "-s", str(made), f"-j{run.jobs}"),
            *("--invalidation-mode", "unchecked-hash", kept / "Source" / "Python"),
        ],
        cwd=made,
    )
    shutil.copytree(tree_within(kept), out / "BaseTools", symlinks=True)
