# SPDX-License-Identifier: Apache-2.0
"""Whether a host can launch guests in a mode, what it lacks, and how to get it.

Two halves: `facts_of` looks at a host and only records; `RULES` are rows that judge a record, so
each is tested with the record of a host that nobody has at hand. Never changes a host.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from sevkit.errors import HostError
from sevkit.firmware.ovmf import Mode
from sevkit.guest.cpuid import cpuid
from sevkit.guest.launch import QEMU_NAME, QEMU_PACKAGE, find_qemu, kvm_problem
from sevkit.image.manifest import Manifest, verify
from sevkit.image.requirements import VERSIONS

TOOLS: Mapping[str, str] = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "xz": "xz-utils",
    "patch": "patch",
    "git": "git",
    "bwrap": "bubblewrap",
    "nasm": "nasm",
    "iasl": "acpica-tools",
    "apt-get": "apt",
}
"""Program that a build runs → Debian package that has it."""

_LEAF = 0x8000001F
_FEATURES = {1: "sev", 3: "sev-es", 4: "sev-snp"}
"""CPUID 8000001f EAX (AMD APM volume 3, E.4.17)."""
_PARAMETERS = {"sev": "sev", "sev-es": "sev_es", "sev-snp": "sev_snp"}


@dataclass(frozen=True)
class Facts:
    """What a host was found to be. None: it could not be found out."""

    cpu_features: Sequence[str] = ()
    """Modes that the CPU has."""
    encrypted_guests: int = 0
    """CPUID 8000001f ECX: guests with encrypted memory at once."""
    sev_only_from: int = 0
    """CPUID 8000001f EDX: the first ASID of a guest without encrypted state."""
    kernel: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of the module kvm_amd: name → value; empty when it is not loaded."""
    sev_device: str = "missing"
    """/dev/sev: ``ready``, ``denied`` to this user, or ``missing``."""
    kvm_problem: str = ""
    """Why KVM does not run a trial guest; empty when it does."""
    qemu: str | None = None
    qemu_objects: Sequence[str] = ()
    """What `-object help` lists."""
    machine: str = "x86_64"
    missing_tools: Sequence[str] = ()

    @property
    def es_guests(self) -> int:
        """How many guests with encrypted state the BIOS leaves room for."""
        return max(self.sev_only_from - 1, 0)


@dataclass(frozen=True)
class Needs:
    """What is asked of a host: a mode and the first versions that can do it."""

    mode: str
    host_kernel: str
    qemu: str


@dataclass(frozen=True)
class Finding:
    """One rule's verdict; `problem` is empty where the host is fit."""

    rule: str
    found: str
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Rule:
    """A row: for which modes it is asked, what is said of the host, and when it is a problem."""

    name: str
    modes: Sequence[str]
    found: Callable[[Facts, Needs], str]
    problem: Callable[[Facts, Needs], str]
    remedy: Callable[[Facts, Needs], str]


_SEV = ("sev", "sev-es", "sev-snp")
_STATE = ("sev-es", "sev-snp")
_ALL = (*_SEV, "none", "build")
_GUESTS = (*_SEV, "none")


def _older(found: str | None, least: str) -> bool:
    return found is None or _numbers(found) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else (0, 0)


def _parameter(facts: Facts, needs: Needs) -> str:
    return facts.parameters.get(_PARAMETERS[needs.mode], "")


def _parameter_problem(facts: Facts, needs: Needs) -> str:
    if not facts.parameters:
        return "the module kvm_amd is not loaded"
    name = _PARAMETERS[needs.mode]
    value = _parameter(facts, needs)
    if not value:
        return f"kvm_amd has no parameter {name}: this kernel knows nothing of {needs.mode}"
    return "" if value in ("Y", "1") else f"kvm_amd.{name} is off"


def _parameter_remedy(facts: Facts, needs: Needs) -> str:
    if not facts.parameters:
        return "modprobe kvm_amd; SVM must be enabled in the BIOS"
    name = _PARAMETERS[needs.mode]
    switch = f"echo 'options kvm_amd {name}=1' > /etc/modprobe.d/sev.conf, then load kvm_amd anew"
    if needs.mode == "sev-snp":
        return (
            f"enable 'SEV-SNP Support' and 'SNP Memory Coverage' (RMP) in the BIOS and the IOMMU, "
            f"boot without iommu=off and iommu=pt; {switch}"
        )
    return switch


def _asid_problem(facts: Facts, needs: Needs) -> str:
    if needs.mode not in facts.cpu_features:
        return ""  # the rule before says it all
    if facts.encrypted_guests == 0:
        return "the BIOS leaves no ASID for guests with encrypted memory"
    if needs.mode in _STATE and facts.es_guests == 0:
        return "the BIOS leaves no ASID for guests with encrypted state"
    if needs.mode == "sev" and facts.sev_only_from > facts.encrypted_guests:
        return "the BIOS gives every ASID to guests with encrypted state"
    return ""


def _asids_found(facts: Facts, needs: Needs) -> str:
    if needs.mode not in facts.cpu_features:
        return "not asked of a CPU without the mode"
    return f"{facts.encrypted_guests} guests, {facts.es_guests} with encrypted state"


def _device_remedy(facts: Facts, _needs: Needs) -> str:
    if facts.sev_device == "denied":
        return "usermod -a -G kvm $USER, and give /dev/sev to the group kvm by a udev rule"
    return "modprobe ccp; enable SEV (SMEE) in the BIOS; see dmesg | grep -i sev"


def _qemu_object(needs: Needs) -> str:
    return "sev-snp-guest" if needs.mode == "sev-snp" else "sev-guest"


RULES: Sequence[Rule] = (
    Rule(
        "architecture",
        _ALL,
        lambda facts, _: facts.machine,
        lambda facts, _: "" if facts.machine == "x86_64" else "guests are for x86_64",
        lambda *_: "use an x86_64 host",
    ),
    Rule(
        "cpu",
        _SEV,
        lambda facts, _: ", ".join(facts.cpu_features) or "no memory encryption",
        lambda facts, needs: (
            "" if needs.mode in facts.cpu_features else f"the CPU does not show {needs.mode}"
        ),
        lambda *_: "EPYC 7001 has SEV, 7002 SEV-ES, 7003 SEV-SNP; enable SMEE in the BIOS",
    ),
    Rule(
        "asids",
        _SEV,
        _asids_found,
        _asid_problem,
        lambda *_: "set 'SEV ASID Count' and 'SEV-ES ASID Space Limit' in the BIOS (CBS, CPU)",
    ),
    Rule(
        "kernel",
        _SEV,
        lambda facts, _: facts.kernel,
        lambda facts, needs: (
            f"Linux {facts.kernel} is older than {needs.host_kernel}"
            if _older(facts.kernel, needs.host_kernel)
            else ""
        ),
        lambda _, needs: f"install Linux {needs.host_kernel} or later; Debian 13's is 6.12",
    ),
    Rule(
        "kvm_amd",
        _SEV,
        lambda facts, needs: f"{_PARAMETERS[needs.mode]}={_parameter(facts, needs) or 'absent'}",
        _parameter_problem,
        _parameter_remedy,
    ),
    Rule(
        "/dev/sev",
        _SEV,
        lambda facts, _: facts.sev_device,
        lambda facts, _: {
            "ready": "",
            "denied": "/dev/sev is not accessible to this user",
        }.get(facts.sev_device, "/dev/sev is missing"),
        _device_remedy,
    ),
    Rule(
        "/dev/kvm",
        _SEV,
        lambda facts, _: facts.kvm_problem or "runs a guest",
        lambda facts, _: facts.kvm_problem,
        lambda *_: "enable SVM in the BIOS; usermod -a -G kvm $USER; not inside another guest",
    ),
    Rule(
        "qemu",
        _GUESTS,
        lambda facts, _: facts.qemu or "missing",
        lambda facts, needs: (
            f"{QEMU_NAME} is missing"
            if facts.qemu is None
            else f"QEMU {facts.qemu} is older than {needs.qemu}"
            if _older(facts.qemu, needs.qemu)
            else ""
        ),
        lambda _, needs: f"apt-get install {QEMU_PACKAGE}, {needs.qemu} or later",
    ),
    Rule(
        "qemu object",
        _SEV,
        lambda facts, needs: (
            f"{_qemu_object(needs)} "
            f"{'is there' if _qemu_object(needs) in facts.qemu_objects else 'is missing'}"
        ),
        lambda facts, needs: (
            ""
            if _qemu_object(needs) in facts.qemu_objects
            else f"this QEMU was built without {_qemu_object(needs)}"
        ),
        lambda _, needs: f"a QEMU with KVM and SEV: apt-get install {QEMU_PACKAGE}",
    ),
    Rule(
        "build tools",
        ("build",),
        lambda facts, _: (
            f"missing: {', '.join(facts.missing_tools)}" if facts.missing_tools else "all there"
        ),
        lambda facts, _: (
            f"missing: {', '.join(facts.missing_tools)}" if facts.missing_tools else ""
        ),
        lambda facts, _: "apt-get install " + " ".join(TOOLS[name] for name in facts.missing_tools),
    ),
)


def judge(facts: Facts, needs: Needs) -> list[Finding]:
    """What each rule of the mode says of a host, in the order in which one mends it."""
    findings = []
    for rule in RULES:
        if needs.mode in rule.modes:
            problem = rule.problem(facts, needs)
            remedy = rule.remedy(facts, needs) if problem else ""
            findings.append(Finding(rule.name, rule.found(facts, needs), problem, remedy))
    return findings


def facts_of(
    cache: Path,
    host: Path = Path("/"),
    ask_cpu: Callable[[int], tuple[int, int, int, int]] = cpuid,
) -> Facts:
    """What this host is. `cache` remembers the trial of KVM; `host` is where /sys and /dev are."""
    leaf = (0, 0, 0, 0)
    try:
        if ask_cpu(0x80000000)[0] >= _LEAF:
            leaf = ask_cpu(_LEAF)
    except HostError:
        pass
    try:
        qemu = find_qemu()
        version, objects = ".".join(map(str, qemu.version)), _objects_of(qemu.path)
        trial = kvm_problem(qemu, cache, host)
    except HostError as error:
        version, objects, trial = None, [], f"no QEMU to try it with: {error.what}"
    folder = host / "sys/module/kvm_amd/parameters"
    return Facts(
        cpu_features=[name for bit, name in _FEATURES.items() if leaf[0] >> bit & 1],
        encrypted_guests=leaf[2],
        sev_only_from=leaf[3],
        kernel=platform.release(),
        parameters={
            name: _text_of(folder / name)
            for name in _PARAMETERS.values()
            if (folder / name).exists()
        },
        sev_device=_device(host / "dev/sev"),
        kvm_problem=trial,
        qemu=version,
        qemu_objects=objects,
        machine=platform.machine(),
        missing_tools=[name for name in TOOLS if shutil.which(name) is None],
    )


def _objects_of(qemu: Path) -> list[str]:
    try:
        answer = subprocess.run(
            [str(qemu), "-object", "help"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.startswith(" ")]


def _device(path: Path) -> str:
    if not path.exists():
        return "missing"
    return "ready" if os.access(path, os.R_OK | os.W_OK) else "denied"


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def needs_of_mode(mode: str) -> Needs:
    """What a mode asks for, whatever the image; ``none`` boots and ``build`` builds without SEV."""
    versions = VERSIONS.get(cast(Mode, mode))
    if versions is None:
        return Needs(mode, host_kernel="5.10", qemu="7.2")
    return Needs(mode, versions.host_kernel, versions.qemu)


def needs_of_image(manifest: Manifest, mode: str) -> Needs:
    """What an image asks for in a mode; measured kernels need a newer QEMU than a mode alone."""
    facts = manifest.launch.modes.get(cast(Mode, mode))
    if facts is None:
        return needs_of_mode(mode)
    return Needs(
        mode, facts.host_kernel, facts.qemu_kernel_hashes if facts.kernel_hashes else facts.qemu
    )


def image_finding(folder: Path) -> Finding:
    """Whether an image, its firmware above all, is as it was published."""
    differences = verify(folder)
    return Finding(
        "image",
        "as published" if not differences else f"{len(differences)} differences",
        "; ".join(differences),
        "get or build the image again" if differences else "",
    )
