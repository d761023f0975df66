# SPDX-License-Identifier: Apache-2.0
"""The account of an initramfs: every path with its digest, package, licence and reason to be there.

It is plain data, kept beside the image as contents.json, and answers three questions: is every
path accounted for, does it all fit the budget, why is this path here. It never reads the archive.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sevkit.errors import BuildError, ImageError, RecipeError

SCHEMA = 1
_MOST_SYMLINKS = 40

PathType = Literal["file", "directory", "symlink", "char", "block", "fifo", "socket"]
Origin = Literal["package", "agent", "recipe", "sevkit"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution package that something was taken from."""

    name: str
    version: str
    source: str
    licence: str
    other_licences: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One path of the initramfs.

    `mode` is four octal digits. `chain` begins with what asked for the path, each further step
    being what that needed; a step is ``name as asked for → path`` where the two differ. `same_as`
    is the first name of a hard-linked file, at its further names.
    """

    path: str
    type: PathType
    mode: str
    origin: Origin | None
    chain: Sequence[str]
    size: int | None = None
    sha256: str | None = None
    target: str | None = None
    device: str | None = None
    same_as: str | None = None
    package: str | None = None
    version: str | None = None
    licence: str | None = None


def account(
    rows: Iterable[Row],
    packages: Mapping[str, Package],
    *,
    archive_bytes: int,
    max_bytes: int,
    absent: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of contents.json.

    `archive_bytes` is the length of the uncompressed archive. `absent` tells what is recommended
    but left out. Raises `BuildError` when a path has no origin, no chain, or a package that is not
    in `packages`.
    """
    ordered = sorted(rows, key=lambda row: row.path)
    lost = [row.path for row in ordered if not _is_accounted_for(row, packages)]
    if lost:
        more = f"\nand {len(lost) - 10} more" if len(lost) > 10 else ""
        raise BuildError(
            f"{len(lost)} paths of the initramfs are not accounted for",
            why="\n".join(lost[:10]) + more,
        )
    used = sorted({row.package for row in ordered if row.package})
    return {
        "schema": SCHEMA,
        "archive_bytes": archive_bytes,
        "max_bytes": max_bytes,
        "packages": [asdict(packages[name]) | {"bytes": _bytes_of(ordered, name)} for name in used],
        "absent": list(absent),
        "paths": [_plain(row) for row in ordered],
    }


def _plain(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if value is not None}


def _is_accounted_for(row: Row, packages: Mapping[str, Package]) -> bool:
    if row.origin == "package":
        return bool(row.chain) and row.package in packages
    return row.origin is not None and bool(row.chain)


def _bytes_of(rows: Iterable[Row], package: str) -> int:
    return sum(row.size or 0 for row in rows if row.package == package and row.same_as is None)


def read_contents(data: bytes, name: str) -> dict[str, Any]:
    """What `account` made, from the bytes of the file `name`; its paths are known to be `Row`s.

    Raises `ImageError` for anything else.
    """
    try:
        contents = json.loads(data)
        rows = TypeAdapter(list[Row]).validate_json(json.dumps(contents["paths"]), strict=True)
        _check_rows(rows)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            why = f"paths.{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ImageError(
            f"{name} is no account of an initramfs", why=why, hint="build the image again"
        ) from error
    return {**contents, "paths": [_plain(row) for row in rows]}


def _check_rows(rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if not row.path.startswith("/") or row.path in seen:
            raise ValueError(f"{row.path!r} is no path of its own")
        if (
            not row.chain
            or row.origin is None
            or (row.type == "symlink") != (row.target is not None)
        ):
            raise ValueError(f"{row.path!r} lacks its chain, origin or target")
        if (row.package is None) != (row.version is None):
            raise ValueError(f"{row.path!r} has a package without version")
        seen.add(row.path)


def check_budget(contents: Mapping[str, Any]) -> None:
    """Raise `BuildError`, with what takes the room, when the archive is longer than allowed."""
    size, limit = contents["archive_bytes"], contents["max_bytes"]
    if size <= limit:
        return
    shares: Counter[str] = Counter()
    files = [row for row in contents["paths"] if row.get("size") and "same_as" not in row]
    for row in files:
        shares[_owner(row)] += row["size"]
    shares["archive headers"] = size - sum(shares.values())
    biggest = sorted(files, key=lambda row: (-row["size"], row["path"]))[:8]
    raise BuildError(
        f"the initramfs has {mebibytes(size)} unpacked, "
        f"{mebibytes(size - limit)} more than initramfs.max_size ({mebibytes(limit)})",
        why="\n".join(
            [
                *(f"{mebibytes(share):>10}  {name}" for name, share in shares.most_common(12)),
                "the biggest files:",
                *(f"{mebibytes(row['size']):>10}  {row['path']}" for row in biggest),
            ]
        ),
        hint="take something out (`sevkit why PATH` tells what needs it) or raise max_size",
    )


def _owner(row: Mapping[str, Any]) -> str:
    if row["origin"] == "package":
        return f"{row['package']} {row['version']}"
    return {"agent": "the agent", "recipe": "initramfs.files", "sevkit": "sevkit"}[row["origin"]]


def mebibytes(size: int) -> str:
    """`size` in bytes for people: ``0.02 MiB``, ``13.6 MiB``."""
    value = size / 2**20
    return f"{value:.2f} MiB" if value < 10 else f"{value:.1f} MiB"


def why(contents: Mapping[str, Any], path: str) -> list[str]:
    """What `path` is and what brought it into the initramfs, in lines for a person.

    A path through symbolic links is followed, each link with its own lines. Raises `RecipeError`
    with the nearest names when nothing is called so.
    """
    rows = {row["path"]: row for row in contents["paths"]}
    asked = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    lines: list[str] = []
    for row in _on_the_way(rows, asked):
        lines += _described(row, rows)
    if not lines:
        raise RecipeError(f"{asked} is not in the initramfs{_nearest(rows, asked)}")
    return lines


def _on_the_way(rows: Mapping[str, Mapping[str, Any]], path: str) -> list[Mapping[str, Any]]:
    """The links that `path` leads through and what it leads to; nothing if it leads nowhere."""
    passed: list[Mapping[str, Any]] = []
    pending, done = [part for part in reversed(path.split("/")) if part], ""
    while pending:
        part = pending.pop()
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        row = rows.get(f"{done}/{part}")
        if row is None or len(passed) > _MOST_SYMLINKS:
            return passed if not pending and passed else []
        if row["type"] == "symlink":
            passed.append(row)
            if row["target"].startswith("/"):
                done = ""
            pending += [
                step for step in reversed(row["target"].split("/")) if step not in ("", ".")
            ]
        elif not pending:
            return [*passed, row]
        else:
            done += f"/{part}"
    return passed


def _described(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    about = [row["type"]]
    if row["type"] != "symlink":
        about.append(f"mode {row['mode']}")
    if "target" in row:
        about.append(f"to {row['target']}")
    if "device" in row:
        about.append(f"device {row['device']}")
    if row["type"] == "directory":
        inside = [path for path in rows if path.startswith(row["path"] + "/")]
        size = sum(rows[path].get("size", 0) for path in inside if "same_as" not in rows[path])
        about.append(f"{len(inside)} paths below it, {size} bytes")
    elif "size" in row:
        about.append(f"{row['size']} bytes")
    if "same_as" in row:
        about.append(f"the same file as {row['same_as']}")
    lines = [f"{row['path']}: {', '.join(about)}"]
    if "sha256" in row:
        lines.append(f"  sha256   {row['sha256']}")
    if "package" in row:
        lines.append(f"  package  {row['package']} {row['version']}")
    else:
        by = {"agent": "the agent", "recipe": "the recipe's initramfs.files", "sevkit": "sevkit"}
        lines.append(f"  from     {by.get(row['origin'], row['origin'])}")
    if "licence" in row:
        lines.append(f"  licence  {row['licence']}")
    first, *steps = row["chain"]
    lines.append(f"  why      {first}")
    lines += [f"           {'  ' * depth}needs {step}" for depth, step in enumerate(steps, 1)]
    return lines


def _nearest(rows: Mapping[str, Mapping[str, Any]], path: str) -> str:
    name = path.rpartition("/")[2]
    same_name = [known for known in rows if known.rpartition("/")[2] == name]
    beginning = [known for known in rows if name and known.rpartition("/")[2].startswith(name)]
    close = difflib.get_close_matches(path, rows, n=3, cutoff=0.6)
    found = list(dict.fromkeys([*same_name, *beginning, *close]))[:3]
    return f": did you mean {' or '.join(found)}?" if found else ""
