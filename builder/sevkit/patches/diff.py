# SPDX-License-Identifier: Apache-2.0
"""The unified diff of one patch: which files it touches, and whether it is well formed.

diff(1), "Detailed Description of Unified Format", and what git adds to it. Applies nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_STRAY = re.compile(r"^[ +]|^-(?!-- |- ?$)")
_GIT_HEADER = re.compile(
    r"^(old mode|new mode|new file mode|deleted file mode"
    r"|(?:dis)?similarity index|(?:rename|copy) (?:from|to)|index) "
)
_SYMLINK_MODE = re.compile(r"^(new file mode|new mode|deleted file mode) 120000$")


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


def changes_of(
    lines: Sequence[str], shown: str, strip: int, problems: list[str]
) -> list[FileChange]:
    """What the lines of a patch change, file by file in its order.

    `strip` leading parts of every name are dropped, as by ``patch -p``. What is malformed is
    added to `problems`, a line each that starts with `shown` and the number of the line.
    """
    return _Diff(lines, shown, strip, problems).changes()


def stays_inside(path: PurePosixPath) -> bool:
    """Whether a relative name leads to something below the folder that it is relative to."""
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


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
            elif line.startswith("diff --git "):
                self._git_file(line)
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

    def _git_file(self, line: str) -> None:
        """Note what git says of a file in its header alone: empty and new or gone, another mode."""
        said: set[str] = set()
        end = self.at + 1
        while end < len(self.lines) and (match := _GIT_HEADER.match(self.lines[end])):
            said.add(match[1])
            end += 1
        has_hunks = end < len(self.lines) and self.lines[end].startswith("--- ")
        is_new, is_gone = "new file mode" in said, "deleted file mode" in said
        if has_hunks or said & {"rename from", "copy from"}:
            return
        if not (is_new or is_gone or "new mode" in said):
            return
        names = line.removeprefix("diff --git ").split()
        if len(names) != 2:
            self._problem("a file name with a space in it is not supported here")
            return
        old, new = (self._path(name, self.strip) for name in names)
        if old and new:
            self.found.append(FileChange(None if is_new else old, None if is_gone else new, 0))

    def _named(self, line: str) -> PurePosixPath | None:
        name = line[4:].partition("\t")[0].rstrip()
        return None if name == "/dev/null" else self._path(name, self.strip)

    def _path(self, name: str, strip: int) -> PurePosixPath | None:
        path = PurePosixPath(name)
        if name.startswith('"'):
            self._problem(f"quoted file name {name} is not supported")
            return None
        if not stays_inside(path) or len(path.parts) <= strip:
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
