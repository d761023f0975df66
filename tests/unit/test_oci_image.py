# SPDX-License-Identifier: Apache-2.0
"""Container images on disk: read whole, checked, laid out; and every damage refused."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sevkit.errors import RecipeError, SourceError
from sevkit.oci import image as oci_image
from sevkit.oci.filetree import FileTree, Node
from sevkit.oci.image import find_image

Entries = Mapping[str, bytes | str | None]
"""Name → content of a file, target of a symbolic link, or None for a folder."""


def tar_of(entries: Entries) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return made.getvalue()


def config_of(*layers: bytes, architecture: str = "amd64") -> bytes:
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    made = {"architecture": architecture, "rootfs": {"type": "layers", "diff_ids": ids}}
    return json.dumps(made).encode()


def docker_archive(path: Path, *layers: bytes, config: bytes = b"", **changes: Any) -> Path:
    names = [f"{number}.tar" for number in range(len(layers))]
    entry = {"Config": "c.json", "RepoTags": ["app:1"], "Layers": names, **changes}
    files = {"c.json": config or config_of(*layers), **dict(zip(names, layers, strict=True))}
    second = {**entry, "RepoTags": ["app:2"]}
    manifest = json.dumps([entry, second] if changes.get("twice") else [entry]).encode()
    path.write_bytes(tar_of({**files, "manifest.json": manifest}))
    return path


class Layout:
    """An OCI layout that is written part by part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        self.rows: list[dict[str, Any]] = []

    def blob(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}"}

    def image(self, name: str, *layers: bytes, architecture: str = "amd64") -> dict[str, Any]:
        manifest = {
            "config": self.blob(config_of(*layers, architecture=architecture)),
            "layers": [self.blob(gzip.compress(layer)) for layer in layers],
        }
        return {
            **self.blob(json.dumps(manifest).encode()),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }

    def write(self, *rows: dict[str, Any]) -> Path:
        (self.folder / "index.json").write_text(json.dumps({"manifests": rows}))
        return self.folder


@pytest.fixture
def laid_out(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Lays an image out, and tells its files with their content, its links with their target."""

    def lay(kind: str, place: str) -> dict[str, str]:
        (tmp_path / "taken").mkdir()
        image = find_image(kind, place, tmp_path / "taken")
        with (tmp_path / "spool").open("w+b") as spool:
            tree = FileTree(spool)
            for layer in image.layers:
                tree.add_layer(layer)
            return {
                path: f"-> {node.target.decode()}" if node.target else tree.read(path).decode()
                for path, node in everything(tree.root)
                if not node.is_folder
            }

    return lay


def everything(folder: Node, above: str = "") -> Iterator[tuple[str, Node]]:
    """Every path below a folder with its node, sorted."""
    for name, node in sorted(folder.children.items()):
        yield above + name.decode(), node
        yield from everything(node, f"{above}{name.decode()}/")


LOWER = tar_of(
    {
        "bin": None,
        "bin/sh": b"shell",
        "etc": None,
        "etc/gone": b"x",
        "etc/kept": b"old",
        "full": None,
        "full/a": b"a",
        "full/deep": None,
        "full/deep/b": b"b",
        "lib": "usr/lib",
        "swap": None,
        "swap/x": b"x",
    }
)
UPPER = tar_of(
    {
        "etc": None,
        "etc/.wh.gone": b"",
        "etc/kept": b"new",
        "full": None,
        "full/.wh..wh..opq": b"",
        "full/c": b"c",
        ".wh.swap": b"",
        "lib": None,
        "lib/own": b"own",
        "bin": None,
        "bin/ash": "sh",
        "new": None,
        "new/.wh.nothing": b"",
        "new/file": b"file",
    }
)
MERGED = {
    "bin/ash": "-> sh",
    "bin/sh": "shell",
    "etc/kept": "new",
    "full/c": "c",
    "lib/own": "own",
    "new/file": "file",
}


def test_layers_of_a_docker_archive_lie_on_each_other(
    tmp_path: Path, laid_out: Callable[[str, str], dict[str, str]]
) -> None:
    path = docker_archive(tmp_path / "a:b.tar", LOWER, UPPER)
    assert laid_out("docker-archive", f"{path}:app:1") == MERGED


def test_layers_of_an_oci_layout_lie_on_each_other(
    tmp_path: Path, laid_out: Callable[[str, str], dict[str, str]]
) -> None:
    layout = Layout(tmp_path / "oci")
    folder = layout.write(layout.image("one", LOWER), layout.image("two", LOWER, UPPER))
    assert laid_out("oci", f"{folder}:two") == MERGED


def test_the_image_for_this_architecture_is_taken_from_an_index(
    tmp_path: Path, laid_out: Callable[[str, str], dict[str, str]]
) -> None:
    layout = Layout(tmp_path / "oci")
    rows = [
        {
            **layout.image("", tar_of({"arm": b""}), architecture="arm64"),
            "platform": {"architecture": "arm64"},
        },
        {**layout.image("", tar_of({"amd": b"64"})), "platform": {"architecture": "amd64"}},
    ]
    index = layout.blob(json.dumps({"manifests": rows}).encode())
    media = "application/vnd.oci.image.index.v1+json"
    assert laid_out("oci", str(layout.write({**index, "mediaType": media}))) == {"amd": "64"}


def test_a_link_in_a_lower_layer_leads_nothing_out(
    tmp_path: Path, laid_out: Callable[[str, str], dict[str, str]]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    lower = tar_of({"etc": str(outside), "x": str(outside / "x")})
    upper = tar_of({"etc": None, "etc/evil": b"e", "etc/.wh.y": b"", "x": b"evil"})
    (outside / "y").write_text("stays")
    path = docker_archive(tmp_path / "a.tar", lower, upper)
    assert laid_out("docker-archive", str(path)) == {"etc/evil": "e", "x": "evil"}
    assert [each.name for each in outside.iterdir()] == ["y"]


@pytest.mark.parametrize(
    ("ref", "cause"),
    [(":app:3", "holds no image called 'app:3'"), ("", "holds more than one image")],
)
def test_which_image_is_meant_must_be_clear(tmp_path: Path, ref: str, cause: str) -> None:
    path = docker_archive(tmp_path / "a.tar", LOWER, twice=True)
    (tmp_path / "work").mkdir()
    with pytest.raises(RecipeError, match=cause) as caught:
        find_image("docker-archive", f"{path}{ref}", tmp_path / "work")
    assert "app:1, app:2" in caught.value.why


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"Layers": ["0.tar", "0.tar"]}, "2 layers, and the configuration has 1"),
        ({"Layers": ["../a.tar"]}, "is not in it"),
        ({"Layers": None}, "names no configuration and layers"),
        ({"Config": "0.tar"}, "0.tar"),
        ({"config": config_of(UPPER)}, "is not what the configuration says"),
        ({"config": config_of(LOWER, architecture="arm64")}, "not for amd64"),
        ({"config": b'{"architecture": "amd64"}'}, "no list 'diff_ids'"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    path = docker_archive(tmp_path / "a.tar", LOWER, **changes)
    (tmp_path / "work").mkdir()
    with pytest.raises(SourceError) as caught:
        find_image("docker-archive", str(path), tmp_path / "work")
    assert cause in str(caught.value)


def test_every_changed_blob_of_a_layout_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "oci")
    folder = layout.write(layout.image("one", LOWER, UPPER))
    find_image("oci", str(folder), tmp_path)
    blobs = sorted((folder / "blobs" / "sha256").iterdir())
    assert len(blobs) == 4
    for blob in blobs:
        good = blob.read_bytes()
        blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(SourceError, match="no whole container image"):
            find_image("oci", str(folder), tmp_path)
        blob.unlink()
        with pytest.raises(SourceError, match="no whole container image"):
            find_image("oci", str(folder), tmp_path)
        blob.write_bytes(good)
    find_image("oci", str(folder), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"manifests": 3}', '{"manifests": [{}]}', "[" * 99999]
)
def test_a_layout_without_a_sound_index_is_refused(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path / "oci")
    layout.write()
    (layout.folder / "index.json").write_text(text)
    with pytest.raises((SourceError, RecipeError)):
        find_image("oci", str(layout.folder), tmp_path)


def test_a_layer_of_many_gzip_members_is_read_whole_and_a_bomb_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 1952: members may follow each other. A layer of zeros unpacks a thousandfold."""
    (tmp_path / "work").mkdir()
    half = len(LOWER) // 2
    packed = gzip.compress(LOWER[:half]) + gzip.compress(LOWER[half:])
    path = docker_archive(tmp_path / "a.tar", packed, config=config_of(LOWER), Layers=["0.tar"])
    assert find_image("docker-archive", str(path), tmp_path / "work").layers
    bomb = gzip.compress(bytes(64 << 20), 9)
    assert len(bomb) < 1 << 20
    monkeypatch.setattr(oci_image, "LIMIT_BYTES", 1 << 20)
    path = docker_archive(tmp_path / "b.tar", bomb, config=config_of(bytes(64 << 20)))
    (tmp_path / "again").mkdir()
    with pytest.raises(SourceError, match="no whole container image") as caught:
        find_image("docker-archive", str(path), tmp_path / "again")
    assert "unpacks to more than" in caught.value.why


@pytest.mark.parametrize(
    "changes",
    [{"RepoTags": 5}, {"RepoTags": None}, {"RepoTags": [1, {}]}],
)
def test_tags_of_any_type_do_no_harm(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = docker_archive(tmp_path / "a.tar", LOWER, **changes)
    (tmp_path / "work").mkdir()
    assert find_image("docker-archive", str(path), tmp_path / "work").layers
    (tmp_path / "again").mkdir()
    for name in ("a\0b", "long" * 999, "/etc/passwd", ".."):
        evil = docker_archive(tmp_path / "b.tar", LOWER, Layers=[name])
        with pytest.raises(SourceError, match="is no whole container image"):
            find_image("docker-archive", str(evil), tmp_path / "again")
