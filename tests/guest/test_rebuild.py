# SPDX-License-Identifier: Apache-2.0
"""What a second build does: nothing, or only what a change touches; and what is published stays."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.errors import ImageError
from sevkit.image.output import publish

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("sev_guest")]

REPOSITORY = Path(__file__).resolve().parents[2]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, so that it can be edited."""
    for folder in ("recipes", "kernel-configs", "patches", "agent"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    return tmp_path


def build(sevkit: Sevkit, project: Path, *words: str) -> str:
    result = sevkit("-C", project, "build", "sev-guest", "--ci", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def planned(sevkit: Sevkit, project: Path) -> set[str]:
    lines = build(sevkit, project, "-n").splitlines()
    return {line.split(": ")[1] for line in lines}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_second_build_has_nothing_to_do(sevkit: Sevkit, project: Path) -> None:
    build(sevkit, project)
    assert planned(sevkit, project) == {"nothing to do"}
    assert build(sevkit, project).startswith("up to date: ")
    assert build(sevkit, project).startswith("up to date: ")


def test_after_a_change_to_the_agent_only_agent_initramfs_and_image_run(
    sevkit: Sevkit, project: Path
) -> None:
    build(sevkit, project)
    before = (project / "output" / "sev-guest" / "latest").resolve()
    edit(project / "agent" / "version.h", 'VERSION "', f'VERSION "{secrets.token_hex(4)}-')
    assert planned(sevkit, project) == {"agent", "initramfs", "image"}
    shown = sevkit("-C", project, "show", "sev-guest", "--why")
    assert "inputs.folder" in shown.stdout
    build(sevkit, project)
    after = (project / "output" / "sev-guest" / "latest").resolve()
    assert after != before
    for image in (before, after):
        assert sevkit("verify", image).returncode == 0
    kernels = [(image / "vmlinuz").read_bytes() for image in (before, after)]
    assert kernels[0] == kernels[1]


def test_the_command_line_is_the_images_alone(sevkit: Sevkit, project: Path) -> None:
    edit(project / "recipes" / "sev-guest.toml", '"quiet"]', '"quiet", "audit=0"]')
    assert planned(sevkit, project) == {"image"}


def test_tools_left_in_the_agents_folder_change_nothing(sevkit: Sevkit, project: Path) -> None:
    build(sevkit, project)
    subprocess.run(["make", "-s", "-C", project / "agent"], check=True)
    assert (project / "agent" / "build").is_dir()
    assert planned(sevkit, project) == {"nothing to do"}


def test_a_changed_image_is_named_by_verify_and_never_overwritten(
    sevkit: Sevkit, project: Path
) -> None:
    build(sevkit, project)
    image = (project / "output" / "sev-guest" / "latest").resolve()
    assert sevkit("verify", image).returncode == 0
    good = shutil.copytree(image, project / "good")
    assert publish(good, image) is False
    initramfs = image / "initramfs"
    content = bytearray(initramfs.read_bytes())
    content[1000] ^= 1
    initramfs.chmod(0o644)
    initramfs.write_bytes(content)
    verified = sevkit("verify", image)
    assert verified.returncode == 4
    assert "initramfs" in verified.stdout
    refused = sevkit("boot", image)
    assert refused.returncode == 1
    assert "initramfs" in refused.stderr
    with pytest.raises(ImageError, match="changed after it was published"):
        publish(good, image)
    assert initramfs.read_bytes() == content


def test_every_path_of_the_initramfs_is_accounted_for(sevkit: Sevkit, sev_guest: Path) -> None:
    told = sevkit("why", "/usr/bin/crun", "--image", sev_guest)
    assert told.returncode == 0, told.stderr
    assert "crun" in told.stdout
    absent = sevkit("why", "/usr/bin/crum", "--image", sev_guest)
    assert absent.returncode == 2
    assert "/usr/bin/crun" in absent.stderr


def test_the_image_can_be_checked_without_sevkit(sev_guest: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=sev_guest, check=True)


def test_the_default_guest_keeps_its_budgets(sev_guest: Path) -> None:
    assert (sev_guest / "vmlinuz").stat().st_size <= 4 << 20
    manifest = json.loads((sev_guest / "manifest.json").read_text())
    assert manifest["variant"] == "production"
    contents = json.loads((sev_guest / "contents.json").read_text())
    assert contents["archive_bytes"] <= 14 << 20


def test_the_same_bytes_come_from_another_path_umask_and_number_of_jobs(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    """All but the kernel, whose own test compiles it twice."""
    digests = []
    for number, mask in enumerate((0o022, 0o077)):
        place = tmp_path / ("long-" * (number * 9) + "place")
        place.mkdir()
        store = {"SEVKIT_STORE": str(place / "store"), "TZ": f"UTC+{number}", "LC_ALL": "C"}
        old = os.umask(mask)
        try:
            result = sevkit(
                "-C", project, "build", "sev-guest:initramfs", "-j", str(number + 1), env=store
            )
        finally:
            os.umask(old)
        assert result.returncode == 0, result.stderr
        data = Path(result.stdout.strip().rpartition(": ")[2])
        digests.append({path.name: path.read_bytes() for path in sorted(data.iterdir())})
    assert digests[0] == digests[1]
