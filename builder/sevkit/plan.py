# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a plan: the stages in order, where their inputs come from, and why.

Planning reads the project's files and asks host tools for their versions; it never touches the
network and writes nothing.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from sevkit.canonical import Json, canonical_json, sha256_of
from sevkit.errors import BuildError, RecipeError
from sevkit.recipe.library import Library
from sevkit.recipe.model import FileSource, Recipe, Source
from sevkit.sandbox import ENVIRONMENT
from sevkit.sources.pins import DebGroup, Pin, described, without_credentials
from sevkit.stage import Local, Plan, PlanFunction, Stage
from sevkit.stages.agent import plan_agent
from sevkit.stages.edk2 import plan_edk2
from sevkit.stages.edk2_tools import plan_edk2_tools
from sevkit.stages.firmware import plan_firmware
from sevkit.stages.firmware_proof import plan_firmware_proof
from sevkit.stages.image import plan_image
from sevkit.stages.initramfs import plan_initramfs
from sevkit.stages.kconfig_tree import plan_kconfig_tree
from sevkit.stages.kernel import LOCKED_CONFIG, plan_config, plan_kernel
from sevkit.stages.sysroot import plan_sysroot
from sevkit.store.listing import list_tree, tree_digest
from sevkit.toolchain import CHECKS, GROUP, HOST, Toolchain, package_of, packages, tools_of

_VERSION_OPTION = {"iasl": "-v"}
_HISTORY = frozenset({".git"})
"""What git keeps in a folder that is a source: large, never twice the same, and no source."""

LockedConfig = Callable[[Stage], Path | None]
"""Where the configuration that is locked for a kernel stage is; None without one."""

Pins = Mapping[str, Sequence[Pin]]
"""Per request (a source's name, or a group of packages) the files that it resolved to."""


def requests(recipe: Recipe, toolchain: Toolchain = HOST) -> dict[str, Source | DebGroup]:
    """What must be resolved before planning: the sources in use, and the groups of packages."""
    names = [recipe.kernel.source, recipe.firmware.source, *recipe.firmware.submodules.values()]
    if recipe.agent.source is not None:
        names.append(recipe.agent.source)
    wanted: dict[str, Source | DebGroup] = {name: recipe.sources[name] for name in names}
    suite = recipe.initramfs.suite
    if recipe.initramfs.debs:
        wanted["debs:initramfs"] = DebGroup(packages=recipe.initramfs.debs, suite=suite)
    if recipe.agent.path is not None:
        wanted["debs:agent"] = DebGroup(packages=recipe.agent.debs, suite=suite)
    if toolchain.suite is not None:
        wanted[f"debs:{GROUP}"] = DebGroup(packages=packages(), suite=toolchain.suite)
    return wanted


def places_of(recipe: Recipe, name: str, request: Source | DebGroup) -> tuple[str, str | None]:
    """What names the packages of the request called `name`, and what their Debian release.

    The second is None where nothing does.
    """
    suite = getattr(request, "suite", None)
    if name == f"debs:{GROUP}":
        return (f"--toolchain=debian:{suite}",) * 2
    kind, _, group = name.partition(":")
    packages = f"{group}.{kind}" if group else f"sources.{name}"
    release = "initramfs.suite" if group else f"sources.{name}.suite"
    return f"{packages} of {recipe.name}", f"{release} of {recipe.name}" if suite else None


def unasked(name: str, request: Source | DebGroup) -> Sequence[Pin]:
    """Stand-ins for the files of a request that nobody has resolved: what it asks for, hashed."""
    text = canonical_json(described(request))
    reference = f"blob:{hashlib.sha256(text.encode()).hexdigest()}"
    if isinstance(request, DebGroup):
        origins = [{"package": package, "version": "unpinned"} for package in request.packages]
        return [Pin(reference, origin["package"], None, origin) for origin in origins]
    return [Pin(reference, name, None, {})]


def kconfig_requests(recipe: Recipe, toolchain: Toolchain = HOST) -> dict[str, Source | DebGroup]:
    """Those of `requests` that `make_kconfig_plan` needs."""
    needed = (recipe.kernel.source, f"debs:{GROUP}")
    wanted = requests(recipe, toolchain)
    return {name: wanted[name] for name in needed if name in wanted}


def stage_functions(recipe: Recipe) -> Iterator[PlanFunction]:
    """The plan functions that apply to `recipe`, every stage after those it needs."""
    if recipe.initramfs.debs:
        yield partial(plan_sysroot, group="initramfs")
    if recipe.agent.path is not None:
        yield partial(plan_sysroot, group="agent")
    yield plan_agent
    yield plan_initramfs
    yield plan_kernel
    if recipe.firmware.platform is None:
        yield plan_firmware
    else:
        yield plan_edk2_tools
        yield plan_edk2
    if recipe.launch.measured:
        yield plan_firmware_proof
    yield plan_image


def make_plan(
    recipe: Recipe,
    library: Library,
    pins: Pins,
    toolchain: Toolchain = HOST,
    locked_config: LockedConfig | None = None,
) -> Plan:
    """The whole plan of an image. Raises `RecipeError` for files that are missing."""
    functions = stage_functions(recipe)
    return _planned(recipe, library, pins, toolchain, functions, locked_config)


def make_kconfig_plan(
    recipe: Recipe, library: Library, pins: Pins, toolchain: Toolchain = HOST
) -> Plan:
    """The stage, last of the plan, that answers questions about the kernel's configuration.

    Takes the `pins` of `kconfig_requests`, or more.
    """
    return _planned(recipe, library, pins, toolchain, iter([plan_kconfig_tree]))


def kernel_config(recipe: Recipe, library: Library) -> tuple[dict[str, Json], dict[str, Path]]:
    """The parameters of the kernel's configuration, and where its fragments are."""
    params, _, _ = plan_config(_Planner(recipe, library, {}))
    return params, {name: library.fragment(name) for name in recipe.kernel.configs}


def _planned(
    recipe: Recipe,
    library: Library,
    pins: Pins,
    toolchain: Toolchain,
    functions: Iterator[PlanFunction],
    locked_config: LockedConfig | None = None,
) -> Plan:
    planner = _Planner(recipe, library, pins, toolchain, locked_config)
    if toolchain.suite is not None:
        functions = chain([partial(plan_sysroot, group=GROUP)], functions)
    for function in functions:
        stage = planner.locked(planner.surrounded(function(planner)))
        planner.stages[stage.name] = stage
    return Plan(
        recipe=recipe,
        stages=tuple(planner.stages.values()),
        pins={pin.reference: pin for group in pins.values() for pin in group},
        local=planner.local_places,
    )


@dataclass
class _Planner:
    """Implements `sevkit.stage.Planner`, and remembers what was asked."""

    recipe: Recipe
    library: Library
    pins: Pins
    toolchain: Toolchain = HOST
    locked_config: LockedConfig | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    local_places: dict[str, Local] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def surrounded(self, stage: Stage) -> Stage:
        """`stage` with what its commands run in, where that is not the host's, shut in."""
        if not tools_of(stage.kind):
            return stage
        if not self.toolchain.confined:
            return replace(stage, params={**stage.params, "sandbox": self.toolchain.sandbox})
        if self.toolchain.suite is not None and stage.kind not in CHECKS:
            return replace(stage, inputs={**stage.inputs, GROUP: self.stage(GROUP)})
        return stage

    def locked(self, stage: Stage) -> Stage:
        """`stage` with the configuration that is locked for it, if it is the kernel's."""
        if stage.kind != "kernel" or self.locked_config is None:
            return stage
        path = self.locked_config(stage)
        if path is None:
            return stage
        return replace(stage, inputs={**stage.inputs, LOCKED_CONFIG: self.local(path)})

    def source(self, name: str) -> str:
        source = self.recipe.sources[name]
        if isinstance(source, FileSource):
            return self.local(source.file, leave_out=_HISTORY)
        [pin] = self.pins[name]
        return pin.reference

    def source_files(self, name: str) -> Mapping[str, str]:
        source = self.recipe.sources[name]
        if isinstance(source, FileSource):
            return {name: self.source(name)}
        return {pin.name: pin.reference for pin in self.pins[name]}

    def debs(self, group: str) -> Mapping[str, str]:
        return {pin.name: pin.reference for pin in self.pins[f"debs:{group}"]}

    def local(self, path: Path, *, leave_out: Collection[str] = ()) -> str:
        rows: list[dict[str, Json]] = []
        try:
            if path.is_dir():
                rows = list_tree(path, leave_out=leave_out)
                reference = f"tree:{tree_digest(rows)}"
            else:
                reference = f"blob:{sha256_of(path)}"
        except OSError as error:
            raise RecipeError(f"{error.filename or path}: {error.strerror}") from error
        self.local_places[reference] = Local(path, frozenset(leave_out))
        self.library.observe([path, *(path / str(row["path"]) for row in rows)])
        return reference

    def stage(self, name: str) -> str:
        return self.stages[name].reference

    def fragment(self, name: str) -> Path:
        return self.library.fragment(name)

    def patches(self, name: str) -> Path:
        return self.library.patches(name)

    def provenance(self) -> Sequence[Mapping[str, Json]]:
        rows: list[Mapping[str, Json]] = []
        for request in sorted(self.pins):
            rows += [
                {
                    "source": request,
                    "reference": pin.reference,
                    "name": pin.name,
                    "size": pin.size,
                    "origin": without_credentials(pin.origin),
                }
                for pin in sorted(self.pins[request], key=lambda pin: pin.name)
            ]
        return rows

    def recorded(self) -> Mapping[str, Json]:
        return {
            stage.name: {
                "version": stage.version,
                "params": stage.params,
                "inputs": {
                    role: reference
                    for role, reference in stage.inputs.items()
                    if reference in self.local_places
                },
            }
            for stage in self.stages.values()
        }

    def tool(self, name: str) -> str:
        if self.toolchain.suite is not None:
            return self._packaged_tool(name)
        if name not in self.versions:
            self.versions[name] = tool_version(name)
            if found := shutil.which(name, path=ENVIRONMENT["PATH"]):
                self.library.observe([Path(found), Path(found).resolve()])
        return self.versions[name]

    def _packaged_tool(self, name: str) -> str:
        package = package_of(name)
        for pin in self.pins[f"debs:{GROUP}"]:
            if pin.origin["package"] == package:
                return f"{package} {pin.origin['version']} ({self.toolchain.name})"
        raise RecipeError(f"{self.toolchain.name} has no package {package}")


def tool_version(name: str) -> str:
    """What `name --version` says first, of the tool that build steps would run.

    ``missing`` where there is none: the engine names all that is missing at once.
    """
    try:
        answer = subprocess.run(
            [name, _VERSION_OPTION.get(name, "--version")],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "missing"
    if answer.returncode != 0:
        raise BuildError(f"{name} --version failed", why=answer.stderr.strip())
    lines = [line.strip() for line in answer.stdout.splitlines()]
    return next((line for line in lines if any(map(str.isdigit, line))), "")
