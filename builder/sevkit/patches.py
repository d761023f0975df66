# SPDX-License-Identifier: Apache-2.0
"""Patch series in quilt's form with DEP-3 headers: read, judged, and applied all or nothing.

A patch must fit exactly: context that only nearly matches (fuzz) is refused, a hunk that merely
moved is taken and reported. It never writes through a symbolic link or outside the tree, and
leaves the tree as it was when any patch of the series fails.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from sevkit.errors import BuildError, RecipeError
from sevkit.within import within

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
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_STRAY = re.compile(r"^[ +]|^-(?!-- |- ?$)")
_BODY_ENDS = re.compile(r"^(---$|--- |diff |Index: )")
_SYMLINK_MODE = re.compile(r"^(new file mode|new mode|deleted file mode) 120000$")
_SAID_FILE = re.compile(r"^patching file (.+?)(?: \((?:renamed|copied) from .+\))?$")
_SAID_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)")
_SAID_MOVED = re.compile(r"^Hunk #(\d+) succeeded at (\d+) \(offset (-?\d+) lines?\)")


class Run(Protocol):
    """Runs a command, its output line by line; raises `BuildError` when it fails."""

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        reading: Sequence[Path] = (),
    ) -> None:
        """See `sevkit.stage.Runner`."""


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one file; `old` is None for a new file, `new` for one that goes."""

    old: PurePosixPath | None
    new: PurePosixPath | None
    hunks: int

    @property
    def path(self) -> PurePosixPath:
        """The file's name in the patched tree, or the one that it had."""
        path = self.new or self.old
        assert path is not None
        return path


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
        elif not _stays_inside(PurePosixPath(name)):
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


def _stays_inside(path: PurePosixPath) -> bool:
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


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
    changes = _Diff(lines, shown, strip, problems).changes()
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


@dataclass
class _Diff:
    """Walks the unified diff of a patch and says what it touches; notes what is malformed."""

    lines: Sequence[str]
    shown: str
    strip: int
    problems: list[str]
    at: int = 0
    old: PurePosixPath | None = None
    new: PurePosixPath | None = None
    found: list[FileChange] = field(default_factory=list)

    def changes(self) -> list[FileChange]:
        """Every file with the number of its hunks, in the order of the patch."""
        while self.at < len(self.lines):
            line = self.lines[self.at]
            following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
            if line.startswith("--- ") and following.startswith("+++ "):
                self._file(line, following)
                continue
            if line.startswith("GIT binary patch") or re.match(r"Binary files .* differ$", line):
                self._problem("a binary patch can't be applied; only text can")
            elif _SYMLINK_MODE.match(line):
                self._problem("a patch may not make, change or remove a symbolic link")
            elif line.startswith(("rename from ", "copy from ")):
                self._rename(line, following)
            elif line.startswith("@@ ") and not _HUNK.match(line):
                self._problem("malformed '@@' line")
            elif _HUNK.match(line):
                self._problem("a hunk without '---' and '+++' lines before it")
                self._hunk(line)
                continue
            self.at += 1
        return self.found

    def _problem(self, text: str) -> None:
        self.problems.append(f"{self.shown}:{self.at + 1}: {text}")

    def _file(self, old_line: str, new_line: str) -> None:
        old, new = self._named(old_line), self._named(new_line)
        if old is None and new is None:
            self._problem("names no file")
        self.at += 2
        hunks: list[str] = []
        while self.at < len(self.lines) and _HUNK.match(self.lines[self.at]):
            hunks.append(self.lines[self.at])
            self._hunk(self.lines[self.at])
        if not hunks:
            self._problem("no hunk follows the '+++' line")
        if old and new and FileChange(old, new, 0) not in self.found:
            old = None if hunks and hunks[0].startswith("@@ -0,0 ") else new
        if hunks and (old or new):
            self.found.append(FileChange(old, new, len(hunks)))

    def _named(self, line: str) -> PurePosixPath | None:
        name = line[4:].partition("\t")[0].rstrip()
        return None if name == "/dev/null" else self._path(name, self.strip)

    def _path(self, name: str, strip: int) -> PurePosixPath | None:
        path = PurePosixPath(name)
        if name.startswith('"'):
            self._problem(f"quoted file name {name} is not supported")
            return None
        if not _stays_inside(path) or len(path.parts) <= strip:
            self._problem(f"{name}: leaves the tree, or has no name left after -p{strip}")
            return None
        return PurePosixPath(*path.parts[strip:])

    def _rename(self, line: str, following: str) -> None:
        word = line.split(" ", 1)[0]
        if not following.startswith(f"{word} to "):
            self._problem(f"'{word} from' without '{word} to'")
            return
        strip = max(self.strip - 1, 0)
        old = self._path(line.removeprefix(f"{word} from "), strip)
        new = self._path(following.removeprefix(f"{word} to "), strip)
        if old and new:
            self.found.append(FileChange(old, new, 0))

    def _hunk(self, header: str) -> None:
        match = _HUNK.match(header)
        assert match is not None
        old_left, new_left = int(match[2] or 1), int(match[4] or 1)
        started = self.at
        self.at += 1
        while (old_left > 0 or new_left > 0) and self.at < len(self.lines):
            kind = self.lines[self.at][:1]
            last = self.at == len(self.lines) - 1
            if kind not in (" ", "-", "+", "\\", "") or (kind == "" and last):
                break
            old_left -= kind in (" ", "-", "")
            new_left -= kind in (" ", "+", "")
            self.at += 1
        following = self.lines[self.at] if self.at < len(self.lines) else ""
        if old_left or new_left or _STRAY.match(following):
            ended, self.at = self.at, started
            self._problem(f"hunk ends at line {ended + 1}, but its '@@' line promises another size")
            self.at = ended
        while self.at < len(self.lines) and self.lines[self.at].startswith("\\"):
            self.at += 1


# --- applying ------------------------------------------------------------------------------


@dataclass
class _Heard:
    """What patch(1) said about one patch."""

    file: str = ""
    failed: list[tuple[str, int, int]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if match := _SAID_FILE.match(line):
            self.file = match[1].strip("'")
        elif match := _SAID_FAILED.match(line):
            self.failed.append((self.file, int(match[1]), int(match[2])))
        elif match := _SAID_MOVED.match(line):
            self.moved.append(f"{self.file}: hunk {match[1]} moved by {match[3]} lines")


def apply(series: Series, tree: Path, shadow: Path, run: Run, *, subject: str) -> list[str]:
    """Apply every patch of `series` to `tree`, or none; the hunks that moved, a line each.

    The files concerned are patched in `shadow` (a folder that does not exist yet) and put into
    the tree once all went well. `subject` names the tree in messages (``linux 6.12.117``).

    Raises `BuildError` naming the patch, the file and the hunk that does not fit.
    """
    shadow.mkdir()
    try:
        return _Application(series, tree, shadow, run, subject).carry_out()
    finally:
        shutil.rmtree(shadow)


@dataclass(frozen=True)
class _Application:
    series: Series
    tree: Path
    shadow: Path
    run: Run
    subject: str

    def carry_out(self) -> list[str]:
        patched, before = self.shadow / "patched", self.shadow / "before"
        patched.mkdir()
        for path in sorted(self.series.touched):
            self._check_place(path)
            _copy(self.tree, patched, path)
        moved: list[str] = []
        for patch in self.series.patches:
            self._check_files(patch, patched)
            before.mkdir()
            for change in patch.changes:
                _copy(patched, before, change.old or change.path)
            heard = _Heard()
            try:
                self._patch(patch, patched, on_line=heard)
            except BuildError as error:
                raise self._explained(patch, heard, before, error) from error
            moved += [f"{patch.name}: {line}" for line in heard.moved]
            shutil.rmtree(before)
        for path in sorted(self.series.touched):
            if not _copy(patched, self.tree, path):
                (self.tree / path).unlink(missing_ok=True)
        return moved

    def _patch(
        self,
        patch: Patch,
        folder: Path,
        *options: str,
        fuzz: int = 0,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        command = ["patch", "--force", "--no-backup-if-mismatch", "--reject-file=-"]
        command += [f"--strip={patch.strip}", f"--fuzz={fuzz}", *options, "-i", str(patch.path)]
        self.run(command, cwd=folder, on_line=on_line, reading=[patch.path])

    def _would_fit(self, patch: Patch, folder: Path, *options: str, fuzz: int = 0) -> bool:
        try:
            self._patch(patch, folder, "--dry-run", *options, fuzz=fuzz)
        except BuildError:
            return False
        return True

    def _check_place(self, path: PurePosixPath) -> None:
        place = self.tree
        for part in path.parts:
            place = place / part
            if place.is_symlink() or (place == self.tree / path and place.is_dir()):
                kind = "symbolic link" if place.is_symlink() else "folder"
                raise BuildError(
                    f"patch series {self.series.name} does not apply to {self.subject}",
                    why=f"{path}: {place.relative_to(self.tree)} is a {kind} there",
                )

    def _check_files(self, patch: Patch, folder: Path) -> None:
        made: set[PurePosixPath] = set()
        why = hint = ""
        for change in patch.changes:
            if change.old is not None and change.old not in made:
                if not (folder / change.old).is_file():
                    why = f"{change.old}: no such file"
                    hint = f"check that -p{patch.strip} is right, and which version it is for"
            elif change.old is None and (folder / change.path).exists():
                why = f"{change.path}: the patch would create it, but it is there already"
            if why:
                what = f"patch {patch.name} does not apply to {self.subject}"
                raise BuildError(what, why=why, hint=hint)
            made.add(change.path)

    def _explained(
        self, patch: Patch, heard: _Heard, before: Path, error: BuildError
    ) -> BuildError:
        what = f"patch {patch.name} does not apply to {self.subject}"
        if not heard.failed:
            return BuildError(what, why="\n".join(heard.lines[-4:]) or error.why, log=error.log)
        why = "\n".join(
            f"{name}: hunk {hunk} of {_hunks(patch, name)} failed at line {line}"
            for name, hunk, line in heard.failed
        )
        if self._would_fit(patch, before, "--reverse"):
            hint = f"remove {patch.name} from the series: the tree has this change already"
        elif self._would_fit(patch, before, fuzz=2):
            hint = "refresh the patch: it would fit only with fuzz, as the lines around it changed"
        else:
            hint = "rewrite the hunk for this version, or choose another series in the recipe"
        return BuildError(what, why=why, hint=hint, log=error.log)


def _copy(source: Path, destination: Path, path: PurePosixPath) -> bool:
    original, copy = within(source, path), within(destination, path)
    if not original.is_file():
        return False
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(original, copy)
    return True


def _hunks(patch: Patch, name: str) -> int:
    return sum(change.hunks for change in patch.changes if str(change.path) == name)
