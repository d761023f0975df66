# SPDX-License-Identifier: Apache-2.0
"""The stages firmware and image: what shapes their keys, and what they refuse to publish."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from firmware_samples import I386, SNP_SECTIONS, WITH_HASHES, firmware
from image_samples import Bench, recipe
from test_firmware_verifier import CHECKS

from sevkit.errors import BuildError, ImageError, RecipeError
from sevkit.image.manifest import load, verify
from sevkit.image.output import build_id
from sevkit.stages.firmware import plan_firmware


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path, recipe())
    made.others()
    return made


def test_the_firmware_is_published_byte_for_byte_with_its_facts(bench: Bench) -> None:
    out = bench.firmware()
    assert (out / "firmware.fd").read_bytes() == firmware()
    assert json.loads((out / "firmware.json").read_text())["problems"]["sev-snp"] == []


def test_a_file_in_a_folder_can_be_the_firmware_but_none_outside_of_it(tmp_path: Path) -> None:
    for member, is_inside in (("inside.fd", True), ("link.fd", False), ("none.fd", False)):
        (tmp_path / member).mkdir()
        sources = {"linux": {"deb": "linux-source"}, "edk2": {"file": Path("agent")}}
        chosen = recipe(sources=sources, firmware={"source": "edk2", "member": member})
        bench = Bench(tmp_path / member, chosen)
        (bench.folder / "agent" / "inside.fd").write_bytes(firmware())
        (bench.folder / "agent" / "link.fd").symlink_to("../OVMF.fd")
        if is_inside:
            assert (bench.firmware() / "firmware.fd").read_bytes() == firmware()
            continue
        with pytest.raises(BuildError, match=f"edk2: {member} is not there"):
            bench.firmware()


def test_a_folder_without_a_member_is_no_firmware(tmp_path: Path) -> None:
    sources = {"linux": {"deb": "linux-source"}, "edk2": {"file": Path("agent")}}
    bench = Bench(tmp_path, recipe(sources=sources, firmware={"source": "edk2"}))
    with pytest.raises(BuildError, match="edk2 is a folder"):
        bench.firmware()


def test_a_package_without_a_member_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    sources = {"linux": {"deb": "linux-source"}, "ovmf": {"deb": "ovmf"}}
    bench = Bench(tmp_path, recipe(sources=sources))
    with pytest.raises(RecipeError, match="a package is no firmware image"):
        plan_firmware(bench)  # type: ignore[arg-type]


def test_firmware_that_is_none_is_refused_by_its_name_in_the_recipe(bench: Bench) -> None:
    (bench.folder / "OVMF.fd").write_bytes(b"hello")
    with pytest.raises(ImageError, match="ovmf is not an OVMF image"):
        bench.firmware()


def test_firmware_that_can_do_no_mode_of_the_recipe_is_refused_early(tmp_path: Path) -> None:
    for modes, is_possible in ((("sev", "sev-snp"), True), (("sev-es", "sev-snp"), False)):
        (tmp_path / modes[0]).mkdir()
        bench = Bench(tmp_path / modes[0], recipe(launch={"modes": modes}))
        (bench.folder / "OVMF.fd").write_bytes(firmware(machine=I386))
        if is_possible:
            bench.firmware()
            continue
        with pytest.raises(RecipeError, match="can't be launched in any mode") as caught:
            bench.firmware()
        assert "sev-es: it starts in 32-bit code" in caught.value.why


def test_a_mode_that_is_not_possible_is_recorded_and_told(bench: Bench) -> None:
    (bench.folder / "OVMF.fd").write_bytes(firmware(machine=I386))
    bench.firmware()
    manifest = load(bench.image())
    assert manifest.possible_modes == ("sev",)
    facts = manifest.launch.modes["sev-es"]
    assert (facts.asked, facts.possible) == (True, False)
    assert facts.problems[0].startswith("firmware: it starts in 32-bit code")
    assert any(line.startswith("sev-es is not possible: ") for line in manifest.remarks())


def test_a_mode_that_was_not_asked_for_is_not_offered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recipe(launch={"modes": ("sev-snp",)}))
    bench.others()
    bench.firmware()
    manifest = load(bench.image())
    assert manifest.possible_modes == ("sev-snp",)
    assert manifest.launch.modes["sev"].possible
    assert not manifest.launch.modes["sev"].asked


def test_a_kernel_too_old_for_every_mode_is_refused(tmp_path: Path) -> None:
    for version, is_possible in (("6.1.100", True), ("5.18.2", False)):
        (tmp_path / version).mkdir()
        bench = Bench(tmp_path / version, recipe(launch={"modes": ("sev-snp",)}))
        bench.others(version=version)
        bench.firmware()
        if is_possible:
            bench.image()
            continue
        with pytest.raises(RecipeError) as caught:
            bench.image()
        assert "the kernel is 5.18.2, and sev-snp guests need 5.19" in caught.value.why


@pytest.mark.parametrize(("sections", "for_snp"), [(SNP_SECTIONS, False), (WITH_HASHES, True)])
def test_a_place_for_hashes_is_told_by_mode_and_never_called_verified(
    bench: Bench, sections: tuple[tuple[int, int, int], ...], for_snp: bool
) -> None:
    image = firmware(hashes=(0x810C00, 0x400), sections=sections)
    (bench.folder / "OVMF.fd").write_bytes(image)
    bench.firmware()
    manifest = load(bench.image())
    hashes = {mode: facts.kernel_hashes for mode, facts in manifest.launch.modes.items()}
    assert hashes == {"sev": True, "sev-es": True, "sev-snp": for_snp}
    assert manifest.firmware.verifies_kernel_hashes is None
    assert "nobody has shown" in manifest.remarks()[-1]


def test_the_build_id_is_that_of_the_directory(bench: Bench) -> None:
    bench.firmware()
    assert load(bench.image()).build_id == build_id(bench.stages["image"])


def test_a_builtin_initramfs_is_no_file_of_the_image(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recipe())
    bench.others(placement="builtin")
    bench.firmware()
    image = bench.image()
    assert not (image / "initramfs").exists()
    manifest = load(image)
    assert "initramfs" not in manifest.files
    assert manifest.initramfs.placement == "builtin"
    assert verify(image) == []


@pytest.mark.parametrize(
    ("stage", "file", "key"),
    [
        ("kernel", "kernel.json", "release"),
        ("kernel", "kernel.json", "initramfs"),
        ("kernel", "kernel.json", "bzimage_bytes"),
        ("initramfs", "initramfs.json", "archive_sha256"),
        ("initramfs", "contents.json", "packages"),
        ("agent", "agent.json", "licence"),
        ("firmware", "firmware.json", "problems"),
    ],
)
def test_a_fact_that_a_stage_left_out_is_named(
    bench: Bench, stage: str, file: str, key: str
) -> None:
    bench.firmware()
    path = bench.folder / f"stage-{stage}" / file
    facts = json.loads(path.read_text())
    del facts[key]
    path.write_text(json.dumps(facts))
    with pytest.raises(BuildError, match=f"lack {key}"):
        bench.image()


def test_facts_that_are_missing_or_no_json_are_named(bench: Bench) -> None:
    bench.firmware()
    path = bench.folder / "stage-agent" / "agent.json"
    for content in (b"", b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(BuildError, match=r"agent left .*agent\.json"):
            bench.image()
        (bench.folder / "image").rename(bench.folder / f"image-{len(content)}-{content!r:.3}")
    path.unlink()
    with pytest.raises(BuildError, match=r"agent left no readable agent\.json"):
        bench.image()


def test_what_is_not_printable_in_patches_packages_and_tools_is_spelled_out(
    bench: Bench,
) -> None:
    """Debian's copyright files hold no-break spaces, and a build must not fail for one."""
    bench.firmware()
    place = bench.folder / "stage-kernel" / "kernel.json"
    facts = json.loads(place.read_text())
    facts["compiler"], facts["patches"][0]["description"] = "gcc\x1b]0;x", "a\u00a0b ü"
    place.write_text(json.dumps(facts))
    kernel = load(bench.image()).kernel
    assert kernel.compiler == r"gcc\x1b]0;x"
    assert kernel.patches[0].description == r"a\xa0b ü"


def test_a_fact_of_the_wrong_kind_is_named(bench: Bench) -> None:
    bench.firmware()
    path = bench.folder / "stage-agent" / "agent.json"
    path.write_text(path.read_text().replace("40000", '"40000"'))
    with pytest.raises(BuildError) as caught:
        bench.image()
    assert "agent.size: " in caught.value.why


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("kernel", "vmlinuz"),
        ("kernel", "config"),
        ("initramfs", "initramfs"),
        ("firmware", "firmware.fd"),
    ],
)
def test_a_file_that_is_not_what_its_stage_says_is_refused(
    bench: Bench, stage: str, file: str
) -> None:
    bench.firmware()
    path = bench.folder / f"stage-{stage}" / file
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BuildError, match=f"{file} is not what its stage says"):
        bench.image()


@pytest.mark.parametrize(
    ("stage", "file", "said"),
    [
        ("agent", "agent.json", "initramfs has /init with SHA-256 dddd"),
        ("initramfs", "initramfs.json", "kernel has an initramfs with SHA-256 "),
        ("firmware", "firmware.json", "firmware-proof has the proof of SHA-256 "),
    ],
)
def test_a_stage_that_was_built_again_to_other_bytes_parts_what_rests_on_it(
    tmp_path: Path, stage: str, file: str, said: str
) -> None:
    launch = {"measured": True, "vcpus": (1, 2), "cpus": ("EPYC-Milan",)}
    bench = Bench(tmp_path, recipe(launch=launch))
    bench.others(placement="builtin")
    (bench.folder / "OVMF.fd").write_bytes(CHECKS)
    bench.firmware()
    bench.proof()
    assert verify(bench.image()) == []
    shutil.rmtree(bench.folder / "image")
    place = bench.folder / f"stage-{stage}"
    other = "e" * 64
    if stage == "firmware":
        (place / "firmware.fd").write_bytes(firmware(machine=I386))
        other = hashlib.sha256((place / "firmware.fd").read_bytes()).hexdigest()
    facts = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps({**facts, "sha256": other}))
    with pytest.raises(BuildError, match="built from other bytes") as caught:
        bench.image()
    assert caught.value.why.startswith(said)
    assert caught.value.why.endswith(f"but {stage} is {other}")
    assert "sevkit build made-up -B" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": "1.0.1"},
        {"summary": "other"},
        {"debug": True},
        {"launch": {"modes": ("sev",), "vcpus": (1, 2), "cpus": ("EPYC-Milan",)}},
        {"launch": {"vcpus": (1, 4), "cpus": ("EPYC-Milan",)}},
        {"launch": {"vcpus": (1, 2), "cpus": ("EPYC-Genoa",)}},
        {"kernel": {"source": "linux", "configs": ("base",), "cmdline": ("quiet",)}},
    ],
    ids=str,
)
def test_all_that_the_manifest_says_changes_the_build_id(
    bench: Bench, tmp_path: Path, change: dict[str, Any]
) -> None:
    bench.firmware()
    bench.image()
    (tmp_path / "changed").mkdir()
    changed = Bench(tmp_path / "changed", recipe(**change))
    changed.others()
    changed.firmware()
    changed.image()
    assert changed.stages["image"].key != bench.stages["image"].key


def test_another_package_version_changes_the_build_id(bench: Bench, tmp_path: Path) -> None:
    bench.firmware()
    bench.image()
    (tmp_path / "changed").mkdir()
    changed = Bench(tmp_path / "changed", recipe())
    [row] = bench.provenance()
    changed.provenance = lambda: [{**row, "reference": f"blob:{'e' * 64}"}]  # type: ignore[method-assign]
    changed.others()
    changed.firmware()
    changed.image()
    assert changed.stages["image"].key != bench.stages["image"].key


def test_local_sources_are_told_by_digest(bench: Bench) -> None:
    bench.firmware()
    sources = {row.source: row for row in load(bench.image()).sources}
    assert sources.keys() == {"linux", "ovmf", "agent.path"}
    assert sources["ovmf"].origin == {"kind": "file"}
    assert sources["agent.path"].reference.startswith("tree:")
