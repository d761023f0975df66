# SPDX-License-Identifier: Apache-2.0
"""Firmware that checks is told from firmware that only takes hashes, by booting both."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.boots, pytest.mark.network]

Sevkit = Callable[..., subprocess.CompletedProcess[str]]
CHANGES = ["kernel", "initrd", "cmdline", "no-table", "entry-length"]
UNCHECKED = """\
schema = 1
extends = "sev-guest"
name = "unchecked"

[sources.generic]
deb = "ovmf-generic"
suite = "sid"

[firmware]
source = "generic"
member = "usr/share/ovmf/OVMF.fd"
"""
UNMEASURED = """
[launch]
measured = false
"""


@pytest.mark.parametrize("recipe", ["sev-guest", "sev-guest-lean", "sev-guest-debian-amdsev"])
def test_the_firmware_of_a_measured_recipe_refuses_whatever_was_changed_in_a_minute(
    sevkit: Sevkit, build_image: Callable[..., Path], recipe: str
) -> None:
    image = build_image(recipe)
    start = time.monotonic()
    result = sevkit("prove", image, "--json")
    seconds = time.monotonic() - start
    assert result.returncode == 0, result.stdout + result.stderr
    proof = json.loads(result.stdout)
    assert proof["proven"] is True
    assert [row["case"] for row in proof["cases"]] == ["good", *CHANGES]
    seen = [row["seen"] for row in proof["cases"]]
    assert seen == ["booted", *["refused"] * 3, *["passed-over"] * 2]
    assert all("QemuKernelLoaderFsDxe" in row["evidence"] for row in proof["cases"][1:4])
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["launch"]["measured"] is True
    assert manifest["firmware"]["verifies_kernel_hashes"] is True
    assert proof["firmware"] == manifest["files"]["firmware"]["sha256"]
    kept = image.with_name(f"{image.name}.proof.json")
    assert kept.read_text() == result.stdout
    assert sevkit("verify", image).returncode == 0
    assert seconds < 60


def test_firmware_that_takes_hashes_and_checks_none_is_not_proven(
    sevkit: Sevkit, build_image: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "unchecked.toml"
    recipe.write_text(UNCHECKED)
    refused = sevkit("-C", tmp_path, "build", "unchecked", "--ci")
    assert refused.returncode == 2
    assert "it takes hashes and checks none" in refused.stderr
    recipe.write_text(UNCHECKED + UNMEASURED)
    image = build_image("unchecked", project=tmp_path)
    result = sevkit("prove", image, "--json")
    assert result.returncode == 4
    proof = json.loads(result.stdout)
    assert proof["proven"] is False
    seen = {row["case"]: row["seen"] for row in proof["cases"]}
    assert seen["good"] == "booted"
    assert seen["kernel"] == seen["cmdline"] == seen["initrd"] == "booted"


def test_firmware_without_a_place_for_hashes_has_nothing_to_prove(
    sevkit: Sevkit, build_image: Callable[..., Path]
) -> None:
    result = sevkit("prove", build_image("sev-guest-ovmf"))
    assert result.returncode == 1
    assert "its firmware has no place for hashes" in result.stderr
