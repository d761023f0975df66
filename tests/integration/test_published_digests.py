# SPDX-License-Identifier: Apache-2.0
"""Digests that others publish: those that VirTEE's Rust library `sev` is tested with.

Its package in Debian brings the firmware that they are of, the last page of an AmdSev build. One
page is no firmware that sevkit measures, so these hold the independent computation of the tests,
which in turn holds sevkit (tests/unit/test_measure_digests.py).
"""

import struct
import subprocess
import uuid
from pathlib import Path

import launch_digests
import pytest
from launch_digests import SIGNATURES

from sevkit.sources import Apt, DebGroup, fetch

RESET_GUID = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
CMDLINE = "console=ttyS0 loglevel=7"
SEV = {
    CMDLINE: "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff",
    "": "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898",
}
SEV_GENERIC = "b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da"
SEV_ES = {
    1: "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c",
    4: "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91",
}

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package's test data."""
    folder = tmp_path_factory.mktemp("sev-crate")
    apt = Apt(folder / "apt")
    [pin] = [
        pin
        for pin in apt.resolve(DebGroup(("librust-sev-dev",), "sid"))
        if pin.origin["package"] == "librust-sev-dev"
    ]
    fetch(pin, folder / pin.name, lambda *_: None, apt)
    subprocess.run(["dpkg-deb", "-x", folder / pin.name, folder / "root"], check=True)
    [data] = (folder / "root").glob("usr/share/cargo/registry/sev-*/tests/measurement")
    return data


def entry_of_other_vcpus(firmware: bytes) -> int:
    """What the GUIDed table says of the SEV-ES reset block: u32 address, u16 length, GUID."""
    at = firmware.rindex(RESET_GUID)
    [address] = struct.unpack_from("<I", firmware, at - 6)
    return int(address)


@pytest.mark.parametrize("cmdline", SEV)
def test_sev_measures_as_published(samples: Path, cmdline: str) -> None:
    firmware = (samples / "ovmf_AmdSev_suffix.bin").read_bytes()
    table = launch_digests.hash_table(b"", b"", cmdline)
    assert launch_digests.sev(firmware, table) == SEV[cmdline]


def test_sev_without_kernel_hashes_measures_as_published(samples: Path) -> None:
    firmware = (samples / "ovmf_OvmfX64_suffix.bin").read_bytes()
    assert launch_digests.sev(firmware, b"") == SEV_GENERIC


@pytest.mark.parametrize("vcpus", SEV_ES)
def test_sev_es_measures_as_published(samples: Path, vcpus: int) -> None:
    firmware = (samples / "ovmf_AmdSev_suffix.bin").read_bytes()
    table = launch_digests.hash_table(b"", b"", "")
    entry, signature = entry_of_other_vcpus(firmware), SIGNATURES["EPYC-v4"]
    areas = launch_digests.save_areas(vcpus, entry, signature, 0)
    assert launch_digests.sev(firmware, table, areas) == SEV_ES[vcpus]
