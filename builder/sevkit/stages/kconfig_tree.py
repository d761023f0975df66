# SPDX-License-Identifier: Apache-2.0
"""The part of the patched kernel source that its configurator reads: some MB instead of 1.7 GB.

Questions about the configuration (`check`, `kconfig why`, `menuconfig`) are asked of this tree. It
depends on source and patches alone, so one tree serves every choice of fragments; nothing can be
compiled in it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.kernel_source import plan_source, prepare_source

VERSION = 2

TOOLS = {"patch": "patch", "xz": "xz-utils"}

_ARCH = "x86"
_WHOLE = ("scripts", f"arch/{_ARCH}/tools")
_LEFT_OUT = ("scripts/coccinelle", "scripts/dtc", "scripts/gdb", "tools")


def plan_kconfig_tree(planner: Planner) -> Stage:
    """Source and patches, and nothing of the configuration."""
    params, inputs = plan_source(planner)
    return Stage("kconfig-tree", "kconfig_tree", VERSION, params, inputs)


def build_kconfig_tree(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write the tree into `out` itself."""
    source = prepare_source(stage, inputs, run, _is_read)
    for folder, folder_names, file_names in os.walk(source.path):
        inside = PurePosixPath(Path(folder).relative_to(source.path).as_posix())
        folder_names[:] = [n for n in folder_names if str(inside / n) not in _LEFT_OUT]
        for name in file_names:
            if _is_read(inside / name):
                target = out / inside / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(folder, name), target, follow_symlinks=False)


def _is_read(path: PurePosixPath) -> bool:
    """Whether Kconfig files, the top Makefile or what they run may read `path`."""
    if path.name.startswith("Kconfig"):
        return True
    if any(path.is_relative_to(folder) for folder in _WHOLE):
        return True
    return path.parent in (PurePosixPath(), PurePosixPath("arch", _ARCH)) and (
        path.name.startswith(("Makefile", "Kbuild"))
    )
