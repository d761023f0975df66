# SPDX-License-Identifier: Apache-2.0
"""The newc writer and reader: bytes by the format's description, refusals, and damage."""

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkit.errors import BuildError, ImageError
from sevkit.rootfs.cpio import Directory, Entry, File, Node, Symlink, read, write

TREE: list[Entry] = [
    Directory(path="/dev"),
    Node(path="/dev/console", kind="char", major=5, minor=1),
    Directory(path="/tmp", mode=0o1777),
    File(path="/init", data=b"#!/bin/sh\n", mode=0o755),
    File(path="/usr/bin/a", data=b"program", mode=0o755, links=("/usr/bin/z", "/sbin/b")),
    Symlink(path="/lib", target="usr/lib"),
    File(path="/usr/lib/empty", data=b""),
]


def archive_of(entries: list[Entry]) -> bytes:
    stream = io.BytesIO()
    write(entries, stream)
    return stream.getvalue()


def read_back(data: bytes, tmp_path: Path) -> list[Entry]:
    path = tmp_path / "archive.cpio"
    path.write_bytes(data)
    return read(path)


def test_one_file_is_written_as_the_format_says() -> None:
    data = archive_of([File(path="/a", data=b"hello", mode=0o640)])
    header = "070701" + "".join(
        f"{field:08X}" for field in (1, 0o100640, 0, 0, 1, 0, 5, 0, 0, 0, 0, 2, 0)
    )
    trailer = "070701" + "".join(f"{n:08X}" for n in (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0))
    wanted = header.encode() + b"a\0hello\0\0\0" + trailer.encode() + b"TRAILER!!!\0"
    assert data == wanted + bytes(512 - len(wanted))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entries = {entry.path: entry for entry in read_back(archive_of(TREE), tmp_path)}
    assert entries["/dev/console"] == TREE[1]
    assert entries["/tmp"] == TREE[2]
    assert entries["/init"] == TREE[3]
    linked = entries["/sbin/b"]
    assert isinstance(linked, File)
    assert (linked.data, linked.links, linked.mode) == (
        b"program",
        ("/usr/bin/a", "/usr/bin/z"),
        0o755,
    )
    assert entries["/usr/bin"] == Directory(path="/usr/bin")
    assert entries["/lib"] == TREE[5]


def test_the_order_of_the_entries_changes_nothing() -> None:
    shuffled = list(TREE)
    random.Random(7).shuffle(shuffled)
    assert shuffled != TREE
    assert archive_of(shuffled) == archive_of(TREE)


def test_files_of_this_machine_give_the_bytes_only(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3_000_001)
    (tmp_path / "f").chmod(0o600)
    from_disk = archive_of([File(path="/f", data=tmp_path / "f")])
    assert from_disk == archive_of([File(path="/f", data=b"x" * 3_000_001)])


def test_what_a_file_system_says_of_a_file_beside_its_bytes_is_not_in_the_archive(
    tmp_path: Path,
) -> None:
    """Link counts, inodes, times, owners' names, sizes of folders: two copies differ in all."""
    archives = []
    for name, links in (("one", 0), ("two", 5)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(links):
            (folder / f"other-{number}").write_bytes(b"to make the folder larger" * 1000)
        (folder / "f").write_bytes(b"same")
        for number in range(links):
            (folder / f"link-{number}").hardlink_to(folder / "f")
        os.utime(folder / "f", (links, links))
        entries: list[Entry] = [Directory(path="/d"), File(path="/d/f", data=folder / "f")]
        archives.append(archive_of(entries))
    assert archives[0] == archives[1]


def test_the_answer_of_write_tells_sizes_and_digests() -> None:
    written = write([File(path="/a", data=b"abc", links=("/b",))], stream := io.BytesIO())
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert written.digests == {"/a": digest, "/b": digest}
    assert written.sizes == {"/a": 3, "/b": 3}
    assert written.archive_bytes == len(stream.getvalue())


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([File(path="/a", data=b""), Directory(path="/a")], "twice"),
        ([File(path="/a", data=b"", links=("/b",)), File(path="/b", data=b"")], "twice"),
        ([File(path="a", data=b"")], "not an absolute path"),
        ([File(path="/a/../b", data=b"")], "not an absolute path"),
        ([File(path="/a//b", data=b"")], "not an absolute path"),
        ([File(path="/a/", data=b"")], "not an absolute path"),
        ([File(path="/", data=b"")], "the root is a directory"),
        ([File(path="/a", data=b"", links=("/",))], "the root is a directory"),
        ([Symlink(path="/", target="/a")], "the root is a directory"),
        ([File(path="/a\0b", data=b"")], "NUL"),
        ([File(path="/TRAILER!!!", data=b"")], "mark of an archive's end"),
        ([File(path="/" + "n" * 256, data=b"")], "longer than"),
        ([File(path="/a" * 2100, data=b"")], "longer than"),
        ([File(path="/a", data=b""), File(path="/a/b", data=b"")], "not a directory"),
        ([Symlink(path="/a", target="c"), File(path="/a/b", data=b"")], "a symbolic link"),
        ([Symlink(path="/a", target="")], "can't be a link's target"),
        ([Symlink(path="/a", target="x" * 4096)], "can't be a link's target"),
        ([Node(path="/a", kind="char", major=4096)], "not a device number"),
        ([File(path="/a", data=b"", mode=0o10000)], "not a file mode"),
        ([File(path="/a", data=b"", uid=-1)], "not an owner"),
        ([File(path="/a", data=b"", uid=2**32 - 1)], "not an owner"),
        ([Symlink(path="/a", target="b", gid=2**32 - 1)], "not an owner"),
        ([File(path="/a", data=Path("/nonexistent/file"))], "No such file"),
    ],
)
def test_what_the_kernel_could_not_unpack_is_refused(entries: list[Entry], reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        archive_of(entries)
    archive_of([File(path="/" + "n" * 255, data=b""), Symlink(path="/l", target="x" * 4095)])
    archive_of([Directory(path="/", uid=2**32 - 2, gid=2**32 - 2)])


def test_a_file_of_4_gib_is_refused_and_a_sparse_one_below_is_not(tmp_path: Path) -> None:
    class Sink(io.RawIOBase):
        def write(self, data: object) -> int:
            return len(data)  # type: ignore[arg-type]

    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(BuildError, match="over 4 GiB"):
        write([File(path="/big", data=big)], Sink())  # type: ignore[arg-type]
    with big.open("wb") as file:
        file.truncate(2**20)
    write([File(path="/big", data=big)], Sink())  # type: ignore[arg-type]


def test_odd_names_survive(tmp_path: Path) -> None:
    names = ["/new\nline", "/sp ace", "/ünïcode", "/\udcff\udcfe", "/ -n"]
    entries: list[Entry] = [
        File(path=name, data=name.encode("utf-8", "surrogateescape")) for name in names
    ]
    found = read_back(archive_of(entries), tmp_path)
    assert {entry.path for entry in found} == set(names)


def test_archives_that_follow_one_another_are_read_as_one(tmp_path: Path) -> None:
    first = archive_of([File(path="/a", data=b"1", links=("/b",))])
    second = archive_of([File(path="/c", data=b"2", links=("/d",))])
    paths = [(e.path, getattr(e, "links", ())) for e in read_back(first + second, tmp_path)]
    assert paths == [("/a", ("/b",)), ("/c", ("/d",))]


@pytest.mark.parametrize("size", [0, 5, 109, 111, 115, 300])
def test_an_archive_that_is_cut_off_is_refused(size: int, tmp_path: Path) -> None:
    data = archive_of([File(path="/a", data=b"hello" * 40)])
    read_back(data, tmp_path)
    with pytest.raises(ImageError, match="newc archive"):
        read_back(data[:size], tmp_path)


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"a/../../b"])
def test_a_name_that_leads_out_is_refused(name: bytes, tmp_path: Path) -> None:
    data = archive_of([File(path="/" + "x" * len(name), data=b"")])
    with pytest.raises(ImageError, match=r"'\.\.'"):
        read_back(data.replace(b"x" * len(name), name), tmp_path)


@settings(max_examples=300, deadline=1000)
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=20))
def test_garbage_gives_entries_or_one_error(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(archive_of(TREE))
    for at, value in changes:
        data[at] = value
    try:
        read_back(bytes(data), tmp_path_factory.getbasetemp())
    except ImageError as error:
        assert "is not a whole newc archive" in error.what  # noqa: PT017 - most is readable
