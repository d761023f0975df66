# SPDX-License-Identifier: Apache-2.0
"""The rules of `doctor` against recorded hosts, each beside one that is fit."""

import json
from dataclasses import replace
from pathlib import Path

import image_samples
import pytest

from sevkit.cli import run
from sevkit.doctor import (
    RULES,
    TOOLS,
    Facts,
    Needs,
    facts_of,
    image_finding,
    judge,
    needs_of_image,
    needs_of_mode,
)
from sevkit.image.manifest import load

GENOA = Facts(
    cpu_features=("sev", "sev-es", "sev-snp"),
    encrypted_guests=1006,
    sev_only_from=100,
    kernel="6.12.57+deb13-amd64",
    parameters={"sev": "Y", "sev_es": "Y", "sev_snp": "Y"},
    sev_device="ready",
    kvm_problem="",
    qemu="10.0.7",
    qemu_objects=("memory-backend-ram", "sev-guest", "sev-snp-guest"),
)
"""An EPYC 9004 with Debian 13, all switched on."""
ROME = replace(
    GENOA,
    cpu_features=("sev", "sev-es"),
    encrypted_guests=509,
    kernel="6.1.0-41-amd64",
    parameters={"sev": "Y", "sev_es": "Y"},
    qemu="7.2.22",
    qemu_objects=("sev-guest",),
)
"""An EPYC 7002 with Debian 12: SEV and SEV-ES, no SEV-SNP."""
LAPTOP = Facts(
    kernel="6.1.0-41-amd64",
    kvm_problem="/dev/kvm is missing",
    qemu="7.2.22",
    qemu_objects=("sev-guest",),
)
"""No AMD server at all."""


def failing(facts: Facts, mode: str) -> dict[str, str]:
    """Rule → its problem."""
    return {row.rule: row.problem for row in judge(facts, needs_of_mode(mode)) if row.problem}


@pytest.mark.parametrize("mode", ["sev", "sev-es", "sev-snp", "none", "build"])
def test_a_host_with_everything_switched_on_is_ready(mode: str) -> None:
    assert failing(GENOA, mode) == {}


@pytest.mark.parametrize(
    ("changes", "mode", "rule", "problem"),
    [
        (
            {"parameters": {"sev": "Y", "sev_es": "Y", "sev_snp": "N"}},
            "sev-snp",
            "kvm_amd",
            "kvm_amd.sev_snp is off",
        ),
        ({"parameters": {"sev": "Y", "sev_es": "0"}}, "sev-es", "kvm_amd", "sev_es is off"),
        ({"parameters": {"sev": "N"}}, "sev", "kvm_amd", "kvm_amd.sev is off"),
        ({"parameters": {}}, "sev", "kvm_amd", "not loaded"),
        ({"parameters": {"sev": "1", "sev_es": "1"}}, "sev-snp", "kvm_amd", "no parameter"),
        ({"cpu_features": ("sev",)}, "sev-es", "cpu", "does not show sev-es"),
        ({"sev_only_from": 1}, "sev-snp", "asids", "no ASID for guests with encrypted state"),
        ({"sev_only_from": 1007}, "sev", "asids", "every ASID"),
        ({"encrypted_guests": 0}, "sev", "asids", "no ASID"),
        ({"kernel": "6.10.11"}, "sev-snp", "kernel", "older than 6.11"),
        ({"kernel": "5.10.0-36-amd64"}, "sev-es", "kernel", "older than 5.11"),
        ({"sev_device": "denied"}, "sev", "/dev/sev", "not accessible"),
        ({"sev_device": "missing"}, "sev-snp", "/dev/sev", "missing"),
        ({"kvm_problem": "/dev/kvm is missing"}, "sev", "/dev/kvm", "missing"),
        ({"qemu": "9.0.2"}, "sev-snp", "qemu", "older than 9.1"),
        ({"qemu": None}, "none", "qemu", "is missing"),
        ({"qemu_objects": ("sev-guest",)}, "sev-snp", "qemu object", "without sev-snp-guest"),
        ({"machine": "aarch64"}, "none", "architecture", "x86_64"),
        ({"missing_tools": ("bwrap", "iasl")}, "build", "build tools", "bwrap, iasl"),
    ],
)
def test_what_is_missing_is_found_by_its_own_rule_alone(
    changes: dict[str, object], mode: str, rule: str, problem: str
) -> None:
    found = failing(replace(GENOA, **changes), mode)  # type: ignore[arg-type]
    assert list(found) == [rule]
    assert problem in found[rule]


def test_every_rule_has_a_host_that_it_finds_fault_with_and_a_remedy() -> None:
    nothing = Facts(machine="riscv64", qemu=None, missing_tools=tuple(TOOLS), kvm_problem="none")
    no_asids = replace(GENOA, encrypted_guests=0)
    blamed = set()
    for facts in (nothing, no_asids):
        for mode in ("sev", "sev-es", "sev-snp", "none", "build"):
            for row in judge(facts, needs_of_mode(mode)):
                assert bool(row.remedy) == bool(row.problem)
                if row.problem:
                    blamed.add(row.rule)
    assert blamed == {rule.name for rule in RULES}


def test_an_older_server_is_ready_for_what_it_has() -> None:
    assert failing(ROME, "sev-es") == {}
    assert set(failing(ROME, "sev-snp")) == {"cpu", "kernel", "kvm_amd", "qemu", "qemu object"}


def test_a_laptop_can_boot_without_sev_and_lacks_all_for_it() -> None:
    assert failing(LAPTOP, "none") == {}
    assert {"cpu", "kvm_amd", "/dev/sev", "/dev/kvm"} <= set(failing(LAPTOP, "sev"))


def test_snp_off_in_the_bios_is_told_with_the_iommu_that_it_needs() -> None:
    off = replace(GENOA, parameters={"sev": "Y", "sev_es": "Y", "sev_snp": "N"})
    [row] = [row for row in judge(off, needs_of_mode("sev-snp")) if row.problem]
    assert "BIOS" in row.remedy
    assert "IOMMU" in row.remedy


def test_a_missing_tool_is_named_with_its_debian_package() -> None:
    [row] = [
        row
        for row in judge(replace(GENOA, missing_tools=("bwrap",)), needs_of_mode("build"))
        if row.problem
    ]
    assert row.remedy == "apt-get install bubblewrap"


def test_an_image_asks_for_the_qemu_that_measures_its_kernel(tmp_path: Path) -> None:
    image = image_samples.image(tmp_path)
    manifest = load(image)
    assert needs_of_image(manifest, "sev") == Needs("sev", "4.16", "2.12")
    measured = manifest.model_copy(
        update={
            "launch": manifest.launch.model_copy(
                update={
                    "modes": {
                        mode: facts.model_copy(update={"kernel_hashes": True})
                        for mode, facts in manifest.launch.modes.items()
                    }
                }
            )
        }
    )
    assert needs_of_image(measured, "sev").qemu == "6.2"
    assert image_finding(image).problem == ""
    (image / "firmware.fd").chmod(0o644)
    (image / "firmware.fd").write_bytes(b"other")
    assert "firmware.fd" in image_finding(image).problem


def test_facts_are_read_from_the_cpu_and_the_host_s_folders(tmp_path: Path) -> None:
    parameters = tmp_path / "sys/module/kvm_amd/parameters"
    parameters.mkdir(parents=True)
    (parameters / "sev").write_text("Y\n")
    (parameters / "sev_snp").write_text("N\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev").touch()
    leaves = {0x80000000: (0x80000028, 0, 0, 0), 0x8000001F: (0b11010, 0x4173, 1006, 100)}
    facts = facts_of(tmp_path, tmp_path, lambda leaf: leaves[leaf])
    assert facts.cpu_features == ["sev", "sev-es", "sev-snp"]
    assert (facts.encrypted_guests, facts.es_guests) == (1006, 99)
    assert facts.parameters == {"sev": "Y", "sev_snp": "N"}
    assert facts.sev_device == "ready"
    assert facts.kvm_problem == "/dev/kvm is missing"
    none = facts_of(tmp_path, tmp_path / "elsewhere", lambda leaf: (0, 0, 0, 0))
    assert (none.cpu_features, none.parameters, none.sev_device) == ([], {}, "missing")


def test_this_host_is_examined_for_real(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert "build: ready" in capfd.readouterr().out
    status = run(["doctor", "--mode", "sev-snp", "--json"])
    found = json.loads(capfd.readouterr().out)
    rows = {row["rule"]: row["problem"] for row in found["findings"]["sev-snp"]}
    assert (status == 0) == (not any(rows.values()))
    assert bool(rows["/dev/sev"]) == (not Path("/dev/sev").exists())
    assert "sev-guest" in found["facts"]["qemu_objects"]


def test_the_image_s_modes_are_examined_each(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = image_samples.image(tmp_path)
    assert run(["doctor", str(image), "--mode", "none"]) == 0
    capfd.readouterr()
    run(["doctor", str(image)])
    text = capfd.readouterr().out
    for mode in ("sev", "sev-es", "sev-snp", "none"):
        assert f"\n{mode}: " in f"\n{text}"
