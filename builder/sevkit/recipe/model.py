# SPDX-License-Identifier: Apache-2.0
"""A recipe: what to build, as frozen and validated data.

After `recipe.file.load` nothing reads TOML, templates or the environment. Nothing here does either,
and nothing here looks at a file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sevkit.kconfig.agent_fit import NEEDS
from sevkit.measure.digests import COMMAND_LINE_BYTES, Cpu, Vmm, features_problem

K = TypeVar("K")
V = TypeVar("V")

Dotted = tuple[str, ...]
Mode = Literal["sev", "sev-es", "sev-snp"]
Compression = Literal["zstd", "lz4", "gzip", "xz", "none"]
LIST_LENGTH = 64
"""Of fragments, modes, numbers of CPUs and CPU models."""

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = "[0-9]{1,12} ?(KiB|MiB|GiB|)"
_LEVELS = {"zstd": (1, 19), "lz4": (1, 12), "gzip": (1, 9), "xz": (0, 9), "none": (0, 0)}
_PATH_BYTES = 4095
"""linux/limits.h: PATH_MAX is 4096, its NUL included; a name in it has at most 255."""
_TEMPLATE_WORDS = ("and", "else", "false", "if", "in", "is", "none", "not", "or", "self", "true")
_ADDRESS = r"[^\s\x00-\x1f\x7f-\x9f]+$"
_URL = f"^https?://{_ADDRESS}"
_GIT_URL = f"^(https?|ssh|git|file)://{_ADDRESS}"
_PLATFORM = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.dsc$"
_LICENCE = r"^[A-Za-z0-9(][A-Za-z0-9.+() -]*$"
_NOT_ON_A_COMMAND_LINE = ("root", "rootfstype", "rootflags", "init", "rdinit", "initrd")


class Table(Mapping[K, V]):
    """A mapping that can't change and can be hashed."""

    def __init__(self, items: Mapping[K, V]):
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"Table({self._items!r})"


def _sorted(table: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(table.items()))


def _size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(_SIZE, value, re.ASCII)
        if match is None:
            raise ValueError('is no size: write bytes, or "14 MiB", "512 KiB"')
        return int(value[: match.start(1)]) * _UNITS[match[1]]
    return value


def _some(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _none(value: object) -> object:
    return None if value == "" else value


def _normal(value: str, parts: list[str]) -> bool:
    return (
        value.isprintable()
        and len(value.encode("utf-8", "surrogatepass")) <= _PATH_BYTES
        and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    )


def _guest_path(value: str) -> str:
    if not value.startswith("/") or not _normal(value, value.split("/")[1:]):
        raise ValueError("is no absolute, plain path in the guest, such as /usr/bin/crun")
    return value


def _member(value: str) -> str:
    plain = value.removeprefix("./")
    if not _normal(plain, plain.split("/")):
        raise ValueError("is no plain path inside an archive, such as usr/share/ovmf/OVMF.fd")
    return plain


def _guest_features(value: int) -> int:
    if problem := features_problem(value):
        raise ValueError(f"{problem}: 1, or 33 with DebugSwap")
    return value


def _word(value: str) -> str:
    """A token of the kernel command line, as next_arg() in lib/cmdline.c takes them apart."""
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII, at least one character")
    if value.count('"') % 2 or " " in re.sub(r'"[^"]*"', "", value):
        raise ValueError("is more than one token: give each its own string, or quote the blanks")
    if value.removeprefix('"').split("=", maxsplit=1)[0] in _NOT_ON_A_COMMAND_LINE:
        raise ValueError("is not for this kind of guest: the initramfs is the root, its /init runs")
    return value


def _need(value: str) -> str:
    if value not in NEEDS:
        raise ValueError(f"is none of {', '.join(NEEDS)}")
    return value


def _variable_name(value: str) -> str:
    if value.lower() in _TEMPLATE_WORDS:
        raise ValueError("is a word of the template language")
    return value


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VariableName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$"), AfterValidator(_variable_name)
]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$")]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
DebVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+:~-]*$")]
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
Url = Annotated[str, Field(pattern=_URL)]
GitUrl = Annotated[str, Field(pattern=_GIT_URL)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
PlatformFile = Annotated[str, Field(pattern=_PLATFORM)]
ToolChainTag = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
Need = Annotated[str, AfterValidator(_need), WithJsonSchema({"enum": list(NEEDS)})]
Licence = Annotated[str, Field(pattern=_LICENCE)]
Macro = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
MacroValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
GuestPath = Annotated[
    str, AfterValidator(_guest_path), WithJsonSchema({"type": "string", "pattern": r"^(/[^/]+)+$"})
]
Member = Annotated[
    str,
    AfterValidator(_member),
    WithJsonSchema({"type": "string", "pattern": r"^(\./)?[^/]+(/[^/]+)*$"}),
]
Word = Annotated[
    str, AfterValidator(_word), WithJsonSchema({"type": "string", "pattern": r"^[ -~]+$"})
]
GuestFeatures = Annotated[
    int,
    AfterValidator(_guest_features),
    Field(ge=1, le=(1 << 63) - 1),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(gt=0, le=1 << 40),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 1 << 40},
                {"type": "string", "pattern": f"^{_SIZE}$"},
            ]
        }
    ),
]
Urls = Annotated[
    tuple[Url, ...],
    BeforeValidator(_some),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _URL},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "pattern": _URL},
                },
            ]
        }
    ),
]
Frozen = Annotated[Mapping[K, V], AfterValidator(Table), PlainSerializer(_sorted)]

FORMS: Mapping[str, str] = {
    "^[0-9a-f]{64}$": "64 lower-case hexadecimal digits",
    "^[0-9a-f]{40}$": "40 lower-case hexadecimal digits, the whole commit id",
    "^[a-z0-9][a-z0-9._-]{0,63}$": "a name: lower-case letters, digits, '.', '_', '-', at most 64",
    "^[A-Za-z][A-Za-z0-9_]{0,63}$": "a variable's name: letters, digits, '_', at most 64",
    "^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$": "a version: letters, digits, '.+~_-', at most 64",
    "^[a-z0-9][a-z0-9+.-]+$": "the name of a Debian package",
    "^[A-Za-z0-9][A-Za-z0-9.+:~-]*$": "the version of a Debian package",
    "^[a-z][a-z0-9-]*$": "a suite, such as bookworm or bookworm-backports",
    _URL: "an address that starts with https:// or http://, all of it printable",
    _GIT_URL: "an address that starts with https://, ssh:// or git://, all of it printable",
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "the name of a file",
    _LICENCE: "an SPDX licence expression, such as Apache-2.0 or MIT OR Apache-2.0",
    _PLATFORM: "the path of a .dsc file in edk2's tree, such as OvmfPkg/AmdSev/AmdSevX64.dsc",
    "^[A-Z][A-Z0-9_]*$": "a tool chain tag, such as GCC5",
    "^[A-Z][A-Z0-9_]{0,63}$": "the name of a macro: capital letters, digits, '_', at most 64",
    "^[A-Za-z0-9][A-Za-z0-9._/-]*$": "the value of a macro: one word, such as TRUE or 4096",
}
"""Each pattern that a value may fail, in words."""


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
        BeforeValidator(_none),
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
        BeforeValidator(_none),
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
