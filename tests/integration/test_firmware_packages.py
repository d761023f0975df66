# SPDX-License-Identifier: Apache-2.0
"""Debian sid's firmware: of two images that take kernel hashes, one holds a verifier."""

from pathlib import Path

import pytest

from sevkit.archive import extract_member
from sevkit.firmware.verifier import Verifier, verifier
from sevkit.recipe.model import DebSource
from sevkit.sources import Apt

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("package", "member", "found"),
    [
        ("ovmf-generic", "usr/share/ovmf/OVMF.fd", Verifier.NONE),
        ("ovmf-amdsev", "usr/share/ovmf/OVMF.amdsev.fd", Verifier.PRESENT),
    ],
)
def test_the_generic_image_takes_hashes_and_only_the_sev_one_holds_a_verifier(
    mirror: None, tmp_path: Path, package: str, member: str, found: Verifier
) -> None:
    apt, deb = Apt(tmp_path / "apt"), tmp_path / "package.deb"
    [pin] = apt.resolve(DebSource(deb=package, suite="sid"))
    apt.fetch(pin, deb, lambda done, total, note: None)
    extract_member(deb, member, tmp_path / "image")
    assert verifier((tmp_path / "image").read_bytes(), package) is found
