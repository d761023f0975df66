# SPDX-License-Identifier: Apache-2.0
"""Our archives read by GNU cpio and libarchive, theirs by us; our loader beside the real one."""

import io
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import libarchive
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevkit.errors import BuildError
from sevkit.rootfs.cpio import Directory, Entry, File, Node, Symlink, read, write
from sevkit.rootfs.elf import Elf, is_elf
from sevkit.rootfs.loader import FolderTree, closure

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
MODES = st.sampled_from([0o644, 0o755, 0o400, 0o4755, 0o1777])


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Entries with distinct paths, none below something else than a directory."""
    folders = [""]
    taken: set[str] = {"/TRAILER!!!"}
    entries: list[Entry] = []

    def a_path() -> str:
        while True:
            path = f"{draw(st.sampled_from(folders))}/{draw(NAMES)}"
            if path not in taken:
                taken.add(path)
                return path

    for kind in draw(st.lists(st.sampled_from(["folder", "file", "link", "node"]), max_size=14)):
        path, mode = a_path(), draw(MODES)
        if kind == "folder":
            entries.append(Directory(path=path, mode=mode | 0o700))
            folders.append(path)
        elif kind == "file":
            links = tuple(a_path() for _ in range(draw(st.integers(0, 2))))
            entries.append(
                File(path=path, data=draw(st.binary(max_size=70)), mode=mode, links=links)
            )
        elif kind == "link":
            entries.append(Symlink(path=path, target=draw(NAMES)))
        else:
            entries.append(
                Node(path=path, kind="char", major=1, minor=draw(st.integers(0, 255)), mode=mode)
            )
    return entries


def described(entries: list[Entry]) -> dict[str, tuple[object, ...]]:
    """Path → type, mode, and target, device, or content and the other names of the file."""
    rows: dict[str, tuple[object, ...]] = {}
    for entry in entries:
        if isinstance(entry, Symlink):
            rows[entry.path] = ("link", entry.target)
        elif isinstance(entry, Directory):
            rows[entry.path] = ("folder", entry.mode)
        elif isinstance(entry, Node):
            rows[entry.path] = ("node", entry.mode, entry.major, entry.minor)
        else:
            assert not isinstance(entry.data, Path)
            names = tuple(sorted((entry.path, *entry.links)))
            for name in names:
                rows[name] = ("file", entry.mode, bytes(entry.data), names)
    return rows


def found_on_disk(root: Path) -> dict[str, tuple[object, ...]]:
    rows: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, list[str]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        guest = "/" + path.relative_to(root).as_posix()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            rows[guest] = ("link", str(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            rows[guest] = ("folder", mode)
        elif stat.S_ISCHR(status.st_mode):
            rows[guest] = ("node", mode, os.major(status.st_rdev), os.minor(status.st_rdev))
        else:
            inodes.setdefault(status.st_ino, []).append(guest)
            rows[guest] = ("file", mode, path.read_bytes(), status.st_ino)
    for guest, row in rows.items():
        if row[0] == "file":
            rows[guest] = (*row[:3], tuple(sorted(inodes[row[3]])))  # type: ignore[index]
    return rows


def with_parents(entries: list[Entry]) -> list[Entry]:
    paths = {path for entry in entries for path in (entry.path, *getattr(entry, "links", ()))}
    parents = {str(parent) for path in paths for parent in Path(path).parents} - paths - {"/"}
    return [*entries, *(Directory(path=parent) for parent in parents)]


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are for root")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_gnu_cpio_unpacks_what_was_written(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive = io.BytesIO()
        write(entries, archive)
        subprocess.run(
            ["cpio", "--quiet", "--extract", "--make-directories", "--no-absolute-filenames"],
            input=archive.getvalue(),
            cwd=root,
            check=True,
        )
        assert found_on_disk(root) == described(with_parents(entries))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_libarchive_reads_what_was_written(entries: list[Entry]) -> None:
    archive = io.BytesIO()
    write(entries, archive)
    rows: dict[str, tuple[object, ...]] = {}
    contents: dict[str, bytes] = {}
    groups: dict[str, list[str]] = {}
    with libarchive.memory_reader(archive.getvalue(), format_name="cpio") as reader:
        for entry in reader:
            path = "/" + entry.pathname
            mode = stat.S_IMODE(entry.mode)
            assert (entry.uid, entry.gid, entry.mtime) == (0, 0, 0)
            if entry.issym:
                rows[path] = ("link", entry.linkname)
            elif entry.isdir:
                rows[path] = ("folder", mode)
            elif entry.ischr:
                rows[path] = ("node", mode, entry.rdevmajor, entry.rdevminor)
            else:
                first = "/" + entry.linkname if entry.islnk else path
                groups.setdefault(first, []).append(path)
                contents[first] = b"".join(entry.get_blocks()) or contents.get(first, b"")
                rows[path] = ("file", mode, first)
    for path, row in rows.items():
        if row[0] == "file":
            first = str(row[2])
            rows[path] = ("file", row[1], contents[first], tuple(sorted(groups[first])))
    assert rows == described(with_parents(entries))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_we_read_what_was_written(entries: list[Entry]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        write(entries, file)  # type: ignore[arg-type]
        file.flush()
        assert described(read(Path(file.name))) == described(with_parents(entries))


def test_we_read_what_gnu_cpio_writes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_bytes(b"x" * 1000)
    (root / "a/twin").hardlink_to(root / "a/file")
    (root / "link").symlink_to("a/file")
    with (tmp_path / "archive").open("wb") as archive:
        subprocess.run(
            ["sh", "-ec", "find . | cpio --quiet -o -H newc"], cwd=root, check=True, stdout=archive
        )
    found = {
        path: row for path, row in described(read(tmp_path / "archive")).items() if path != "/"
    }
    assert found == found_on_disk(root)


# --- the loader ----------------------------------------------------------------------------------


def programs_of_this_machine() -> list[Path]:
    """Programs without libraries outside the default folders, and without notes."""
    found = []
    for path in sorted(Path("/usr/bin").iterdir()):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            with path.open("rb") as file:
                head = file.read(4)
            if is_elf(head) and Elf(path.read_bytes(), str(path)).interpreter:
                found.append(path)
    return found[:: max(1, len(found) // 40)]


def test_the_closure_is_what_the_real_loader_loads() -> None:
    tree = FolderTree(Path("/"), {})
    compared = 0
    for path in programs_of_this_machine():
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        real = {os.path.realpath(lib) for lib in re.findall(r"(/\S+) \(0x", listed.stdout)}
        try:
            ours = closure(tree, [str(path)]).files
        except BuildError as error:
            assert "not found" in listed.stdout or any(  # noqa: PT017 - a folder of ld.so.conf
                not lib.startswith(("/usr/lib/x86_64-linux-gnu/", "/lib")) for lib in real
            ), error
            continue
        needed = {lib for lib, chain in ours.items() if not any("dlopen" in s for s in chain)}
        assert needed - {str(path)} == real, path
        compared += 1
    assert compared > 20


def test_rpath_and_runpath_are_searched_as_the_real_loader_does(tmp_path: Path) -> None:
    def shared(name: str, *options: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = f"int {Path(name).stem[3:]}(void) {{ return 0; }}"
        soname = f"-Wl,-soname,{Path(name).name}"
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", tmp_path / name]
        command += [soname, "-Wl,--no-as-needed", *options]
        subprocess.run(command, input=text.encode(), check=True)

    shared("deep/libinner.so")
    shared("near/libouter.so", str(tmp_path / "deep/libinner.so"))
    agreed = []
    for tags in ("--disable-new-dtags", "--enable-new-dtags"):
        for where in ("$ORIGIN/near:$ORIGIN/deep", "$ORIGIN/near"):
            app = tmp_path / "app"
            command = ["gcc", "-x", "c", "-", "-x", "none", "-o", app, "-Wl,--no-as-needed"]
            command += [f"-Wl,{tags}", f"-Wl,-rpath,{where}", str(tmp_path / "near/libouter.so")]
            command += [f"-Wl,-rpath-link,{tmp_path}/deep"]
            subprocess.run(command, input=b"int main(void) { return 0; }", check=True)
            listed = subprocess.run(["ldd", app], capture_output=True, text=True, check=False)
            real = set(re.findall(r"(/\S+) \(0x", listed.stdout))
            try:
                ours = set(closure(FolderTree(Path("/"), {}), [str(app)]).files) - {str(app)}
                agreed.append(ours == {os.path.realpath(lib) for lib in real})
            except BuildError:
                agreed.append("not found" in listed.stdout)
    assert agreed == [True] * 4
    assert shutil.which("ldd")
