# SPDX-License-Identifier: Apache-2.0
"""The image: the results of all other stages in one folder, with manifest and checksums.

Every statement of the manifest comes from this stage's record or from what other stages wrote, so
the stage's key covers it. Adds no fact of its own and reads nothing else.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError
from sevkit.firmware.ovmf import Mode
from sevkit.firmware.verifier import lacks_verifier, verifier
from sevkit.image import requirements
from sevkit.image.manifest import MANIFEST, describe_file, explained, text_of, verify, write_sums
from sevkit.image.measured import measure_image
from sevkit.image.requirements import Contents, Swiotlb
from sevkit.image.sbom import SBOM, sbom_text
from sevkit.image.shape import MANIFEST_VERSION, Constraints, Manifest, Measurement
from sevkit.kconfig.agent_fit import check_early, check_fit
from sevkit.kconfig.fragment import merge, parse_fragment
from sevkit.printable import printable
from sevkit.recipe.model import FileSource
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.agent import agent_folder
from sevkit.stages.initramfs import INIT

VERSION = 9

BUILD_ID_DIGITS = 12
_PROOF = "firmware-proof"

_TOOLS = ("gcc", "ld")
_HEADER_BYTES = 4096
_FILES = {
    "kernel": ("kernel", "vmlinuz"),
    "config": ("kernel", "config"),
    "initramfs": ("initramfs", "initramfs"),
    "contents": ("initramfs", "contents.json"),
    "firmware": ("firmware", "firmware.fd"),
}
"""Role → the stage that makes the file, and its name there and here."""


def plan_image(planner: Planner) -> Stage:
    """The other stages, and all that the manifest says and they don't."""
    recipe = planner.recipe
    params: dict[str, Json] = {
        "name": recipe.name,
        "version": recipe.version,
        "summary": recipe.summary,
        "variant": "debug" if recipe.debug else "production",
        "cmdline": " ".join(recipe.kernel.cmdline),
        "series": recipe.kernel.patches,
        "launch": {
            "modes": list(recipe.launch.modes),
            "vcpus": list(recipe.launch.vcpus),
            "cpus": list(recipe.launch.cpus),
            "guest_features": list(recipe.launch.guest_features),
            "vmms": list(recipe.launch.vmms),
            "measured": recipe.launch.measured,
        },
        "kernel": recipe.kernel.source,
        "firmware": recipe.firmware.source,
        "sources": [*planner.provenance(), *_local_sources(planner)],
        "toolchain": {tool: planner.tool(tool) for tool in _TOOLS},
        "build": {
            "variables": dict(recipe.vars),
            "toolchain": planner.toolchain.name,
            "sandbox": planner.toolchain.sandbox,
            "stages": planner.recorded(),
        },
    }
    if recipe.firmware.licence is not None:
        params["firmware_licence"] = recipe.firmware.licence
    if recipe.agent.needs:
        check_early(recipe.agent.needs, _forbidden(planner))
        params["agent_needs"] = list(recipe.agent.needs)
    parts = ["kernel", "initramfs", "agent", "firmware"]
    parts += [_PROOF] if recipe.launch.measured else []
    inputs = {name: planner.stage(name) for name in parts}
    return Stage("image", "image", VERSION, params, inputs)


def _forbidden(planner: Planner) -> dict[str, str]:
    """The symbols that the recipe's fragments end up forbidding, and where each says so."""
    names = planner.recipe.kernel.configs
    merged = merge([parse_fragment(planner.fragment(name), f"{name}.config") for name in names])
    return {
        symbol: demand.where for symbol, demand in merged.demands.items() if demand.value == "n"
    }


def _local_sources(planner: Planner) -> Iterator[Mapping[str, Json]]:
    """What was not fetched but found beside the recipe: its digest, and never its path."""
    recipe = planner.recipe
    names = {recipe.kernel.source, recipe.firmware.source, recipe.agent.source}
    names |= set(recipe.firmware.submodules.values())
    references = {
        name: planner.source(name)
        for name, source in recipe.sources.items()
        if name in names and isinstance(source, FileSource)
    }
    if recipe.agent.path is not None:
        references["agent.path"] = agent_folder(planner, recipe.agent.path)
    for name, reference in sorted(references.items()):
        origin: Mapping[str, Json] = {"kind": "file"}
        yield {
            "source": name,
            "reference": reference,
            "name": name,
            "size": None,
            "origin": origin,
        }


def build_image(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write the files of an image, manifest.json and SHA256SUMS, and check them once more.

    Raises `BuildError` when a stage left out a fact, says something else than its files, or was
    built from other bytes than are its input now, `RecipeError` when the image can be launched in
    none of the modes that the recipe asks for, or the kernel lacks what the agent needs.
    """
    facts = _Facts(inputs)
    for role, (source, name) in _FILES.items():
        if role != "initramfs" or not facts.is_builtin:
            shutil.copyfile(inputs[source] / name, out / name)
    facts.check(out)
    params: Mapping[str, Any] = stage.params
    if parted := list(facts.parted()):
        raise BuildError(
            "stages were built from other bytes than are their inputs now",
            why="\n".join(parted),
            hint=f"make all of it anew, with -B: sevkit build {params['name']} -B",
        )
    check_fit(
        params.get("agent_needs", ()),
        (inputs["agent"] / "agent").read_bytes(),
        (out / "config").read_text(encoding="utf-8"),
    )
    manifest = _manifest(stage, facts, out, _verifies(inputs, out / "firmware.fd"))
    if not manifest.possible_modes:
        raise RecipeError(
            f"{manifest.name} can't be launched in any mode of launch.modes",
            why="\n".join(manifest.remarks()),
            hint="name another kernel, other firmware, or other modes",
        )
    (out / SBOM).write_text(sbom_text(manifest, facts.contents), encoding="utf-8")
    complete = {**manifest.files, "sbom": describe_file(out / SBOM)}
    manifest = _measured(manifest.model_copy(update={"files": complete}), out)
    (out / MANIFEST).write_text(text_of(manifest), encoding="utf-8")
    write_sums(out)
    differences = verify(out)
    if differences:
        raise BuildError("the image could not be written whole", why="\n".join(differences))


class _Facts:
    """What the other stages say of their results."""

    def __init__(self, inputs: Mapping[str, Path]):
        self._inputs = inputs
        self.kernel = self._read("kernel", "kernel.json")
        self.initramfs = self._read("initramfs", "initramfs.json")
        self.contents = self._read("initramfs", "contents.json")
        self.agent = self._read("agent", "agent.json")
        self.firmware = self._read("firmware", "firmware.json")
        self.proof = self._read(_PROOF, "proof.json") if _PROOF in inputs else None
        self.is_builtin = self.take("kernel", "initramfs")["initramfs"] == "builtin"

    def _read(self, stage: str, name: str) -> dict[str, Any]:
        try:
            facts = json.loads((self._inputs[stage] / name).read_bytes())
        except (OSError, ValueError) as error:
            raise BuildError(
                f"the stage {stage} left no readable {name}", why=str(error)
            ) from error
        if not isinstance(facts, dict):
            raise BuildError(f"the stage {stage} left a {name} that is no object")
        return facts

    def take(self, part: str, *keys: str) -> dict[str, Any]:
        """Those `keys` of a part. Raises `BuildError` naming the ones that are missing."""
        facts: dict[str, Any] = getattr(self, part)
        missing = [key for key in keys if key not in facts]
        if missing:
            raise BuildError(f"the facts of the stage {part} lack {', '.join(missing)}")
        return {key: facts[key] for key in keys}

    def check(self, out: Path) -> None:
        """Hold what is said against the files. Raises `BuildError`."""
        stated = {
            "vmlinuz": ("size", self.take("kernel", "bzimage_bytes")["bzimage_bytes"]),
            "config": ("sha256", self.take("kernel", "config_sha256")["config_sha256"]),
            "firmware.fd": ("sha256", self.take("firmware", "sha256")["sha256"]),
        }
        if not self.is_builtin:
            stated["initramfs"] = ("sha256", self.take("initramfs", "sha256")["sha256"])
        for name, (what, value) in stated.items():
            data = (out / name).read_bytes()
            found = len(data) if what == "size" else hashlib.sha256(data).hexdigest()
            if found != value:
                raise BuildError(
                    f"{name} is not what its stage says of it", why=f"{what}: {found}, not {value}"
                )

    def parted(self) -> Iterator[str]:
        """Each result that rests on other bytes of a stage than are here, a line each.

        A key names what shapes a result, not its bytes: a stage that was built again may have made
        others, while what rests on the first ones is still there.
        """
        agent = self.take("agent", "sha256")["sha256"]
        paths = self.take("contents", "paths")["paths"]
        init = next((row.get("sha256") for row in paths if row["path"] == INIT), None)
        pairs = [("initramfs", f"{INIT} with", init, "agent", agent)]
        if self.is_builtin:
            inside = self.take("kernel", "initramfs_sha256")["initramfs_sha256"]
            archive = self.take("initramfs", "sha256")["sha256"]
            pairs.append(("kernel", "an initramfs with", inside, "initramfs", archive))
        if self.proof is not None:
            proven = self.take("proof", "firmware_sha256")["firmware_sha256"]
            firmware = self.take("firmware", "sha256")["sha256"]
            pairs.append((_PROOF, "the proof of", proven, "firmware", firmware))
        for stage, holds, taken, maker, made in pairs:
            if taken != made:
                yield f"{stage} has {holds} SHA-256 {taken}, but {maker} is {made}"


def _verifies(inputs: Mapping[str, Path], firmware: Path) -> bool | None:
    """Whether the firmware refuses what fits no hash: proven, known not to, or unknown."""
    if _PROOF in inputs:
        return True
    return False if lacks_verifier(verifier(firmware.read_bytes(), firmware.name)) else None


def _manifest(stage: Stage, facts: _Facts, out: Path, verified: bool | None) -> Manifest:
    params: Mapping[str, Any] = stage.params
    files = {
        role: describe_file(out / name).model_dump()
        for role, (_, name) in _FILES.items()
        if (out / name).exists()
    }
    kernel = facts.take(
        "kernel",
        *("release", "version", "patches", "moved_hunks", "fragments", "unmet_wanted"),
        *("config_sha256", "compiler"),
    )
    initramfs = facts.take(
        "initramfs",
        *("compression", "level", "compressor", "size", "sha256"),
        *("archive_size", "archive_sha256", "paths"),
    )
    stated = {
        "manifest_version": MANIFEST_VERSION,
        "build_id": stage.key[:BUILD_ID_DIGITS],
        "architecture": "x86_64",
        **{key: params[key] for key in ("name", "version", "summary", "variant", "cmdline")},
        "toolchain": params["toolchain"],
        "files": files,
        "kernel": {**kernel, "source": params["kernel"], "series": params["series"]},
        "initramfs": {
            **initramfs,
            "placement": "builtin" if facts.is_builtin else "separate",
            "packages": facts.take("contents", "packages")["packages"],
        },
        "agent": {
            **facts.take("agent", "name", "size", "sha256", "format", "licence"),
            "path": "/init",
        },
        "firmware": {
            **facts.firmware,
            "licence": params.get("firmware_licence", facts.firmware.get("licence")),
            "source": params["firmware"],
            "verifies_kernel_hashes": verified,
        },
        "launch": {
            "modes": _modes(params["launch"]["modes"], facts, out),
            "vcpus": params["launch"]["vcpus"],
            **{
                key: params["launch"][key] for key in ("cpus", "guest_features", "vmms", "measured")
            },
        },
        "measurements": [],
        "constraints": Constraints().model_dump(),
        "memory": _memory(params["cmdline"], facts, out),
    }
    try:
        exact = {key: params[key] for key in ("sources", "build")}
        return Manifest.model_validate_json(json.dumps({**_printable(stated), **exact}))
    except ValidationError as error:
        raise BuildError(
            "the facts of the stages do not make a manifest", why=explained(error)
        ) from error


def _printable(value: Any) -> Any:
    """Plain data with its text made printable: what packages, patches and tools say of themselves
    may hold anything."""
    if isinstance(value, Mapping):
        return {printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _measured(manifest: Manifest, out: Path) -> Manifest:
    rows = [Measurement(**row.record()) for row in measure_image(out, manifest)]
    return manifest.model_copy(update={"measurements": tuple(rows)})


def _modes(asked: list[str], facts: _Facts, out: Path) -> dict[str, Any]:
    config = (out / "config").read_text(encoding="utf-8")
    firmware = facts.take("firmware", "problems", "kernel_hashes")
    modes = {}
    for mode in get_args(Mode):
        problems = [f"firmware: {problem}" for problem in firmware["problems"][mode]]
        version = str(facts.take("kernel", "version")["version"])
        problems += requirements.kernel_problems(mode, version, config)
        hashes = firmware["kernel_hashes"]
        least = requirements.VERSIONS[mode]
        modes[mode] = {
            "asked": mode in asked,
            "possible": not problems,
            "problems": problems,
            "kernel_hashes": bool(hashes) and (mode != "sev-snp" or hashes["for_snp"]),
            "host_kernel": least.host_kernel,
            "guest_kernel": least.guest_kernel,
            "qemu": least.qemu,
            "qemu_kernel_hashes": least.qemu_kernel_hashes,
        }
    return modes


def _memory(cmdline: str, facts: _Facts, out: Path) -> dict[str, Any]:
    with (out / "vmlinuz").open("rb") as file:
        kernel_bytes = requirements.kernel_init_bytes(file.read(_HEADER_BYTES))
    sizes = facts.take("initramfs", "size", "archive_size")
    swiotlb = Swiotlb.of_cmdline(cmdline)
    held = Contents(
        kernel=kernel_bytes,
        archive=0 if facts.is_builtin else sizes["size"],
        unpacked=sizes["archive_size"],
    )
    minimum = requirements.minimum_mib(held, swiotlb)
    return {
        "minimum_mib": minimum,
        "default_mib": requirements.default_mib(minimum),
        "kernel_bytes": kernel_bytes,
        "swiotlb": {
            "fixed_bytes": swiotlb.fixed_bytes,
            "percent": requirements.SWIOTLB_PERCENT,
            "least_mib": requirements.SWIOTLB_LEAST_MIB,
            "most_mib": requirements.SWIOTLB_MOST_MIB,
            "slot_bytes": requirements.SLOT_BYTES,
            "devices": {
                name: dataclasses.asdict(need) for name, need in requirements.DEVICE_NEEDS.items()
            },
        },
    }
