# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of an image: what is in it, whose it is, under which licence.

CycloneDX 1.6 JSON (ECMA-424). Every file of the image directory that the guest runs and every path
of the initramfs belongs to one component. Everything in it comes from the manifest and the contents
of the initramfs, so equal images have equal bytes: no time stamp, and a serial number that is the
digest of the rest.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sevkit.image.shape import Manifest, Package, Patch, Source

SBOM = "sbom.cdx.json"

Component = dict[str, Any]

_IMAGE, _KERNEL, _INITRAMFS, _FIRMWARE, _AGENT = "image", "kernel", "initramfs", "firmware", "agent"
_NO_LICENCE = "NOASSERTION"
_LINUX_LICENCE = "GPL-2.0-only WITH Linux-syscall-note"
_IDS = frozenset(
    {
        *("Apache-2.0", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-3-Clause", "CC0-1.0", "ISC"),
        *("GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later"),
        *("LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later"),
        *("MIT", "MPL-2.0", "Zlib"),
    }
)
"""SPDX identifiers that are written as such; any other licence is written as its name."""
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)+")


def sbom_text(manifest: Manifest, contents: Mapping[str, Any]) -> str:
    """The bill of the image that `manifest` describes; `contents` is what contents.json holds."""
    components = [
        _kernel(manifest),
        _firmware(manifest),
        _initramfs(manifest, contents),
        _agent(manifest, contents),
        *(_package(package, contents, manifest.sources) for package in manifest.initramfs.packages),
    ]
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "operating-system",
                "bom-ref": _IMAGE,
                "name": manifest.name,
                "version": manifest.version,
                "description": manifest.summary,
                "properties": _properties({"build_id": manifest.build_id}),
            },
            "tools": {"components": [_tool(*item) for item in sorted(_tools(manifest).items())]},
        },
        "components": components,
        "dependencies": _dependencies(manifest, components),
    }
    text = json.dumps(bill, sort_keys=True, ensure_ascii=False)
    bill["serialNumber"] = f"urn:uuid:{_uuid(text)}"
    return json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _uuid(text: str) -> uuid.UUID:
    """Version 8 of RFC 9562, whose bits are the producer's to choose: a digest of `text`."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
    bits = bits & ~(0xF << 76) | (8 << 76)
    return uuid.UUID(int=bits & ~(0b11 << 62) | (0b10 << 62))


def _kernel(manifest: Manifest) -> Component:
    kernel = manifest.kernel
    source = _fetched(manifest.sources, kernel.source)
    return {
        "type": "operating-system",
        "bom-ref": _KERNEL,
        "name": "linux",
        "version": kernel.version,
        "purl": package_url(source) or f"pkg:generic/linux@{quote(kernel.version)}",
        "licenses": _licences(_LINUX_LICENCE),
        "components": [_image_file(manifest, role) for role in ("kernel", "config")],
        "properties": _properties(
            {
                "release": kernel.release,
                "compiler": kernel.compiler,
                "config_sha256": kernel.config_sha256,
            }
        ),
        **_pedigree(kernel.patches, kernel.series),
    }


def _firmware(manifest: Manifest) -> Component:
    built = manifest.firmware.build
    source = _fetched(manifest.sources, manifest.firmware.source)
    version = (built.version if built else None) or (source and source.origin.get("version"))
    component: Component = {
        "type": "firmware",
        "bom-ref": _FIRMWARE,
        "name": manifest.firmware.source,
        "version": version or manifest.firmware.sha256[:12],
        "licenses": _licences(manifest.firmware.licence or _NO_LICENCE),
        "components": [_image_file(manifest, "firmware")],
    }
    if purl := package_url(source):
        component["purl"] = purl
    if built:
        component |= _pedigree(built.patches, built.series, built.source_patches)
        component["properties"] = _properties(
            {"platform": built.platform, "target": built.target, "toolchain": built.toolchain}
        )
    return component


def _initramfs(manifest: Manifest, contents: Mapping[str, Any]) -> Component:
    """The archive, and those of its paths that are sevkit's own."""
    files = [_image_file(manifest, "contents")]
    if "initramfs" in manifest.files:
        files.append(_image_file(manifest, "initramfs"))
    own = [row for row in contents["paths"] if _owner(row, manifest) == _INITRAMFS]
    return {
        "type": "data",
        "bom-ref": _INITRAMFS,
        "name": "initramfs",
        "version": manifest.version,
        "hashes": [_hash("SHA-256", manifest.initramfs.sha256)],
        "components": [*files, *(_guest_path(row) for row in own)],
        "properties": _properties({"placement": manifest.initramfs.placement}),
    }


def _agent(manifest: Manifest, contents: Mapping[str, Any]) -> Component:
    agent = manifest.agent
    rows = [row for row in contents["paths"] if _owner(row, manifest) == _AGENT]
    return {
        "type": "application",
        "bom-ref": _AGENT,
        "name": agent.name,
        "version": agent.sha256[:12],
        "hashes": [_hash("SHA-256", agent.sha256)],
        **({"licenses": _licences(agent.licence)} if agent.licence else {}),
        "components": [_guest_path(row) for row in rows],
    }


def _package(package: Package, contents: Mapping[str, Any], sources: Sequence[Source]) -> Component:
    source = next((row for row in sources if row.origin.get("package") == package.name), None)
    rows = [row for row in contents["paths"] if row.get("package") == package.name]
    return {
        "type": "library",
        "bom-ref": f"deb:{package.name}",
        "name": package.name,
        "version": package.version,
        "purl": package_url(source) or _deb(package.name, package.version, "amd64"),
        "licenses": _licences(package.licence),
        "components": [_guest_path(row) for row in rows],
        "properties": _properties(
            {
                "source": package.source,
                "other_licences": ", ".join(package.other_licences),
                "deb_sha256": source.reference.removeprefix("blob:") if source else "",
            }
        ),
    }


def _owner(row: Mapping[str, Any], manifest: Manifest) -> str | None:
    """Which component a path of the initramfs belongs to; None: the package that it names."""
    if row.get("package"):
        return None
    return _AGENT if row["path"] == manifest.agent.path else _INITRAMFS


def _image_file(manifest: Manifest, role: Any) -> Component:
    file = manifest.files[role]
    hashes = [_hash("SHA-256", file.sha256), _hash("SHA-384", file.sha384)]
    return {
        "type": "file",
        "bom-ref": f"file:{file.path}",
        "name": file.path,
        "hashes": [*hashes, _hash("SHA-512", file.sha512)],
    }


def _guest_path(row: Mapping[str, Any]) -> Component:
    made: Component = {"type": "file", "bom-ref": f"guest:{row['path']}", "name": row["path"]}
    if digest := row.get("sha256"):
        made["hashes"] = [_hash("SHA-256", digest)]
    facts = {"type": row["type"], "target": row.get("target", "")}
    return {**made, "properties": _properties(facts)}


def _hash(algorithm: str, digest: str) -> Mapping[str, str]:
    return {"alg": algorithm, "content": digest}


def _properties(facts: Mapping[str, str]) -> list[Mapping[str, str]]:
    return [
        {"name": f"sevkit:{name}", "value": value} for name, value in sorted(facts.items()) if value
    ]


def _licences(text: str) -> list[Mapping[str, Any]]:
    if text in _IDS:
        return [{"license": {"id": text}}]
    words = _EXPRESSION.fullmatch(text)
    if words and "LicenseRef" not in text:
        return [{"expression": text}]
    return [{"license": {"name": text}}]


def _pedigree(
    patches: Sequence[Patch], series: str | None, earlier: Sequence[str] = ()
) -> Mapping[str, Any]:
    if not patches and not earlier:
        return {}
    notes = [f"of the source package: {name}" for name in earlier]
    notes += [f"{series}/{patch.name} sha256:{patch.sha256}" for patch in patches]
    rows = [
        {
            "type": "unofficial",
            "diff": {
                "text": {
                    "contentType": "text/plain",
                    "content": f"{patch.name} sha256:{patch.sha256}: {patch.description}",
                }
            },
        }
        for patch in patches
    ]
    return {"pedigree": {"patches": rows, "notes": "\n".join(notes)}}


def _fetched(sources: Sequence[Source], name: str) -> Source | None:
    return next((row for row in sources if row.source == name), None)


def package_url(source: Source | None) -> str | None:
    """A package URL (ECMA-427) of a source; None for a file of nobody's."""
    origin = source.origin if source else {}
    if origin.get("kind") in ("deb", "deb-src"):
        # an Ubuntu mirror's folder is "ubuntu", Debian's are "debian" and "debian-security"
        distribution = "ubuntu" if origin.get("archive") == "ubuntu" else "debian"
        return _deb(origin["package"], origin["version"], origin.get("architecture"), distribution)
    if origin.get("kind") == "git" and source:
        return f"pkg:generic/{quote(source.source)}@{origin['commit']}"
    if origin.get("kind") == "url" and source:
        digest = source.reference.partition(":")[2]
        return f"pkg:generic/{quote(source.source)}?checksum=sha256:{digest}"
    return None


def _deb(name: str, version: str, architecture: str | None, distribution: str = "debian") -> str:
    address = f"pkg:deb/{distribution}/{quote(name)}@{quote(version, safe='')}"
    return f"{address}?arch={architecture}" if architecture else address


def _tools(manifest: Manifest) -> Mapping[str, str]:
    built = manifest.firmware.build
    return {**(built.tools if built else {}), **manifest.toolchain}


def _tool(name: str, said: str) -> Component:
    return {"type": "application", "bom-ref": f"tool:{name}", "name": name, "version": said}


def _dependencies(manifest: Manifest, components: Sequence[Component]) -> list[Mapping[str, Any]]:
    packages = [f"deb:{package.name}" for package in manifest.initramfs.packages]
    rows: list[Mapping[str, Any]] = [
        {"ref": _IMAGE, "dependsOn": [_KERNEL, _INITRAMFS, _FIRMWARE]},
        {"ref": _INITRAMFS, "dependsOn": [_AGENT, *packages]},
    ]
    leaves = [part["bom-ref"] for part in components if part["bom-ref"] != _INITRAMFS]
    return [*rows, *({"ref": name, "dependsOn": []} for name in leaves)]


def accounted(bill: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Every file and guest path of a bill with its SHA-256, as ``file:NAME`` or ``guest:PATH``."""
    for component in bill["components"]:
        for part in component.get("components", ()):
            digests = {row["alg"]: row["content"] for row in part.get("hashes", ())}
            yield part["bom-ref"], digests.get("SHA-256")
