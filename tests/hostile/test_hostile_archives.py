# SPDX-License-Identifier: Apache-2.0
"""Hostile archives: all refused, in bounded memory and disk, nothing written outside."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hostile_archives import (
    OUTSIDE,
    Hostile,
    behind,
    bombs,
    cpios,
    deb,
    debs,
    folders,
    good_tar,
    harmless,
    tars,
    zips,
)

from sevkit.archive import extract_member, unpack, unpack_deb
from sevkit.errors import SevkitError, SourceError
from sevkit.oci.image import find_image

CORPUS = {each.name: each for each in (*tars(), *zips(), *cpios(), *debs())}
HARMLESS = dict(harmless())
LIMIT = 64 << 20

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


def trouble(place: Path, form: str, hostile: Hostile, content: bytes) -> str:
    """What is wrong with how an archive was refused; empty when all is well."""
    archive, out = place / "archive", place / "out"
    out.mkdir(parents=True)
    (place / "secret").write_bytes(b"secret")
    archive.write_bytes(content)
    reads: dict[str, Callable[[], object]] = {
        "deb": lambda: unpack_deb(archive, out, limit_bytes=LIMIT),
        "docker": lambda: find_image("docker-archive", str(archive), out, limit_bytes=LIMIT),
    }
    try:
        reads.get(form, lambda: unpack(archive, out, limit_bytes=LIMIT))()
    except SevkitError as error:
        said = str(error)
    else:
        return "it was not refused"
    if not re.search(hostile.why, said):
        return f"it was refused for another reason: {said}"
    if "\x1b" in said:
        return f"what is said of it drives a terminal: {said!a}"
    return escaped(place)


def escaped(place: Path) -> str:
    """What an archive did outside of the folder that it was unpacked to, or kept of its modes."""
    if places(place) != ["archive", "out", "secret"] or os.path.lexists(OUTSIDE):
        return "it wrote elsewhere"
    secret = place / "secret"
    if secret.read_bytes() != b"secret" or secret.stat().st_nlink != 1:
        return "it changed or linked a file outside"
    for path in (place / "out").rglob("*"):
        if not (path.is_symlink() or path.is_dir() or path.is_file()):
            return f"it made {path.name!a}, which is no file, folder or link"
        if not path.is_symlink() and path.stat().st_mode & 0o7000:
            return f"it gave {path.name!a} a special bit"
    return ""


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_archive_is_refused_alone_compressed_and_in_what_holds_it(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    hostile = CORPUS[name]
    content = hostile.content
    forms = {"deb": content} if name.startswith("deb-") else {"plain": content}
    if not name.startswith(("zip-", "deb-")):
        forms |= {"gz": gzip.compress(content, 1), "zst": zstandard.compress(content)}
        forms |= {"deb": deb(content), "docker": content}
    troubles = {form: trouble(tmp_path / form, form, hostile, made) for form, made in forms.items()}
    record_property("hostile archives tried", len(troubles))
    record_property("hostile archives refused", list(troubles.values()).count(""))
    assert not any(troubles.values()), {form: why for form, why in troubles.items() if why}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_evil_is_unpacked_and_does_nothing(name: str, tmp_path: Path) -> None:
    content = HARMLESS[name]
    forms = {"plain": content, "deb": deb(content)}
    for form, made in forms.items():
        place = tmp_path / form
        (place / "out").mkdir(parents=True)
        (place / "secret").write_bytes(b"secret")
        (place / "archive").write_bytes(made)
        (unpack_deb if form == "deb" else unpack)(place / "archive", place / "out")
        assert escaped(place) == ""
        assert places(place / "out")


def test_an_archive_of_zeroes_is_empty_and_a_zip_is_not_compressed_again(place: Path) -> None:
    (place / "archive").write_bytes(bytes(10240))
    with pytest.raises(SourceError, match="is an empty archive"):
        unpack(place / "archive", place / "out")
    made = HARMLESS["zip"]
    (place / "archive").write_bytes(gzip.compress(made))
    with pytest.raises(SourceError, match="can't be read as an archive"):
        unpack(place / "archive", place / "out")
    (place / "archive").write_bytes(made)
    unpack(place / "archive", place / "out")


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


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "tail"])
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
    (place / "archive").write_bytes(CORPUS["huge-40"].content)
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
