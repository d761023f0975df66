# SPDX-License-Identifier: Apache-2.0
"""A container image as a file system with a hash tree, read by the tools of those formats."""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from sevkit.errors import SourceError
from sevkit.oci.image import find_image
from sevkit.oci.verity import BLOCK
from sevkit.oci.workload import Workload, make


def docker_archive(path: Path, layer: bytes) -> Path:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/own"], "User": "app"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["layer.tar"]}]
    members = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of many shapes: sizes around a block, large folders, long links."""
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    (root / "bin").mkdir()
    (root / "bin" / "own").write_bytes(b"#!/bin/sh\n")
    (root / "bin" / "own").chmod(0o4755)
    os.link(root / "bin" / "own", root / "bin" / "other")
    for size in (0, 1, 31, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 300_000):
        (root / f"file-{size}").write_bytes(hashlib.shake_128(str(size).encode()).digest(size))
    (root / "many").mkdir()
    for number in range(700):
        (root / "many" / f"a-name-of-some-length-{number}").symlink_to("x/" * number * 2 + "y")
    (root / "deep/er/and/deeper").mkdir(parents=True, mode=0o700)
    (root / "empty").mkdir(mode=0o1777)
    return root


@pytest.fixture(scope="module")
def archive(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `docker save` would write it; its owners are others than ours."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid, info.gid, info.mtime = 1000, 70_000, 1_600_000_000
            return info

        tar.add(root, ".", filter=owned)
    return docker_archive(tmp_path_factory.mktemp("archive") / "app.tar", layer.getvalue())


def made(kind: str, place: Path, folder: Path) -> tuple[Workload, Path]:
    (folder / "work").mkdir(parents=True)
    image = find_image(kind, str(place), folder / "work")
    return make(image, folder / "workload.img"), folder / "workload.img"


def test_erofs_tools_read_every_path_as_the_layer_had_it(
    root: Path, archive: Path, tmp_path: Path
) -> None:
    workload, image = made("docker-archive", archive, tmp_path / "made")
    out = tmp_path / "out"
    subprocess.run(["fsck.erofs", f"--extract={out}", image], check=True, capture_output=True)
    names = sorted(path.relative_to(root) for path in root.rglob("*"))
    assert sorted(path.relative_to(out / "rootfs") for path in (out / "rootfs").rglob("*")) == names
    for name in names:
        ours, theirs = root / name, out / "rootfs" / name
        status = theirs.lstat()
        assert stat.S_IFMT(status.st_mode) == stat.S_IFMT(ours.lstat().st_mode)
        if theirs.is_symlink():
            assert theirs.readlink() == ours.readlink()
        elif theirs.is_file():
            assert theirs.read_bytes() == ours.read_bytes(), name
    assert json.loads((out / "config.json").read_text()) == workload.config
    shown = subprocess.run(
        ["dump.erofs", "--path=/rootfs/bin/own", image], check=True, capture_output=True, text=True
    ).stdout
    assert "Uid: 1000   Gid: 70000  Access: 0755" in shown
    assert "Links: 2" in shown
    assert "Timestamp: 2020-09-13" in shown


def test_veritysetup_finds_every_block_as_the_root_hash_says(archive: Path, tmp_path: Path) -> None:
    workload, image = made("docker-archive", archive, tmp_path / "made")
    blocks = workload.verity.data_blocks
    assert blocks > 129  # more than one level of hashes
    command = ["veritysetup", "verify", image, image, workload.verity.root_hash]
    command += ["--no-superblock", f"--hash-offset={blocks * BLOCK}", f"--data-blocks={blocks}"]
    command += ["--salt=-", "--hash=sha256"]
    assert subprocess.run(command, check=False).returncode == 0
    data = bytearray(image.read_bytes())
    for place in (1024, blocks * BLOCK // 2, len(data) - 32 * 100):
        data[place] ^= 1
        image.write_bytes(data)
        assert subprocess.run(command, check=False, capture_output=True).returncode != 0
        data[place] ^= 1


def test_both_forms_of_an_image_give_the_same_bytes_every_time(
    archive: Path, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"docker-archive:{archive}", f"oci:{layout}:app"],
        check=True,
        capture_output=True,
    )
    first, image = made("docker-archive", archive, tmp_path / "first")
    again, image_again = made("docker-archive", archive, tmp_path / "longer" / "again")
    of_oci, image_of_oci = made("oci", layout, tmp_path / "of-oci")
    assert image.read_bytes() == image_again.read_bytes() == image_of_oci.read_bytes()
    assert first.verity == again.verity == of_oci.verity


def test_a_layer_that_was_changed_leaves_no_image(archive: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.tar"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    with pytest.raises(SourceError, match="is not what the configuration says"):
        made("docker-archive", changed, tmp_path / "made")
    assert not (tmp_path / "made" / "workload.img").exists()
    shutil.rmtree(tmp_path / "made")
    made("docker-archive", archive, tmp_path / "made")
