# SPDX-License-Identifier: Apache-2.0
"""The manifest of an image directory: written, read back, and held against the directory's bytes.

One text form: keys sorted, two spaces, a newline at the end, so equal facts are equal bytes and an
edit shows. Checks images, never repairs one.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sevkit.errors import ImageError
from sevkit.image.shape import MANIFEST_VERSION, File, Manifest, Role
from sevkit.printable import printable

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "SUMS",
    "File",
    "Manifest",
    "Role",
    "describe",
    "describe_file",
    "explained",
    "load",
    "read_published",
    "schema",
    "text_of",
    "verify",
    "write_sums",
]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "manifest.json.sig"
"""Comes to an image after its build; `sevkit.image.signature` says whose it is."""
LIMIT_BYTES = 8 << 20
SCHEMA_ID = "urn:sevkit:manifest:1"

_CHUNK = 1 << 20
_DIGESTS = ("sha256", "sha384", "sha512")


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


def read_published(folder: Path, manifest: Manifest, role: Role) -> bytes:
    """The bytes of an image's file, read once and as the manifest says.

    Raises `ImageError` when they are others, and when the image has no such file.
    """
    file = manifest.files.get(role)
    if file is None:
        raise ImageError(f"{folder} has no file {role}", hint="build the image again")
    path = folder / file.path
    try:
        with _open(path) as stream:
            there = os.fstat(stream.fileno()).st_size  # what is stated may be more than memory
            data = bytes(stream.read(min(file.size, there) + 1))
    except OSError as error:
        raise ImageError(
            f"{path} can't be read", why=str(error.strerror), hint="get the image again"
        ) from error
    found = describe(file.path, data)
    if found != file:
        why = f"sha256 is {found.sha256}, {MANIFEST} says {file.sha256}"
        if found.size != file.size:
            amount = "more than" if found.size > file.size else f"{found.size} of"
            why = f"it has {amount} the {file.size} bytes that {MANIFEST} says"
        raise ImageError(
            f"{path} is not the {role} of this image",
            why=why,
            hint="it was replaced after the build: restore it, or build the image again",
        )
    return data


def describe(name: str, data: bytes) -> File:
    """Size and digests of `data`, the bytes of the file `name`."""
    digests = {kind: hashlib.new(kind, data).hexdigest() for kind in _DIGESTS}
    return File(path=name, size=len(data), **digests)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of the files of `folder`, in the form of sha256sum(1)."""
    names = sorted({path.name for path in folder.iterdir()} - {SUMS, SIGNATURE})
    lines = [f"{_digests(folder / name)[1]['sha256']}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="ascii")


def load(folder: Path) -> Manifest:
    """The manifest of an image directory.

    Raises `ImageError` when it is missing, not ours, of another version, or was edited: not in the
    one text form, or not what SHA256SUMS says.
    """
    path = folder / MANIFEST
    manifest = read_manifest(path)
    if _read_sums(folder).get(MANIFEST) != hashlib.sha256(text_of(manifest).encode()).hexdigest():
        raise _edited(path, f"{SUMS} has another digest for it")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file that may have come without its image.

    Raises `ImageError` as `load` does, but for the digest, which is SHA256SUMS's to tell.
    """
    raw = _read(path)
    manifest = _parsed(raw, path)
    if text_of(manifest).encode() != raw:
        raise _edited(path, "its text is not as sevkit writes it")
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
    """The first problems of a validation, a line each, printable: keys are the manifest's own."""
    problems = error.errors(include_url=False, include_input=False)
    lines = [
        printable(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}")
        for one in problems[:5]
    ]
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
    """What differs between an image directory and what it says of itself, a printable line each.

    Every byte of every file is hashed. Modes, owners and times are the copier's and not looked at.
    Raises `ImageError` when `folder` can't be read at all.
    """
    try:
        with os.scandir(folder) as entries:
            present = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    except OSError as error:
        raise ImageError(f"{folder} can't be read", why=str(error.strerror)) from error
    files = {name for name, mode in present.items() if stat.S_ISREG(mode)}
    differences: list[str] = []
    stated: dict[str, File] = {}
    sums: dict[str, str] = {}
    try:
        if SUMS in files:
            sums = _read_sums(folder)
        if MANIFEST in files:
            manifest = read_manifest(folder / MANIFEST)
            stated = {file.path: file for file in manifest.files.values()}
    except ImageError as error:
        differences.append(printable(": ".join([error.what, *error.why.splitlines()])))
    expected = {MANIFEST, SUMS, *stated, *sums}
    for name in sorted(expected | present.keys() - {SIGNATURE}):
        if name not in present:
            differences.append(f"{name}: is missing")
        elif name not in expected:
            if stated or sums:
                differences.append(f"{printable(name)}: does not belong to the image")
        elif name not in files:
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


def _open(path: Path) -> Any:
    """A file opened for reading bytes; neither a symbolic link nor something to wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb")


def _digests(path: Path) -> tuple[int, dict[str, str]]:
    hashes = {name: hashlib.new(name) for name in _DIGESTS}
    size = 0
    with _open(path) as file:
        while block := file.read(_CHUNK):
            size += len(block)
            for one in hashes.values():
                one.update(block)
    return size, {name: one.hexdigest() for name, one in hashes.items()}
