# SPDX-License-Identifier: Apache-2.0
"""The rules of `doctor` against recorded hosts, each beside one that is fit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import image_samples
import pytest
from firmware_samples import WITH_HASHES, firmware

from sevkit.cli import run
from sevkit.doctor.facts import BUILD_TOOLS, GUEST_TOOLS, Facts, facts_of
from sevkit.doctor.host_firmware import host_firmware
from sevkit.doctor.rules import (
    IMAGE_RULES,
    RULES,
    ImageNeeds,
    Needs,
    judge,
    needs_of_image,
    needs_of_mode,
)
from sevkit.guest.launch import QEMU_NAME
from sevkit.image.manifest import load, text_of, write_sums
from sevkit.image.shape import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDED = sorted((REPOSITORY / "tests" / "data" / "hosts").glob("*.json"))
"""What `sevkit doctor --json` said on real hosts."""

GENOA = Facts(
    cpu_features=("sev", "sev-es", "sev-snp"),
    encrypted_guests=1006,
    sev_only_from=100,
    kernel="6.12.57+deb13-amd64",
    parameters={"sev": "Y", "sev_es": "Y", "sev_snp": "Y"},
    sev_device="ready",
    kvm_problem="",
    qemu="10.0.7",
    qemu_objects=("sev-guest", "sev-snp-guest"),
    qemu_hashes=("sev-guest", "sev-snp-guest"),
    qemu_cpus=("EPYC", "EPYC-Milan", "EPYC-Genoa"),
    cpus=192,
    free_mib=700000,
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
    qemu_hashes=("sev-guest",),
    qemu_cpus=("EPYC", "EPYC-Milan"),
)
"""An EPYC 7002 with Debian 12: SEV and SEV-ES, no SEV-SNP."""
LAPTOP = Facts(
    kernel="6.1.0-41-amd64",
    kvm_problem="/dev/kvm is missing",
    qemu="7.2.22",
    qemu_objects=("sev-guest",),
)
"""No AMD server at all."""


HASHED = Needs("sev-snp", host_kernel="6.11", qemu="9.1", kernel_hashes=True)
IMAGE = ImageNeeds(
    "sev",
    host_kernel="4.16",
    qemu="6.2",
    kernel_hashes=True,
    modes=("sev",),
    cpus=("EPYC-Milan", "EPYC-Genoa"),
    vcpus=(2, 4),
    default_mib=512,
    minimum_mib=192,
)


def failing(facts: Facts, asked: str | Needs) -> dict[str, str]:
    """Rule → its problem. `asked` is a mode, or what an image needs."""
    needs = needs_of_mode(asked) if isinstance(asked, str) else asked
    return {row.rule: row.problem for row in judge(facts, needs) if row.problem}


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
        ({"missing_tools": ("setpriv",)}, "none", "guest tools", "setpriv"),
        ({"qemu_hashes": ("sev-guest",)}, HASHED, "kernel hashes", "sev-snp-guest of this QEMU"),
        ({"qemu_cpus": ("EPYC",)}, IMAGE, "image cpu", "no CPU model EPYC-Milan"),
        ({"cpus": 1}, IMAGE, "image vcpus", "made for 2 and more, and the host has 1"),
        ({"free_mib": 511}, IMAGE, "image memory", "511 MiB are free"),
        ({"lockable_mib": 8}, IMAGE, "locked memory", "may lock 8 MiB"),
    ],
)
def test_what_is_missing_is_found_by_its_own_rule_alone(
    changes: dict[str, object], mode: str | Needs, rule: str, problem: str
) -> None:
    assert failing(GENOA, mode) == {}
    found = failing(replace(GENOA, **changes), mode)  # type: ignore[arg-type]
    assert list(found) == [rule]
    assert problem in found[rule]


def test_every_rule_has_a_host_that_it_finds_fault_with_and_a_remedy() -> None:
    missing = (*GUEST_TOOLS, *BUILD_TOOLS)
    nothing = Facts(machine="riscv64", missing_tools=missing, kvm_problem="none", lockable_mib=0)
    no_asids = replace(GENOA, encrypted_guests=0, qemu_hashes=(), qemu_cpus=())
    changed = replace(IMAGE, differences=("vmlinuz: is missing",), mode_problems=("not asked",))
    blamed = set()
    for facts in (nothing, no_asids):
        for needs in (*map(needs_of_mode, ("sev", "sev-es", "sev-snp", "none", "build")), changed):
            for row in judge(facts, needs):
                assert bool(row.remedy) == bool(row.problem)
                if row.problem:
                    blamed.add(row.rule)
    assert blamed == {rule.name for rule in (*RULES, *IMAGE_RULES)} - {"host firmware"}


def test_memory_is_not_locked_for_snp_nor_limited_for_root() -> None:
    few = replace(GENOA, lockable_mib=8)
    assert "locked memory" in failing(few, replace(IMAGE, mode="sev-es"))
    assert failing(few, replace(IMAGE, mode="sev-snp")) == {}
    assert failing(replace(GENOA, lockable_mib=512), IMAGE) == {}


def test_a_model_that_the_qemu_lacks_is_told_and_no_problem_when_another_comes_first() -> None:
    [row] = [row for row in judge(ROME, IMAGE) if row.rule == "image cpu"]
    assert (row.found, row.problem) == ("EPYC-Milan, EPYC-Genoa (not of this QEMU)", "")


def test_an_older_server_is_ready_for_what_it_has() -> None:
    assert failing(ROME, "sev-es") == {}
    assert set(failing(ROME, "sev-snp")) == {"cpu", "kernel", "kvm_amd", "qemu", "qemu object"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_host_is_judged_as_it_was_when_it_was_recorded(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    facts = Facts(**record["facts"])
    for mode, rows in record["findings"].items():
        said = {row["rule"]: bool(row["problem"]) for row in rows}
        found = judge(facts, needs_of_mode(mode))
        assert {row.rule: bool(row.problem) for row in found} == said


def test_a_recorded_host_without_sev_is_ready_to_build_and_lacks_what_it_lacks() -> None:
    path = REPOSITORY / "tests" / "data" / "hosts" / "debian12-without-sev.json"
    facts = Facts(**json.loads(path.read_text(encoding="utf-8"))["facts"])
    assert failing(facts, "build") == failing(facts, "none") == {}
    lacking = {"cpu", "kvm_amd", "/dev/sev", "/dev/kvm"}
    assert set(failing(facts, "sev")) == lacking
    assert set(failing(facts, "sev-snp")) == {*lacking, "qemu", "qemu object"}


def test_what_builds_use_is_what_setup_installs() -> None:
    rows = (REPOSITORY / "debian-packages.txt").read_text(encoding="utf-8").splitlines()
    listed = {row.split()[1] for row in rows if row.startswith("build ")}
    looked_for = set(BUILD_TOOLS.values())
    assert looked_for - listed == {"apt", "binutils", "gzip", "python3"}  # they come with those
    assert listed - looked_for == {
        "ca-certificates",  # an address says that it is not trusted
        "libncurses-dev",  # menuconfig alone
        "openssh-client",  # signatures alone
        "python3-venv",  # sevkit runs already
        "qemu-system-x86",  # a rule of its own
    }


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
    asked = needs_of_image(image, "sev")["sev"]
    assert (asked.host_kernel, asked.qemu, asked.kernel_hashes) == ("4.16", "2.12", False)
    assert (asked.cpus, asked.vcpus) == (("EPYC-Milan",), (1, 2))
    made = load(image).model_dump()
    for facts in made["launch"]["modes"].values():
        facts["kernel_hashes"] = True
    (image / "manifest.json").chmod(0o644)
    (image / "manifest.json").write_text(text_of(Manifest.model_validate(made)))
    write_sums(image)
    measured = needs_of_image(image, "sev")["sev"]
    assert (measured.qemu, measured.kernel_hashes) == ("6.2", True)


def test_an_image_that_was_changed_is_no_image_to_launch(tmp_path: Path) -> None:
    image = image_samples.image(tmp_path)
    assert failing(GENOA, needs_of_image(image, "sev")["sev"]) == {}
    (image / "firmware.fd").chmod(0o644)
    (image / "firmware.fd").write_bytes(b"other")
    assert "firmware.fd" in failing(GENOA, needs_of_image(image, "sev")["sev"])["image"]


def test_a_mode_that_the_image_can_t_do_is_not_ready_on_any_host(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch = {**image_samples.recipe().launch.model_dump(), "modes": ("sev", "sev-es")}
    image = image_samples.image(tmp_path, launch=launch)
    assert failing(GENOA, needs_of_image(image, "sev-es")["sev-es"]) == {}
    found = failing(GENOA, needs_of_image(image, "sev-snp")["sev-snp"])
    assert found == {"image mode": "its recipe does not ask for it (launch.modes)"}
    assert run(["doctor", str(image), "--mode", "sev-snp"]) == 3
    assert "NO  image mode: its recipe does not ask for it" in capfd.readouterr().out


def test_firmware_of_the_host_is_told_with_what_it_checks_and_what_is_claimed(
    tmp_path: Path,
) -> None:
    assert host_firmware(tmp_path) == {}
    folder, descriptors = tmp_path / "usr/share/OVMF", tmp_path / "usr/share/qemu/firmware"
    for each in (folder, descriptors, tmp_path / "etc/qemu/firmware"):
        each.mkdir(parents=True)
    (folder / "OVMF_CODE.fd").write_bytes(firmware())
    (folder / "OVMF_VARS.fd").write_bytes(b"variables")
    (folder / "other.fd").write_bytes(firmware(hashes=(0x810000, 1024), sections=WITH_HASHES))
    flash = {"device": "flash", "executable": {"filename": "/usr/share/OVMF/other.fd"}}
    for name, record in {
        "50-sev.json": {"features": ["amd-sev", "acpi-s3"], "mapping": flash},
        "60-plain.json": {"features": [], "mapping": {"filename": "/nowhere"}},
        "70-gone.json": {"features": ["amd-sev-snp"], "mapping": {"filename": "/gone.fd"}},
        "80-hidden.json": {"features": ["amd-sev"], "mapping": {"filename": "/hidden.fd"}},
    }.items():
        (descriptors / name).write_text(json.dumps(record))
    (descriptors / "90-broken.json").write_text("[")
    (tmp_path / "etc/qemu/firmware/80-hidden.json").touch()
    assert host_firmware(tmp_path) == {
        "/gone.fd": "it can't be read: No such file or directory; described as amd-sev-snp",
        "/usr/share/OVMF/OVMF_CODE.fd": "sev, sev-es, sev-snp; no-place",
        "/usr/share/OVMF/other.fd": "sev, sev-es, sev-snp; unknown; described as amd-sev",
    }
    [row] = [
        row
        for row in judge(replace(GENOA, firmware=host_firmware(tmp_path)), needs_of_mode("sev"))
        if row.rule == "host firmware"
    ]
    assert "/gone.fd (it can't be read" in row.found
    assert row.problem == ""


@pytest.mark.boots
def test_a_host_without_setpriv_is_told_that_and_not_that_qemu_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, programs = tmp_path / "host", tmp_path / "bin"
    for folder in (host / "dev", host / "proc/sys/kernel/random", programs):
        folder.mkdir(parents=True)
    (host / "dev/kvm").touch()
    (host / "proc/sys/kernel/random/boot_id").write_text("this boot")
    qemu = shutil.which(QEMU_NAME)
    assert qemu is not None
    (programs / QEMU_NAME).symlink_to(qemu)
    monkeypatch.setenv("PATH", str(programs))
    facts = facts_of(tmp_path, host)
    assert set(failing(facts, "none")) == {"guest tools"}
    assert "setpriv is missing" in failing(facts, "sev")["/dev/kvm"]
    (programs / QEMU_NAME).unlink()
    (programs / QEMU_NAME).write_text("#!/bin/sh\nexit 1\n")
    (programs / QEMU_NAME).chmod(0o755)
    assert "does not tell its version" in failing(facts_of(tmp_path, host), "none")["qemu"]
    (programs / QEMU_NAME).unlink()
    assert "is missing" in failing(facts_of(tmp_path, host), "none")["qemu"]


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
    assert bool(rows["/dev/sev"]) == (not os.access("/dev/sev", os.R_OK | os.W_OK))
    assert "sev-guest" in found["facts"]["qemu_objects"]
    assert "sev-guest" in found["facts"]["qemu_hashes"]
    assert "EPYC-Milan" in found["facts"]["qemu_cpus"]
    assert found["facts"]["free_mib"] > 0


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
