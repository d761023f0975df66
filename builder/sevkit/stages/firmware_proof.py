# SPDX-License-Identifier: Apache-2.0
"""The proof that firmware refuses what fits no hash, made before an image rests on it.

Looks at the firmware, then tries it under emulation with a kernel of a few bytes. It decides and
changes nothing: equal firmware gives an equal result, so neither the QEMU at hand nor a toolchain
that takes the host's place has a part in it. Runs beside the compilation of the kernel.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.firmware.ovmf import Mode, parse
from sevkit.firmware.verifier import measured_boot_problems, verifier
from sevkit.guest.cases import Seen
from sevkit.guest.launch import QEMU_NAME, QEMU_PACKAGE, find_qemu
from sevkit.guest.trial import try_firmware
from sevkit.stage import Planner, Runner, Stage

VERSION = 2

TOOLS = {QEMU_NAME: QEMU_PACKAGE, "setpriv": "util-linux"}

_HINT = "build OvmfPkg/AmdSev/AmdSevX64.dsc as sev-guest does, or say measured = false"


def plan_firmware_proof(planner: Planner) -> Stage:
    """The firmware, which modes it must measure in, and the version that its source states."""
    recipe = planner.recipe
    params: dict[str, Json] = {
        "source": recipe.firmware.source,
        "version": _version_of(planner),
        "modes": list(recipe.launch.modes),
    }
    return Stage(
        "firmware-proof", "firmware_proof", VERSION, params, {"firmware": planner.stage("firmware")}
    )


def _version_of(planner: Planner) -> str | None:
    """What the Debian package that the firmware comes from, or is built from, is called."""
    for row in planner.provenance():
        origin = row["origin"]
        if row["source"] == planner.recipe.firmware.source and isinstance(origin, Mapping):
            version = origin.get("version")
            is_package = origin.get("kind") in ("deb", "deb-src")
            return str(version) if is_package and version is not None else None
    return None


def build_firmware_proof(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``proof.json``: the SHA-256 of what was tried, and what it refuses.

    Raises `RecipeError` for firmware that measures no boot, naming why not, and `HostError` where
    there is no QEMU.
    """
    params = stage.params
    name, version = str(params["source"]), params["version"]
    path = inputs["firmware"] / "firmware.fd"
    data = path.read_bytes()
    problems = measured_boot_problems(
        parse(data, name),
        verifier(data, name),
        None if version is None else str(version),
        _modes(params["modes"]),
    )
    if not problems:
        scratch = run.work / "trial"
        scratch.mkdir()
        seen = try_firmware(
            path,
            find_qemu(),
            scratch,
            name=name,
            confined=lambda argv: run.confined(argv, cwd=run.work),
            env=run.environment,
            check=lambda: run.progress(0, None, "under emulation"),
        )
        shutil.rmtree(scratch)
        problems = [_in_words(one) for one in seen if not one.is_right]
    if problems:
        raise RecipeError(
            f"launch.measured: the firmware of sources.{name} measures no boot",
            why="\n".join(problems),
            hint=_HINT,
        )
    record = {
        "firmware_sha256": hashlib.sha256(data).hexdigest(),
        "refuses": [one.changed for one in seen if one.changed],
    }
    (out / "proof.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _modes(value: Json) -> Sequence[Mode]:
    assert isinstance(value, list | tuple)
    return [mode for mode in ("sev", "sev-es", "sev-snp") if mode in value]


def _in_words(seen: Seen) -> str:
    if not seen.changed:
        return f"it does not start a kernel whose hashes are right: {seen.evidence}"
    if seen.seen == "booted":
        return f"it starts the kernel with this changed: {seen.changed}"
    if seen.seen == "passed-over":
        return (
            "it looks for something else to start, as edk2 before 2024.08, instead of stopping at "
            f"{seen.changed}: {seen.evidence}"
        )
    return f"it is not clear what it does about {seen.changed}: {seen.evidence}"
