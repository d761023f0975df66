# SPDX-License-Identifier: Apache-2.0
"""The stage that proves firmware: what it refuses at a look, and that an image rests on it."""

import hashlib
import json
from pathlib import Path

import pytest
from firmware_samples import SNP_SECTIONS, firmware
from image_samples import Bench, recipe
from test_firmware_verifier import CHECKS

from sevkit.errors import RecipeError
from sevkit.image.manifest import load
from sevkit.stages import firmware_proof
from sevkit.stages.firmware_proof import build_firmware_proof, plan_firmware_proof

UNCHECKED = firmware(hashes=(0x810C00, 0x400), sections=SNP_SECTIONS)


def bench_of(folder: Path, image: bytes, **launch: object) -> Bench:
    bench = Bench(folder, recipe(launch=launch))
    bench.others()
    (bench.folder / "OVMF.fd").write_bytes(image)
    bench.firmware()
    return bench


def test_firmware_that_can_t_measure_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, UNCHECKED, measured=True)
    stage = plan_firmware_proof(bench)  # type: ignore[arg-type]
    inputs = {"firmware": bench.places[bench.stage("firmware")]}
    with pytest.raises(RecipeError, match=r"launch\.measured: the firmware of") as caught:
        build_firmware_proof(stage, inputs, tmp_path, bench)  # type: ignore[arg-type]
    assert "holds no QemuKernelLoaderFsDxe that could check them" in caught.value.why
    assert "no section for kernel hashes, which sev-snp needs" in caught.value.why
    assert not (tmp_path / "proof.json").exists()


def test_a_proof_names_the_firmware_that_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, CHECKS, measured=True)
    stage = plan_firmware_proof(bench)  # type: ignore[arg-type]
    monkeypatch.setattr(firmware_proof, "find_qemu", lambda: None)
    monkeypatch.setattr(firmware_proof, "try_firmware", lambda *_, **__: [])
    bench.environment = {}  # type: ignore[attr-defined]
    inputs = {"firmware": bench.places[bench.stage("firmware")]}
    build_firmware_proof(stage, inputs, tmp_path, bench)  # type: ignore[arg-type]
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["firmware_sha256"] == hashlib.sha256(CHECKS).hexdigest()


def test_an_image_claims_a_proof_only_where_it_rests_on_one(tmp_path: Path) -> None:
    for name, measured, says in (("plain", False, None), ("measured", True, True)):
        (tmp_path / name).mkdir()
        bench = bench_of(tmp_path / name, CHECKS, measured=measured)
        if measured:
            bench.proof()
        manifest = load(bench.image())
        assert manifest.firmware.verifies_kernel_hashes is says
        assert ("firmware-proof" in bench.stages["image"].inputs) is measured


def test_firmware_without_a_place_for_hashes_is_known_not_to_check(tmp_path: Path) -> None:
    manifest = load(bench_of(tmp_path, firmware()).image())
    assert manifest.firmware.verifies_kernel_hashes is False


def test_the_version_counts_that_the_package_of_the_firmware_states(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, UNCHECKED, measured=True)
    assert plan_firmware_proof(bench).params["version"] is None  # type: ignore[arg-type]
    row = {**bench.provenance()[0], "source": bench.recipe.firmware.source}
    bench.provenance = lambda: [row]  # type: ignore[method-assign]
    assert plan_firmware_proof(bench).params["version"] == "1"  # type: ignore[arg-type]
