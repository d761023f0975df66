# SPDX-License-Identifier: Apache-2.0
"""A recipe: what to build, as frozen and validated data.

After this module nothing reads TOML, templates or the environment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["sev", "sev-es", "sev-snp"]
Compression = Literal["zstd", "lz4", "gzip", "xz", "none"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A table of a recipe: frozen, and no key that is not ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DebSource(Part):
    """A binary package, through the host's apt configuration."""

    deb: str
    suite: str | None = None
    version: str | None = None
    member: str | None = None


class DebSourcePackage(Part):
    """The upstream and Debian tarballs of a source package, through the host's apt configuration."""

    deb_src: str
    suite: str | None = None
    version: str | None = None


class UrlSource(Part):
    """A file from the first mirror that has it; the digest decides whether it is the right one."""

    url: tuple[str, ...]
    sha256: Sha256
    member: str | None = None


class GitSource(Part):
    """The tree of one commit."""

    git: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    member: str | None = None


class FileSource(Part):
    """A file or folder beside the recipe (relative to the recipe's own folder)."""

    file: Path
    member: str | None = None


Source = DebSource | DebSourcePackage | UrlSource | GitSource | FileSource


class Kernel(Part):
    """The kernel: source tree, patch series, config fragments (later ones win), command line."""

    source: str
    patches: str | None = None
    configs: tuple[str, ...]
    cmdline: tuple[str, ...] = ()


class Agent(Part):
    """What becomes `/init`: compiled from `path`, or `member` of `source` taken as it is."""

    path: Path | None = None
    binary: str | None = None
    debs: tuple[str, ...] = ("libc6-dev", "linux-libc-dev")
    source: str | None = None
    member: str | None = None


class Initramfs(Part):
    """The guest's root file system: packages unpacked, binaries taken with their ELF closure."""

    suite: str | None = None
    debs: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    files: Mapping[str, Path] = {}
    compression: Compression = "zstd"
    level: int | None = None
    max_size: int
    """Bytes, unpacked. A recipe writes ``"14 MiB"``."""
    placement: Literal["separate", "builtin"] = "separate"


class Firmware(Part):
    """The guest firmware, taken from a source as it is."""

    source: str
    member: str | None = None


class Launch(Part):
    """The launches that the image is meant for: its digests are computed for each of them."""

    modes: tuple[Mode, ...] = ("sev", "sev-es", "sev-snp")
    vcpus: tuple[int, ...] = (1,)
    cpus: tuple[str, ...] = ("EPYC-Milan",)


class Recipe(Part):
    """One image, fully resolved: templates rendered, parents merged, variables applied."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    version: str
    summary: str = ""
    debug: bool = False
    vars: Mapping[str, str] = {}
    sources: Mapping[str, Source]
    kernel: Kernel
    agent: Agent
    initramfs: Initramfs
    firmware: Firmware
    launch: Launch = Launch()
