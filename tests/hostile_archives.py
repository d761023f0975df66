# SPDX-License-Identifier: Apache-2.0
"""Archives that someone evil would make, and good ones. Made by code, the same every time."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Iterator

OUTSIDE = "/sevkit-hostile-outside"


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


def tars() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of tar archives that have to be refused."""
    file, hard = tarfile.REGTYPE, tarfile.LNKTYPE
    rows = {
        "climbs": [_entry("../evil")],
        "climbs-inside": [_entry("d/../../evil")],
        "absolute": [_entry(f"{OUTSIDE}/evil")],
        "absolute-twice": [_entry(f"/{OUTSIDE}/evil")],
        "through-link": [_link("l", OUTSIDE), _entry("l/evil")],
        "through-chain": [_link("a", ".."), _link("b", "a/.."), _entry("b/evil")],
        "through-loop": [_link("a", "b"), _link("b", "a"), _entry("a/evil")],
        "link-then-folder": [_link("l", OUTSIDE), _entry("l", tarfile.DIRTYPE), _entry("l/evil")],
        "hard-link-out": [_entry("h", hard, "../../secret")],
        "hard-link-absolute": [_entry("h", hard, "/etc/shadow")],
        "hard-link-through": [_link("l", ".."), _entry("h", hard, "l/secret")],
        "hard-link-to-nothing": [_entry("h", hard, "nothing")],
        "hard-link-into-nothing": [_entry("h", hard, "no/thing")],
        "char-device": [_entry("c", tarfile.CHRTYPE)],
        "block-device": [_entry("b", tarfile.BLKTYPE)],
        "fifo": [_entry("p", tarfile.FIFOTYPE)],
        "deep": [_entry("d/" * 10_000 + "f")],
        "long-name": [_entry("n" * (1 << 20))],
        "long-link": [_link("l", "t" * (1 << 20))],
        "newline-climbs": [_entry("a\n../../../evil/..")],
        "control-climbs": [_entry("\x1b[2J/../../evil")],
        "file-then-folder": [_entry("x"), _entry("x/evil")],
        "folder-then-file": [_entry("x", tarfile.DIRTYPE), _entry("x", file)],
    }
    for name, made in rows.items():
        yield name, _tar(*made)
        if not name.startswith("long-l"):
            yield f"{name}-gnu", _tar(*made, form=tarfile.GNU_FORMAT)
    yield "pax-path", _lying("path", "../../evil")
    yield "pax-linkpath-absolute", _tar(_entry("l", hard, OUTSIDE + "/" + "x" * 200))
    yield "pax-size", _lying("size", str(100 << 30))
    yield "pax-sparse", _lying("GNU.sparse.realsize", str(1 << 62))
    for bits in (34, 40, 62):
        yield f"huge-{bits}", _huge(1 << bits)
    yield "huge-negative", _huge(-1)
    good = good_tar()
    yield from ((f"cut-{size}", good[:size]) for size in (1, 300, 511, 700, 1600))
    yield "empty", b""
    yield "zeroes", bytes(10240)


def others() -> Iterator[tuple[str, bytes]]:
    """Zip and cpio archives that have to be refused."""
    paths = {"climbs": "../evil", "absolute": f"{OUTSIDE}/evil", "deep": "d/" * 10_000 + "f"}
    for name, path in paths.items():
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr(path, "evil")
        yield f"zip-{name}", made.getvalue()
        yield f"cpio-{name}", cpio((path, 0o100644, b"evil"))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("l")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, OUTSIDE)
        archive.writestr("l/evil", "evil")
    yield "zip-through-link", made.getvalue()
    yield "cpio-through-link", cpio(("l", 0o120777, OUTSIDE.encode()), ("l/evil", 0o100644, b"e"))
    modes = {"char": 0o20666, "block": 0o60666, "fifo": 0o10666, "socket": 0o140666}
    for kind, mode in modes.items():
        yield f"cpio-{kind}", cpio(("node", mode, b""))
    yield "cpio-huge", cpio(("huge", 0o100644, b""), size=0xFFFFFFFF)
    yield "cpio-cut", cpio(("a", 0o100644, b"x" * 4000))[:2000]


def cpio(*rows: tuple[str, int, bytes], size: int | None = None) -> bytes:
    """A newc archive; `size` is what its headers say instead of the truth."""
    made = b""
    for name, mode, content in (*rows, ("TRAILER!!!", 0, b"")):
        said = len(content) if size is None or not mode else size
        numbers = (1, mode, 0, 0, 1, 0, said, 0, 0, 0, 0, len(name.encode()) + 1, 0)
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
    for name, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        piece = compress(bytes(16 << 20))  # members may follow one another in all three
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


def deb(data: bytes, about: bytes = b"") -> bytes:
    """A package around the archive `data`; `about` is its control archive."""
    about = about or _tar(_entry("./control", content=CONTROL))
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar", about), ("data.tar", data)):
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        made += content + b"\n" * (len(content) % 2)
    return made
