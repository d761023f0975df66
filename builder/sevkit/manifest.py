# SPDX-License-Identifier: Apache-2.0
"""The manifest: all that a container runtime must know of an image, and the proof of its bytes.

One text form: keys sorted, two spaces, a newline at the end, so equal facts are equal bytes and an
edit shows. It holds no time of day, path or host. Reads and checks images, never repairs one.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sevkit.errors import ImageError
from sevkit.ovmf import Loader, Mode

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
LIMIT_BYTES = 8 << 20
SCHEMA_ID = "urn:sevkit:manifest:1"

_CHUNK = 1 << 20

Role = Literal["kernel", "initramfs", "firmware", "config", "contents"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha384 = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Sha512 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Bytes = Annotated[int, Field(ge=0)]
Mib = Annotated[int, Field(gt=0)]
Release = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Part(BaseModel):
    """An object of a manifest: frozen, every key present, no other key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Part):
    """A file of the image directory."""

    path: Annotated[FileName, Field(description="Name in the image directory.")]
    size: Annotated[Bytes, Field(description="Bytes.")]
    sha256: Sha256
    sha384: Sha384
    sha512: Sha512


class Patch(Part):
    """A patch that the kernel's source got."""

    name: str
    sha256: Sha256
    description: str
    forwarded: Annotated[str, Field(description="Where it was sent or came from (DEP-3).")]
    files: tuple[str, ...]


class Kernel(Part):
    """The kernel in `files.kernel`."""

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


class Firmware(Part):
    """What the firmware in `files.firmware` says of itself."""

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
        Field(description="Kind; package, version and suite, or addresses, or commit."),
    ]


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

    modes: Mapping[Mode, ModeFacts]
    vcpus: tuple[Annotated[int, Field(ge=1)], ...]
    cpus: tuple[str, ...]


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


class SwiotlbRule(Part):
    """The size of the bounce buffers, which come out of the guest's memory."""

    fixed_bytes: Annotated[
        Bytes | None, Field(description="What the command line says; null: a share of memory.")
    ]
    percent: int
    least_mib: Mib
    most_mib: Mib
    slot_bytes: int


class Memory(Part):
    """What the guest needs, in MiB."""

    minimum_mib: Annotated[Mib, Field(description="It does not boot reliably with less.")]
    default_mib: Annotated[Mib, Field(description="When nobody says: with room for a workload.")]
    kernel_bytes: Annotated[Bytes, Field(description="What the kernel needs to unpack itself.")]
    swiotlb: SwiotlbRule


class Manifest(Part):
    """All that a container runtime must know of an image."""

    manifest_version: Literal[1]
    name: str
    version: str
    summary: str
    build_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    variant: Annotated[
        Literal["production", "debug"], Field(description="A debug image is not for production.")
    ]
    architecture: Literal["x86_64"]
    files: Annotated[
        Mapping[Role, File], Field(description="No initramfs when it is linked into the kernel.")
    ]
    cmdline: Annotated[str, Field(description="The exact kernel command line.")]
    kernel: Kernel
    initramfs: Initramfs
    agent: Agent
    firmware: Firmware
    sources: tuple[Source, ...]
    toolchain: Annotated[Mapping[str, str], Field(description="Tool → what its --version says.")]
    launch: Launch
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

    def remarks(self) -> list[str]:
        """What was asked for and is not possible, and what is not proven, a line each."""
        lines = [
            f"{mode} is not possible: {problem}"
            for mode, facts in self.launch.modes.items()
            if facts.asked
            for problem in facts.problems
        ]
        if self.firmware.kernel_hashes is None:
            lines.append("the firmware takes no hashes: kernel and initramfs are not measured")
        elif not self.firmware.verifies_kernel_hashes:
            lines.append("nobody has shown that the firmware checks the hashes it is given")
        return lines


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a manifest."""
    made = Manifest.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **made,
        "title": "sevkit image manifest",
    }


def text_of(manifest: Manifest) -> str:
    """The one text form of a manifest."""
    plain = manifest.model_dump(mode="json")
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def describe_file(path: Path) -> File:
    """Size and digests of a file, under its name."""
    size, digests = _digests(path)
    return File(path=path.name, size=size, **digests)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of the files of `folder`, in the form of sha256sum(1)."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{_digests(folder / name)[1]['sha256']}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="ascii")


def load(folder: Path) -> Manifest:
    """The manifest of an image directory.

    Raises `ImageError` when it is missing, not ours, of another version, or was edited: not in the
    one text form, or not what SHA256SUMS says.
    """
    path = folder / MANIFEST
    raw = _read(path)
    manifest = _parsed(raw, path)
    if text_of(manifest).encode() != raw:
        raise _edited(path, "its text is not as sevkit writes it")
    if _read_sums(folder).get(MANIFEST) != hashlib.sha256(raw).hexdigest():
        raise _edited(path, f"{SUMS} has another digest for it")
    return manifest


def _edited(path: Path, why: str) -> ImageError:
    return ImageError(
        f"{path} was changed after it was written",
        why=why,
        hint="change the recipe and build again; a manifest is not edited",
    )


def _read(path: Path) -> bytes:
    try:
        with _open(path) as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ImageError(
            f"{path} can't be read",
            why=str(error.strerror),
            hint="name an image directory: one with a manifest.json in it",
        ) from error
    if len(data) > LIMIT_BYTES:
        raise ImageError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB: it is none of ours")
    return bytes(data)


def _parsed(raw: bytes, path: Path) -> Manifest:
    try:
        head = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImageError(
            f"{path} is not JSON: it is truncated or was edited",
            why=str(error),
            hint="get it again",
        ) from error
    version = head.get("manifest_version") if isinstance(head, dict) else None
    if version is True or version != MANIFEST_VERSION:
        raise ImageError(
            f"{path} has manifest_version {version}, and this sevkit reads {MANIFEST_VERSION}",
            hint="use the sevkit that built it, or a newer one",
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ImageError(f"{path} is no manifest", why=explained(error)) from error


def explained(error: ValidationError) -> str:
    """The first problems of a validation, a line each."""
    problems = error.errors(include_url=False, include_input=False)
    lines = [f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in problems[:5]]
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more")
    return "\n".join(lines)


def _read_sums(folder: Path) -> dict[str, str]:
    """File name → SHA-256. Raises `ImageError` for a file that is not as sha256sum(1) writes it."""
    path = folder / SUMS
    sums: dict[str, str] = {}
    *lines, rest = _read(path).decode("ascii", "replace").split("\n")
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*)", line)
        if match is None or match[2] in sums or number > len(lines):
            raise ImageError(f"{path}:{number} is no line of sha256sum", hint="get it again")
        sums[match[2]] = match[1]
    return sums


def verify(folder: Path) -> list[str]:
    """What differs between an image directory and what it says of itself, a line each.

    Every byte of every file is hashed. Modes, owners and times are the copier's and not looked at.
    Raises `ImageError` when `folder` can't be read at all.
    """
    try:
        with os.scandir(folder) as entries:
            present = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    except OSError as error:
        raise ImageError(f"{folder} can't be read", why=str(error.strerror)) from error
    differences = []
    stated: dict[str, File] = {}
    sums: dict[str, str] = {}
    try:
        sums = _read_sums(folder)
        manifest = load(folder)
        stated = {file.path: file for file in manifest.files.values()}
    except ImageError as error:
        differences.append(": ".join([error.what, *error.why.splitlines()]))
    expected = {MANIFEST, SUMS, *stated, *sums}
    for name in sorted(expected | present.keys()):
        if name not in expected:
            differences.append(f"{_printable(name)}: does not belong to the image")
        elif name not in present:
            differences.append(f"{name}: is missing")
        elif not stat.S_ISREG(present[name]):
            kind = "a symbolic link" if stat.S_ISLNK(present[name]) else "no regular file"
            differences.append(f"{name}: is {kind}, must be a file")
        elif name != SUMS:
            differences += _file_differences(folder / name, stated.get(name), sums)
    if stated and sums:
        unlisted = {MANIFEST, *stated} ^ sums.keys()
        differences += [
            f"{name}: in only one of {MANIFEST} and {SUMS}" for name in sorted(unlisted)
        ]
    return differences


def _file_differences(path: Path, stated: File | None, sums: Mapping[str, str]) -> Iterator[str]:
    try:
        size, digests = _digests(path)
    except OSError as error:
        yield f"{path.name}: can't be read: {error.strerror}"
        return
    if stated is not None:
        if size != stated.size:
            yield f"{path.name}: has {size} bytes, {MANIFEST} says {stated.size}"
        for name, found in digests.items():
            expected = getattr(stated, name)
            if found != expected:
                yield f"{path.name}: {name} is {found}, {MANIFEST} says {expected}"
    listed = sums.get(path.name)
    if listed is not None and digests["sha256"] != listed:
        yield f"{path.name}: sha256 is {digests['sha256']}, {SUMS} says {listed}"


def _printable(name: str) -> str:
    return name.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")


def _open(path: Path) -> Any:
    """A file opened for reading bytes; neither a symbolic link nor something to wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb")


def _digests(path: Path) -> tuple[int, dict[str, str]]:
    hashes = {name: hashlib.new(name) for name in ("sha256", "sha384", "sha512")}
    size = 0
    with _open(path) as file:
        while block := file.read(_CHUNK):
            size += len(block)
            for one in hashes.values():
                one.update(block)
    return size, {name: one.hexdigest() for name, one in hashes.items()}
