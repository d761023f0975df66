# SPDX-License-Identifier: Apache-2.0
"""The firmware taken as it is: one file of a source, and what it can do.

Never changes a byte of it; firmware that is compiled is edk2.py's, which publishes it from here. A
mode that it can't do is recorded; only firmware that can do none of those that the recipe asks for
is refused, here, before a kernel has been compiled in vain.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from sevkit.archive import extract_member
from sevkit.archive.deb import deb_parts, is_deb, read_control
from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError, SourceError
from sevkit.firmware.ovmf import FirmwareFacts, read_firmware
from sevkit.rootfs.copyright import SEE_COPYRIGHT, read_copyright
from sevkit.stage import Planner, Runner, Stage

VERSION = 4


def plan_firmware(planner: Planner) -> Stage:
    """The source, and the way to the file in it. Raises `RecipeError` when that can't be there."""
    recipe, firmware = planner.recipe, planner.recipe.firmware
    source = recipe.sources[firmware.source]
    members = [member for member in (source_member(source), firmware.member) if member is not None]
    if not members and getattr(source, "deb", None) is not None:
        raise RecipeError(
            f"{recipe.name}: firmware: a package is no firmware image",
            why=f"sources.{firmware.source} names a package and nothing says which file of it",
            hint='name the file: member = "usr/share/ovmf/OVMF.fd"',
        )
    params: dict[str, Json] = {
        "source": firmware.source,
        "members": members,
        "modes": list(recipe.launch.modes),
    }
    inputs = {"source": planner.source(firmware.source)}
    return Stage("firmware", "firmware", VERSION, params, inputs)


def source_member(source: object) -> str | None:
    """The file that a source of a recipe takes out of what is fetched."""
    member = getattr(source, "member", None)
    return None if member is None else str(member)


def build_firmware(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``firmware.fd`` and ``firmware.json``, the record of `firmware.ovmf.FirmwareFacts`.

    With it is the licence of the Debian package that the file is from; null without a package.
    Raises `ImageError` when it is no OVMF image, `SourceError` when the source lacks the file,
    `RecipeError` when it can do none of the modes that the recipe asks for.
    """
    members = stage.params["members"]
    assert isinstance(members, list | tuple)
    path, name = inputs["source"], str(stage.params["source"])
    for depth, member in enumerate(map(str, members)):
        name = f"{name}: {member}"
        if path.is_dir():
            path = _below(path, member, name)
        else:
            taken = run.work / str(depth)
            extract_member(path, member, taken)
            path = taken
    if path.is_dir():
        raise BuildError(
            f"the firmware's source {name} is a folder", hint="say which file in firmware.member"
        )
    package = inputs["source"]
    licence = _licence_of(package, run.work) if package.is_file() and is_deb(package) else None
    publish_firmware(path, name, stage.params["modes"], out, {"build": None, "licence": licence})


def publish_firmware(
    path: Path, name: str, modes: Json, out: Path, more: Mapping[str, Json]
) -> None:
    """Write ``firmware.fd`` and ``firmware.json`` after a look at what the image can do.

    `name` is what messages call it, `more` what is known of it besides: under ``build`` how it was
    made, null when it was taken as it is. Raises `ImageError` when it is no OVMF image,
    `RecipeError` when it can do none of `modes`.
    """
    facts = read_firmware(path, name)
    _check_modes(facts, modes, name)
    shutil.copyfile(path, out / "firmware.fd")
    text = json.dumps({**facts.record(), **more}, indent=2, sort_keys=True)
    (out / "firmware.json").write_text(text + "\n", encoding="utf-8")


def _check_modes(facts: FirmwareFacts, asked: Json, name: str) -> None:
    assert isinstance(asked, list | tuple)
    problems = {mode: found for mode, found in facts.problems.items() if mode in asked}
    if all(problems.values()):
        raise RecipeError(
            f"{name} can't be launched in any mode of launch.modes",
            why="\n".join(f"{mode}: {one}" for mode, found in problems.items() for one in found),
            hint="name other firmware, or other modes",
        )


def _licence_of(package: Path, work: Path) -> str:
    """What the copyright file of a Debian package states."""
    name = read_control(package, deb_parts(package)["control"]).package
    copyright_file = work / "copyright"
    try:
        extract_member(package, f"usr/share/doc/{name}/copyright", copyright_file)
    except SourceError:  # it lies in another package, as Debian's policy allows (12.5)
        return SEE_COPYRIGHT
    return read_copyright(copyright_file.read_text("utf-8", "replace")).licence


def _below(folder: Path, member: str, name: str) -> Path:
    found = (folder / member).resolve()
    if not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise BuildError(f"{name} is not there", why="the folder has no such file")
    return found
