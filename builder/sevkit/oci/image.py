# SPDX-License-Identifier: Apache-2.0
"""A container image on disk, as `docker save` and skopeo write it: found and checked.

Every blob of an OCI layout is checked against its digest, every layer of a docker archive against
the digest that the configuration has for it. Fetches nothing, and looks into no layer.

Forms: OCI image specification 1.1 (image-layout.md, manifest.md, layer.md); docker archive:
moby's image/spec/v1.2.md.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevkit.archive import LIMIT_BYTES, unpack
from sevkit.errors import RecipeError, SourceError

_LIMIT_BYTES = 4 << 20
_BLOCK = 1 << 20
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_REF = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Image:
    """An image whose parts were checked: its configuration, and its layers from the lowest up."""

    config: Mapping[str, Any]
    layers: tuple[Path, ...]


def find_image(kind: str, place: str, work: Path, *, limit_bytes: int = LIMIT_BYTES) -> Image:
    """The image that ``docker-archive:PLACE`` or ``oci:PLACE`` names, PLACE being PATH[:ref].

    `work` is an empty folder for what is taken out of an archive, `limit_bytes` at most. Raises
    `RecipeError` for a path or a reference that is not there, `SourceError` for an image that is
    damaged or none.
    """
    path, ref = _split(place)
    if kind == "oci":
        return _of_layout(path, ref)
    unpack(path, work, limit_bytes=limit_bytes)
    return _of_archive(path, work, ref)


def _split(place: str) -> tuple[Path, str]:
    """Path and reference; the longest path that exists is taken."""
    parts = place.split(":")
    for end in range(len(parts), 0, -1):
        path = Path(":".join(parts[:end]))
        if path.exists():
            return path, ":".join(parts[end:])
    raise RecipeError(f"{parts[0]}: there is no such file or folder")


def _of_archive(path: Path, folder: Path, ref: str) -> Image:
    entries = _json(folder / "manifest.json", path)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise _damaged(path, "manifest.json is no list of images")
    tags = [_tags(each) for each in entries]
    chosen = [each for each, named in zip(entries, tags, strict=True) if not ref or ref in named]
    if len(chosen) != 1:
        raise _which(path, ref, [tag for named in tags for tag in named])
    config_name, layer_names = chosen[0].get("Config"), chosen[0].get("Layers")
    if not isinstance(config_name, str) or not isinstance(layer_names, list):
        raise _damaged(path, "manifest.json names no configuration and layers")
    config = _json(_inside(folder, config_name, path), path)
    digests = _diff_ids(config, path)
    layers = tuple(_inside(folder, str(name), path) for name in layer_names)
    if len(digests) != len(layers):
        raise _damaged(path, f"{len(layers)} layers, and the configuration has {len(digests)}")
    for layer, digest in zip(layers, digests, strict=True):
        if _uncompressed_digest(layer) != digest:
            raise _damaged(path, f"the layer {layer.name} is not what the configuration says")
    return Image(config, layers)


def _of_layout(folder: Path, ref: str) -> Image:
    index = _json(folder / "index.json", folder)
    rows = [row for row in _list(index, "manifests", folder) if isinstance(row, dict)]
    names = [str(_dict(row, "annotations").get(_REF, "")) for row in rows]
    chosen = [row for row, name in zip(rows, names, strict=True) if not ref or name == ref]
    if len(chosen) != 1:
        raise _which(folder, ref, [name for name in names if name])
    manifest = _json(_blob(folder, chosen[0]), folder)
    if chosen[0].get("mediaType") in _INDEXES:
        fits = [
            row
            for row in _list(manifest, "manifests", folder)
            if isinstance(row, dict) and _dict(row, "platform").get("architecture") == "amd64"
        ]
        if len(fits) != 1:
            raise _damaged(folder, f"{len(fits)} images for amd64")
        manifest = _json(_blob(folder, fits[0]), folder)
    config = _json(_blob(folder, _dict(manifest, "config")), folder)
    _diff_ids(config, folder)
    layers = [row for row in _list(manifest, "layers", folder) if isinstance(row, dict)]
    return Image(config, tuple(_blob(folder, row) for row in layers))


def _blob(folder: Path, row: Mapping[str, object]) -> Path:
    digest = row.get("digest")
    if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise _damaged(folder, "a digest that is not a SHA-256")
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(folder, f"{digest} can't be read: {error.strerror}") from error
    if found != path.name:
        raise _damaged(folder, f"{digest} was changed: its SHA-256 is {found}")
    return path


def _uncompressed_digest(layer: Path) -> str:
    """As in `rootfs.diff_ids`: of the tar archive, whether or not it is compressed by gzip."""
    made, size = hashlib.sha256(), 0
    for block in _uncompressed(layer):
        made.update(block)
        size += len(block)
        if size > LIMIT_BYTES:
            raise _damaged(layer, f"it unpacks to more than {LIMIT_BYTES >> 30} GiB")
    return f"sha256:{made.hexdigest()}"


def _uncompressed(layer: Path) -> Iterator[bytes]:
    with layer.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        unzip = zlib.decompressobj(wbits=31)
        while block := file.read(_BLOCK):
            if not is_gzip:
                yield block
                continue
            try:
                while block:
                    yield unzip.decompress(block, _BLOCK)
                    block = unzip.unconsumed_tail
                    if unzip.eof and unzip.unused_data:  # RFC 1952: members may follow each other
                        block = unzip.unused_data
                        unzip = zlib.decompressobj(wbits=31)
            except zlib.error as error:
                raise _damaged(layer, str(error)) from error


def _inside(folder: Path, name: str, archive: Path) -> Path:
    path = folder / name
    try:
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):  # too long, a ring of links, a NUL
        pass
    raise _damaged(archive, f"{name[:200]!r} is not in it")


def _json(path: Path, where: Path) -> Any:
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise _damaged(where, f"{path.name} is larger than {_LIMIT_BYTES >> 20} MiB")
        made = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(where, f"{path.name}: {error}") from error
    if not isinstance(made, (dict, list)):
        raise _damaged(where, f"{path.name} is no object")
    return made


def _diff_ids(config: Mapping[str, object], where: Path) -> list[str]:
    if not isinstance(config, Mapping) or config.get("architecture") != "amd64":
        raise SourceError(f"{where}: the image is not for amd64")
    return [str(each) for each in _list(_dict(config, "rootfs"), "diff_ids", where)]


def _dict(value: object, key: str) -> Mapping[str, object]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(value: object, key: str, where: Path) -> Sequence[object]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise _damaged(where, f"it has no list '{key}'")
    return found


def _tags(entry: Mapping[str, object]) -> list[str]:
    found = entry.get("RepoTags")
    return [str(tag) for tag in found] if isinstance(found, list) else []


def _which(path: Path, ref: str, names: Sequence[str]) -> RecipeError:
    known = ", ".join(names) or "no name"
    if ref:
        return RecipeError(f"{path} holds no image called '{ref}'", why=f"it has: {known}")
    return RecipeError(
        f"{path} holds more than one image, or none", why=f"it has: {known}", hint=f"{path}:NAME"
    )


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path} is no whole container image", why=why)
