# SPDX-License-Identifier: Apache-2.0
"""Writes a tree as an erofs file system, uncompressed: Linux reads it from 5.4 on.

    block 0        super block at byte 1024, inodes from byte 1152 on
    …              inodes, each with its attributes and, where it fits, the end of its data
    …              data blocks

Forms: fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst of the kernel. Nothing but the
tree gets into the bytes: the UUID is zero, inodes are numbered in the order of their paths.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sevkit.oci.filetree import FileTree, Node

BLOCK = 4096
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_XATTR_HEADER = struct.Struct("<IB7x")
_XATTR_ENTRY = struct.Struct("<BBH")
_MAGIC = 0xE0F5E1E2
_SUPER_AT = 1024
_SLOT = 32
"""An inode's number is its place in these units."""
_PLAIN, _INLINE = 0, 2
_HAS_TIMES = 0x2
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}


@dataclass
class _Inode:
    """An inode, its place, and how its data is divided."""

    node: Node
    number: int
    parent: "_Inode | None"
    links: int = 1
    size: int = 0
    xattrs: bytes = b""
    place: int = 0
    """Byte in the file system."""
    tail: int = 0
    """Bytes of data that follow the inode; the rest is in blocks."""
    block: int = 0
    """The first of its data blocks."""

    @property
    def blocks(self) -> int:
        """How many data blocks it has."""
        return -(-(self.size - self.tail) // BLOCK)

    @property
    def nid(self) -> int:
        """What a directory calls it."""
        return self.place // _SLOT


def write(tree: FileTree, out: BinaryIO) -> int:
    """Write the file system to the empty file `out`; its size in blocks of 4096 bytes.

    Extended attributes in other name spaces than user, trusted and security are left out.
    """
    return _Writer(tree, out).write()


class _Writer:
    def __init__(self, tree: FileTree, out: BinaryIO):
        self._tree = tree
        self._out = out
        self._inodes: dict[int, _Inode] = {}

    def write(self) -> int:
        root = self._collect(self._tree.root, None)
        place = _SUPER_AT + _SUPER.size
        for inode in self._inodes.values():
            place = self._settle(inode, place)
        block = -(-place // BLOCK)
        for inode in self._inodes.values():
            inode.block = block
            block += inode.blocks
        for inode in self._inodes.values():
            self._write_inode(inode)
        self._out.seek(_SUPER_AT)
        self._out.write(
            _SUPER.pack(
                *(_MAGIC, 0, _HAS_TIMES, BLOCK.bit_length() - 1, 0, root.nid),
                *(len(self._inodes), 0, 0, block, 0, 0, bytes(16), bytes(16)),
                *(0, 0, 0, 0, 0, 0, 0, 0),
            )
        )
        self._out.truncate(block * BLOCK)
        return block

    def _collect(self, node: Node, parent: _Inode | None) -> _Inode:
        """Number the inodes of `node` and all below it; a second name is a link."""
        pending = [(node, parent)]
        first: _Inode | None = None
        while pending:
            node, parent = pending.pop()
            known = self._inodes.get(id(node))
            if known is not None:
                known.links += 1
                continue
            inode = _Inode(node, len(self._inodes) + 1, parent, xattrs=_xattrs(node))
            first = first or inode
            self._inodes[id(node)] = inode
            if node.is_folder:
                inode.links = 2 + sum(child.is_folder for child in node.children.values())
                inode.size = _folder_size(node)
            else:
                inode.size = len(node.target) if stat.S_ISLNK(node.mode) else node.size
            pending += [
                (node.children[name], inode) for name in sorted(node.children, reverse=True)
            ]
        assert first is not None
        return first

    @staticmethod
    def _settle(inode: _Inode, place: int) -> int:
        """Give `inode` the first place from `place` on that suits it; where the next may begin."""
        head = _INODE.size + len(inode.xattrs)
        tail = inode.size % BLOCK
        if head + tail <= BLOCK:
            inode.tail = tail
        whole = head + inode.tail
        if inode.tail and place // BLOCK != (place + whole - 1) // BLOCK:
            place = -(-place // BLOCK) * BLOCK
        inode.place = place
        return -(-(place + whole) // _SLOT) * _SLOT

    def _write_inode(self, inode: _Inode) -> None:
        node = inode.node
        is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
        icount = (len(inode.xattrs) - _XATTR_HEADER.size) // 4 + 1 if inode.xattrs else 0
        self._out.seek(inode.place)
        self._out.write(
            _INODE.pack(
                1 | (_INLINE if inode.tail else _PLAIN) << 1,
                *(icount, node.mode, 0, inode.size),
                _device(*node.device) if is_device else inode.block,
                *(inode.number, node.uid, node.gid, node.mtime, 0, inode.links),
            )
        )
        self._out.write(inode.xattrs)
        tail_at = self._out.tell()
        if stat.S_ISREG(node.mode):
            self._tree.spool.seek(node.offset)
            self._copy(inode, tail_at)
        else:
            data = node.target if stat.S_ISLNK(node.mode) else b""
            if node.is_folder:
                data = b"".join(self._folder_blocks(inode))
            in_blocks = inode.size - inode.tail
            if in_blocks:
                self._out.seek(inode.block * BLOCK)
                self._out.write(data[:in_blocks])
            self._out.seek(tail_at)
            self._out.write(data[in_blocks:])

    def _copy(self, inode: _Inode, tail_at: int) -> None:
        left = inode.size - inode.tail
        if left:
            self._out.seek(inode.block * BLOCK)
        while left:
            data = self._tree.spool.read(min(left, 1 << 20))
            self._out.write(data)
            left -= len(data)
        self._out.seek(tail_at)
        self._out.write(self._tree.spool.read(inode.tail))

    def _folder_blocks(self, folder: _Inode) -> Iterator[bytes]:
        """A folder's data: in every block entries, then the names that they point to."""
        above = folder.parent or folder
        known = {b".": folder, b"..": above}
        for name, child in folder.node.children.items():
            known[name] = self._inodes[id(child)]
        groups = list(_groups(sorted(known)))
        for number, names in enumerate(groups):
            place = len(names) * _DIRENT.size
            rows = b""
            for name in names:
                inode = known[name]
                rows += _DIRENT.pack(inode.nid, place, _TYPES[stat.S_IFMT(inode.node.mode)], 0)
                place += len(name)
            block = rows + b"".join(names)
            yield block if number == len(groups) - 1 else block.ljust(BLOCK, b"\0")


def _groups(names: list[bytes]) -> Iterator[list[bytes]]:
    """The names of a folder, as many together as a block takes."""
    group: list[bytes] = []
    size = 0
    for name in names:
        if group and size + _DIRENT.size + len(name) > BLOCK:
            yield group
            group, size = [], 0
        group.append(name)
        size += _DIRENT.size + len(name)
    yield group


def _folder_size(node: Node) -> int:
    groups = list(_groups(sorted([b".", b"..", *node.children])))
    return (len(groups) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name in groups[-1])


def _xattrs(node: Node) -> bytes:
    """The attributes as they follow the inode; nothing without any."""
    entries = b""
    for name, value in node.extended:
        for prefix, index in _PREFIXES:
            if name.startswith(prefix) and len(prefix) < len(name) <= 255:
                short = name.removeprefix(prefix)
                entry = _XATTR_ENTRY.pack(len(short), index, len(value)) + short + value
                entries += entry.ljust(-(-len(entry) // 4) * 4, b"\0")
    return _XATTR_HEADER.pack(0, 0) + entries if entries else b""


def _device(major: int, minor: int) -> int:
    """include/linux/kdev_t.h: new_encode_dev()."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
