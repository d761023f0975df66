# SPDX-License-Identifier: Apache-2.0
"""A recipe: what to build, as frozen and validated data.

After `recipe.file.load` nothing reads TOML, templates or the environment. Nothing here does either,
and nothing here looks at a file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sevkit.firmware.ovmf import Mode
from sevkit.measure.digests import COMMAND_LINE_BYTES, Cpu, Vmm
from sevkit.recipe.values import (
    Commit,
    DebVersion,
    FileName,
    Frozen,
    GitUrl,
    GuestFeatures,
    GuestPath,
    Licence,
    Macro,
    MacroValue,
    Member,
    Name,
    Need,
    Package,
    PlatformFile,
    Sha256,
    Size,
    Suite,
    Table,
    ToolChainTag,
    Urls,
    VariableName,
    Version,
    Word,
    none_if_empty,
)

Dotted = tuple[str, ...]
Compression = Literal["zstd", "lz4", "gzip", "xz", "none"]
LIST_LENGTH = 64
"""Of fragments, modes, numbers of CPUs and CPU models."""

_LEVELS = {"zstd": (1, 19), "lz4": (1, 12), "gzip": (1, 9), "xz": (0, 9), "none": (0, 0)}


class Part(BaseModel):
    """A table of a recipe: frozen, and no key that is not ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        """What is wrong between values that are right by themselves: (dotted path, what)."""
        return iter(())

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if found := list(self.contradictions()):
            text = "; ".join(f"{'.'.join(at)} {what}" for at, what in found)
            raise PydanticCustomError("contradiction", "{text}", {"text": text, "found": found})
        return self


class DebSource(Part):
    """A binary package, through the host's apt configuration."""

    deb: Annotated[Package, Field(description="The binary package.")]
    suite: Annotated[Suite | None, Field(description="Take it from this suite.")] = None
    version: Annotated[DebVersion | None, Field(description="Exactly this version.")] = None
    member: Annotated[Member | None, Field(description="The file in the package.")] = None


class DebSourcePackage(Part):
    """The tarballs of a Debian source package, through the host's apt configuration."""

    deb_src: Annotated[Package, Field(alias="deb-src", description="The source package.")]
    suite: Annotated[Suite | None, Field(description="Take it from this suite.")] = None
    version: Annotated[DebVersion | None, Field(description="Exactly this version.")] = None


class UrlSource(Part):
    """A file from the first mirror that has it; the digest decides whether it is the right one."""

    url: Annotated[Urls, Field(description="One address, or several mirrors in order.")]
    sha256: Annotated[Sha256, Field(description="Its SHA-256, lower-case hexadecimal.")]
    member: Annotated[Member | None, Field(description="The file in the archive.")] = None


class GitSource(Part):
    """The tree of one commit."""

    git: Annotated[GitUrl, Field(description="The repository.")]
    commit: Annotated[Commit, Field(description="The whole commit id.")]
    member: Annotated[Member | None, Field(description="The file in the tree.")] = None


class FileSource(Part):
    """A file or folder of this machine."""

    file: Annotated[Path, Field(description="Relative to the recipe file that says it.")]
    member: Annotated[Member | None, Field(description="The file in the folder or archive.")] = None


SOURCE_KINDS: Mapping[str, type[Part]] = {
    "deb": DebSource,
    "deb-src": DebSourcePackage,
    "url": UrlSource,
    "git": GitSource,
    "file": FileSource,
}


def _source_kind(value: Any) -> str | None:
    if isinstance(value, Part):
        return next((kind for kind, model in SOURCE_KINDS.items() if type(value) is model), None)
    if not isinstance(value, dict):
        return None
    return next((kind for kind in SOURCE_KINDS if kind in value), None)


Source = Annotated[
    Annotated[DebSource, Tag("deb")]
    | Annotated[DebSourcePackage, Tag("deb-src")]
    | Annotated[UrlSource, Tag("url")]
    | Annotated[GitSource, Tag("git")]
    | Annotated[FileSource, Tag("file")],
    Discriminator(_source_kind),
]


def _twice(key: str, values: tuple[object, ...]) -> Iterator[tuple[Dotted, str]]:
    for number, value in enumerate(values):
        if value in values[:number]:
            yield (key, str(number)), f"{value} is there twice"


class Kernel(Part):
    """The kernel: source tree, patch series, config fragments, command line."""

    source: Annotated[str, Field(description="The source, of `sources`, that holds the tree.")]
    patches: Annotated[
        str | None,
        BeforeValidator(none_if_empty),
        Field(description="The patch series, a folder in patches/; empty for none."),
    ] = None
    configs: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            max_length=LIST_LENGTH,
            description="Fragments, of kernel-configs/; later ones win.",
        ),
    ]
    cmdline: Annotated[
        tuple[Word, ...],
        Field(description="The command line, token by token. It is measured."),
    ] = ()

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        yield from _twice("configs", self.configs)
        length = len(" ".join(self.cmdline))
        if length > COMMAND_LINE_BYTES:
            yield ("cmdline",), f"is {length} bytes, the kernel takes {COMMAND_LINE_BYTES}"


class Agent(Part):
    """What becomes `/init`: compiled from `path`, or `member` of `source` taken as it is."""

    path: Annotated[
        Path | None,
        Field(description="A folder with a Makefile: beside the recipe, of the project, built in."),
    ] = None
    binary: Annotated[
        FileName | None, Field(description="The program that the Makefile makes.")
    ] = None
    debs: Annotated[
        tuple[Package, ...], Field(description="Packages to compile against, in a sysroot.")
    ] = ("libc6-dev", "linux-libc-dev")
    source: Annotated[
        str | None, Field(description="The source, of `sources`, that holds it ready made.")
    ] = None
    member: Annotated[Member | None, Field(description="The file in the source.")] = None
    needs: Annotated[
        tuple[Need, ...], Field(description="What the kernel must have built in for it.")
    ] = ()
    licence: Annotated[
        Licence | None, Field(description="Its licence, where no file of `path` states one.")
    ] = None

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        yield from _twice("needs", self.needs)
        if self.path is None and self.source is None:
            yield (), "needs either path (to compile) or source (to take)"
        elif self.path is not None and self.source is not None:
            yield ("source",), "does not go with path: an agent is compiled or taken"
        elif self.path is None:
            for key in sorted({"binary", "debs"} & self.model_fields_set):
                yield (key,), "goes with path, not with source"
        elif self.binary is None:
            yield ("path",), "needs binary too: what its Makefile makes"
        if self.path is not None and self.member is not None:
            yield ("member",), "goes with source, not with path"


class Initramfs(Part):
    """The guest's root file system: packages unpacked, binaries taken with their ELF closure."""

    suite: Annotated[Suite | None, Field(description="Take the packages from this suite.")] = None
    debs: Annotated[
        tuple[Package, ...], Field(description="Packages to unpack; they are never installed.")
    ] = ()
    binaries: Annotated[
        tuple[GuestPath, ...],
        Field(description="Files of these packages that go in, with all that they load."),
    ] = ()
    files: Annotated[
        Frozen[GuestPath, Path],
        Field(
            default_factory=lambda: Table({}),
            description="Path in the guest → file or folder, relative to the recipe file.",
        ),
    ]
    compression: Annotated[Compression, Field(description="How the archive is packed.")] = "zstd"
    level: Annotated[
        int | None,
        Field(description="zstd 1-19, lz4 1-12, gzip 1-9, xz 0-9. Default: the method's own."),
    ] = None
    max_size: Annotated[
        Size, Field(description='Budget of the unpacked archive: bytes, or "14 MiB".')
    ]
    placement: Annotated[
        Literal["separate", "builtin"],
        Field(description="A file of its own, or linked into the kernel."),
    ] = "separate"

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        low, high = _LEVELS[self.compression]
        if self.level is not None and not low <= self.level <= high:
            range_ = f"{low} to {high}" if high else "it has none"
            yield ("level",), f"{self.level} is no level of {self.compression}: {range_}"
        if "/init" in self.files:
            yield ("files", "/init"), "is the agent's place: see [agent]"


class Firmware(Part):
    """The guest firmware: a file of a source taken as it is, or a platform of edk2 compiled."""

    source: Annotated[str, Field(description="The source, of `sources`: the file, or edk2's tree.")]
    member: Annotated[Member | None, Field(description="The file in the source.")] = None
    platform: Annotated[
        PlatformFile | None,
        Field(description="The platform description in edk2's tree that is built (build -p)."),
    ] = None
    target: Annotated[
        Literal["RELEASE", "DEBUG", "NOOPT"], Field(description="How it is built (build -b).")
    ] = "RELEASE"
    toolchain: Annotated[
        ToolChainTag, Field(description="The tag in edk2's tools_def.txt (build -t).")
    ] = "GCC5"
    defines: Annotated[
        Frozen[Macro, MacroValue],
        Field(
            default_factory=lambda: Table({}),
            description="Macros of the platform description (build -D).",
        ),
    ]
    flash_device: Annotated[
        FileName, Field(description="The [FD] of the flash description that is taken.")
    ] = "OVMF"
    patches: Annotated[
        str | None,
        BeforeValidator(none_if_empty),
        Field(description="The patch series, a folder in patches/; empty for none."),
    ] = None
    submodules: Annotated[
        Frozen[Member, str],
        Field(
            default_factory=lambda: Table({}),
            description="Path in the tree → the source, of `sources`, that fills it.",
        ),
    ]
    licence: Annotated[Licence | None, Field(description="Where no package says it.")] = None

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        if self.platform is None:
            for key in sorted(self.model_fields_set - {"source", "member", "licence"}):
                if getattr(self, key):
                    yield (key,), "goes with platform: firmware is taken as it is without one"
        elif self.member is not None:
            yield ("member",), "does not go with platform: firmware is taken or built"
        for path in self.submodules:
            for other in self.submodules:
                if other.startswith(f"{path}/"):
                    yield ("submodules", other), f"lies inside {path}, which is another one"


class Launch(Part):
    """The launches that the image is meant for: its digests are computed for each of them."""

    modes: Annotated[
        tuple[Mode, ...], Field(min_length=1, max_length=LIST_LENGTH, description="Kinds of SEV.")
    ] = ("sev", "sev-es", "sev-snp")
    vcpus: Annotated[
        tuple[Annotated[int, Field(ge=1, le=512)], ...],
        Field(min_length=1, max_length=LIST_LENGTH, description="Numbers of virtual CPUs."),
    ] = (1,)
    cpus: Annotated[
        tuple[Cpu, ...],
        Field(min_length=1, max_length=LIST_LENGTH, description="QEMU's CPU models."),
    ] = ("EPYC-Milan",)
    guest_features: Annotated[
        tuple[GuestFeatures, ...],
        Field(
            min_length=1,
            max_length=LIST_LENGTH,
            description="SEV_FEATURES of an SNP launch: 1, or 33 with DebugSwap.",
        ),
    ] = (1,)
    vmms: Annotated[
        tuple[Vmm, ...],
        Field(min_length=1, description="Virtual machine monitors; ec2 and gce know only sev-snp."),
    ] = ("qemu",)
    measured: Annotated[bool, Field(description="Refuse firmware that checks no hash.")] = False

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        yield from _twice("modes", self.modes)
        yield from _twice("vcpus", self.vcpus)
        yield from _twice("cpus", self.cpus)
        yield from _twice("guest_features", self.guest_features)
        yield from _twice("vmms", self.vmms)


class Recipe(Part):
    """One image, fully resolved: templates rendered, parents merged, variables applied."""

    schema_version: Annotated[
        Literal[1], Field(alias="schema", description="The version of this format.")
    ]
    name: Annotated[Name, Field(description="Names the image's folder.")]
    version: Annotated[Version, Field(description="The image's version, the author's to choose.")]
    summary: Annotated[str, Field(max_length=200, description="One line for people.")] = ""
    debug: Annotated[
        bool, Field(description="Marks image, manifest and guest as not for production.")
    ] = False
    vars: Annotated[
        Frozen[VariableName, str],
        Field(
            default_factory=lambda: Table({}),
            description="Variables for templates, set on the command line as NAME=VALUE.",
        ),
    ]
    sources: Annotated[Frozen[Name, Source], Field(description="Where things come from.")]
    kernel: Kernel
    agent: Agent
    initramfs: Initramfs
    firmware: Firmware
    launch: Launch = Launch()

    def contradictions(self) -> Iterator[tuple[Dotted, str]]:
        if not self.summary.isprintable():
            yield ("summary",), "must be one line"
