# SPDX-License-Identifier: Apache-2.0
"""The readers that are fuzzed, each with what its mutations start from."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from elf_samples import LOADER, a_loader, an_elf
from firmware_samples import WITH_HASHES, firmware
from recipe_samples import BASE, CHILD, Project
from test_firmware_verifier import CHECKS

from sevkit.archive import extract_member, unpack, unpack_deb
from sevkit.errors import SevkitError
from sevkit.firmware.modules import modules
from sevkit.firmware.ovmf import parse as parse_firmware
from sevkit.firmware.verifier import verifier
from sevkit.guest.channel import ViolationError
from sevkit.kconfig.dotconfig import values_of
from sevkit.kconfig.fragment import merge, parse_fragment
from sevkit.measure.snp_report import parse as parse_report
from sevkit.oci.config import Accounts, runtime_config
from sevkit.oci.image import find_image
from sevkit.patches import read_series
from sevkit.plan import make_plan, requests
from sevkit.project.lock import Choice, Lock, read_lock
from sevkit.recipe.template import Templates
from sevkit.recipe.toml_lines import key_lines
from sevkit.rootfs.copyright import read_copyright, spdx
from sevkit.rootfs.cpio import Directory, Entry, File, Node, Symlink, read, write
from sevkit.rootfs.elf import Elf
from sevkit.rootfs.loader import FolderTree, closure
from sevkit.sources import url
from sevkit.sources.pins import DebGroup, Pin, PinMemory
from sevkit.toolchain import Toolchain

from . import images, patching, recipes, talk
from .files import put, scratch

REAL_FIRMWARE = (
    Path(__file__).parents[2] / "output" / "sev-guest" / "latest" / "firmware.fd",
    Path("/usr/share/ovmf/OVMF.fd"),
    Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
)


def _nothing(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Target:
    """A reader: `run` gives it an input and a folder, which `prepare` has seen before.

    It answers each of `seeds` and refuses each of `refused`; mutations start from both.
    """

    name: str
    run: Callable[[bytes, Path], object]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    is_json: bool = False
    prepare: Callable[[Path], object] = _nothing
    refused: Sequence[bytes] = ()
    costs: int = 1
    """For how many runs one of it counts."""
    refusals: tuple[type[Exception], ...] = (SevkitError,)

    @property
    def starts(self) -> Sequence[bytes]:
        """What mutations start from."""
        return [*self.seeds, *self.refused]


def _kept(data: bytes, folder: Path, name: str = "input") -> Path:
    return put(folder / name, data)


def _emptied(folder: Path, name: str = "out") -> Path:
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


# --- recipes -------------------------------------------------------------------------------


def _recipe(data: bytes, folder: Path) -> None:
    put(folder / "recipes" / "fuzz.toml", data)
    try:
        Project.load(_PROJECTS[folder], "fuzz").model_dump_json()
    except SevkitError as error:
        str(error).encode()
        raise


_PROJECTS: dict[Path, Project] = {}


def _with_project(folder: Path) -> None:
    _PROJECTS[folder] = Project(folder)


def _template(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace")
    templates = Templates({"a": text, "b": "{{ a }}", "c": "x" * 4000}, {"series": "6.12"})
    templates.render(text)


def _toml_lines(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return  # which nobody asks for the lines of
    key_lines(text)


# --- archives ------------------------------------------------------------------------------

_ODD_PARTS = ("a", "b", "", ".", "..", "é", "\n", " ", "x" * 255, "x" * 256, "TRAILER!!!", "\udcff")


def _cpio_write(data: bytes, folder: Path) -> None:
    """The input is the seed of a tree; what is written is read back the same."""
    random = Random(data)
    entries = random_tree(random)
    archive = folder / "archive"
    with archive.open("wb") as stream:
        write(entries, stream)
    found = read(archive)
    paths = {path for one in found for path in (one.path, *getattr(one, "links", ()))}
    for entry in entries:
        assert entry.path in paths, entry.path
    again = io.BytesIO()
    write(found, again)
    assert again.getvalue() == archive.read_bytes()


def random_tree(random: Random) -> list[Entry]:
    """Entries that may or may not make an archive."""

    def path() -> str:
        good = ("a", "b", "c d", "é", "\n", "-", "TRAILER!!!")
        parts = good if random.random() < 0.9 else _ODD_PARTS
        return "/" + "/".join(random.choices(parts, k=random.randrange(1, 5)))

    entries: list[Entry] = []
    for _ in range(random.randrange(8)):
        number = random.choice(
            (0, 0, 0, 1000, (1 << 32) - 2, *([(1 << 32) - 1] * (random.random() < 0.1)))
        )
        mode = random.choice((0, 0o644, 0o755, 0o7777))
        kind = random.randrange(4)
        if kind == 0:
            entries.append(Directory(path=path(), mode=mode, uid=number))
        elif kind == 1:
            links = tuple(path() for _ in range(random.choice((0, 0, 1, 3))))
            size = random.choice((0, 1, 3, 4, 5000))
            entries.append(
                File(path=path(), data=random.randbytes(size), mode=mode, gid=number, links=links)
            )
        elif kind == 2:
            target = random.choice(("x", "/", "../..", "", "y" * 4095, "z" * 5000, "é\n", "a\0b"))
            entries.append(Symlink(path=path(), target=target))
        else:
            kind_name: Any = random.choice(("char", "block", "fifo", "socket"))
            entries.append(Node(path=path(), kind=kind_name, major=number & 4095, mode=mode))
    return entries


_NODE = Node(path="/dev/null", kind="char", major=1, minor=3)


def _cpio_seed(*more: Entry) -> bytes:
    made = io.BytesIO()
    write(
        [
            File(path="/bin/sh", data=b"content", links=("/bin/bash", "/bin/ash")),
            Symlink(path="/sbin", target="bin"),
            Directory(path="/empty"),
            *more,
        ],
        made,
    )
    return made.getvalue()


def _tar_seed(form: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, kind, target in (
            ("d", tarfile.DIRTYPE, ""),
            ("d/" + "n" * 120, tarfile.REGTYPE, ""),
            ("d/link", tarfile.SYMTYPE, "n"),
            ("d/hard", tarfile.LNKTYPE, "d/" + "n" * 120),
            ("é", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o755
            info.size = 7 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"content"))
    return made.getvalue()


def _zip_seed() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("d/file", "content" * 100), ("other", "x")):
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED, 0)
    return made.getvalue()


def _ar(*members: tuple[str, bytes]) -> bytes:
    body = b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        + data
        + b"\n" * (len(data) % 2)
        for name, data in members
    )
    return b"!<arch>\n" + body


def _packed(data: bytes) -> bytes:
    """gzip's form without its compression, which is another in another version of zlib."""
    return gzip.compress(data, 0, mtime=0)


def _deb_seed(suffix: str, pack: Callable[[bytes], bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("./control")
        text = b"Package: p\nVersion: 1\nArchitecture: amd64\n"
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    control, data = pack(made.getvalue()), pack(_tar_seed(tarfile.GNU_FORMAT))
    return _ar(
        ("debian-binary", b"2.0\n"), (f"control.tar{suffix}", control), (f"data.tar{suffix}", data)
    )


def _unpack(data: bytes, folder: Path) -> None:
    """Nothing but the folder that was named is written to."""
    archive = _kept(data, folder)
    try:
        unpack(archive, _emptied(folder), limit_bytes=64 << 20, limit_entries=1000)
    finally:
        assert sorted(path.name for path in folder.iterdir()) == ["input", "out"]


def _deb(data: bytes, folder: Path) -> None:
    archive = _kept(data, folder)
    try:
        unpack_deb(archive, _emptied(folder))
    finally:
        extract_member(archive, "d/hard", folder / "member")


# --- files of programs, firmware and the kernel ----------------------------------------------


def _elf(data: bytes, _: Path) -> None:
    elf = Elf(data, "input")
    for look in ("is_program_or_library", "dlopens", "needed_versions", "defined_versions"):
        getattr(elf, look)
    _ = elf.exports, elf.imports


def _with_loader(folder: Path) -> None:
    for name in ("bin", "lib/x86_64-linux-gnu", LOADER.rpartition("/")[0].lstrip("/")):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / LOADER.lstrip("/")).write_bytes(a_loader())


def _loader(data: bytes, folder: Path) -> None:
    for name in ("bin/program", "lib/x86_64-linux-gnu/libone.so.1"):
        put(folder / name, data)
    closure(FolderTree(folder, {}), ["/bin/program"])


def _firmware(data: bytes, _: Path) -> None:
    parse_firmware(data, "input").record()
    modules(data, "input")
    verifier(data, "input")


def _series(data: bytes, folder: Path) -> None:
    _kept(_PATCH, folder, "one.patch")
    _kept(data, folder, "series")
    read_series(folder)


def _patch(data: bytes, folder: Path) -> None:
    _kept(b"one.patch\n", folder, "series")
    _kept(data, folder, "one.patch")
    for patch in read_series(folder).patches:
        patch.record()


def _fragment(data: bytes, folder: Path) -> None:
    fragment = parse_fragment(_kept(data, folder))
    _ = merge([fragment]).text


_HEADER = b"""Description: Count
Author: A <a@example.org>
Forwarded: not-needed
Last-Update: 2024-05-31

---
"""
_PATCH = (
    _HEADER
    + b"""--- a/dir/numbers
+++ b/dir/numbers
@@ -2,7 +2,7 @@
 2
 3
 4
-5
+five
 6
 7
 8
"""
)
_GIT_PATCH = (
    _HEADER
    + b"""diff --git a/old b/new
similarity index 100%
rename from old
rename to new
diff --git a/made b/made
new file mode 100644
index 0000000..1111111
--- /dev/null
+++ b/made
@@ -0,0 +1,1 @@
+x
\\ No newline at end of file
"""
)

# --- what a guest, a registry and a mirror say -------------------------------------------------


def _docker_archive(data: bytes, folder: Path) -> None:
    find_image("docker-archive", str(_kept(data, folder)), _emptied(folder))


def _docker_json(data: bytes, folder: Path) -> None:
    """The files of an archive in one object."""
    try:
        parts = json.loads(data)
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, dict):
        parts = {"manifest.json": data.decode("utf-8", "replace")}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, value in {"l.tar": "layer", **parts}.items():
            text = json.dumps(value).encode()
            info = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    find_image("docker-archive", f"{_kept(made.getvalue(), folder)}:app:1", _emptied(folder))


_DOCKER_LAYER = hashlib.sha256(b'"layer"').hexdigest()
_DOCKER = {
    "c.json": {
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_DOCKER_LAYER}"]},
    },
    "manifest.json": [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"]}],
}


def _docker_seed() -> bytes:
    layer = _packed(b"layer" * 300)
    ids = [f"sha256:{hashlib.sha256(b'layer' * 300).hexdigest()}"]
    config = {"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids}}
    manifest = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"]}]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (
            ("c.json", json.dumps(config).encode()),
            ("l.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def _layout(data: bytes, folder: Path) -> None:
    """Index, manifest and configuration in one object; blobs get the digests that they have."""
    try:
        parts = json.loads(data)
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, dict):
        parts = {"index": data.decode("utf-8", "replace")}
    layout = _emptied(folder)
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    digests: dict[str, str] = {}
    for name in ("config", "manifest", "index"):
        text = json.dumps(parts.get(name))
        for other, digest in digests.items():
            text = text.replace(f"@{other}", f"sha256:{digest}")
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
        (blobs / digests[name]).write_text(text)
    (layout / "index.json").write_bytes((blobs / digests["index"]).read_bytes())
    find_image("oci", str(layout), folder / "work")


_LAYOUT = {
    "config": {"architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}},
    "manifest": {"config": {"digest": "@config"}, "layers": [{"digest": "@config"}]},
    "index": {
        "manifests": [
            {
                "digest": "@manifest",
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "annotations": {"org.opencontainers.image.ref.name": "a"},
            }
        ]
    },
}


def _oci_config(data: bytes, _: Path) -> None:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = {"config": {"User": data.decode("utf-8", "replace"), "Cmd": ["sh"]}}
    if isinstance(config, dict):
        accounts = Accounts(*[data.decode("utf-8", "replace") + "\nu:x:5:6::/h:/s\ng:x:7:"] * 2)
        json.dumps(runtime_config(config, accounts=accounts))


_IMAGE_CONFIG = {
    "architecture": "amd64",
    "config": {
        "User": "u:g",
        "Env": ["PATH=/bin", "A=b"],
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "true"],
        "WorkingDir": "/w",
    },
}


def _copyright(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace")
    read_copyright(text)
    spdx(text[:2000])


_COPYRIGHT = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 A
License: GPL-2+ and (MIT or BSD-3-clause)

Files: debian/*
License: Expat with exception
 Text of it.
 .
 More.
"""


def _pin(package: str) -> Pin:
    origin = {"kind": "deb", "package": package, "version": "1", "path": f"pool/{package}.deb"}
    return Pin("blob:" + "a" * 64, f"{package}.deb", 7, origin)


_GROUP = DebGroup(("linux", "linux-headers"))


def _pins(data: bytes, folder: Path) -> None:
    """The record's own digest is made right, so that what is behind it is read too."""
    memory = PinMemory(folder)
    path = memory._path(_GROUP)
    try:
        record = json.loads(data)
        rows = json.dumps(record["pins"], sort_keys=True).encode()
        record["sha256"] = hashlib.sha256(rows).hexdigest()
        data = json.dumps(record).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    put(path, data)
    for pin in memory.recall(_GROUP) or ():
        json.dumps([pin.name, pin.reference, pin.size, dict(pin.origin)]).encode()


def _pins_seed() -> bytes:
    with scratch() as folder:
        memory = PinMemory(Path(folder))
        memory.remember(_GROUP, [_pin("linux"), _pin("linux-headers")])
        return memory._path(_GROUP).read_bytes()


def _lock(data: bytes, folder: Path) -> None:
    """Read as it is, and again as sevkit would have written what it says; then planned with."""
    path = _kept(data, folder, "child.lock")
    try:
        lock = read_lock(path, "child", "sevkit lock child")
    except SevkitError:
        put(path, json.dumps(json.loads(data), indent=1, sort_keys=True).encode() + b"\n")
        lock = read_lock(path, "child", "sevkit lock child")
    assert lock is not None
    project = _PROJECTS[folder]
    recipe = project.child(_WITH_MEMBERS)
    wanted = requests(recipe, _TOOLCHAIN)
    pins = {name: lock.pins(request) for name, request in wanted.items()}
    found = {name: each for name, each in pins.items() if each is not None}
    if found.keys() == pins.keys():
        make_plan(recipe, project.library, found, _TOOLCHAIN)
        for pin in chain.from_iterable(found.values()):
            assert pin.origin["path"].isprintable()


def _lock_run(data: bytes, folder: Path) -> None:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        read_lock(_kept(data, folder, "child.lock"), "child", "sevkit lock child")
    else:
        _lock(data, folder)


_WITH_MEMBERS = """
[sources.linux]
deb = "linux-source-{{ series }}"
member = "linux.tar.xz"

[sources.ovmf]
deb = "ovmf"
member = "OVMF.fd"
"""
_TOOLCHAIN = Toolchain("trixie")
"""Asks no tool of this host for its version."""


def _with_lockable_project(folder: Path) -> None:
    _with_project(folder)
    for name in ("one", "two"):
        _PROJECTS[folder].write(f"kernel-configs/{name}.config", "# Why.\nCONFIG_PCI=y\n")


def _lock_seed() -> bytes:
    with scratch() as folder:
        recipe = Project(Path(folder)).child(_WITH_MEMBERS)
    lock = Lock(Path("child.lock"), "child")
    for name, request in requests(recipe, _TOOLCHAIN).items():
        packages = ("binutils", "gcc", "gzip") if isinstance(request, DebGroup) else (name,)
        lock = lock.with_pins(name, request, [_pin(package) for package in packages])
    choice = Choice("debian:trixie", {"a": "b"})
    lock = lock.with_config("d" * 64, "6.12", b"CONFIG_64BIT=y\n", choice)
    return lock.text().encode()


class _Answers:
    """A server on the loopback interface that every address leads to, for it is the proxy too."""

    def __init__(self) -> None:
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        os.environ.update(http_proxy=proxy, https_proxy=proxy, no_proxy="", NETRC="/nonexistent")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(self.answer)


_SERVERS: dict[Path, _Answers] = {}


def _with_answers(folder: Path) -> None:
    _SERVERS[folder] = _Answers()


def _http_answer(data: bytes, folder: Path) -> None:
    """What there is of the file already, 5 bytes or nothing, goes by the length of the input."""
    destination = _kept(b"begun"[: 5 * (len(data) % 2)], folder)
    _SERVERS[folder].answer = data
    url._transfer("http://host.invalid/file", destination, lambda *_: None, 1 << 20)


_HTTP_ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncontent",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-6/7\r\nContent-Length: 2\r\n\r\nxx",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n",
)
_HTTP_REFUSED = (
    b"HTTP/1.1 302 Found\r\nLocation: http://host.invalid/\xc3\xa9\r\nContent-Length: 0\r\n\r\n",
)
_HTTP_WORDS = (
    *(b"\r\n", b"\r\n ", b": ", b"-1", b"1e9", b"9" * 30, b"\xff\xfe", b"http://[::1", b"h" * 300),
    *(b"https://x/", b"file:///etc/hostname", b"//x:99999/", b"Content-Encoding: gzip\r\n"),
    *(b"Connection: keep-alive\r\n", b"Refresh: 0\r\n", b"Set-Cookie: a=b; expires=x\r\n"),
)


def _real_firmware() -> list[bytes]:
    return [path.read_bytes() for path in REAL_FIRMWARE if path.is_file()]


def _targets() -> list[Target]:
    words = [*b'[ ] { } {{ }} {% %} = . , " \' """ \\ # ...'.split(), b"\n", b"\r", b"\0"]
    jinja = [*b"{{ }} {% %} {# #} a b c series | ~ [ ] ( ) self .__class__".split()]
    jinja += [b"|replace('x','yy')", b" if ", b" else ", b"|attr('x')", b"range(9**9)", b"'"]
    patch = [b"@@ -1,3 +1,3 @@\n", b"--- a/x\n", b"+++ b/../x\n", b"/dev/null", b"rename to ../y\n"]
    elf = an_elf(
        needed=["libone.so.1"], soname="x", rpath="$ORIGIN", interpreter=LOADER,
        dlopens=[{"soname": ["libtwo.so"], "priority": "required"}],
        exports=["f", "g@V1"], imports=["h@W1"], defines=["V1"], wants={"libone.so.1": ["W1"]},
    )  # fmt: skip
    whole = an_elf(
        needed=["libone.so.1"], interpreter=LOADER, exports=["f@V1"], imports=["f@V1"],
        dlopens=[{"soname": ["libtwo.so", "libone.so.1"], "priority": "required"}],
        defines=["V1"], wants={"libone.so.1": ["V1"]},
    )  # fmt: skip
    tars = [_tar_seed(tarfile.GNU_FORMAT)]
    tars += [_tar_seed(tarfile.PAX_FORMAT), _cpio_seed(), _zip_seed()]
    archive = [b"../", b"/", b"ustar", b"070701", b"070702", b"99999999999", b"\xff" * 12]
    archive += [b"19 path=/etc/shadow\n", b"18 size=9999999999\n", b"PK\x03\x04", b"\x1f\x8b\x08"]
    lines = [b"CONFIG_X=y\n", b"# CONFIG_X is not set\n", b'="', b"source ", b"0x", b"\n", b"\0"]
    report = bytes(1184)
    return [
        Target("recipe", _recipe, [BASE.encode(), CHILD.encode()], words, prepare=_with_project),
        Target("recipe-values", recipes.take, recipes.seeds(), is_json=True, costs=5),
        Target(
            "template",
            _template,
            [b"{{ series }}-{{ c|upper if series != '5' else c ~ 'x' }}"],
            jinja,
            refused=[b"{{ a }}{{ b }}"],
        ),
        Target(
            "toml-lines", _toml_lines, [BASE.encode(), b'a = [{b.c = "x"}]\n[[t."q"]]\n'], words
        ),
        Target(
            "manifest",
            images.take_manifest,
            images.manifest_seeds(),
            is_json=True,
            prepare=images.with_images,
        ),
        Target(
            "sums",
            images.take_sums,
            [images.sums_seed()],
            [b"  ", b" *", b"\\", b"\r\n", b"0" * 64, b"../x", b"manifest.json\n"],
            prepare=images.with_images,
        ),
        Target("contents", images.take_contents, [images.contents_seed()], is_json=True),
        Target("cpio-write", _cpio_write, [b"seed"]),
        Target(
            "cpio-read",
            lambda data, folder: read(_kept(data, folder)),
            [_cpio_seed(_NODE)],
            archive,
        ),
        Target(
            "archive",
            _unpack,
            [*tars, _packed(tars[0])],
            archive,
            refused=[_cpio_seed(_NODE)],
        ),
        Target(
            "deb",
            _deb,
            [_deb_seed("", bytes), _deb_seed(".gz", _packed)],
            [b"data.tar", b"control.tar.xz", b"`\n", b"9999999999"],
        ),
        Target("elf", _elf, [elf, a_loader()]),
        Target(
            "loader",
            _loader,
            [whole, f"#!{LOADER} -x\n".encode()],
            [b"#!", b"/bin/program\n"],
            prepare=_with_loader,
            refused=[elf, b"#!/bin/program -x\n"],
        ),
        Target(
            "firmware",
            _firmware,
            [
                firmware(code_bytes=16384),
                firmware(sections=None),
                CHECKS,
                firmware(hashes=(0x810C00, 0x400), sections=WITH_HASHES, code_bytes=16384),
            ],
        ),
        *([Target("real-firmware", _firmware, real)] if (real := _real_firmware()) else []),
        Target(
            "series", _series, [b"# text\none.patch -p1\n"], [b"../", b" -p", b"/", b"#", b"\n"]
        ),
        Target("patch", _patch, [_PATCH, _GIT_PATCH], patch),
        Target("apply", patching.take, [_PATCH, _GIT_PATCH], patch, costs=20),
        Target(
            "fragment",
            _fragment,
            [b'# y\nCONFIG_A=y\nCONFIG_B="x"\n# CONFIG_C is not set\n'],
            lines,
        ),
        Target(
            "dotconfig",
            lambda data, _: values_of(data.decode("utf-8", "replace")),
            [b'#\n# x\n#\nCONFIG_A=y\nCONFIG_B="x\\"y"\n# CONFIG_C is not set\nCONFIG_D=0x10\n'],
            lines,
        ),
        Target(
            "conversation",
            lambda data, _: talk.converse(data),
            talk.SEEDS,
            talk.WORDS,
            refused=talk.REFUSED,
            refusals=(SevkitError, ViolationError),
        ),
        Target(
            "messages",
            lambda data, _: talk.converse_json(data),
            talk.JSON_SEEDS,
            refused=talk.JSON_REFUSED,
            is_json=True,
            refusals=(SevkitError, ViolationError),
        ),
        Target("docker-archive", _docker_archive, [_docker_seed()], [b"../", b'"Layers"', b"null"]),
        Target("docker-json", _docker_json, [json.dumps(_DOCKER).encode()], is_json=True),
        Target("oci-layout", _layout, [json.dumps(_LAYOUT).encode()], is_json=True),
        Target("oci-config", _oci_config, [json.dumps(_IMAGE_CONFIG).encode()], is_json=True),
        Target(
            "copyright", _copyright, [_COPYRIGHT], [b"(", b")", b" and ", b" or ", b",", b"\n\n"]
        ),
        Target("pins", _pins, [_pins_seed()], is_json=True),
        Target(
            "http-answer",
            _http_answer,
            _HTTP_ANSWERS,
            _HTTP_WORDS,
            prepare=_with_answers,
            refused=_HTTP_REFUSED,
            refusals=(SevkitError, url._TransferError, url._RefusedError),
        ),
        Target("snp-report", lambda data, _: parse_report(data), [report, report.hex().encode()]),
        Target("lock", _lock_run, [_lock_seed()], is_json=True, prepare=_with_lockable_project),
    ]


TARGETS = {target.name: target for target in _targets()}
