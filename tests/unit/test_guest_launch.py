# SPDX-License-Identifier: Apache-2.0
"""What the host can launch: found out by trying, with the real QEMU where one is needed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sevkit.errors import HostError, RecipeError
from sevkit.guest import launch
from sevkit.guest.cpuid import cpuid
from sevkit.guest.launch import Qemu, choose, find_qemu, kvm_problem

PROBE = Path(launch.__file__).with_name("probe.S")
EPYC = {0x80000000: (0x80000023, 0, 0, 0), 0x8000001F: (0x1F, 0x173, 509, 1)}


def ask_epyc(leaf: int) -> tuple[int, int, int, int]:
    return EPYC[leaf]


@pytest.fixture
def sev_host(tmp_path: Path) -> Path:
    """The files of a host that has all three modes."""
    host = tmp_path / "host"
    parameters = host / "sys/module/kvm_amd/parameters"
    parameters.mkdir(parents=True)
    for name in ("sev", "sev_es", "sev_snp"):
        (parameters / name).write_text("Y\n")
    (host / "dev").mkdir()
    for name in ("sev", "kvm"):
        (host / "dev" / name).touch()
    (host / "proc/sys/kernel/random").mkdir(parents=True)
    (host / "proc/sys/kernel/random/boot_id").write_text("b0\n")
    return host


def script(path: Path, text: str) -> Qemu:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Qemu(path, (9, 1, 0))


def test_cpuid_says_what_the_kernel_says() -> None:
    _, ebx, ecx, edx = cpuid(0)
    vendor = b"".join(register.to_bytes(4, "little") for register in (ebx, edx, ecx))
    assert f"vendor_id\t: {vendor.decode()}" in Path("/proc/cpuinfo").read_text()


def test_the_probe_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    assert shutil.which("as"), "binutils is missing: make setup installs it"
    subprocess.run(["as", "--64", "-o", tmp_path / "probe.o", PROBE], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "probe.o", tmp_path / "probe"],
        check=True,
    )
    assembled = (tmp_path / "probe").read_bytes()
    assert launch.probe_firmware()[-len(assembled) :] == assembled


@pytest.mark.boots
def test_the_probe_passes_where_a_guest_can_run() -> None:
    assert launch.run_probe(find_qemu(), "tcg") == ("", True)


@pytest.mark.boots
def test_the_probe_fails_when_its_guest_does_not_get_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halts = b"\xf4" * 65536
    monkeypatch.setattr(launch, "probe_firmware", lambda: halts)
    problem, is_certain = launch.run_probe(find_qemu(), "tcg")
    assert problem == "QEMU can't run a trial guest: it does not end"
    assert not is_certain


def test_a_qemu_that_hangs_under_kvm_is_given_up(tmp_path: Path, sev_host: Path) -> None:
    started = time.monotonic()
    problem = kvm_problem(script(tmp_path / "qemu", "exec sleep 60"), tmp_path, sev_host)
    assert "does not end" in problem
    assert time.monotonic() - started < 10
    assert not (tmp_path / "kvm-probe.json").exists()


def test_a_qemu_that_aborts_under_kvm_is_passed_over_with_its_words(
    tmp_path: Path, sev_host: Path
) -> None:
    qemu = script(tmp_path / "qemu", "echo 'Assertion failed' >&2; kill -ABRT $$")
    found = choose(qemu, cache=tmp_path / "cache", host=sev_host)
    assert found.accelerator == "tcg"
    assert found.passed_over == ("kvm: QEMU can't run a trial guest (signal 6): Assertion failed",)


def test_kvm_that_works_is_taken_and_remembered_until_the_host_boots_again(
    tmp_path: Path, sev_host: Path
) -> None:
    trials = tmp_path / "trials"
    qemu = script(tmp_path / "qemu", f"echo x >> {trials}; exit 85")
    for _ in range(2):
        assert choose(qemu, cache=tmp_path, host=sev_host).accelerator == "kvm"
    assert trials.read_text() == "x\n"
    (sev_host / "proc/sys/kernel/random/boot_id").write_text("b1\n")
    choose(qemu, cache=tmp_path, host=sev_host)
    choose(Qemu(qemu.path, (9, 2, 0)), cache=tmp_path, host=sev_host)
    assert trials.read_text() == "x\nx\nx\n"


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"question": 1}), "null"])
def test_a_damaged_memory_is_asked_again(tmp_path: Path, sev_host: Path, text: str) -> None:
    (tmp_path / "kvm-probe.json").write_text(text)
    assert kvm_problem(script(tmp_path / "qemu", "exit 85"), tmp_path, sev_host) == ""


def test_a_host_without_kvm_takes_tcg(tmp_path: Path, sev_host: Path) -> None:
    (sev_host / "dev/kvm").unlink()
    found = choose(script(tmp_path / "qemu", "exit 85"), cache=tmp_path, host=sev_host)
    assert (found.accelerator, found.passed_over) == ("tcg", ("kvm: /dev/kvm is missing",))


def test_the_strongest_mode_of_image_and_host_is_taken(tmp_path: Path, sev_host: Path) -> None:
    qemu = Qemu(Path("qemu"), (9, 1, 0))
    modes = ["sev", "sev-es", "sev-snp"]
    taken = []
    for parameter in ("sev_snp", "sev_es", "sev"):
        found = choose(qemu, modes=modes, cache=tmp_path, host=sev_host, ask_cpu=ask_epyc)
        assert (found.c_bit, found.reduced_phys_bits) == (51, 5)
        taken.append(found.accelerator)
        (sev_host / "sys/module/kvm_amd/parameters" / parameter).write_text("N\n")
    assert taken == ["sev-snp", "sev-es", "sev"]
    found = choose(qemu, modes=["sev"], wanted="tcg", cache=tmp_path, host=sev_host)
    assert found.accelerator == "tcg"


@pytest.mark.parametrize(
    ("version", "ebx_bits", "missing", "cause"),
    [
        ((9, 0, 2), 0x1F, None, "QEMU 9.0.2 is older than 9.1"),
        ((9, 1, 0), 0x0F, None, "the CPU does not have it"),
        ((9, 1, 0), 0x1F, "dev/sev", "/dev/sev is missing"),
        ((9, 1, 0), 0x1F, "sys/module/kvm_amd/parameters/sev_snp", "the host kernel has no SEV"),
    ],
)
def test_what_keeps_a_host_from_snp_is_named(
    sev_host: Path,
    tmp_path: Path,
    version: tuple[int, int, int],
    ebx_bits: int,
    missing: str | None,
    cause: str,
) -> None:
    if missing:
        (sev_host / missing).unlink()
    facts = {**EPYC, 0x8000001F: (ebx_bits, 0x173, 509, 1)}
    with pytest.raises(HostError) as caught:
        choose(
            Qemu(Path("qemu"), version),
            wanted="sev-snp",
            modes=["sev-snp"],
            cache=tmp_path,
            host=sev_host,
            ask_cpu=lambda leaf: facts[leaf],
        )
    assert cause in caught.value.why


def test_a_mode_that_the_image_is_not_made_for_is_refused(tmp_path: Path, sev_host: Path) -> None:
    with pytest.raises(RecipeError, match="not made for sev-snp"):
        choose(
            Qemu(Path("qemu"), (9, 1, 0)),
            wanted="sev-snp",
            modes=["sev"],
            cache=tmp_path,
            host=sev_host,
            ask_cpu=ask_epyc,
        )


def test_a_missing_qemu_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-x86_64 is missing") as caught:
        find_qemu()
    assert caught.value.hint == "apt-get install qemu-system-x86"
    script(tmp_path / "qemu-system-x86_64", "echo 'QEMU emulator version 9.2.1 (x)'")
    assert find_qemu().version == (9, 2, 1)
    script(tmp_path / "qemu-system-x86_64", "echo broken; exit 1")
    with pytest.raises(HostError, match="does not tell its version"):
        find_qemu()


def test_the_probe_leaves_no_process_when_it_is_interrupted(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    qemu = script(tmp_path / "qemu", f"echo $$ > {pid_file}; exec sleep 60")
    code = (
        "import sys; from pathlib import Path; from sevkit.guest.launch import Qemu, run_probe\n"
        "run_probe(Qemu(Path(sys.argv[1]), (9, 1, 0)), 'tcg')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, qemu.path], stderr=subprocess.DEVNULL
    ) as process:
        while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
            time.sleep(0.01)
        process.send_signal(2)
        process.wait(10)
    gone = time.monotonic() + 10
    while Path("/proc", pid_file.read_text().strip()).exists():
        assert time.monotonic() < gone
        time.sleep(0.01)
