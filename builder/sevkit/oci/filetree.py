# SPDX-License-Identifier: Apache-2.0
"""A root file system in memory: its paths with owners and modes, their bytes in one spool file.

Layers of a container image are put on each other here (OCI image specification 1.1, layer.md), so
nothing of an image ever becomes a file of this machine: owners, device nodes and setuid bits need
no root, names can't lead anywhere, and a bomb meets a limit. Writes the spool file and no other.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sevkit.archive.reader import Attributes, Entry, Reader, Slice, opened
from sevkit.errors import SourceError

LIMIT_BYTES = 16 << 30
LIMIT_NODES = 1_000_000
_HOPS = 40
"""Symbolic links on the way to one path; Linux's limit too."""
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_IDS = (1 << 32) - 1
"""Owners are below: all bits set is -1, which is nobody (INVALID_UID of Linux)."""
_TIMES = 1 << 63
_DEVICES = 1 << 12, 1 << 20
_NAME_BYTES = 255
_TARGET_BYTES = 4095
_XATTR_BYTES = 2048
_MODES = 0o7777


@dataclass
class Node:
    """A path of the tree. `mode` has the type too, as st_mode."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    extended: tuple[tuple[bytes, bytes], ...] = ()
    offset: int = 0
    """Where in the spool file the bytes are."""
    size: int = 0
    """Of the bytes."""
    target: bytes = b""
    """Of a symbolic link."""
    children: dict[bytes, "Node"] = field(default_factory=dict)
    layer: int = 0
    """Which layer brought it, from 1."""

    @property
    def is_folder(self) -> bool:
        """Whether it has children."""
        return stat.S_ISDIR(self.mode)


class RefusedError(ValueError):
    """An entry that no tree takes: why, as the end of a sentence."""


class FileTree:
    """Starts as an empty folder that belongs to root. `spool` is an empty file, open for both."""

    def __init__(self, spool: BinaryIO):
        self.root = Node(stat.S_IFDIR | 0o755)
        self.spool = spool
        self._count = 1
        self._written = 0
        self._layer = 0

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first `limit` bytes of a regular file, links followed; nothing without one."""
        try:
            *folders, name = _parts(os.fsencode(path))
            folder, name = self._followed(folders, name)
        except (RefusedError, ValueError):
            return b""
        node = folder.children.get(name)
        if node is None or not stat.S_ISREG(node.mode):
            return b""
        self.spool.seek(node.offset)
        return self.spool.read(min(node.size, limit))

    def add_file(self, name: bytes, content: bytes, mode: int = 0o644) -> None:
        """A file of root's in the top folder."""
        self.root.children[name] = self._spooled(Node(stat.S_IFREG | mode), iter([content]))

    def add_layer(self, layer: Path) -> None:
        """Put a layer, a tar archive, compressed or not, on what is there.

        Raises `SourceError` naming layer and entry for what is damaged, too large or refused.
        """
        self._layer += 1
        with opened(Slice.whole(layer), LIMIT_BYTES) as reader:
            for entry in reader:
                try:
                    self._add(reader, entry)
                except RefusedError as error:
                    shown = os.fsdecode(entry.name[:200]).encode("unicode_escape").decode("ascii")
                    raise SourceError(
                        f"{layer.name}: the entry '{shown}' {error}",
                        hint="this image is not to be trusted; check where it comes from",
                    ) from error

    def _add(self, reader: Reader, entry: Entry) -> None:
        parts = _parts(entry.name)
        if not parts:
            if entry.type != stat.S_IFDIR:
                raise RefusedError("has no name")
            self.root = replace(self._made(reader.attributes(), entry), children=self.root.children)
            return
        *folders, name = parts
        folder = self._folder(folders)
        if name == _OPAQUE:
            folder.children = {
                name: node for name, node in folder.children.items() if node.layer == self._layer
            }
        elif name.startswith(_WHITEOUT):
            hidden = folder.children.get(name.removeprefix(_WHITEOUT))
            if hidden is not None and hidden.layer < self._layer:
                del folder.children[name.removeprefix(_WHITEOUT)]
        else:
            node = self._node(reader, entry)
            old = folder.children.get(name)
            if node.is_folder and old is not None and old.is_folder:
                node.children = old.children
            folder.children[name] = node
            node.layer = self._layer

    def _node(self, reader: Reader, entry: Entry) -> Node:
        self._count += 1
        if self._count > LIMIT_NODES:
            raise RefusedError(f"is one more than the {LIMIT_NODES} allowed")
        if entry.hard_link is not None:
            return self._linked(entry.hard_link)
        node = self._made(reader.attributes(), entry)
        if entry.type == stat.S_IFREG:
            return self._spooled(node, (block for _, block in _whole(reader, entry)))
        if entry.type == stat.S_IFLNK:
            node.target = entry.symlink or b""
            if not 0 < len(node.target) <= _TARGET_BYTES or b"\0" in node.target:
                raise RefusedError("is a symbolic link to nothing, or to too long a path")
        elif entry.type not in (stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
            raise RefusedError("is of no type that a layer may hold")
        return node

    def _linked(self, target: bytes) -> Node:
        """The very node that a hard link names: one inode with two names."""
        parts = _parts(target)
        node = self._followed(parts[:-1], parts[-1])[0].children.get(parts[-1]) if parts else None
        if node is None or node.is_folder:
            raise RefusedError(f"is a hard link to {os.fsdecode(target)}, which is no file of it")
        return node

    @staticmethod
    def _made(attributes: Attributes, entry: Entry) -> Node:
        if not (0 <= attributes.uid < _IDS and 0 <= attributes.gid < _IDS):
            raise RefusedError(f"belongs to {attributes.uid}:{attributes.gid}, which is no owner")
        if any(not 0 <= n < most for n, most in zip(attributes.device, _DEVICES, strict=True)):
            raise RefusedError("has a device number that Linux has not")
        if sum(len(name) + len(value) for name, value in attributes.extended) > _XATTR_BYTES:
            raise RefusedError(f"has more than {_XATTR_BYTES} bytes of extended attributes")
        return Node(
            mode=entry.type | entry.mode & _MODES,
            uid=attributes.uid,
            gid=attributes.gid,
            mtime=min(max(attributes.mtime, 0), _TIMES - 1),
            device=attributes.device if entry.type in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
            extended=attributes.extended,
        )

    def _spooled(self, node: Node, blocks: Iterator[bytes]) -> Node:
        node.offset = self._written
        self.spool.seek(self._written)
        for block in blocks:
            self._written += len(block)
            if self._written > LIMIT_BYTES:
                raise RefusedError(f"leads over the limit of {LIMIT_BYTES >> 30} GiB")
            self.spool.write(block)
        node.size = self._written - node.offset
        return node

    def _folder(self, parts: list[bytes]) -> Node:
        """The folder of that path, made where it is missing, through links that stay inside."""
        folder = self.root
        for number, part in enumerate(parts):
            name = part
            child = folder.children.get(name)
            if child is not None and stat.S_ISLNK(child.mode):
                folder, name = self._followed(parts[:number], name)
                child = folder.children.get(name)
            if child is None:
                child = folder.children[name] = Node(stat.S_IFDIR | 0o755, layer=self._layer)
                self._count += 1
            if not child.is_folder:
                raise RefusedError(f"lies below {os.fsdecode(name)}, which is no folder")
            folder = child
        return folder

    def _followed(self, folders: list[bytes], name: bytes) -> tuple[Node, bytes]:
        """Where a path really is: its folder, and its name there; `/` is the tree's root."""
        left, place, hops = [*folders, name], [self.root], 0
        while True:
            step = left.pop(0)
            if step in (b"", b"."):
                child: Node | None = place[-1]
            elif step == b"..":
                place = place[:-1] or place
                child = place[-1]
            else:
                child = place[-1].children.get(step)
                if child is not None and stat.S_ISLNK(child.mode):
                    hops += 1
                    if hops > _HOPS:
                        raise RefusedError("lies behind a ring of symbolic links")
                    if child.target.startswith(b"/"):
                        place = [self.root]
                    left = [*child.target.strip(b"/").split(b"/"), *left]
                    continue
                if not left:
                    return place[-1], step
                if child is None or not child.is_folder:
                    raise RefusedError(f"lies below {os.fsdecode(step)}, which is no folder")
                place.append(child)
            if not left:
                raise RefusedError("lies behind a symbolic link to a folder")


def _whole(reader: Reader, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """The blocks of the current entry, its holes filled with zeros."""
    end = 0
    for offset, block in reader.blocks():
        while end < offset:
            hole = min(offset - end, 1 << 20)
            yield end, bytes(hole)
            end += hole
        yield offset, block
        end = offset + len(block)
    while end < (entry.size or 0):
        hole = min((entry.size or 0) - end, 1 << 20)
        yield end, bytes(hole)
        end += hole


def _parts(name: bytes) -> list[bytes]:
    parts = [part for part in name.strip(b"/").split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/"):
        raise RefusedError("has an absolute path")
    if b".." in parts:
        raise RefusedError("climbs out with '..'")
    if any(len(part) > _NAME_BYTES for part in parts):
        raise RefusedError("has too long a name")
    if len(parts) > 200:
        raise RefusedError("lies more than 200 folders deep")
    return parts
