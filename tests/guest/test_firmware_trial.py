# SPDX-License-Identifier: Apache-2.0
"""Firmware is tried before an image rests on it: one that only looks as if it checked is found."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from weakened_firmware import Change, accepting, passing_over, recompressed, weakened

pytestmark = [pytest.mark.boots, pytest.mark.network]

Sevkit = Callable[..., subprocess.CompletedProcess[str]]
CHANGES = ["kernel", "initrd", "cmdline"]
OWN = """\
schema = 1
extends = "sev-guest"
name = "own"

[sources.own]
file = "../own.fd"

[firmware]
source = "own"
"""


@pytest.fixture(scope="module")
def project_with(sev_guest: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A project whose recipe `own` takes the default firmware with something changed."""
    good = (sev_guest / "firmware.fd").read_bytes()

    def make(change: Change) -> Path:
        folder = tmp_path_factory.mktemp(change.__name__)
        (folder / "recipes").mkdir()
        (folder / "recipes" / "own.toml").write_text(OWN)
        try:
            (folder / "own.fd").write_bytes(weakened(good, change))
        except LookupError as error:
            pytest.skip(f"another compiler: {error}; no weakened firmware was tried")
        return folder

    return make


def test_firmware_that_checks_is_proven_in_the_build(
    sevkit: Sevkit, project_with: Callable[..., Path]
) -> None:
    project = project_with(recompressed)
    result = sevkit("-C", project, "build", "own:firmware-proof", "--ci")
    assert result.returncode == 0, result.stderr
    result = sevkit("firmware", "inspect", project / "own.fd", "--prove", "--json")
    assert result.returncode == 0, result.stdout
    cases = {row["case"]: row for row in json.loads(result.stdout)["cases"]}
    assert [cases[name]["seen"] for name in ("good", *CHANGES)] == ["booted", *["refused"] * 3]
    for name in CHANGES:
        assert cases[name]["evidence"].endswith("in QemuKernelLoaderFsDxe")
    for name in ("no-table", "entry-length"):
        assert cases[name]["seen"] == "passed-over"


@pytest.mark.parametrize(
    ("change", "seen", "why"),
    [
        (accepting, "booted", "it starts the kernel with this changed: one bit of the kernel"),
        (passing_over, "passed-over", "as edk2 before 2024.08, instead of stopping at one bit of"),
    ],
)
def test_firmware_that_only_looks_as_if_it_checked_builds_no_measured_image(
    change: Change, seen: str, why: str, sevkit: Sevkit, project_with: Callable[..., Path]
) -> None:
    project = project_with(change)
    looked_at = sevkit("firmware", "inspect", project / "own.fd", "--json")
    assert json.loads(looked_at.stdout)["verifier"] == "holds-verifier"
    result = sevkit("-C", project, "build", "own:firmware-proof", "--ci")
    assert result.returncode == 2
    assert "launch.measured: the firmware of sources.own measures no boot" in result.stderr
    assert why in result.stderr
    result = sevkit("firmware", "inspect", project / "own.fd", "--prove", "--json")
    assert result.returncode == 4
    cases = {row["case"]: row["seen"] for row in json.loads(result.stdout)["cases"]}
    assert {cases[name] for name in CHANGES} == {seen}


def test_the_default_image_rests_on_a_proof(sevkit: Sevkit, sev_guest: Path) -> None:
    manifest = json.loads((sev_guest / "manifest.json").read_text())
    assert manifest["firmware"]["verifies_kernel_hashes"] is True
    assert {row["covers"] for row in manifest["measurements"]} == {"kernel"}
