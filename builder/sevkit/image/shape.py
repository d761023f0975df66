# SPDX-License-Identifier: Apache-2.0
"""The shape of a manifest: what an image says of itself, as frozen data with its JSON Schema.

Every key is always there; a fact that does not apply is null. A change here that an older reader
would misread raises `MANIFEST_VERSION`. Reads and checks no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from sevkit.firmware.ovmf import Loader, Mode
from sevkit.measure.digests import Covers, Init, Vmm

MANIFEST_VERSION = 1

Role = Literal["kernel", "initramfs", "firmware", "config", "contents", "sbom"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha384 = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Sha512 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Bytes = Annotated[int, Field(ge=0)]
Mib = Annotated[int, Field(gt=0)]
Release = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$")]
CpuModel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of QEMU: also one that only a later sevkit knows."""


def _with_keys(*keys: str) -> AfterValidator:
    """Of an object with open keys: refuses one that lacks some of `keys`."""

    def check(value: Mapping[str, Any]) -> Mapping[str, Any]:
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"lacks {', '.join(missing)}")
        return value

    return AfterValidator(check)


class Part(BaseModel):
    """An object of a manifest: frozen, every key present, no other key, all text printable.

    Its text comes into scripts, configuration files and terminals, for which a line break or an
    escape is a command.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="after")
    def _is_printable(self) -> Self:
        for key, value in self._shown().items():
            if not all(text.isprintable() for text in _texts(value)):
                raise ValueError(f"{key} must be printable, without line breaks")
        return self

    def _shown(self) -> Mapping[str, object]:
        """What has to be printable."""
        return dict(self)


def _texts(value: object) -> Iterator[str]:
    """The strings of a value; those of another `Part` are that one's to look at."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in (*value, *value.values()):
            yield from _texts(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)


class File(Part):
    """A file of the image directory."""

    path: Annotated[FileName, Field(description="Name in the image directory.")]
    size: Annotated[Bytes, Field(description="Bytes.")]
    sha256: Sha256
    sha384: Sha384
    sha512: Sha512


class Patch(Part):
    """A patch that a source got."""

    name: str
    sha256: Sha256
    description: str
    forwarded: Annotated[str, Field(description="Where it was sent or came from (DEP-3).")]
    files: tuple[str, ...]


class Kernel(Part):
    """The kernel in `files.kernel`."""

    source: Annotated[str, Field(description="Name in the recipe, and in `sources`.")]
    release: Annotated[str, Field(description="What uname -r says.")]
    version: Annotated[str, Field(description="Of the source.")]
    series: Annotated[str | None, Field(description="The patch series; null without any.")]
    patches: tuple[Patch, ...]
    moved_hunks: Annotated[
        tuple[str, ...], Field(description="Hunks that applied at another line than they name.")
    ]
    fragments: tuple[str, ...]
    unmet_wanted: Annotated[
        tuple[str, ...], Field(description="Options that were wanted and this version has not.")
    ]
    config_sha256: Sha256
    compiler: str


class Package(Part):
    """A distribution package that something in the initramfs comes from."""

    name: str
    version: str
    source: str
    licence: str
    other_licences: tuple[str, ...]
    bytes: Annotated[Bytes, Field(description="Of its files in the initramfs.")]


class Initramfs(Part):
    """The root file system; contents.json accounts for every path of it."""

    placement: Annotated[
        Literal["separate", "builtin"],
        Field(description="A file of its own, or linked into the kernel: then load no initrd."),
    ]
    compression: str
    level: int
    compressor: str
    size: Annotated[Bytes, Field(description="Bytes, compressed.")]
    sha256: Annotated[Sha256, Field(description="Of the compressed archive.")]
    archive_size: Annotated[Bytes, Field(description="Bytes, not compressed.")]
    archive_sha256: Sha256
    paths: Annotated[int, Field(ge=1)]
    packages: tuple[Package, ...]


class Agent(Part):
    """The program that runs as process 1."""

    name: str
    path: Annotated[str, Field(description="In the guest.")]
    size: Bytes
    sha256: Sha256
    format: str
    licence: str | None


class TableEntry(Part):
    """An entry of the firmware's GUIDed table."""

    guid: str
    name: Annotated[str, Field(description="Empty for one that sevkit does not know.")]
    data: Annotated[str, Field(description="Hex.")]


class MetadataSection(Part):
    """A range of guest memory that an SNP launch prepares."""

    type: int
    name: str
    base: int
    size: int


class KernelHashes(Part):
    """Where the host may put the hashes of kernel, initramfs and command line."""

    base: int
    size: int
    for_snp: Annotated[bool, Field(description="Whether an SNP launch has the place too.")]


class FirmwareBuild(Part):
    """How firmware was compiled from edk2; `sources` has the digests of the source's archives."""

    source: Annotated[str, Field(description="Name in the recipe.")]
    version: Annotated[str | None, Field(description="Of Debian's source package; else null.")]
    source_patches: Annotated[tuple[str, ...], Field(description="The source package's own.")]
    platform: Annotated[str, Field(description="The platform description (build -p).")]
    target: Annotated[Literal["RELEASE", "DEBUG", "NOOPT"], Field(description="build -b")]
    toolchain: Annotated[str, Field(description="The tool chain tag (build -t).")]
    defines: Annotated[Mapping[str, str], Field(description="Macros (build -D).")]
    series: Annotated[str | None, Field(description="The patch series; null without any.")]
    patches: tuple[Patch, ...]
    moved_hunks: Annotated[
        tuple[str, ...], Field(description="Hunks that applied at another line than they name.")
    ]
    tools: Annotated[Mapping[str, str], Field(description="Tool → what its --version says.")]


class Firmware(Part):
    """What the firmware in `files.firmware` says of itself."""

    source: Annotated[str, Field(description="Name in the recipe, and in `sources`.")]
    size: Bytes
    sha256: Sha256
    sec_bits: Annotated[Literal[32, 64] | None, Field(description="Width of its first code.")]
    has_variable_store: bool
    loads_as: Annotated[tuple[Loader, ...], Field(description="How QEMU takes it.")]
    problems: Annotated[
        Mapping[Mode, tuple[str, ...]], Field(description="Why it can't be launched in a mode.")
    ]
    kernel_hashes: Annotated[
        KernelHashes | None, Field(description="Null: nothing but the firmware is measured.")
    ]
    verifies_kernel_hashes: Annotated[
        bool | None,
        Field(
            description="Whether it was shown to refuse what does not fit the hashes. Null: nobody "
            "has shown it. Boot is measured only where this is true."
        ),
    ]
    table: tuple[TableEntry, ...]
    metadata: tuple[MetadataSection, ...] | None
    build: Annotated[FirmwareBuild | None, Field(description="Null: taken as it is.")]
    licence: Annotated[str | None, Field(description="Null: nobody states one.")] = None

    @property
    def doubt(self) -> str | None:
        """Why its hashes vouch for no kernel; None when it was shown to check them."""
        if self.kernel_hashes is None:
            return "the firmware takes no hashes: kernel and initramfs are not measured"
        if self.verifies_kernel_hashes is None:
            return "nobody has shown that the firmware checks the hashes it is given"
        if not self.verifies_kernel_hashes:
            return "the firmware is known to start what does not fit the hashes it is given"
        return None


_ORIGINS: Mapping[str, Sequence[str]] = {
    "deb": ("package", "version"),
    "deb-src": ("package", "version"),
    "git": ("url", "commit"),
    "url": ("url",),
    "file": (),
}
"""Kind of a source → what is always said of it."""


def _known_origin(origin: Mapping[str, str]) -> Mapping[str, str]:
    kind = origin.get("kind", "")
    if kind not in _ORIGINS:
        raise ValueError(f"has a kind that is none of {', '.join(_ORIGINS)}")
    if missing := [key for key in _ORIGINS[kind] if key not in origin]:
        raise ValueError(f"of kind {kind} lacks {', '.join(missing)}")
    return origin


class Source(Part):
    """Something that was fetched for the build."""

    source: Annotated[str, Field(description="Name in the recipe, or debs:<group>.")]
    reference: Annotated[
        str,
        Field(
            pattern=r"^((blob|tree):[0-9a-f]{64}|git:[0-9a-f]{40})$",
            description="SHA-256 of a file or folder listing, or a git commit.",
        ),
    ]
    name: str
    size: Bytes | None
    origin: Annotated[
        Mapping[str, str],
        AfterValidator(_known_origin),
        Field(
            description="Kind; package, version and suite, or addresses, a line each, or commit.",
            json_schema_extra={
                "oneOf": [
                    {"properties": {"kind": {"const": kind}}, "required": ["kind", *keys]}
                    for kind, keys in _ORIGINS.items()
                ]
            },
        ),
    ]

    def _shown(self) -> Mapping[str, object]:
        return {**dict(self), "origin": {**self.origin, "url": (*self.addresses,)}}

    @property
    def addresses(self) -> Sequence[str]:
        """Where it may be fetched from, first to last."""
        return self.origin["url"].split("\n") if "url" in self.origin else ()


class BuildStage(Part):
    """What shaped the result of one stage, but for what was fetched and other stages."""

    version: Annotated[int, Field(description="Of the stage: another gives other bytes.")]
    params: Annotated[Mapping[str, JsonValue], Field(description="Its choices.")]
    inputs: Annotated[
        Mapping[str, str],
        Field(description="Files and folders of the project by role: fragment, patch, agent."),
    ]

    def _shown(self) -> Mapping[str, object]:
        return {}  # to compare and to build by, and as the recipe has it


class Build(Part):
    """How to build the image again; `sources` and `toolchain` say from and with what."""

    variables: Annotated[Mapping[str, str], Field(description="Of the recipe, as they were set.")]
    toolchain: Annotated[
        str,
        Field(
            pattern=r"^(host|debian:[a-z][a-z0-9-]*)$",
            description="Whose tools: the build host's, or packages of a Debian release.",
        ),
    ]
    sandbox: Annotated[
        Literal["bwrap", "none"],
        Field(description="none: build steps could read the host and reach its network."),
    ]
    stages: Annotated[Mapping[str, BuildStage], Field(description="What each stage rests on.")]

    def _shown(self) -> Mapping[str, object]:
        return {**dict(self), "variables": ()}  # which may have several lines, as in a recipe


class ModeFacts(Part):
    """Whether and from which versions on the image can be launched in a mode."""

    asked: Annotated[bool, Field(description="Whether the recipe asks for it.")]
    possible: bool
    problems: Annotated[tuple[str, ...], Field(description="Why it is not possible.")]
    kernel_hashes: Annotated[
        bool, Field(description="Whether the firmware has the place for hashes in this mode.")
    ]
    host_kernel: Annotated[Release, Field(description="The first that can.")]
    guest_kernel: Annotated[Release, Field(description="The first that can.")]
    qemu: Annotated[Release, Field(description="The first that can.")]
    qemu_kernel_hashes: Annotated[
        Release, Field(description="The first that measures kernel, initramfs and command line.")
    ]


class Launch(Part):
    """The launches that the image is meant for."""

    modes: Annotated[
        Mapping[Mode, ModeFacts],
        _with_keys(*get_args(Mode)),
        Field(json_schema_extra={"required": list(get_args(Mode))}),
    ]
    vcpus: Annotated[tuple[Annotated[int, Field(ge=1, le=512)], ...], Field(min_length=1)]
    cpus: Annotated[tuple[CpuModel, ...], Field(min_length=1)]
    guest_features: Annotated[
        tuple[int, ...], Field(description="SEV_FEATURES of an SNP launch, bit 0 included.")
    ]
    vmms: Annotated[tuple[Vmm, ...], Field(description="Whose virtual machine monitors.")]
    measured: Annotated[
        bool,
        Field(
            description="Whether the recipe asks for measured boot: firmware that does not check "
            "kernel hashes was refused. False: it declares that boot is not measured."
        ),
    ]


class Measurement(Part):
    """A launch, and what the secure processor will say of it."""

    mode: Mode
    vcpus: Annotated[int | None, Field(description="Null: the digest does not depend on it.")]
    cpu: Annotated[CpuModel | None, Field(description="Null: the digest does not depend on it.")]
    guest_features: Annotated[int | None, Field(description="SEV_FEATURES; null for sev.")]
    vmm: Vmm
    init: Annotated[Init | None, Field(description="How QEMU made the guest; null but for sev-es.")]
    covers: Annotated[
        Covers,
        Field(
            description="kernel: firmware, kernel, initramfs and command line. firmware: no more "
            "than that, any kernel has this digest. kernel-unchecked: the firmware was not shown "
            "to compare the hashes that are measured with what it starts."
        ),
    ]
    digest: Annotated[
        str,
        Field(
            pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$",
            description="sev, sev-es: the launch measurement before its HMAC, SHA-256. sev-snp: "
            "the launch digest, SHA-384.",
        ),
    ]

    @property
    def is_trusted(self) -> bool:
        """Whether no other kernel, initramfs or command line can have the digest."""
        return self.covers == "kernel"


class Virtio(Part):
    """How every virtio device must be offered."""

    iommu_platform: Annotated[
        Literal[True], Field(description="VIRTIO_F_ACCESS_PLATFORM: through bounce buffers.")
    ] = True
    disable_legacy: Annotated[
        Literal[True], Field(description="The legacy interface can't offer it.")
    ] = True


class Constraints(Part):
    """What a runtime must keep to, because the guest's memory is encrypted."""

    dax: Annotated[
        Literal[False], Field(description="Memory is encrypted by copying: no DAX, no pmem.")
    ] = False
    ksm: Annotated[
        Literal[False], Field(description="Equal pages differ once encrypted: nothing to merge.")
    ] = False
    templating: Annotated[
        Literal[False], Field(description="Memory of one guest can't be read by another's key.")
    ] = False
    cloning: Annotated[Literal[False], Field(description="As templating; nor by snapshot.")] = False
    memory_hotplug: Annotated[
        Literal[False], Field(description="Only memory that was there at launch is encrypted.")
    ] = False
    virtio: Virtio = Virtio()


class DeviceNeed(Part):
    """Bounce buffers without which a virtio device makes no progress."""

    fixed_bytes: Annotated[Bytes, Field(description="Taken as long as the device is in use.")]
    per_vcpu_bytes: Annotated[Bytes, Field(description="One largest request for each vCPU.")]


class SwiotlbRule(Part):
    """The size of the bounce buffers, which come out of the guest's memory: a power of two."""

    fixed_bytes: Annotated[
        Bytes | None,
        Field(description="What the command line comes to; null: a share of memory, rounded up."),
    ]
    percent: int
    least_mib: Mib
    most_mib: Mib
    slot_bytes: int
    devices: Annotated[
        Mapping[str, DeviceNeed], Field(description="Kind of device → what one of it needs.")
    ]


class Memory(Part):
    """What the guest needs, in MiB."""

    minimum_mib: Annotated[Mib, Field(description="It does not boot reliably with less.")]
    default_mib: Annotated[Mib, Field(description="When nobody says: with room for a workload.")]
    kernel_bytes: Annotated[Bytes, Field(description="What the kernel needs to unpack itself.")]
    swiotlb: SwiotlbRule


class Manifest(Part):
    """All that a container runtime must know of an image."""

    manifest_version: Literal[1]
    name: Name
    version: Version
    summary: str
    build_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    variant: Annotated[
        Literal["production", "debug"], Field(description="A debug image is not for production.")
    ]
    architecture: Literal["x86_64"]
    files: Annotated[
        Mapping[Role, File],
        _with_keys("kernel", "firmware"),
        Field(
            description="No initramfs when it is linked into the kernel.",
            json_schema_extra={"required": ["kernel", "firmware"]},
        ),
    ]
    cmdline: Annotated[str, Field(description="The exact kernel command line.")]
    kernel: Kernel
    initramfs: Initramfs
    agent: Agent
    firmware: Firmware
    sources: tuple[Source, ...]
    toolchain: Annotated[Mapping[str, str], Field(description="Tool → what its --version says.")]
    build: Build
    launch: Launch
    measurements: Annotated[
        tuple[Measurement, ...],
        Field(description="For `cmdline` as it is, of each mode that is asked and possible."),
    ]
    constraints: Constraints
    memory: Memory

    @property
    def is_debug(self) -> bool:
        """Whether the image is not for production."""
        return self.variant == "debug"

    @property
    def possible_modes(self) -> tuple[Mode, ...]:
        """The modes that the recipe asks for and the image can be launched in."""
        modes = self.launch.modes
        return tuple(mode for mode in modes if modes[mode].asked and modes[mode].possible)

    def trusted_launches(self, mode: Mode) -> list[Measurement]:
        """The launches of a mode whose digest vouches for the kernel too."""
        return [row for row in self.measurements if row.mode == mode and row.is_trusted]

    def mode_problems(self, mode: Mode) -> tuple[str, ...]:
        """Why the image can't be launched in a mode, a line each; empty when it can."""
        if mode in self.possible_modes:
            return ()
        facts = self.launch.modes.get(mode)
        not_asked = "its recipe does not ask for it (launch.modes)"
        return (facts.problems if facts else ()) or (not_asked,)

    def remarks(self) -> list[str]:
        """What was asked for and is not possible, and what is not proven, a line each."""
        lines = [
            f"{mode} is not possible: {problem}"
            for mode, facts in self.launch.modes.items()
            if facts.asked
            for problem in facts.problems
        ]
        if doubt := self.firmware.doubt:
            lines.append(doubt)
        if self.build.sandbox == "none":
            lines.append("built without a sandbox: undeclared inputs may be in it")
        return lines
