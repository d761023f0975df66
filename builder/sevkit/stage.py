# SPDX-License-Identifier: Apache-2.0
"""A stage: one step of a build as plain data, and the key that names its result.

A stage record says everything that can change the bytes of the result, so that its key (the
SHA-256 of the record) can name them. It can be written as JSON and built by another process.
References name content, never places:

    blob:<sha256>   one file
    tree:<sha256>   a directory: the digest is that of its listing
    git:<commit>    the tar archive of a git commit
    stage:<key>     the output directory of another stage
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sevkit.canonical import Json, canonical_json
from sevkit.command import Run
from sevkit.errors import RecipeError

if TYPE_CHECKING:
    from sevkit.recipe.model import Recipe
    from sevkit.sources import Pin
    from sevkit.toolchain import Toolchain

KEY_SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """What to build, from what, how.

    `name` is for people and unique in a plan (``kernel``, ``agent-sysroot``); `kind` is the module
    in `sevkit.stages` that builds it. `params` are the choices, `inputs` maps a role (which may
    hold slashes and dots) to a reference.
    """

    name: str
    kind: str
    version: int
    params: Mapping[str, Json]
    inputs: Mapping[str, str]

    def record(self) -> dict[str, Json]:
        """What is hashed into the key. The name is not: equal work under two names is one."""
        return {
            "schema": KEY_SCHEMA,
            "kind": self.kind,
            "version": self.version,
            "params": self.params,
            "inputs": self.inputs,
        }

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of `record()`, 64 lower-case hex digits."""
        return hashlib.sha256(canonical_json(self.record()).encode()).hexdigest()

    @property
    def reference(self) -> str:
        """How another stage names this one's output."""
        return f"stage:{self.key}"


@dataclass(frozen=True)
class Local:
    """A file or folder of this machine; of a folder all but what `leave_out` names at its top."""

    path: Path
    leave_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which they can be built, and where everything they name is found."""

    recipe: "Recipe"
    stages: tuple[Stage, ...]
    pins: Mapping[str, "Pin"]
    """Reference → the file to fetch."""
    local: Mapping[str, Local]
    """Reference → where it is found on this machine."""

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises `RecipeError` naming those there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise RecipeError(f"{self.recipe.name} has no stage '{name}': there are {names}")


def changes(
    old: Mapping[str, Json], new: Mapping[str, Json], name: Callable[[str], str]
) -> list[str]:
    """What differs between two stage records, a line each; `name` puts a reference in words."""
    before, after = dict(_leaves(old, ())), dict(_leaves(new, ()))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            lines.append(f"{path}: new, {name(after[path])}")
        elif path not in after:
            lines.append(f"{path}: gone, was {name(before[path])}")
        elif before[path] != after[path]:
            lines.append(f"{path}: {name(before[path])} → {name(after[path])}")
    return lines


def _leaves(value: Json, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, str(index)))
    else:
        yield ".".join(path), str(value)


class Planner(Protocol):
    """What a `plan_x` function may ask. Nothing here reads the network."""

    recipe: "Recipe"
    toolchain: "Toolchain"

    def source(self, name: str) -> str:
        """The reference of the recipe's source `name`: `blob:`, `git:` or, of a folder, `tree:`."""

    def source_files(self, name: str) -> Mapping[str, str]:
        """File name → reference of each file of the recipe's source `name`.

        Several for a source package, one for any other; a folder goes by the source's name.
        """

    def debs(self, group: str) -> Mapping[str, str]:
        """File name → `blob:` reference of each package in the closure of `group`.

        A group is ``initramfs`` (`initramfs.debs`), ``agent`` (`agent.debs`) or ``toolchain``.
        """

    def local(self, path: Path, *, leave_out: Collection[str] = ()) -> str:
        """The `blob:` or `tree:` reference of a file or folder on this machine.

        What a folder has at its top under a name in `leave_out` is no part of it.
        """

    def stage(self, name: str) -> str:
        """The `stage:` reference of a stage planned earlier."""

    def fragment(self, name: str) -> Path:
        """The path of kernel config fragment `name`, the project's own before the built-in one."""

    def patches(self, name: str) -> Path:
        """The folder of patch series `name`, the project's own before the built-in one."""

    def provenance(self) -> Sequence[Mapping[str, Json]]:
        """Where each source of the recipe comes from: name, reference, file name, size, origin."""

    def recorded(self) -> Mapping[str, Json]:
        """Each stage planned so far: its version, its parameters, and its inputs of the project.

        Those are files and folders of this machine, by role; fetched ones are in `provenance`.
        """

    def tool(self, name: str) -> str:
        """The version of a tool that can change bytes (``gcc``, ``ld``).

        What the host's says of itself; where packages are the tools, package and version.
        """


class Runner(Run, Protocol):
    """What a `build_x` function may use beside its inputs."""

    @property
    def work(self) -> Path:
        """An empty private folder, removed after the stage; the only one that commands can write.

        What they leave in it is not to be trusted: see `sevkit.within`.
        """

    @property
    def jobs(self) -> int:
        """How many processes the stage may keep busy."""

    @property
    def leftovers(self) -> Path | None:
        """A folder that outlives the stage, for what spares the next stage of its kind some work.

        None when everything is to be made anew. It must not change a byte of any result.
        """

    @property
    def environment(self) -> Mapping[str, str]:
        """The fixed environment of every command."""

    def confined(self, argv: Sequence[str], *, cwd: Path) -> Sequence[str]:
        """`argv` as it is started in the sandbox, for a caller that starts and ends it itself.

        It inherits descriptors, and is killed when sevkit is.
        """

    def progress(self, done: int, total: int | None, note: str = "") -> None:
        """Tell how far the stage is; `note` is what it is doing now (a file name, say)."""


BuildFunction = Callable[[Stage, Mapping[str, Path], Path, Runner], None]
PlanFunction = Callable[[Planner], Stage]
