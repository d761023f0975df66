# SPDX-License-Identifier: Apache-2.0
"""Hostile archives: all refused, in bounded memory and disk, nothing written outside."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_archives import OUTSIDE, behind, bombs, deb, folders, good_tar, others, tars

from sevkit.archive import extract_member, unpack, unpack_deb
from sevkit.errors import SevkitError, SourceError
from sevkit.oci.image import find_image

CORPUS = {**dict(tars()), **dict(others())}

UNPACK = """
import json, resource, sys
from pathlib import Path
from sevkit.archive import unpack
from sevkit.errors import SourceError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), limit_bytes=64 << 20)
except SourceError as error:
    said = Path("/proc/self/status").read_text()  # getrusage(2) counts what was before execve too
    peak = int(said.partition("VmHWM:")[2].split()[0]) >> 10
    print(json.dumps([str(error), peak]))
"""


def places(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "out").mkdir()
    return tmp_path


def refused(place: Path, how: str, content: bytes) -> str:
    archive = place / "archive"
    archive.write_bytes(content)
    (place / "work").mkdir()
    reads: dict[str, Callable[[Path, Path], object]] = {
        "deb": unpack_deb,
        "docker": lambda path, out: find_image("docker-archive", str(path), out),
    }
    read = reads.get(how, unpack)
    with pytest.raises(SevkitError) as caught:
        read(archive, place / "out")
    assert places(place) == ["archive", "out", "secret", "work"]
    assert (place / "secret").read_bytes() == b"secret"
    assert (place / "secret").stat().st_nlink == 1
    assert not os.path.lexists(OUTSIDE)
    assert "\x1b" not in str(caught.value)
    for path in (place / "out").rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o7000
        assert path.is_symlink() or path.is_dir() or path.is_file()
    return str(caught.value)


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_archive_is_refused_alone_compressed_and_in_what_holds_it(
    name: str, tmp_path: Path
) -> None:
    content = CORPUS[name]
    forms = {"plain": content, "gz": gzip.compress(content)}
    if not name.startswith(("zip", "cpio")):
        forms |= {"deb": deb(content), "docker": content}
    for form, made in forms.items():
        if name in ("empty", "zeroes") and form == "deb":
            continue  # a package without files is none to be refused
        place = tmp_path / form
        (place / "out").mkdir(parents=True)
        (place / "secret").write_bytes(b"secret")
        assert refused(place, form, made)


def test_the_good_archives_beside_them_pass(tmp_path: Path) -> None:
    good = good_tar()
    for form, made in {"plain": good, "gz": gzip.compress(good), "deb": deb(good)}.items():
        place = tmp_path / form
        place.mkdir()
        archive = place / "archive"
        archive.write_bytes(made)
        out = place / "out"
        out.mkdir()
        (unpack_deb if form == "deb" else unpack)(archive, out)
        assert (out / "d/twin").samefile(out / "d/file")
        assert (out / "d/file").stat().st_mode & 0o7777 == 0o777
        extract_member(archive, "d/file", place / "one")
        assert (place / "one").read_bytes() == b"evil"


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "tail"])
def test_a_bomb_meets_the_limits_of_memory_and_disk(kind: str, place: Path) -> None:
    """What would unpack to 100 GiB, under a limit of 64 MiB on disk and 1 GiB of memory."""
    content = dict(bombs(100))[f"bomb-{kind}"]
    (place / "archive").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", UNPACK, place / "archive", place / "out"],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "builder")},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    why, peak = json.loads(done.stdout)
    assert "too large" in why or "after its end" in why
    assert peak < 300
    assert sum(path.stat().st_blocks * 512 for path in (place / "out").iterdir()) <= 65 << 20


def test_a_bomb_taken_out_of_an_archive_leaves_nothing(place: Path) -> None:
    (place / "archive").write_bytes(dict(tars())["huge-40"])
    with pytest.raises(SourceError, match="'huge' is too large"):
        extract_member(place / "archive", "huge", place / "member")
    assert not (place / "member").exists()


@pytest.mark.parametrize("how", ["control", "member", "unwanted", "docker"])
def test_what_is_skipped_is_not_decompressed_without_end(how: str, place: Path) -> None:
    def read(size: int) -> None:
        path = place / "archive"
        if how == "control":
            path.write_bytes(deb(good_tar(), behind(size, "./control")))
            unpack_deb(path, place / "out")
            return
        path.write_bytes(behind(size, "wanted"))
        limits = {"limit_bytes": 64 << 20, "limit_entries": 1000}
        if how == "member":
            extract_member(path, "wanted", place / "member", **limits)
        elif how == "docker":
            find_image("docker-archive", str(path), place / "out", limit_bytes=64 << 20)
        else:
            unpack(path, place / "out", wanted=lambda name: name == "wanted", **limits)

    with pytest.raises(SourceError) as caught:
        read(100 << 30)
    assert ("too large" if how == "docker" else "unpacks to more than") in str(caught.value)
    assert not (place / "member").exists()
    if how != "docker":
        read(1 << 20)


def test_folders_count_as_entries_do(place: Path) -> None:
    archive = place / "archive"
    archive.write_bytes(folders(1000, 150))
    with pytest.raises(SourceError, match="one more than the 2000 allowed, with folders"):
        unpack(archive, place / "out", limit_entries=2000)
    assert sum(1 for _ in (place / "out").rglob("*")) < 2200
    archive.write_bytes(folders(10, 150))
    unpack(archive, place / "out", limit_entries=2000)


def test_an_archive_of_more_entries_than_allowed_is_not_searched(place: Path) -> None:
    archive = place / "archive"
    archive.write_bytes(folders(1000, 1))
    with pytest.raises(SourceError, match="has more than 100 entries"):
        extract_member(archive, "999/f", place / "member", limit_entries=100)
    extract_member(archive, "99/f", place / "member", limit_entries=100)
