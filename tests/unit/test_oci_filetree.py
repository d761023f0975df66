# SPDX-License-Identifier: Apache-2.0
"""Layers in memory: what they say of each path is kept, and nothing leads out."""

import io
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevkit.errors import SourceError
from sevkit.oci import filetree
from sevkit.oci.filetree import FileTree, Node

Row = tuple[tarfile.TarInfo, bytes]


def row(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **more: object) -> Row:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def layer(path: Path, *rows: Row) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in rows:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FileTree]:
    """An empty tree."""
    with (tmp_path / "spool").open("w+b") as spool:
        yield FileTree(spool)


@pytest.fixture
def add(tree: FileTree, tmp_path: Path) -> Callable[..., FileTree]:
    """Adds a layer of rows to the tree."""

    def add_rows(*rows: Row) -> FileTree:
        tree.add_layer(layer(tmp_path / "a-layer.tar", *rows))
        return tree

    return add_rows


def at(tree: FileTree, path: str) -> Node:
    node = tree.root
    for name in path.split("/"):
        node = node.children[name.encode()]
    return node


GOOD = (
    row("bin", tarfile.DIRTYPE, mode=0o755),
    row("bin/su", content=b"su", mode=0o4755, uid=7, gid=70000, mtime=5),
    row("bin/also", tarfile.LNKTYPE, linkname="bin/su"),
    row("sbin", tarfile.SYMTYPE, linkname="bin"),
    row("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
    row("caps", content=b"c", pax_headers={"SCHILY.xattr.security.capability": "\x01cap"}),
)


def test_what_a_layer_says_of_a_path_is_kept(add: Callable[..., FileTree]) -> None:
    tree = add(*GOOD)
    program = at(tree, "bin/su")
    assert stat.S_ISREG(program.mode)
    assert (program.mode & 0o7777, program.uid, program.gid) == (0o4755, 7, 70000)
    assert program.mtime == 5
    assert at(tree, "bin/also") is program
    assert at(tree, "sbin").target == b"bin"
    assert at(tree, "null").device == (1, 3)
    assert stat.S_ISCHR(at(tree, "null").mode)
    assert at(tree, "caps").extended == ((b"security.capability", b"\x01cap"),)
    assert tree.read("bin/su") == b"su"
    assert tree.read("sbin/su") == b"su"
    assert tree.read("nothing") == tree.read("bin") == tree.read("../etc/passwd") == b""


def test_a_path_through_a_link_stays_inside(add: Callable[..., FileTree]) -> None:
    add(*GOOD, row("up", tarfile.SYMTYPE, linkname="../../../../bin"))
    tree = add(row("up/new", content=b"new"), row("sbin/newer", content=b"newer"))
    assert tree.read("bin/new") == b"new"
    assert tree.read("bin/newer") == b"newer"
    assert at(tree, "up").target == b"../../../../bin"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row("/etc/passwd")], "absolute path"),
        ([row("a/../../etc/passwd")], "climbs out"),
        ([row("x" * 300)], "too long a name"),
        ([row("/".join("d" * 300))], "more than 200 folders"),
        ([row("file"), row("file/below")], "lies below file, which is no folder"),
        ([row("hard", tarfile.LNKTYPE, linkname="nowhere")], "hard link to nowhere"),
        ([row("hard", tarfile.LNKTYPE, linkname="../shadow")], "climbs out"),
        ([row("d", tarfile.DIRTYPE), row("h", tarfile.LNKTYPE, linkname="d")], "hard link to d"),
        (
            [
                row("a", tarfile.SYMTYPE, linkname="b"),
                row("b", tarfile.SYMTYPE, linkname="a"),
                row("a/x"),
            ],
            "ring of symbolic links",
        ),
        ([row("node", tarfile.BLKTYPE, devmajor=5000, devminor=0)], "device number"),
        ([row("whose", uid=2**32 - 1)], "belongs to 4294967295:0, which is no owner"),
        ([row("whose", gid=2**32)], "belongs to 0:4294967296, which is no owner"),
        ([row("big", pax_headers={"SCHILY.xattr.user.a": "v" * 3000})], "extended attributes"),
    ],
)
def test_an_entry_that_no_tree_takes_is_refused_and_named(
    rows: list[Row], why: str, add: Callable[..., FileTree]
) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        add(*GOOD, *rows)
    assert caught.value.what.startswith("a-layer.tar: the entry '")
    assert add(*GOOD, row("whose", uid=2**32 - 2)).read("bin/su") == b"su"


def test_a_bomb_meets_the_limits(
    add: Callable[..., FileTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(row("a", content=bytes(1000)))
    monkeypatch.setattr(filetree, "LIMIT_BYTES", 2500)
    add(row("b", content=bytes(1000)))
    with pytest.raises(SourceError, match="limit of"):
        add(row("c", content=bytes(1000)))
    monkeypatch.setattr(filetree, "LIMIT_NODES", 5)
    with pytest.raises(SourceError, match="one more than the 5 allowed"):
        add(*(row(str(number)) for number in range(9)))
