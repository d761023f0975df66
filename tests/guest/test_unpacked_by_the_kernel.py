# SPDX-License-Identifier: Apache-2.0
"""What the cpio writer writes, as the kernel unpacks it: told by busybox's tar from inside."""

import base64
import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "unit")]

from tests.fuzz.targets import random_tree  # noqa: E402

from sevkit.errors import BuildError  # noqa: E402
from sevkit.rootfs.cpio import Directory, Entry, File, Node, Symlink, write  # noqa: E402

pytestmark = pytest.mark.boots

TREES = 1000
TOLD_IDS = 1 << 24
"""What busybox's tar tells of an owner: eight octal digits, cut off without a word."""
SCRIPT = rb"""
cd /t
/busybox echo BEGIN $(/busybox find . -type s -print0 | /busybox tr -dc "\000" | /busybox wc -c)
/busybox tar -c -f - . 2>/dev/null | /busybox gzip | /busybox base64
/busybox echo END
"""
KINDS = {
    tarfile.DIRTYPE: "directory",
    tarfile.REGTYPE: "file",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def below(entry: Entry, folder: str) -> Entry:
    if isinstance(entry, File):
        links = tuple(folder + name for name in entry.links)
        return replace(entry, path=folder + entry.path, links=links)
    return replace(entry, path=(folder + entry.path).removesuffix("/"))


def writable(entries: list[Entry]) -> bool:
    try:
        write(entries, io.BytesIO())
    except BuildError:
        return False
    return True


def expected(entries: list[Entry]) -> dict[bytes, tuple[object, ...]]:
    """Path → kind, mode, owner, group, and content, target or device with all names of a file."""
    rows: dict[str, tuple[object, ...]] = {}
    for entry in entries:
        whose = (entry.uid % TOLD_IDS, entry.gid % TOLD_IDS)
        if isinstance(entry, Symlink):
            rows[entry.path] = ("link", 0o777, *whose, encoded(entry.target))
        elif isinstance(entry, Directory):
            rows[entry.path] = ("directory", entry.mode, *whose)
        elif isinstance(entry, Node):
            device = (entry.major, entry.minor) if entry.kind in ("char", "block") else ()
            rows[entry.path] = (entry.kind, entry.mode, *whose, *device)
        else:
            names = tuple(sorted(encoded(name) for name in (entry.path, *entry.links)))
            for name in (entry.path, *entry.links):
                rows[name] = ("file", entry.mode, *whose, entry.data, names)
    for path in list(rows):
        for parent in map(str, Path(path).parents):
            rows.setdefault(parent, ("directory", 0o755, 0, 0))
    return {
        encoded(name.removeprefix("/t/")): row
        for name, row in rows.items()
        if name.startswith("/t/") and row[0] != "socket"
    }


def unpacked(archive: bytes) -> dict[bytes, tuple[object, ...]]:
    """The same of what the guest's tar found."""
    rows: dict[bytes, tuple[object, ...]] = {}
    groups: dict[bytes, list[bytes]] = {}
    with tarfile.open(
        fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in tar:
            name = encoded(member.name.removeprefix("./"))
            first = encoded(member.linkname.removeprefix("./"))
            whose = (member.mode, member.uid, member.gid)
            if member.type == tarfile.LNKTYPE:
                groups[first].append(name)
                continue
            kind = KINDS[member.type]
            if kind == "link":
                rows[name] = (kind, *whose, encoded(member.linkname))
            elif kind == "file":
                data = tar.extractfile(member)
                assert data is not None
                rows[name] = (kind, *whose, data.read())
                groups[name] = [name]
            elif kind in ("char", "block"):
                rows[name] = (kind, *whose, member.devmajor, member.devminor)
            else:
                rows[name] = (kind, *whose)
    for first, names in groups.items():
        row = (*rows[first], tuple(sorted(b"/t/" + name for name in names)))
        rows.update(dict.fromkeys(names, row))
    rows.pop(b".", None)
    return rows


def test_the_kernel_unpacks_every_tree_that_can_be_written(sev_guest: Path, tmp_path: Path) -> None:
    trees = [random_tree(Random(f"kernel {number}")) for number in range(TREES)]
    whole = {number: tree for number, tree in enumerate(trees) if writable(tree)}
    assert TREES / 4 < len(whole) < TREES
    entries = [below(entry, f"/t/{number}") for number, tree in whole.items() for entry in tree]
    entries.append(File(path="/t/last", data=b"and nothing was lost on the way"))
    own: list[Entry] = [
        File(path="/busybox", data=Path("/bin/busybox"), mode=0o755),
        File(path="/script", data=SCRIPT),
        Node(path="/dev/console", kind="char", major=5, minor=1),
        Node(path="/dev/null", kind="char", major=1, minor=3, mode=0o666),
    ]
    with (tmp_path / "initramfs").open("wb") as stream:
        write([*own, *entries], stream)
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu, "qemu-system-x86 is missing: make setup installs it"
    argv = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512M", "-serial", "stdio"]
    argv += ["-kernel", sev_guest / "vmlinuz", "-initrd", tmp_path / "initramfs"]
    argv += ["-append", "console=ttyS0 quiet panic=-1 rdinit=/busybox -- sh /script"]
    told = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    ).stdout
    found = re.search(r"BEGIN (\d+)\s(.*)END", told, re.S)
    assert found is not None, told
    sockets = sum(isinstance(entry, Node) and entry.kind == "socket" for entry in entries)
    assert int(found[1]) == sockets
    rows = unpacked(gzip.decompress(base64.b64decode(found[2])))
    wanted = expected(entries)
    assert len(wanted) > TREES
    assert rows.keys() == wanted.keys()
    for name in wanted:
        assert rows[name] == wanted[name], name
