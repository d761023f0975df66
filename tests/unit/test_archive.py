# SPDX-License-Identifier: Apache-2.0
"""Archives, good and hostile; each refusal stands beside the same archive without the evil."""

import bz2
import contextlib
import gzip
import lzma
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
import zstandard

from sevkit.archive import DebControl, extract_member, unpack, unpack_deb
from sevkit.errors import SourceError

Row = tuple[tarfile.TarInfo, bytes]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.xz": lzma.compress,
    "tar.bz2": bz2.compress,
    "tar.zst": zstandard.ZstdCompressor().compress,
}
CONTROL = b"Package: hello\nVersion: 1:2.0-1\nArchitecture: amd64\nSource: greetings (2.0)\n"


def file(name: str, content: bytes = b"content", mode: int = 0o644) -> Row:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content


def folder(name: str, mode: int = 0o755) -> Row:
    return special(name, tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Row:
    return special(name, tarfile.SYMTYPE, target)


def hard_link(name: str, target: str) -> Row:
    return special(name, tarfile.LNKTYPE, target)


def special(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> Row:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info, b""


def tar(*rows: Row, form: Literal[1, 2] = 1) -> bytes:
    """A tar archive of exactly these entries: GNU (1) or pax (2), as `tarfile` numbers them."""
    blocks = b""
    for info, content in rows:
        blocks += info.tobuf(form, "utf-8", "surrogateescape")
        blocks += content + b"\0" * (-len(content) % 512)
    return blocks + b"\0" * 1024


def ar(*members: tuple[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def deb(data: bytes, control: bytes = CONTROL, version: bytes = b"2.0\n") -> bytes:
    return ar(
        ("debian-binary", version),
        ("control.tar.xz", lzma.compress(tar(folder("./"), file("./control", control)))),
        ("data.tar.xz", lzma.compress(data)),
    )


@pytest.fixture
def store(tmp_path: Path) -> Callable[[bytes], Path]:
    def keep(content: bytes) -> Path:
        path = tmp_path / "an.archive"
        path.write_bytes(content)
        return path

    return keep


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "outer" / "out"
    path.mkdir(parents=True)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def everything(root: Path) -> dict[str, bytes | str | None]:
    """Path → content, link text, or None for a folder."""
    return dict(_walk(root, root))


def _walk(root: Path, place: Path) -> Iterator[tuple[str, bytes | str | None]]:
    for path in sorted(place.iterdir()):
        name = str(path.relative_to(root))
        if path.is_symlink():
            yield name, str(path.readlink())
        elif path.is_dir():
            yield name, None
            yield from _walk(root, path)
        else:
            yield name, path.read_bytes()


GOOD = (
    folder("./"),
    folder("./usr/bin/", mode=0o750),
    file("./usr/bin/tool", b"#!/bin/sh\n", mode=0o755),
    symlink("./usr/bin/alias", "tool"),
    hard_link("./usr/bin/twin", "./usr/bin/tool"),
    symlink("./etc/alternatives/awk", "/usr/bin/mawk"),
    symlink("./outside", "../../../elsewhere"),
    file("./empty", b""),
)
UNPACKED = {
    "empty": b"",
    "etc": None,
    "etc/alternatives": None,
    "etc/alternatives/awk": "/usr/bin/mawk",
    "outside": "../../../elsewhere",
    "usr": None,
    "usr/bin": None,
    "usr/bin/alias": "tool",
    "usr/bin/tool": b"#!/bin/sh\n",
    "usr/bin/twin": b"#!/bin/sh\n",
}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_tar_is_unpacked_whatever_its_compression(
    kind: str, store: Callable[[bytes], Path], out: Path
) -> None:
    unpack(store(COMPRESSIONS[kind](tar(*GOOD))), out)
    assert everything(out) == UNPACKED
    assert (out / "usr/bin/twin").samefile(out / "usr/bin/tool")


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_a_tar_is_unpacked_in_any_thread(
    store: Callable[[bytes], Path], out: Path, ending: str
) -> None:
    """Of a thread the heap is far up, where an address doesn't fit 32 bits."""
    archive = store(COMPRESSIONS[ending](tar(folder("a"), file("a/b", b"text"))))
    thread = threading.Thread(target=unpack, args=(archive, out))
    thread.start()
    thread.join()
    assert (out / "a" / "b").read_bytes() == b"text"


def test_modes_are_kept_without_setuid_and_whatever_the_umask(
    store: Callable[[bytes], Path], out: Path
) -> None:
    archive = store(
        tar(
            folder("locked", mode=0o555),
            file("locked/inside", mode=0o444),
            file("su", mode=0o4755),
            folder("shared", mode=0o3777),
            file("implied/parent", mode=0o666),
        )
    )
    script = "import os,sys; os.umask(0o077); from pathlib import Path; "
    script += "from sevkit.archive import unpack; unpack(Path(sys.argv[1]), Path(sys.argv[2])); "
    script += "assert os.umask(0) == 0o077"
    subprocess.run([sys.executable, "-c", script, archive, out], check=True)
    modes = {path: stat.S_IMODE((out / path).stat().st_mode) for path in everything(out)}
    assert modes == {
        "locked": 0o755,
        "locked/inside": 0o644,
        "su": 0o755,
        "shared": 0o777,
        "implied": 0o755,
        "implied/parent": 0o666,
    }


@pytest.mark.parametrize("compress", [bytes, lzma.compress], ids=["plain", "compressed"])
@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([file("../evil")], "../evil"),
        ([file("a/../../evil")], "a/../../evil"),
        ([file("/evil")], "/evil"),
        ([symlink("link", "/"), file("link/evil")], "link/evil"),
        ([symlink("link", "../.."), file("link/outer/evil")], "link/outer/evil"),
        ([symlink("link", ".."), folder("link/evil")], "link/evil"),
        ([symlink("link", ".."), symlink("link/evil", "x")], "link/evil"),
        ([symlink("link", ".."), folder("link")], "link"),
        ([hard_link("evil", "/etc/hostname")], "evil"),
        ([hard_link("evil", "../secret")], "evil"),
        ([symlink("link", "../.."), hard_link("evil", "link/outer/secret")], "evil"),
        ([hard_link("evil", "absent")], "evil"),
        ([folder("sub"), hard_link("evil", "sub")], "evil"),
        ([special("evil", tarfile.CHRTYPE)], "evil"),
        ([special("evil", tarfile.BLKTYPE)], "evil"),
        ([special("evil", tarfile.FIFOTYPE)], "evil"),
        ([folder("sub"), file("sub")], "sub"),
        ([file("f"), file("f/evil")], "f/evil"),
        ([file("/".join(["d"] * 300))], "d/d"),
        ([file("n" * 300)], "nnn"),
        ([file("evil\n\x1b[31m/../..")], r"evil\n\x1b[31m"),
    ],
)
def test_an_entry_that_tries_to_escape_is_refused_and_named(
    rows: list[Row],
    named: str,
    compress: Callable[[bytes], bytes],
    store: Callable[[bytes], Path],
    out: Path,
) -> None:
    (out.parent / "secret").write_bytes(b"secret")
    with pytest.raises(SourceError) as caught:
        unpack(store(compress(tar(*GOOD, *rows, file("after")))), out)
    assert "an.archive" in caught.value.what
    assert f"'{named}" in caught.value.what
    assert names_in(out.parent) == ["out", "secret"]
    assert (out.parent / "secret").stat().st_nlink == 1
    assert not (out / "after").exists()
    shutil.rmtree(out)
    out.mkdir()
    unpack(store(compress(tar(*GOOD, file("after")))), out)
    assert everything(out) == {**UNPACKED, "after": b"content"}


def test_only_what_is_wanted_is_unpacked_and_the_rest_is_checked_all_the_same(
    store: Callable[[bytes], Path], out: Path
) -> None:
    rows = [folder("./top"), file("./top/kept/a"), file("./top/left/b"), file("top/left/kept")]

    def wanted(path: str) -> bool:
        asked.append(path)
        return "left" not in path.split("/")

    asked: list[str] = []
    unpack(store(tar(*rows)), out, wanted=wanted)
    assert asked == ["top", "top/kept/a", "top/left/b", "top/left/kept"]
    assert everything(out) == {"top": None, "top/kept": None, "top/kept/a": b"content"}
    with pytest.raises(SourceError, match=r"'top/left/\.\./\.\./\.\./b' climbs out"):
        unpack(store(tar(*rows, file("top/left/../../../b"))), out, wanted=wanted)


def test_a_file_replaces_a_link_of_its_name_and_never_writes_through_it(
    store: Callable[[bytes], Path], out: Path
) -> None:
    secret = out.parent / "secret"
    secret.write_bytes(b"secret")
    rows = [symlink("a", str(secret)), file("a", b"new"), symlink("b", str(secret))]
    unpack(store(tar(*rows, hard_link("c", "b"))), out)
    assert everything(out) == {"a": b"new", "b": str(secret), "c": str(secret)}
    assert secret.read_bytes() == b"secret"


def test_a_link_that_was_in_the_destination_before_is_not_written_through(
    store: Callable[[bytes], Path], out: Path
) -> None:
    archive = store(tar(file("sub/file")))
    (out / "sub").symlink_to("..")
    with pytest.raises(SourceError, match="'sub/file' goes through sub"):
        unpack(archive, out)
    assert not (out.parent / "file").exists()
    (out / "sub").unlink()
    unpack(archive, out)
    assert everything(out) == {"sub": None, "sub/file": b"content"}


def test_names_are_the_same_in_every_locale_also_when_they_are_no_utf_8(
    store: Callable[[bytes], Path], out: Path, latin_1: Mapping[str, str]
) -> None:
    gnu = tar(file("f\udcf6\udcff"), file("ő-gnu"))
    pax = tar(file("ő-pax"), file("é-pax"), symlink("l" * 120, "ő" * 60), form=2)
    names = {}
    for locale, more in {"C": {}, "C.UTF-8": {}, latin_1["LC_ALL"]: latin_1}.items():
        for content in (gnu, pax):
            place = out / locale
            place.mkdir(exist_ok=True)
            done = subprocess.run(
                [sys.executable, "-c", _UNPACK, store(content), place],
                env={**os.environ, "LC_ALL": locale, **more},
                capture_output=True,
                check=True,
            )
            assert done.stderr == b""
        names[locale] = {os.fsencode(name): link for name, link in everything(place).items()}
    assert names["C"] == names["C.UTF-8"] == names[latin_1["LC_ALL"]]
    encoded = {name.encode() for name in ("ő-gnu", "ő-pax", "é-pax", "l" * 120)}
    assert set(names["C"]) == {b"f\xf6\xff", *encoded}
    assert names["C"][b"l" * 120] == "ő" * 60


_UNPACK = "import sys; from pathlib import Path; from sevkit.archive import unpack; "
_UNPACK += "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_truncated_archive_is_an_error_at_every_length(
    kind: str, store: Callable[[bytes], Path], tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(60_000)
    whole = COMPRESSIONS[kind](tar(file("first"), file("large", content)))
    for number, length in enumerate([0, 1, 5, 100, 700, 20_000, len(whole) - 1600]):
        place = tmp_path / str(number)
        place.mkdir()
        with pytest.raises(SourceError, match=r"an\.archive"):
            unpack(store(whole[:length]), place)
    (tmp_path / "whole").mkdir()
    unpack(store(whole), tmp_path / "whole")
    assert (tmp_path / "whole" / "large").read_bytes() == content


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSIONS if kind not in ("tar", "tar.zst")])
def test_damage_behind_the_last_entry_is_noticed(
    kind: str, store: Callable[[bytes], Path], out: Path
) -> None:
    whole = COMPRESSIONS[kind](tar(file("a")))
    with pytest.raises(SourceError, match="can't be read"):
        unpack(store(whole[:-2]), out)
    unpack(store(whole), out)


def test_random_bytes_are_no_archive(store: Callable[[bytes], Path], out: Path) -> None:
    source = random.Random(2)
    for _ in range(50):
        with pytest.raises(SourceError, match=r"an\.archive"):
            unpack(store(source.randbytes(5000)), out)
    assert everything(out) == {}


def test_flipped_bytes_give_one_error_or_a_tree_inside(
    store: Callable[[bytes], Path], tmp_path: Path
) -> None:
    source = random.Random(3)
    whole = tar(*GOOD)
    for number in range(300):
        content = bytearray(whole)
        content[source.randrange(len(content) - 1024)] ^= 1 << source.randrange(8)
        place = tmp_path / "outer" / str(number)
        place.mkdir(parents=True)
        with contextlib.suppress(SourceError):
            unpack(store(bytes(content)), place)
    assert names_in(tmp_path) == ["an.archive", "outer"]
    assert len(names_in(tmp_path / "outer")) == 300


def test_a_format_that_reads_files_of_the_host_is_no_archive(
    store: Callable[[bytes], Path], out: Path
) -> None:
    with pytest.raises(SourceError):
        unpack(store(b"#mtree\n./stolen type=file contents=/etc/hostname\n"), out)
    assert everything(out) == {}


def test_sizes_and_numbers_have_a_limit(store: Callable[[bytes], Path], out: Path) -> None:
    archive = store(gzip.compress(tar(file("a", bytes(60_000)), file("b", bytes(60_000)))))
    with pytest.raises(SourceError, match="'b' is too large"):
        unpack(archive, out, limit_bytes=100_000)
    with pytest.raises(SourceError, match="'b' is one more than the 1 allowed"):
        unpack(archive, out, limit_entries=1)
    unpack(archive, out, limit_bytes=120_000, limit_entries=2)


def test_a_zip_that_hides_its_size_meets_the_limit(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    content = path.read_bytes()
    lie = (50_000_000).to_bytes(4, "little")
    path.write_bytes(content.replace(lie, (10).to_bytes(4, "little")))
    with pytest.raises(SourceError):
        unpack(path, out, limit_bytes=1_000_000)
    assert sum(file.stat().st_size for file in out.iterdir()) < 2_000_000
    path.write_bytes(content)
    unpack(path, out)
    assert (out / "bomb").stat().st_size == 50_000_000


def test_a_zip_keeps_modes_and_links_and_can_not_escape(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "some.zip"

    def write(*rows: tuple[str, int, bytes]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, mode, content in rows:
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, mode << 16
                archive.writestr(info, content)

    good = (("bin/tool", 0o100755, b"x"), ("bin/alias", 0o120777, b"tool"))
    write(*good)
    unpack(path, out)
    assert everything(out) == {"bin": None, "bin/alias": "tool", "bin/tool": b"x"}
    assert (out / "bin/tool").stat().st_mode & 0o777 == 0o755
    for evil in ("../evil", "/evil"):
        write(*good, (evil, 0o100644, b"x"))
        with pytest.raises(SourceError, match="evil"):
            unpack(path, out)
    assert names_in(out.parent) == ["out"]


def test_a_cpio_keeps_the_data_of_hard_links(store: Callable[[bytes], Path], out: Path) -> None:
    def newc(name: str, inode: int, links: int, content: bytes) -> bytes:
        fields = [inode, 0o100644, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)

    end = newc("TRAILER!!!", 0, 1, b"")
    unpack(store(newc("a", 7, 2, b"") + newc("b", 7, 2, b"shared") + end), out)
    assert everything(out) == {"a": b"shared", "b": b"shared"}
    assert (out / "a").samefile(out / "b")
    with pytest.raises(SourceError, match=r"'\.\./evil'"):
        unpack(store(newc("../evil", 9, 1, b"x") + end), out)


def test_holes_stay_holes(tmp_path: Path, out: Path) -> None:
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"middle")
        sparse.truncate(8 << 20)
    command = ["tar", "--sparse", "-C", str(tmp_path), "-cf", str(tmp_path / "s.tar"), "sparse"]
    subprocess.run(command, check=True)
    assert (tmp_path / "s.tar").stat().st_size < 1 << 20
    unpack(tmp_path / "s.tar", out)
    assert (out / "sparse").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
    with pytest.raises(SourceError, match="too large"):
        unpack(tmp_path / "s.tar", out, limit_bytes=4 << 20)


def test_progress_rises_to_the_size_of_the_archive(
    store: Callable[[bytes], Path], out: Path
) -> None:
    source = random.Random(4)
    rows = [file(str(number), source.randbytes(1 << 20)) for number in range(8)]
    archive = store(gzip.compress(tar(*rows)))
    told: list[tuple[int, int | None]] = []
    unpack(archive, out, progress=lambda done, total: told.append((done, total)))
    assert len(told) >= 3
    assert told == sorted(told)
    assert {total for _, total in told} == {archive.stat().st_size}


def test_an_exception_of_the_listener_ends_it_and_leaves_no_thread(
    store: Callable[[bytes], Path], out: Path
) -> None:
    source = random.Random(5)
    archive = store(
        gzip.compress(tar(*(file(str(n), source.randbytes(1 << 20)) for n in range(8))))
    )

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    before, handles = threading.active_count(), len(names_in(Path("/proc/self/fd")))
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, out, progress=stop)
    assert threading.active_count() == before
    assert len(names_in(Path("/proc/self/fd"))) == handles


def test_memory_stays_small_for_a_large_member(tmp_path: Path, out: Path) -> None:
    archive = tmp_path / "large.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as packed:
        info = tarfile.TarInfo("large")
        info.size = 200 << 20
        packed.write(info.tobuf())
        for _ in range(200):
            packed.write(bytes(1 << 20))
        packed.write(bytes(1024))
    script = "import sys; from pathlib import Path; "
    script += "from sevkit.archive import extract_member; "
    script += "extract_member(Path(sys.argv[1]), 'large', Path(sys.argv[2])); "
    script += "print(Path('/proc/self/status').read_text())"
    command = [sys.executable, "-c", script, str(archive), str(out / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [peak_kib] = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert int(peak_kib) < 64 << 10
    assert (out / "large").stat().st_size == 200 << 20


def test_a_full_disk_is_not_blamed_on_the_archive(
    store: Callable[[bytes], Path], out: Path
) -> None:
    archive = store(lzma.compress(tar(file("large", bytes(4 << 20)))))
    full = f'mount -t tmpfs -o size=1m none "{out}" && exec "$@"'
    confined = ["unshare", "--map-root-user", "--mount", "sh", "-c", full, "sh"]
    if subprocess.run([*confined, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here, so no small disk to fill")
    command = [*confined, sys.executable, "-c", _UNPACK, str(archive), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device"
    unpack(archive, out)


# --- Debian packages ---------------------------------------------------------------------------


def test_a_package_is_unpacked_and_says_what_it_is(
    store: Callable[[bytes], Path], out: Path
) -> None:
    assert unpack_deb(store(deb(tar(*GOOD))), out) == DebControl(
        package="hello", version="1:2.0-1", architecture="amd64", source="greetings"
    )
    assert everything(out) == UNPACKED


def test_a_package_that_is_damaged_or_evil_is_refused(
    store: Callable[[bytes], Path], out: Path
) -> None:
    whole = deb(tar(*GOOD))
    for content in (
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-300],
        ar(("debian-binary", b"2.0\n")),
        b"!<arch>\ndebian-binary " + bytes(60),
        lzma.compress(tar(*GOOD)),
        deb(tar(*GOOD), control=b"Package: hello\n"),
        deb(b"no archive at all" * 99),
        deb(tar(*GOOD, file("../evil"))),
        deb(tar(*GOOD, symlink("lib", "/"), file("lib/evil"))),
    ):
        with pytest.raises(SourceError, match=r"an\.archive"):
            unpack_deb(store(content), out)
        assert names_in(out.parent) == ["out"]
        shutil.rmtree(out)
        out.mkdir()
    unpack_deb(store(whole), out)


def test_a_signature_behind_the_data_does_no_harm(
    store: Callable[[bytes], Path], out: Path
) -> None:
    signed = deb(tar(*GOOD)) + ar(("_gpgorigin", b"signature"))[8:]
    unpack_deb(store(signed), out)
    assert everything(out) == UNPACKED


# --- one file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, lzma.compress, deb], ids=["tar", "tar.xz", "deb"])
def test_one_file_is_taken_out(
    pack: Callable[[bytes], bytes], store: Callable[[bytes], Path], tmp_path: Path
) -> None:
    archive = store(pack(tar(*GOOD, file("./usr/src/linux.tar.xz", b"linux"))))
    for member in ("usr/src/linux.tar.xz", "./usr/src/linux.tar.xz"):
        extract_member(archive, member, tmp_path / "taken")
        assert (tmp_path / "taken").read_bytes() == b"linux"
    extract_member(archive, "usr/bin/twin", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"#!/bin/sh\n"


def test_a_member_that_is_not_there_gets_the_nearest_names(
    store: Callable[[bytes], Path], tmp_path: Path
) -> None:
    archive = store(tar(*GOOD, file("usr/src/linux-source-6.12.tar.xz")))
    with pytest.raises(SourceError, match=r"holds no usr/src/linux-source-6\.1\.tar\.xz") as caught:
        extract_member(archive, "usr/src/linux-source-6.1.tar.xz", tmp_path / "taken")
    assert "did you mean usr/src/linux-source-6.12.tar.xz" in caught.value.what
    with pytest.raises(SourceError, match="usr/bin is no regular file"):
        extract_member(archive, "usr/bin", tmp_path / "taken")
    with pytest.raises(SourceError, match="usr/bin/alias is a symbolic link to tool"):
        extract_member(archive, "usr/bin/alias", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_a_ring_of_hard_links_ends(store: Callable[[bytes], Path], tmp_path: Path) -> None:
    archive = store(tar(hard_link("a", "b"), hard_link("b", "a")))
    with pytest.raises(SourceError, match="ring"):
        extract_member(archive, "a", tmp_path / "taken")


def test_half_a_member_is_not_left_behind(store: Callable[[bytes], Path], tmp_path: Path) -> None:
    whole = tar(file("large", bytes(1 << 20)))
    with pytest.raises(SourceError):
        extract_member(store(whole[: 1 << 19]), "large", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    extract_member(store(whole), "large", tmp_path / "taken")
    assert (tmp_path / "taken").stat().st_size == 1 << 20


def test_a_host_without_libarchive_is_told_what_is_missing(tmp_path: Path) -> None:
    """libarchive-c fails in several ways; here it is pointed at a library that is another one."""
    script = (
        "import sys; from pathlib import Path; from sevkit.archive import unpack\n"
        "from sevkit.errors import HostError\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except HostError as error: print(error); sys.exit(error.exit_code)\n"
    )
    with tarfile.open(tmp_path / "good.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    for library, status in (("/lib/x86_64-linux-gnu/libm.so.6", 3), ("libarchive.so.13", 0)):
        target = tmp_path / Path(library).name
        target.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "good.tar", target],
            env={**os.environ, "LIBARCHIVE": library},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert ("libarchive is missing" in done.stdout) == (status == 3)
