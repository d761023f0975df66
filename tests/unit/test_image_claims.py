# SPDX-License-Identifier: Apache-2.0
"""A manifest that says of its firmware what the firmware's bytes contradict is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from firmware_samples import firmware
from image_samples import Bench, recipe
from test_firmware_modules import module
from test_firmware_verifier import ALL, CHECKS
from test_firmware_verifier import image as checking
from test_image_measured import printed, with_manifest

from sevkit.errors import ImageError
from sevkit.firmware.verifier import LOADER
from sevkit.image.claims import contradictions
from sevkit.image.manifest import load
from sevkit.image.measured import measure_image
from sevkit.image.shape import Manifest

FIRMWARES = {
    "checks": CHECKS,
    "checks-none": checking(module(LOADER, b"none")),
    "no-loader": checking(module("Other", ALL)),
    "no-place": firmware(),
}


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], Path]:
    """Builds an image with one of FIRMWARES."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        bench = Bench(folder, recipe())
        (folder / "OVMF.fd").write_bytes(FIRMWARES[name])
        bench.others()
        bench.firmware()
        return bench.image()

    return make


def with_firmware(manifest: Manifest, **facts: Any) -> dict[str, Any]:
    """The change of a manifest that changes `facts` of its firmware."""
    return {"firmware": manifest.firmware.model_copy(update=facts)}


def as_if_checked(folder: Path) -> Manifest:
    """Say that the firmware checks, and call every row measured that may be."""
    manifest = load(folder)
    rows = tuple(
        row.model_copy(update={"covers": row.covers if row.covers == "firmware" else "kernel"})
        for row in manifest.measurements
    )
    claim = with_firmware(manifest, verifies_kernel_hashes=True)
    return with_manifest(folder, **claim, measurements=rows)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("checks-none", "it holds a QemuKernelLoaderFsDxe that looks at none"),
        ("no-loader", "it holds no QemuKernelLoaderFsDxe that could look at them"),
        ("no-place", "it has no place for them"),
    ],
)
def test_a_claim_that_the_firmware_checks_is_refused_where_its_bytes_show_that_it_can_t(
    image: Callable[[str], Path], name: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image(name)
    assert printed(capsys, ["verify", folder])[0] == 0
    manifest = as_if_checked(folder)
    status, text = printed(capsys, ["verify", folder])
    line = f"firmware.verifies_kernel_hashes is not true: {why}"
    assert (status, line in text) == (4, True)
    with pytest.raises(ImageError, match="says of the firmware what it is not") as caught:
        measure_image(folder, manifest)
    assert caught.value.why == line


def test_a_claim_that_fits_the_bytes_stands(
    image: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image("checks")
    assert {row.covers for row in as_if_checked(folder).measurements} == {"kernel"}
    assert printed(capsys, ["verify", folder])[0] == 0


@pytest.mark.parametrize(
    ("fact", "value", "line"),
    [
        ("size", 1, "firmware.size is 196608, not 1"),
        ("sha256", "0" * 64, 'firmware.sha256 is "'),
        ("sec_bits", None, "firmware.sec_bits is 64, not null"),
        ("loads_as", ("bios",), 'firmware.loads_as is ["bios", "pflash"], not ["bios"]'),
        ("kernel_hashes", None, 'firmware.kernel_hashes is {"base": 8457216, "size": 1024, "for_'),
        ("metadata", (), 'firmware.metadata is [{"type": 1, "name": "snp-memory", '),
    ],
)
def test_a_fact_that_the_bytes_contradict_is_named(
    image: Callable[[str], Path], fact: str, value: object, line: str
) -> None:
    folder = image("checks")
    manifest = load(folder)
    assert list(contradictions(manifest, FIRMWARES["checks"], "x")) == []
    edited = with_manifest(folder, **with_firmware(manifest, **{fact: value}))
    [found] = contradictions(edited, FIRMWARES["checks"], "x")
    assert found.startswith(line)
    assert len(found) < 500


def test_a_measured_boot_that_the_firmware_can_t_give_is_named(
    image: Callable[[str], Path],
) -> None:
    for name, lines in (
        (
            "no-loader",
            [
                "launch.measured is not true: it holds no QemuKernelLoaderFsDxe that could "
                "look at them"
            ],
        ),
        ("checks", []),
    ):
        manifest = load(image(name))
        launch = manifest.launch.model_copy(update={"measured": True})
        edited = manifest.model_copy(update={"launch": launch})
        assert list(contradictions(edited, FIRMWARES[name], "x")) == lines


def test_a_mode_that_is_said_to_have_no_place_for_hashes_is_named(
    image: Callable[[str], Path],
) -> None:
    manifest = load(image("checks"))
    snp = manifest.launch.modes["sev-snp"].model_copy(update={"kernel_hashes": False})
    modes = {**manifest.launch.modes, "sev-snp": snp}
    edited = manifest.model_copy(
        update={"launch": manifest.launch.model_copy(update={"modes": modes})}
    )
    assert list(contradictions(edited, FIRMWARES["checks"], "x")) == [
        "launch.modes.sev-snp.kernel_hashes is true"
    ]
