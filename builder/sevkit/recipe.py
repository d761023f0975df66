# SPDX-License-Identifier: Apache-2.0
"""A recipe: what to build, as frozen and validated data.

After `recipe_file.load` nothing reads TOML, templates or the environment.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

Mode = Literal["sev", "sev-es", "sev-snp"]
Compression = Literal["zstd", "lz4", "gzip", "xz", "none"]
Cpu = Literal[
    "EPYC",
    "EPYC-v1",
    "EPYC-v2",
    "EPYC-v3",
    "EPYC-v4",
    "EPYC-IBPB",
    "EPYC-Rome",
    "EPYC-Rome-v1",
    "EPYC-Rome-v2",
    "EPYC-Rome-v3",
    "EPYC-Milan",
    "EPYC-Milan-v1",
    "EPYC-Milan-v2",
    "EPYC-Genoa",
    "EPYC-Genoa-v1",
]
"""The CPU models that QEMU and sev-snp-measure both know."""

COMMAND_LINE_BYTES = 2047
"""arch/x86/include/asm/setup.h: COMMAND_LINE_SIZE is 2048, its NUL included."""

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LEVELS = {"zstd": (1, 19), "lz4": (1, 12), "gzip": (1, 9), "xz": (0, 9), "none": (0, 0)}


def _size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,12}) ?(KiB|MiB|GiB|)", value)
        if match is None:
            raise ValueError('is no size: write bytes, or "14 MiB", "512 KiB"')
        return int(match[1]) * _UNITS[match[2]]
    return value


def _some(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _nothing(value: object) -> object:
    return None if value == "" else value


def _guest_path(value: str) -> str:
    parts = value.split("/")
    if not value.startswith("/") or any(part in ("", ".", "..") for part in parts[1:]):
        raise ValueError("is no absolute path in the guest, such as /usr/bin/crun")
    return value


def _member(value: str) -> str:
    _guest_path("/" + value.removeprefix("./"))
    return value.removeprefix("./")


def _word(value: str) -> str:
    """A token of the kernel command line; blanks only inside double quotes."""
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("holds something else than printable ASCII")
    if value.count('"') % 2 or " " in re.sub(r'"[^"]*"', "", value):
        raise ValueError("is more than one token: give each its own string")
    if value.split("=", maxsplit=1)[0] in ("root", "rootfstype", "init", "rdinit"):
        raise ValueError("is not for this kind of guest: the initramfs is the root, its /init runs")
    return value


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$")]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
DebVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+:~-]*$")]
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
GuestPath = Annotated[str, AfterValidator(_guest_path)]
Member = Annotated[str, AfterValidator(_member)]
Word = Annotated[str, AfterValidator(_word)]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]


class Part(BaseModel):
    """A table of a recipe: frozen, and no key that is not ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DebSource(Part):
    """A binary package, through the host's apt configuration."""

    deb: Package
    suite: Suite | None = None
    version: DebVersion | None = None
    member: Member | None = None


class DebSourcePackage(Part):
    """The tarballs of a Debian source package, through the host's apt configuration."""

    deb_src: Annotated[Package, Field(alias="deb-src")]
    suite: Suite | None = None
    version: DebVersion | None = None


class UrlSource(Part):
    """A file from the first mirror that has it; the digest decides whether it is the right one."""

    url: Annotated[tuple[Url, ...], BeforeValidator(_some), Field(min_length=1)]
    sha256: Sha256
    member: Member | None = None


class GitSource(Part):
    """The tree of one commit."""

    git: Annotated[str, Field(pattern=r"^(https?|ssh|git|file)://[^\s]+$")]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    member: Member | None = None


class FileSource(Part):
    """A file or folder beside the recipe that names it."""

    file: Path
    member: Member | None = None


SOURCE_KINDS = ("deb", "deb-src", "url", "git", "file")


def _source_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kinds = [kind for kind in SOURCE_KINDS if kind in value]
    return kinds[0] if kinds else None


Source = Annotated[
    Annotated[DebSource, Tag("deb")]
    | Annotated[DebSourcePackage, Tag("deb-src")]
    | Annotated[UrlSource, Tag("url")]
    | Annotated[GitSource, Tag("git")]
    | Annotated[FileSource, Tag("file")],
    Discriminator(_source_kind),
]


class Kernel(Part):
    """The kernel: source tree, patch series, config fragments (later ones win), command line."""

    source: str
    patches: Annotated[str | None, BeforeValidator(_nothing)] = None
    """A folder of patches/; ``""`` where the parent names one and this recipe wants none."""
    configs: Annotated[tuple[str, ...], Field(min_length=1)]
    cmdline: tuple[Word, ...] = ()


class Agent(Part):
    """What becomes `/init`: compiled from `path`, or `member` of `source` taken as it is."""

    path: Path | None = None
    binary: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    debs: tuple[Package, ...] = ("libc6-dev", "linux-libc-dev")
    source: str | None = None
    member: Member | None = None


class Initramfs(Part):
    """The guest's root file system: packages unpacked, binaries taken with their ELF closure."""

    suite: Suite | None = None
    debs: tuple[Package, ...] = ()
    binaries: tuple[GuestPath, ...] = ()
    files: Mapping[GuestPath, Path] = {}
    compression: Compression = "zstd"
    level: int | None = None
    max_size: Size
    """Bytes, unpacked. A recipe writes ``"14 MiB"``."""
    placement: Literal["separate", "builtin"] = "separate"


class Firmware(Part):
    """The guest firmware, taken from a source as it is."""

    source: str
    member: Member | None = None


class Launch(Part):
    """The launches that the image is meant for: its digests are computed for each of them."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("sev", "sev-es", "sev-snp")
    vcpus: Annotated[tuple[Annotated[int, Field(ge=1, le=512)], ...], Field(min_length=1)] = (1,)
    cpus: Annotated[tuple[Cpu, ...], Field(min_length=1)] = ("EPYC-Milan",)


class Recipe(Part):
    """One image, fully resolved: templates rendered, parents merged, variables applied."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Name
    version: Version
    summary: str = ""
    debug: bool = False
    vars: Mapping[str, str] = {}
    sources: Mapping[Name, Source]
    kernel: Kernel
    agent: Agent
    initramfs: Initramfs
    firmware: Firmware
    launch: Launch = Launch()

    def contradictions(self) -> list[tuple[tuple[str, ...], str]]:
        """What is wrong between values that are right by themselves: (dotted path, what)."""
        found: list[tuple[tuple[str, ...], str]] = []
        agent = self.agent
        if (agent.path is None) == (agent.source is None):
            found.append((("agent",), "needs either path (to compile) or source (to take)"))
        elif agent.path is not None and agent.binary is None:
            found.append((("agent", "path"), "needs binary too: what its Makefile makes"))
        elif agent.path is not None and agent.member is not None:
            found.append((("agent", "member"), "goes with source, not with path"))
        line = " ".join(self.kernel.cmdline)
        if len(line) > COMMAND_LINE_BYTES:
            what = f"is {len(line)} bytes, the kernel takes {COMMAND_LINE_BYTES}"
            found.append((("kernel", "cmdline"), what))
        low, high = _LEVELS[self.initramfs.compression]
        level = self.initramfs.level
        if level is not None and not low <= level <= high:
            what = f"{level} is no level of {self.initramfs.compression}: {low} to {high}"
            found.append((("initramfs", "level"), what))
        if "/init" in self.initramfs.files:
            found.append((("initramfs", "files", "/init"), "is the agent's place: see [agent]"))
        return found
