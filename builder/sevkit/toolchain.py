# SPDX-License-Identifier: Apache-2.0
"""Where the commands of build steps come from, and whether they are shut in.

Either the host's own programs, whose versions are then part of what is built, or a root file system
made of pinned Debian packages, which takes the host's place in the sandbox: the compiler is then
the same on every host. Knows names and packages only; the packages are fetched and unpacked as
those of any other sysroot.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sevkit.errors import RecipeError

GROUP = "toolchain"
"""The name of the group of packages, and of the stage that unpacks them."""

Sandbox = Literal["bwrap", "none"]

_KINDS = ("agent", "edk2", "edk2_tools", "initramfs", "kconfig_tree", "kernel")
CHECKS = ("firmware_proof",)
"""Kinds of stages that judge a result and make none: they take the host's programs in any case."""

_COMPRESSORS = {"bzip2": "bzip2", "lzop": "lzop"}
_EVERY_SCRIPT_NEEDS = (
    *("bash", "coreutils", "cpio", "dash", "diffutils", "findutils", "grep", "gzip", "mawk"),
    *("sed", "tar"),
)
LINKS: Mapping[str, str] = {
    "/usr/bin/awk": "mawk",
    "/usr/bin/c++": "g++",
    "/usr/bin/cc": "gcc",
    "/usr/bin/pager": "cat",
    "/usr/bin/sh": "dash",
    "/usr/bin/which": "which.debianutils",
    "/usr/bin/yacc": "bison.yacc",
}
"""Links that maintainer scripts would make (update-alternatives(1)), where their targets are."""


@dataclass(frozen=True)
class Toolchain:
    """`suite` is the Debian release whose packages are the tools; None: the host's programs.

    `confined` is whether build steps run in the sandbox.
    """

    suite: str | None = None
    confined: bool = True

    @property
    def name(self) -> str:
        """``host``, or ``debian:<suite>``."""
        return "host" if self.suite is None else f"debian:{self.suite}"

    @property
    def sandbox(self) -> Sandbox:
        """As the option of the command line says it."""
        return "bwrap" if self.confined else "none"

    @property
    def flags(self) -> Sequence[str]:
        """The options of the command line that say so, but for what is said by none."""
        flags = [] if self.suite is None else ["--toolchain", self.name]
        return flags if self.confined else [*flags, "--sandbox", self.sandbox]


HOST = Toolchain()


def toolchain(name: str, sandbox: str) -> Toolchain:
    """What ``--toolchain NAME --sandbox SANDBOX`` means. Raises `RecipeError`."""
    if name == "host":
        return Toolchain(None, confined=sandbox != "none")
    match = re.fullmatch(r"debian:([a-z][a-z0-9-]{0,63})", name)
    if match is None:
        raise RecipeError(
            f"there is no toolchain '{name}'", hint="host, or debian:SUITE as in debian:trixie"
        )
    if sandbox == "none":
        raise RecipeError(
            f"--toolchain={name} needs the sandbox, in which it takes the host's place",
            hint="leave out --sandbox=none",
        )
    return Toolchain(match[1])


def tools_of(kind: str) -> Mapping[str, str]:
    """What stages of a kind run on the host: command or file → the package that holds it."""
    tools: Mapping[str, str] = getattr(
        importlib.import_module(f"sevkit.stages.{kind}"), "TOOLS", {}
    )
    return tools


def every_tool() -> Mapping[str, str]:
    """What any stage runs on the host: command or file → the package that holds it."""
    return {tool: package for kind in _KINDS for tool, package in tools_of(kind).items()}


def packages() -> tuple[str, ...]:
    """The packages that hold everything that any stage runs, sorted."""
    return tuple(
        sorted(set(every_tool().values()) | {*_COMPRESSORS.values(), *_EVERY_SCRIPT_NEEDS})
    )


def package_of(tool: str) -> str:
    """The package that holds the command `tool`."""
    return {"ld": "binutils", **_COMPRESSORS, **every_tool()}[tool]
