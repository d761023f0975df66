# SPDX-License-Identifier: Apache-2.0
"""Why two images measure differently: each cause by its own name, from their manifests and files.

A file of the initramfs, a kernel symbol, a patch, a word of the command line, a volume of the
firmware, the version of a source. Compares what was published and builds nothing.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sevkit.errors import BuildError, ImageError
from sevkit.firmware.modules import described, modules
from sevkit.firmware.volumes import volumes
from sevkit.image.manifest import File, Manifest, Role, read_published
from sevkit.image.published import published
from sevkit.image.shape import FirmwareBuild
from sevkit.kconfig.dotconfig import values_of
from sevkit.rootfs.contents import read_contents

_VOLUMES = {
    "48db5e17-707c-472d-91cd-1613e7ef51b0": "FVMAIN_COMPACT (the compressed rest)",
    "763bed0d-de9f-48f5-81f1-3e90e1b1a015": "SECFV (what starts first)",
    "fff12b8d-7696-4c8b-a985-2747075b4f50": "variables",
}
"""Names in OvmfPkg's flash descriptions (FvNameGuid), by GUID."""
_OWN_PARTS: Mapping[Role, AbstractSet[str]] = {
    "kernel": {"kernel", "patch"},
    "initramfs": {"initramfs"},
    "firmware": {"firmware"},
}
"""What is measured → the first words of the parts that its own causes are in."""
_ROW = ("type", "mode", "size", "sha256", "target", "device", "same_as")
"""What of a path's row in contents.json is in the archive; all else is why it is there."""


@dataclass(frozen=True)
class Difference:
    """One cause. `old` and `new` are what each image has; None where it has no such thing."""

    part: str
    what: str
    old: str | None
    new: str | None

    def record(self) -> dict[str, str | None]:
        """The same as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.part}: + {self.what}{_said(self.new)}"
        if self.new is None:
            return f"{self.part}: - {self.what}{_said(self.old)}"
        return f"{self.part}: {self.what}: {self.old} → {self.new}"


def _said(value: str | None) -> str:
    return f": {value}" if value else ""


def differences(old: Path, new: Path) -> list[Difference]:
    """All that differs between the image directories `old` and `new`.

    First how many launches measure differently, then the causes in the order of the boot, then
    files that differ without one. Raises `ImageError` when an image is not as published, whose
    manifest would explain other bytes, and for a file of one that is not what its role says.
    """
    images = [_Image(folder) for folder in (old, new)]
    before, after = (image.manifest for image in images)
    causes = list(_causes(*images))
    return [*_launches(before, after), *causes, *_unexplained(before, after, causes)]


class _Image:
    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = published(folder)

    def read(self, role: Role) -> bytes:
        return read_published(self.folder, self.manifest, role)

    def paths(self) -> dict[str, Mapping[str, Any]]:
        contents = read_contents(self.read("contents"), str(self.folder / "contents.json"))
        return {row["path"]: row for row in contents["paths"]}

    def symbols(self) -> dict[str, str]:
        text = self.read("config").decode("utf-8", "backslashreplace")  # as strings may be bytes
        path = self.folder / self.manifest.files["config"].path
        try:
            return values_of(text, str(path))
        except BuildError as error:
            raise ImageError(
                f"{path} is no kernel configuration", why=error.what, hint="get the image again"
            ) from error


def _launches(old: Manifest, new: Manifest) -> Iterator[Difference]:
    def table(manifest: Manifest) -> dict[str, str]:
        return {
            " ".join(
                str(value)
                for value in (
                    *(row.mode, row.cpu, row.vcpus, row.guest_features, row.vmm, row.init),
                )
                if value is not None
            ): f"{row.digest} ({row.covers})"
            for row in manifest.measurements
        }

    before, after = table(old), table(new)
    common = before.keys() & after.keys()
    if changed := [key for key in before if key in common and before[key] != after[key]]:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield Difference(
            "measurement",
            f"{changed[0]}{more} of {len(common)} launches that both list",
            before[changed[0]],
            after[changed[0]],
        )
    yield from _mapping("measurement", {k: v for k, v in before.items() if k not in common}, {})
    yield from _mapping("measurement", {}, {k: v for k, v in after.items() if k not in common})


def _causes(old: _Image, new: _Image) -> Iterator[Difference]:
    a, b = old.manifest, new.manifest
    yield from _cmdline(a.cmdline, b.cmdline)
    yield from _firmware(old, new)
    yield from _kernel(old, new)
    yield from _initramfs(old, new)
    yield from _mapping("source", _sources(a), _sources(b))
    yield from _mapping("toolchain", a.toolchain, b.toolchain)


def _cmdline(old: str, new: str) -> Iterator[Difference]:
    before, after = old.split(), new.split()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            for token in before[a:b]:
                yield Difference("cmdline", token, "", None)
            for token in after[c:d]:
                yield Difference("cmdline", token, None, "")
    if before == after and old != new:
        yield Difference("cmdline", "blanks", repr(old), repr(new))


def _kernel(old: _Image, new: _Image) -> Iterator[Difference]:
    a, b = old.manifest.kernel, new.manifest.kernel
    for what in ("version", "release", "compiler", "series"):
        yield from _value("kernel", what, getattr(a, what), getattr(b, what))
    yield from _patches("patch", a.patches, b.patches)
    yield from _mapping("kernel config", old.symbols(), new.symbols())
    if a.fragments != b.fragments:
        yield from _value("kernel", "fragments", ", ".join(a.fragments), ", ".join(b.fragments))


def _initramfs(old: _Image, new: _Image) -> Iterator[Difference]:
    a, b = old.manifest.initramfs, new.manifest.initramfs
    for what in ("placement", "compression", "level", "compressor"):
        yield from _value("initramfs", what, getattr(a, what), getattr(b, what))
    before, after = old.paths(), new.paths()
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        if one is None or other is None:
            yield Difference("initramfs", path, _row(one), _row(other))
        elif any(one.get(key) != other.get(key) for key in _ROW):
            keys = [key for key in _ROW if one.get(key) != other.get(key)]
            yield Difference("initramfs", path, _row(one, keys), _row(other, keys))


def _row(row: Mapping[str, Any] | None, keys: list[str] | None = None) -> str | None:
    if row is None:
        return None
    words = [f"{key} {row.get(key, 'none')}" for key in keys or ("type", "sha256") if key in row]
    owner = " ".join(str(row[key]) for key in ("package", "version") if key in row)
    return ", ".join([*words, owner or str(row.get("origin"))])


def _firmware(old: _Image, new: _Image) -> Iterator[Difference]:
    a, b = old.manifest.firmware, new.manifest.firmware
    if old.manifest.files["firmware"] == new.manifest.files["firmware"]:
        return
    yield from _firmware_builds(a.build, b.build)
    entries = [{entry.name or entry.guid: entry.data for entry in each.table} for each in (a, b)]
    yield from _mapping("firmware table", *entries)
    sections = [
        {f"{each.name} at {each.base:#x}": f"{each.size} bytes" for each in part.metadata or ()}
        for part in (a, b)
    ]
    yield from _mapping("firmware metadata", *sections)
    yield from _value("firmware", "size in bytes", a.size, b.size)
    yield from _mapping("firmware volume", _volumes(old), _volumes(new))
    contents = [modules(each.read("firmware"), str(each.folder)) for each in (old, new)]
    yield from _mapping("firmware module", *contents)


def _firmware_builds(old: FirmwareBuild | None, new: FirmwareBuild | None) -> Iterator[Difference]:
    if old is None or new is None:
        made = [
            f"from {one.source} {one.version or ''}".strip() if one else "taken"
            for one in (old, new)
        ]
        yield from _value("firmware", "made", *made)
        return
    for what in (
        "source",
        "version",
        "platform",
        "target",
        "toolchain",
        "series",
        "source_patches",
    ):
        yield from _value("firmware", what, getattr(old, what), getattr(new, what))
    yield from _mapping("firmware macro", old.defines, new.defines)
    yield from _mapping("firmware tool", old.tools, new.tools)
    yield from _patches("firmware patch", old.patches, new.patches)


def _volumes(image: _Image) -> dict[str, str]:
    """Each firmware volume, and what lies between and is not erased flash."""
    regions = _regions(image.read("firmware"), str(image.folder))
    return described((name, data) for name, data in regions if data.strip(b"\xff"))


def _regions(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    end = 0
    for volume in volumes(data, name):
        guid = str(volume.guid)
        yield "between volumes", data[end : volume.start]
        yield _VOLUMES.get(guid, guid), data[volume.start : volume.end]
        end = volume.end
    yield "between volumes", data[end:]


def _patches(part: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[Difference]:
    tables = [{patch.name: f"sha256 {patch.sha256}" for patch in each} for each in (old, new)]
    yield from _mapping(part, *tables)
    names = [[patch.name for patch in each] for each in (old, new)]
    if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        yield Difference(part, "order", ", ".join(names[0]), ", ".join(names[1]))


def _sources(manifest: Manifest) -> dict[str, str]:
    """What was fetched, by a name that outlives a version."""
    return {
        f"{each.source} {each.origin.get('package', each.origin.get('file', ''))}".strip(): (
            f"{each.origin.get('version', each.name)} {each.reference}"
        )
        for each in manifest.sources
    }


def _unexplained(
    old: Manifest, new: Manifest, causes: Sequence[Difference]
) -> Iterator[Difference]:
    """Files that differ although nothing that they are made from does.

    What is measured needs a cause among its own parts, anything else a cause at all.
    """
    parts = {cause.part.split()[0] for cause in causes}
    if _kernel_source(old) != _kernel_source(new):
        parts.add("kernel")
    for role in sorted(old.files.keys() | new.files.keys()):
        one, other = old.files.get(role), new.files.get(role)
        own = _OWN_PARTS.get(role, parts)
        if role == "kernel" and "builtin" in (old.initramfs.placement, new.initramfs.placement):
            own = own | _OWN_PARTS["initramfs"]
        if one != other and not parts & own:
            yield Difference(
                role, "changed without a cause of its own", _digest(one), _digest(other)
            )


def _kernel_source(manifest: Manifest) -> set[str]:
    return {row.reference for row in manifest.sources if row.source == manifest.kernel.source}


def _digest(file: File | None) -> str | None:
    return None if file is None else f"sha256 {file.sha256}"


def _value(part: str, what: str, old: object, new: object) -> Iterator[Difference]:
    if old != new:
        yield Difference(part, what, _text(old), _text(new))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _mapping(part: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Difference]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield Difference(part, key, old.get(key), new.get(key))
