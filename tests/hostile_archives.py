# SPDX-License-Identifier: Apache-2.0
"""Archives that someone evil would make, and good ones. Made by code, the same every time."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import zstandard

OUTSIDE = "/sevkit-hostile-outside"
CLIMBS = r"climbs out with '\.\.'"
DEEP = "lies more than 200 folders deep"
LARGE = "is too large"
NO_FOLDER = "which is no folder"
NO_TYPE = "is neither a file, a folder nor a link"
UNREADABLE = "can't be read as an archive"
_TWIN = 1 << 20


@dataclass(frozen=True)
class Hostile:
    """An archive that has to be refused, and the words, as a pattern, that say why."""

    name: str
    content: bytes
    why: str


def _tar(*rows: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for info, content in rows:
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b"evil"
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o6777
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content if kind == tarfile.REGTYPE else b""


def _link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return _entry(name, tarfile.SYMTYPE, target)


def good_tar() -> bytes:
    """Files, a folder and links that stay inside."""
    return _tar(
        _entry("d", tarfile.DIRTYPE), _entry("d/file"), _link("d/link", "file"),
        _entry("d/twin", tarfile.LNKTYPE, "d/file"), _link("out", OUTSIDE),
    )  # fmt: skip


def _lying(keyword: str, value: str) -> bytes:
    """A tar archive whose pax header says something else than the header behind it."""
    info, content = _entry("plain")
    info.pax_headers = {keyword: value}
    return _tar((info, content))


def _huge(size: int) -> bytes:
    """A header that promises `size` bytes (base-256, as GNU tar writes it), and nothing behind."""
    info, _ = _entry("huge", content=b"")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def tars() -> Iterator[Hostile]:
    """Tar archives that have to be refused."""
    file, hard = tarfile.REGTYPE, tarfile.LNKTYPE
    rows = {
        CLIMBS: {
            "climbs": [_entry("../evil")],
            "climbs-inside": [_entry("d/../../evil")],
            "newline-climbs": [_entry("a\n../../../evil/..")],
            "control-climbs": [_entry("\x1b[2J/../../evil")],
        },
        "has an absolute path": {
            "absolute": [_entry(f"{OUTSIDE}/evil")],
            "absolute-twice": [_entry(f"/{OUTSIDE}/evil")],
        },
        NO_FOLDER: {
            "through-link": [_link("l", OUTSIDE), _entry("l/evil")],
            "through-chain": [_link("a", ".."), _link("b", "a/.."), _entry("b/evil")],
            "through-loop": [_link("a", "b"), _link("b", "a"), _entry("a/evil")],
            "link-then-folder": [_link("l", OUTSIDE), _entry("l", tarfile.DIRTYPE)],
            "hard-link-through": [_link("l", ".."), _entry("h", hard, "l/secret")],
            "file-then-folder": [_entry("x"), _entry("x/evil")],
        },
        "outside the archive": {
            "hard-link-out": [_entry("h", hard, "../../secret")],
            "hard-link-absolute": [_entry("h", hard, "/etc/shadow")],
        },
        "hard link to something that is not in it": {
            "hard-link-to-nothing": [_entry("h", hard, "nothing")],
            "hard-link-into-nothing": [_entry("h", hard, "no/thing")],
        },
        NO_TYPE: {
            "char-device": [_entry("c", tarfile.CHRTYPE)],
            "block-device": [_entry("b", tarfile.BLKTYPE)],
            "fifo": [_entry("p", tarfile.FIFOTYPE)],
        },
        DEEP: {"deep": [_entry("d/" * 10_000 + "f")]},
        UNREADABLE: {
            "long-name": [_entry("n" * (1 << 20))],
            "long-link": [_link("l", "t" * (1 << 20))],
        },
        "would replace a folder": {
            "folder-then-file": [_entry("x", tarfile.DIRTYPE), _entry("x", file)]
        },
    }
    for why, named in rows.items():
        for name, made in named.items():
            yield Hostile(name, _tar(*made), why)
            yield Hostile(f"{name}-gnu", _tar(*made, form=tarfile.GNU_FORMAT), why)
    yield Hostile("pax-path", _lying("path", "../../evil"), CLIMBS)
    outside = _tar(_entry("l", hard, OUTSIDE + "/" + "x" * 200))
    yield Hostile("pax-linkpath-absolute", outside, "outside the archive")
    yield Hostile("pax-size", _lying("size", str(100 << 30)), LARGE)
    yield Hostile("pax-sparse", _lying("GNU.sparse.realsize", str(1 << 62)), LARGE)
    for bits in (34, 40, 62):
        yield Hostile(f"huge-{bits}", _huge(1 << bits), LARGE)
    yield Hostile("huge-negative", _huge(-1), UNREADABLE)
    good = good_tar()
    for size in (1, 300, 511, 700, 1600):
        yield Hostile(f"cut-{size}", good[:size], UNREADABLE)
    yield Hostile("empty", b"", UNREADABLE)


def zips() -> Iterator[Hostile]:
    """Zip archives that have to be refused."""
    device, link = 0o20666, 0o120777
    bomb = bytes(96 << 20)
    yield Hostile("zip-climbs", _zip(("../evil", 0, b"evil")), CLIMBS)
    yield Hostile("zip-newline-climbs", _zip(("a\n/../../evil", 0, b"evil")), CLIMBS)
    yield Hostile("zip-absolute", _zip((f"{OUTSIDE}/evil", 0, b"")), "has an absolute path")
    yield Hostile("zip-deep", _zip(("d/" * 10_000 + "f", 0, b"")), DEEP)
    links = _zip(("l", link, OUTSIDE.encode()), ("l/evil", 0, b"evil"))
    yield Hostile("zip-through-link", links, NO_FOLDER)
    yield Hostile("zip-device", _zip(("c", device, b"")), NO_TYPE)
    yield Hostile("zip-bomb", _zip(("bomb", 0, bomb)), LARGE)
    lying = _zip(("bomb", 0, bomb)).replace(struct.pack("<I", len(bomb)), struct.pack("<I", 10))
    yield Hostile("zip-bomb-lying", lying, f"{LARGE}|{UNREADABLE}")
    yield Hostile("zip-overlapping", _overlapping(8 << 20, 30), LARGE)


def cpios() -> Iterator[Hostile]:
    """Cpio archives that have to be refused."""
    yield Hostile("cpio-climbs", cpio(("../evil", 0o100644, b"evil")), CLIMBS)
    yield Hostile("cpio-newline-climbs", cpio(("a\n/../../evil", 0o100644, b"")), CLIMBS)
    yield Hostile("cpio-hard-link-climbs", cpio(*_twins("file", "../evil")), CLIMBS)
    absolute = cpio((f"{OUTSIDE}/evil", 0o100644, b"evil"))
    yield Hostile("cpio-absolute", absolute, "has an absolute path")
    yield Hostile("cpio-deep", cpio(("d/" * 10_000 + "f", 0o100644, b"evil")), DEEP)
    links = cpio(("l", 0o120777, OUTSIDE.encode()), ("l/evil", 0o100644, b"e"))
    yield Hostile("cpio-through-link", links, NO_FOLDER)
    linked = cpio(("l", 0o120777, b".."), *_twins("l/secret", "h"))
    yield Hostile("cpio-hard-link-through", linked, NO_FOLDER)
    modes = {"char": 0o20666, "block": 0o60666, "fifo": 0o10666, "socket": 0o140666}
    for kind, mode in modes.items():
        yield Hostile(f"cpio-{kind}", cpio(("node", mode, b"")), NO_TYPE)
    yield Hostile("cpio-huge", cpio(("huge", 0o100644, b""), size=0xFFFFFFFF), LARGE)
    yield Hostile("cpio-bomb", cpio(("bomb", 0o100644, bytes(96 << 20))), LARGE)
    yield Hostile("cpio-cut", cpio(("a", 0o100644, b"x" * 4000))[:2000], UNREADABLE)


def debs() -> Iterator[Hostile]:
    """Debian packages that have to be refused, for how their ar archive is laid out or control."""
    good = good_tar()
    about = ("control.tar", _tar(_entry("./control", content=CONTROL)))
    data, version = ("data.tar", good), ("debian-binary", b"2.0\n")
    damaged, none = "is damaged or cut off", "is no Debian package, or not all of one"
    whole = ar(version, about, data)
    yield Hostile("deb-no-data", ar(version, about), none)
    yield Hostile("deb-no-control", ar(version, data), none)
    yield Hostile("deb-no-version", ar(about, data), none)
    yield Hostile("deb-cut-header", whole[:90], damaged)
    yield Hostile("deb-cut", whole[:-1000], damaged)
    yield Hostile("deb-control-twice", ar(version, about, about, data), "holds control.tar twice")
    yield Hostile("deb-many-members", ar(version, *[("_", b"")] * 100_000, about, data), none)
    for kind, size in (("negative", "-1"), ("huge", "9999999999"), ("hex", "0x10"), ("no", "")):
        told = f"{len(good):<10}".encode()
        yield Hostile(f"deb-{kind}-size", whole.replace(told, f"{size:<10}".encode()), damaged)
    yield Hostile("deb-control-bomb", deb(good, behind(96 << 20, "./control")), "unpacks to more")
    for kind, content, why in (
        ("large", CONTROL + bytes(2 << 20), "its control file is too large"),
        ("empty", b"", "its control file lacks Package, Version, Architecture"),
        ("binary", bytes(range(256)), "its control file lacks"),
    ):
        made = deb(good, _tar(_entry("./control", content=content)))
        yield Hostile(f"deb-control-{kind}", made, why)
    climbing = deb(good, _tar(_entry("../control", content=CONTROL)))
    yield Hostile("deb-control-climbs", climbing, "its control file lacks")


def harmless() -> Iterator[tuple[str, bytes]]:
    """Archives that look evil and do nothing: names are only names, special bits are dropped."""
    names = ("a\nb", "\x1b[2J", "-rf", "$(id)", "con\\..\\x", "é", " ")
    yield "tar", _tar(*map(_entry, names))
    yield "cpio", cpio(*((name, 0o106777, b"evil") for name in names))
    yield "zip", _zip(*((name, 0o106777, b"evil") for name in names if "\\" not in name))
    yield "zip-fifo", _zip(("p", 0o10666, b""))
    yield "cpio-hard-link", cpio(*_twins("one", "two"))
    yield "tar-folder-modes", _tar(_entry("d", tarfile.DIRTYPE), _entry("d/f"))
    yield "zeroes-behind", good_tar() + bytes(1 << 20)


def _zip(*rows: tuple[str, int, bytes]) -> bytes:
    """A zip archive of names, modes (0 for none) and contents, deflated."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, content in rows:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return made.getvalue()


def _overlapping(size: int, count: int) -> bytes:
    """A zip archive of files that are stored, each with all of the next one as its data."""
    body = bytes(size)
    rows = []
    for number in range(count):
        about = (zlib.crc32(body), len(body), len(body), len(str(number)), 0)
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, *about)
        body = local + str(number).encode() + body
        rows.append((str(number).encode(), about, len(body)))
    directory = b""
    for name, about, end in rows:
        place = (0, 0, 0, 0, len(body) - end)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, *about, *place)
        directory += name
    about_it = (0, 0, count, count, len(directory), len(body), 0)
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", *about_it)


def _twins(first: str, second: str) -> tuple[tuple[str, int, bytes], ...]:
    """Rows of a cpio archive: a file with two names, whose data comes with the last."""
    return (first, _TWIN | 0o106755, b""), (second, _TWIN | 0o106755, b"evil")


def cpio(*rows: tuple[str, int, bytes], size: int | None = None) -> bytes:
    """A newc archive; `size` is what its headers say instead of the truth."""
    made = b""
    for number, (name, mode, content) in enumerate((*rows, ("TRAILER!!!", 0, b""))):
        said = len(content) if size is None or not mode else size
        inode, links = (99, 2) if mode & _TWIN else (number, 1)
        kind = mode & ~_TWIN
        numbers = (inode, kind, 0, 0, links, 0, said, 0, 0, 0, 0, len(name.encode()) + 1, 0)
        made += b"070701" + b"".join(b"%08X" % number for number in numbers)
        made += name.encode() + b"\0"
        made += bytes(-len(made) % 4) + content
        made += bytes(-len(made) % 4)
    return made


def bombs(gibibytes: int) -> Iterator[tuple[str, bytes]]:
    """One file of so many GiB of zeroes in a tar archive, compressed; nested once for gzip."""
    info, _ = _entry("bomb", content=b"")
    info.size = gibibytes << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    zstd = zstandard.ZstdCompressor().compress
    kinds = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
    for name, compress in kinds.items():
        piece = compress(bytes(16 << 20))  # members may follow one another in all of them
        yield f"bomb-{name}", compress(header) + piece * (gibibytes << 6)
    info.size = 0
    end = struct.pack("1024x")
    piece = gzip.compress(bytes(16 << 20))
    yield "bomb-tail", gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + end) + piece * 64


CONTROL = b"Package: p\nVersion: 1\nArchitecture: all\n"


def behind(size: int, name: str, content: bytes = CONTROL) -> bytes:
    """The file `name` in a compressed archive, behind one of `size` bytes, a multiple of 1 MiB."""
    info, _ = _entry("junk", content=b"")
    info.size = size
    piece = bz2.compress(bytes(1 << 20))
    start = bz2.compress(info.tobuf(tarfile.GNU_FORMAT))
    return start + piece * (size >> 20) + bz2.compress(_tar(_entry(name, content=content)))


def folders(entries: int, each: int) -> bytes:
    """Empty files, each of them below so many folders of its own."""
    names = ("/".join([str(number), *["d"] * (each - 1), "f"]) for number in range(entries))
    return gzip.compress(_tar(*(_entry(name, content=b"") for name in names)))


def tar(files: Mapping[str, bytes]) -> bytes:
    """A tar archive of nothing but files."""
    return _tar(*(_entry(name, content=content) for name, content in files.items()))


def deb(data: bytes, about: bytes = b"") -> bytes:
    """A package around the archive `data`; `about` is its control archive."""
    about = about or _tar(_entry("./control", content=CONTROL))
    return ar(("debian-binary", b"2.0\n"), ("control.tar", about), ("data.tar", data))


def ar(*members: tuple[str, bytes]) -> bytes:
    """An ar archive."""
    made = io.BytesIO()
    made.write(b"!<arch>\n")
    for name, content in members:
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        made.write(head.encode() + content + b"\n" * (len(content) % 2))
    return made.getvalue()
