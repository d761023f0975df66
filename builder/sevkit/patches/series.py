# SPDX-License-Identifier: Apache-2.0
"""A patch series in quilt's form with DEP-3 headers: read, and judged before it is applied."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sevkit.errors import RecipeError
from sevkit.patches.diff import FileChange, changes_of, stays_inside

_FIELD = re.compile(r"^([A-Za-z][A-Za-z-]*):(?:\s+(.*))?$")
_KNOWN_FIELDS = frozenset(
    [
        *("description", "subject", "origin", "bug", "forwarded", "author", "from", "last-update"),
        *("applied-upstream", "date", "message-id"),
        *("reviewed-by", "acked-by", "signed-off-by", "reported-by", "tested-by"),
    ]
)
_REQUIRED_FIELDS = (
    ("Description", "Subject"),
    ("Author", "From"),
    ("Forwarded", "Origin"),
    ("Last-Update",),
)
_NAME_BYTES = 255
_BODY_ENDS = re.compile(r"^(---$|--- |diff |Index: )")


@dataclass(frozen=True)
class Patch:
    """One patch: its name in the series, where its text is, and what its header says."""

    name: str
    path: Path
    strip: int
    sha256: str
    fields: Mapping[str, str]
    """DEP-3 fields by lower-case name; continuation lines are joined with newlines."""
    changes: tuple[FileChange, ...]

    @property
    def description(self) -> str:
        """The first line of the description."""
        text = self.fields.get("description") or self.fields.get("subject", "")
        return re.sub(r"^\[[^]]*\]\s*", "", text.partition("\n")[0])

    @property
    def forwarded(self) -> str:
        """Where it was sent or came from, as its header says: a URL, ``no`` or ``not-needed``."""
        return " ".join((self.fields.get("forwarded") or self.fields.get("origin", "")).split())

    def record(self) -> dict[str, str | list[str]]:
        """The facts for a manifest."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "description": self.description,
            "forwarded": self.forwarded,
            "files": sorted(str(change.path) for change in self.changes),
        }


@dataclass(frozen=True)
class Series:
    """The patches of a series in the order in which they apply."""

    name: str
    patches: tuple[Patch, ...]

    @property
    def touched(self) -> frozenset[PurePosixPath]:
        """Every file that any patch reads, writes or removes."""
        return frozenset(
            path
            for patch in self.patches
            for change in patch.changes
            for path in (change.old, change.new)
            if path is not None
        )


def read_series(folder: Path, *, headers: bool = True) -> Series:
    """The series in `folder` (quilt(1): a file `series`, patches beside it or in subfolders).

    Without `headers`, for a series that is somebody else's, DEP-3 is not asked for. Raises
    `RecipeError` naming everything that is wrong with any patch, each with file and line.
    """
    series_path = folder / "series"
    problems: list[str] = []
    patches: list[Patch] = []
    for number, name, strip in _series_lines(series_path, problems):
        where = f"{series_path}:{number}"
        if "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
            problems.append(f"{where}: this is no name of a file")
        elif not stays_inside(PurePosixPath(name)):
            problems.append(f"{where}: {name} leaves the folder of the series")
        elif any(patch.name == name for patch in patches):
            problems.append(f"{where}: {name} is listed twice")
        elif not (folder / name).resolve().is_relative_to(folder.resolve()):
            problems.append(f"{where}: {name} is a link to outside the folder of the series")
        elif not (folder / name).is_file():
            problems.append(f"{where}: {name} does not exist")
        else:
            patch = _parse_patch(folder / name, name, strip, problems, headers=headers)
            if patch is not None:
                patches.append(patch)
    if not patches and not problems:
        problems.append(f"{series_path}: lists no patch")
    if problems:
        raise RecipeError.of_problems(f"patch series {folder.name}", problems)
    return Series(folder.name, tuple(patches))


def read_patch(path: Path, name: str, strip: int = 1) -> Patch:
    """One patch, wherever its text is; `name` is used in messages.

    Raises `RecipeError` naming everything that is wrong with it.
    """
    problems: list[str] = []
    patch = _parse_patch(path, name, strip, problems, shown=name)
    if patch is None:
        raise RecipeError.of_problems(f"patch {name}", problems)
    return patch


def _series_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        problems.append(f"{path}: {reason}")
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split() if line.lstrip().startswith("#") else line.split()
        words = words[: words.index("#")] if "#" in words else words
        if not words:
            continue
        name, *options = words
        strip = 1
        for option in options:
            if match := re.fullmatch(r"-p(\d|ab)", option):
                strip = 1 if match[1] == "ab" else int(match[1])
            else:
                problems.append(f"{path}:{number}: option {option} is not supported, only -pN is")
        yield number, name, strip


def _parse_patch(
    path: Path,
    name: str,
    strip: int,
    problems: list[str],
    shown: str = "",
    *,
    headers: bool = True,
) -> Patch | None:
    shown = shown or str(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(f"{shown}:{line}: not a text patch (byte {error.start} is not UTF-8)")
        return None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        problems.append(f"{shown}:{line}: not a text patch (holds a NUL byte)")
        return None
    lines = text.split("\n")
    fields = _header_fields(lines)
    before = len(problems)
    for names in _REQUIRED_FIELDS if headers else ():
        if not any(fields.get(field.lower(), "").strip() for field in names):
            problems.append(f"{shown}:1: DEP-3 header lacks {' or '.join(names)}")
    date = fields.get("last-update", "")
    if headers and date and not re.fullmatch(r"\d{4}-\d\d-\d\d", date.strip()):
        problems.append(f"{shown}:1: Last-Update is '{date.strip()}', not a date like 2024-05-31")
    changes = changes_of(lines, shown, strip, problems)
    if not changes and len(problems) == before:
        problems.append(f"{shown}: changes no file")
    if len(problems) > before:
        return None
    digest = hashlib.sha256(data).hexdigest()
    return Patch(name, path, strip, digest, fields, tuple(changes))


def _header_fields(lines: Sequence[str]) -> dict[str, str]:
    """The DEP-3 fields: of the first paragraph, and of later ones that hold nothing else."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if _BODY_ENDS.match(line):
            break
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    fields: dict[str, str] = {}
    for number, paragraph in enumerate(paragraphs):
        found = _paragraph_fields(paragraph)
        if number == 0 or (found is not None and found.keys() <= _KNOWN_FIELDS):
            for name, value in (found or {}).items():
                fields.setdefault(name, value)
    return fields


def _paragraph_fields(paragraph: Sequence[str]) -> dict[str, str] | None:
    fields: dict[str, str] = {}
    last = ""
    for line in paragraph:
        match = _FIELD.match(line)
        if match:
            last = match[1].lower()
            fields.setdefault(last, (match[2] or "").strip())
        elif line[0] in " \t" and last:
            fields[last] += "\n" + line.strip()
        elif not line.startswith(("From ", "#", "//")):
            return None
    return fields
