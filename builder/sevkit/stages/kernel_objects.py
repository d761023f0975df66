# SPDX-License-Identifier: Apache-2.0
"""What a compilation leaves for the next one of the same source: its object files.

A kernel of another configuration, with one more patch or another initramfs inside, and one whose
compilation broke off, go on from there. What must be compiled again is kbuild's to say (fixdep's
lists of files and symbols, saved command lines); here is only seen to it that kbuild can tell: the
objects fit the archive that the source came from and what they were compiled in, files that patches
change are newer than any object, and no object is kept that may be half written. Never changes what
comes out: what a source's makefiles and scripts do to objects comes to no kernel that does not
have them itself, so that objects go only to the same series or to one that continues it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sevkit.canonical import Json, canonical_json
from sevkit.stage import Runner, Stage
from sevkit.stages.kernel_source import SourceTree
from sevkit.toolchain import GROUP
from sevkit.within import file_within, place_within, within

_FORMAT = 3
_RECORD = ".sevkit-objects"
_MARGIN_SECONDS = 1
"""By which everything that is taken up is in the past: no file of a new tree may seem older."""
_NOT_LEFT = re.compile(
    r"(^|/)(\.tmp_vmlinux|vmlinux|System\.map|piggy|bzImage)[^/]*$|^\.config|^initramfs\.cpio\."
)
"""What every compilation links from objects, and what it is given."""
_PLAIN = re.compile(r'"?[\w ./:,+=()@%-]*"?', re.A)
"""A value of a configuration that make and shells, which also read it, take as text."""
_LEVEL = 1


@dataclass(frozen=True)
class Objects:
    """The objects of one kernel tree, taken up and left in the folder `place`."""

    tree: Path
    place: Path
    slots: Sequence[str]
    """What is kept for the source without a patch, with the first one, and so on, up to ours."""
    touched: Sequence[Sequence[str]]
    """The files that each patch changes."""
    sources: frozenset[str]
    """What was in the tree before anything was compiled."""

    @classmethod
    def of(cls, stage: Stage, source: SourceTree, config: Iterable[str], place: Path) -> "Objects":
        """Those that fit the source of `stage`, its tools and its sandbox.

        `config` are the values that its configuration is made of, in which a string may say more to
        make or a shell than to Kconfig: then no other configuration shares its objects.
        """
        fits: dict[str, Json] = {
            "format": _FORMAT,
            "source": stage.inputs["source"],
            "member": stage.params["member"],
            "tools": stage.params.get("tools"),
            "toolchain": stage.inputs.get(GROUP),
            "sandbox": stage.params.get("sandbox"),
            "strings": sorted({value for value in config if not _PLAIN.fullmatch(value)}),
        }
        patches: list[Json] = [[patch.sha256, patch.strip] for patch in source.patches]
        return cls(
            tree=source.path,
            place=place,
            slots=[
                hashlib.sha256(canonical_json({**fits, "patches": first}).encode()).hexdigest()[:16]
                for first in (patches[:number] for number in range(len(patches) + 1))
            ],
            touched=[
                [
                    str(path)
                    for change in patch.changes
                    for path in (change.old, change.new)
                    if path is not None
                ]
                for patch in source.patches
            ],
            sources=frozenset(_files(source.path)),
        )

    def take_up(self, run: Runner) -> bool:
        """Lay what was left into the tree. Returns whether there was anything."""
        run.progress(0, None, "taking up objects")
        for number, slot in reversed(list(enumerate(self.slots))):
            for path in self.place.glob(f"{slot}-*.tar.zst"):
                if self._take_up(path, slot):
                    self._patched_since(number)
                    return True
                path.unlink(missing_ok=True)
        return False

    def _take_up(self, path: Path, slot: str) -> bool:
        import zstandard

        try:
            data = path.open("rb")
        except FileNotFoundError:  # another kernel left newer ones a moment ago
            return False
        with data as file:
            if path != self._kept_as(slot, file):
                return False
            file.seek(0)
            for name in self.sources:
                os.utime(self.tree / name, (0, 0), follow_symlinks=False)
            with (
                zstandard.ZstdDecompressor().stream_reader(file) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                archive.extraction_filter = lambda member, _: member
                members = iter(archive)
                record = json.loads(_content(archive, next(members)))
                ahead = max(0.0, record["newest"] - time.time() + _MARGIN_SECONDS)
                folders = set[PurePosixPath]()
                for member in members:
                    folders |= self._checked(member, folders)
                    member.mtime -= ahead
                    archive.extract(member, self.tree)
        self._move_commands(record["tree"])
        return True

    def _patched_since(self, number: int) -> None:
        """Make what the patches from `number` on change newer than any object."""
        for name in chain.from_iterable(self.touched[number:]):
            with contextlib.suppress(FileNotFoundError):
                os.utime(within(self.tree, name))

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
        names = [n for n in _files(self.tree) if n not in self.sources and self._is_whole(n)]
        newest = max((int(self.tree.joinpath(n).lstat().st_mtime) + 1 for n in names), default=0)
        record = canonical_json({"tree": str(self.tree), "newest": newest}).encode()
        head = tarfile.TarInfo(_RECORD)
        head.size = len(record)
        with (
            draft.open("wb") as file,
            zstandard.ZstdCompressor(_LEVEL, threads=run.jobs).stream_writer(file) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.addfile(head, io.BytesIO(record))
            for name in names:
                archive.add(self.tree / name, name)
        slot = self.slots[-1]
        with draft.open("rb") as data:
            kept = self._kept_as(slot, data)
        older = [path for path in self.place.glob(f"{slot}-*") if path != kept]
        shutil.move(draft, kept)
        for path in older:
            path.unlink(missing_ok=True)

    def _kept_as(self, slot: str, file: BinaryIO) -> Path:
        """Where what is read from `file` belongs by its content."""
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return self.place / f"{slot}-{digest}.tar.zst"

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


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _files(tree: Path) -> list[str]:
    """Every file and link below `tree`, sorted."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), tree)  # noqa: PTH118  # 60 000 of them
        for folder, _, names in os.walk(tree)
        for name in names
    )
