# SPDX-License-Identifier: Apache-2.0
"""A series applied to a tree with patch(1): all of it or nothing.

A patch must fit exactly: context that only nearly matches (fuzz) is refused, a hunk that merely
moved is taken and reported. Nothing is written through a symbolic link or outside the tree.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sevkit.command import Run
from sevkit.errors import BuildError
from sevkit.patches.series import Patch, Series
from sevkit.within import within

_SAID_FILE = re.compile(r"^patching file (.+?)(?: \((?:renamed|copied) from .+\))?$")
_SAID_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)")
_SAID_MOVED = re.compile(r"^Hunk #(\d+) succeeded at (\d+) \(offset (-?\d+) lines?\)")


@dataclass
class _Heard:
    """What patch(1) said about one patch."""

    file: str = ""
    files: set[PurePosixPath] = field(default_factory=set)
    failed: list[tuple[str, int, int]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if match := _SAID_FILE.match(line):
            self.file = match[1]
            self.files.add(PurePosixPath(self.file))
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
            self._check_heard(patch, heard)
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
        command += ["--quoting-style=literal", f"--strip={patch.strip}", f"--fuzz={fuzz}"]
        command += [*options, "-i", str(patch.path)]
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

    def _check_heard(self, patch: Patch, heard: _Heard) -> None:
        odd = heard.files ^ {change.path for change in patch.changes}
        if odd:
            names = ", ".join(sorted(map(str, odd)))
            raise BuildError(
                f"patch {patch.name} does not apply to {self.subject}",
                why=f"patch(1) reads something else in it of {names} than a unified diff says",
                hint="write it anew with diff -u or git diff, and nothing else in the file",
            )

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
