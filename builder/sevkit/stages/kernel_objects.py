# SPDX-License-Identifier: Apache-2.0
"""What a compilation leaves for the next one of the same source: its object files.

A kernel of another configuration, with another patch or another initramfs inside, and one whose
compilation broke off, go on from there. What must be compiled again is kbuild's to say (fixdep's
lists of files and symbols, saved command lines); here is only seen to it that kbuild can tell: the
objects fit the archive that the source came from and what they were compiled in, files that patches
change are newer than any object, and no object is kept that may be half written. Never changes what
comes out.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sevkit.canonical import Json, canonical_json
from sevkit.stage import Runner, Stage
from sevkit.stages.kernel_source import SourceTree
from sevkit.toolchain import GROUP
from sevkit.within import file_within, place_within, within

_FORMAT = 1
_RECORD = ".sevkit-objects"
_NOT_LEFT = re.compile(
    r"(^|/)(\.tmp_vmlinux|vmlinux|System\.map|piggy|bzImage)[^/]*$|^\.config|^initramfs\.cpio\."
)
"""What every compilation links from objects, and what it is given."""
_LEVEL = 1


@dataclass(frozen=True)
class Objects:
    """The objects of one kernel tree, taken up and left in the folder `place`."""

    tree: Path
    place: Path
    slot: str
    patches: Mapping[str, Sequence[str]]
    """Digest of each patch → the files that it touches."""
    sources: frozenset[str]
    """What was in the tree before anything was compiled."""

    @classmethod
    def of(cls, stage: Stage, source: SourceTree, place: Path) -> "Objects":
        """Those that fit the source of `stage`, its series set aside, its tools and its sandbox."""
        fits: dict[str, Json] = {
            "format": _FORMAT,
            "source": stage.inputs["source"],
            "member": stage.params["member"],
            "tools": stage.params.get("tools"),
            "toolchain": stage.inputs.get(GROUP),
            "sandbox": stage.params.get("sandbox"),
        }
        return cls(
            tree=source.path,
            place=place,
            slot=hashlib.sha256(canonical_json(fits).encode()).hexdigest()[:16],
            patches={
                patch.sha256: [
                    str(path)
                    for change in patch.changes
                    for path in (change.old, change.new)
                    if path is not None
                ]
                for patch in source.patches
            },
            sources=frozenset(_files(source.path)),
        )

    def take_up(self, run: Runner) -> bool:
        """Lay what was left into the tree. Returns whether there was anything."""
        run.progress(0, None, "taking up objects")
        for path in self.place.glob(f"{self.slot}-*.tar.zst"):
            if self._take_up(path):
                return True
            path.unlink(missing_ok=True)
        return False

    def _take_up(self, path: Path) -> bool:
        import zstandard

        try:
            data = path.open("rb")
        except FileNotFoundError:  # another kernel left newer ones a moment ago
            return False
        with data as file:
            if path != self._kept_as(file):
                return False
            file.seek(0)
            for name in self.sources:
                os.utime(self.tree / name, (0, 0), follow_symlinks=False)
            with (
                zstandard.ZstdDecompressor().stream_reader(file) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                archive.extraction_filter = lambda member, _: member
                folders = set[PurePosixPath]()
                for member in archive:
                    folders |= self._checked(member, folders)
                    archive.extract(member, self.tree)
        recorded = file_within(self.tree, _RECORD)
        record: dict[str, Any] = json.loads(recorded.read_bytes())
        recorded.unlink()
        self._move_commands(record["tree"])
        before: dict[str, list[str]] = record["patches"]
        for digest in before.keys() ^ self.patches.keys():
            for name in before.get(digest) or self.patches[digest]:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(within(self.tree, name))
        return True

    def _checked(self, member: tarfile.TarInfo, seen: Set[PurePosixPath]) -> set[PurePosixPath]:
        """The folder of `member`, which must be in the tree; a build may have left links there."""
        if member.islnk():
            within(self.tree, member.linkname)
        folder = PurePosixPath(member.name).parent
        if folder not in seen:
            within(self.tree, folder)
        return {folder}

    def _move_commands(self, old_tree: str) -> None:
        """Let the commands of tools/, which alone name absolute paths, name this tree."""
        for found in within(self.tree, "tools").rglob(".*.cmd"):
            path = file_within(self.tree, found)
            status = path.stat()
            path.write_bytes(path.read_bytes().replace(old_tree.encode(), bytes(self.tree)))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def leave(self, run: Runner) -> None:
        """Keep the objects that are in the tree, in place of those that were kept before."""
        import zstandard

        draft = place_within(run.work, "objects")
        record: dict[str, Json] = {"patches": dict(self.patches), "tree": str(self.tree)}
        place_within(self.tree, _RECORD).write_text(canonical_json(record), encoding="utf-8")
        with (
            draft.open("wb") as file,
            zstandard.ZstdCompressor(_LEVEL, threads=run.jobs).stream_writer(file) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in _files(self.tree):
                if name not in self.sources and self._is_whole(name):
                    archive.add(self.tree / name, name)
        with draft.open("rb") as data:
            kept = self._kept_as(data)
        older = [path for path in self.place.glob(f"{self.slot}-*") if path != kept]
        shutil.move(draft, kept)
        for path in older:
            path.unlink(missing_ok=True)

    def _kept_as(self, file: BinaryIO) -> Path:
        """Where what is read from `file` belongs by its content."""
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return self.place / f"{self.slot}-{digest}.tar.zst"

    def _is_whole(self, name: str) -> bool:
        """Whether what makes the file had ended: it writes the command that it ran afterwards."""
        if _NOT_LEFT.search(name):
            return False
        path = PurePosixPath(name)
        command = self.tree / path.with_name(f".{path.name}.cmd")
        try:
            return command.stat().st_mtime_ns >= (self.tree / name).stat().st_mtime_ns
        except FileNotFoundError:
            return path.suffix != ".o"


def _files(tree: Path) -> list[str]:
    """Every file and link below `tree`, sorted."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), tree)  # noqa: PTH118  # 60 000 of them
        for folder, _, names in os.walk(tree)
        for name in names
    )
