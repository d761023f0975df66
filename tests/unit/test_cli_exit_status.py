# SPDX-License-Identifier: Apache-2.0
"""Exit statuses: 4 where the answer is no, apart from what failed (1) and wrong calls (2)."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from image_samples import image as sample_image

Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    return Path(shutil.copytree(sample_image(tmp_path / "bench"), tmp_path / "image"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def test_an_image_that_was_changed_is_a_no_and_one_that_is_not_there_a_wrong_call(
    sevkit: Sevkit, image: Path, tmp_path: Path
) -> None:
    assert sevkit("verify", image, cwd=tmp_path).returncode == 0
    with (image / "vmlinuz").open("ab") as file:
        file.write(b"x")
    assert sevkit("verify", image, cwd=tmp_path).returncode == 4
    assert sevkit("verify", tmp_path / "none", cwd=tmp_path).returncode == 2


def test_a_signature_that_is_missing_or_somebody_elses_is_a_no(
    sevkit: Sevkit, image: Path, key: Path, tmp_path: Path
) -> None:
    public = f"{key}.pub"
    unsigned = sevkit("verify", image, "--key", public)
    assert (unsigned.returncode, "is not signed" in unsigned.stderr) == (4, True)
    assert sevkit("sign", image, "--key", key).returncode == 0
    assert sevkit("verify", image, "--key", public).returncode == 0
    stranger = tmp_path / "stranger.pub"
    other = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"]
    subprocess.run(other, check=True)
    assert sevkit("verify", image, "--key", stranger).returncode == 4
    stranger.write_text("# no key\n")
    assert sevkit("verify", image, "--key", stranger).returncode == 2


def test_a_file_that_is_not_there_and_a_target_that_is_are_wrong_calls(
    sevkit: Sevkit, image: Path, tmp_path: Path
) -> None:
    assert sevkit("firmware", "inspect", image / "firmware.fd").returncode == 0
    assert sevkit("firmware", "inspect", tmp_path / "none").returncode == 2
    assert sevkit("verify-report", tmp_path / "none", image).returncode == 2
    kept = sevkit("reproduce", image, "--keep", tmp_path)
    assert (kept.returncode, "is there already" in kept.stderr) == (2, True)
