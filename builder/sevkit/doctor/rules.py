# SPDX-License-Identifier: Apache-2.0
"""What a host lacks for a mode or an image, and how to get it: rows that judge a record.

Looks at no host, so that each rule is tested with the record of one that nobody has at hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

from sevkit.doctor.facts import BUILD_TOOLS, GUEST_TOOLS, Facts
from sevkit.firmware.ovmf import Mode
from sevkit.guest.launch import KVM_PARAMETERS, QEMU_NAME, QEMU_PACKAGE
from sevkit.image.manifest import Manifest, load
from sevkit.image.published import differences
from sevkit.image.requirements import VERSIONS, is_older


@dataclass(frozen=True)
class Needs:
    """What is asked of a host: a mode and the first versions that can do it."""

    mode: str
    host_kernel: str
    qemu: str
    kernel_hashes: bool = False
    """Whether QEMU must hand over hashes of kernel, initramfs and command line."""


@dataclass(frozen=True)
class ImageNeeds(Needs):
    """What an image asks for in a mode. What a launch takes when nobody says comes first."""

    differences: Sequence[str] = ()
    """Between the image and what was published."""
    mode_problems: Sequence[str] = ()
    """Why the image can't be launched in the mode."""
    modes: Sequence[str] = ()
    """Those that it can be launched in."""
    cpus: Sequence[str] = ()
    vcpus: Sequence[int] = ()
    default_mib: int = 0
    minimum_mib: int = 0


@dataclass(frozen=True)
class Finding:
    """One rule's verdict; `problem` is empty where the host is fit."""

    rule: str
    found: str
    problem: str = ""
    remedy: str = ""


N = TypeVar("N", bound=Needs)


@dataclass(frozen=True)
class Rule(Generic[N]):
    """A row: for which modes it is asked, what is said of the host, and when it is a problem."""

    name: str
    modes: Sequence[str]
    found: Callable[[Facts, N], str]
    problem: Callable[[Facts, N], str]
    remedy: Callable[[Facts, N], str]

    def judge(self, facts: Facts, needs: N) -> Finding:
        """Its verdict on a host."""
        problem = self.problem(facts, needs)
        remedy = self.remedy(facts, needs) if problem else ""
        return Finding(self.name, self.found(facts, needs), problem, remedy)


_SEV = ("sev", "sev-es", "sev-snp")
_STATE = ("sev-es", "sev-snp")
_ALL = (*_SEV, "none", "build")
_GUESTS = (*_SEV, "none")


def _older(found: str | None, least: str) -> bool:
    return found is None or is_older(found, least)


def _parameter(facts: Facts, needs: Needs) -> str:
    return facts.parameters.get(KVM_PARAMETERS[needs.mode], "")


def _parameter_problem(facts: Facts, needs: Needs) -> str:
    if not facts.parameters:
        return "the module kvm_amd is not loaded"
    name = KVM_PARAMETERS[needs.mode]
    value = _parameter(facts, needs)
    if not value:
        return f"kvm_amd has no parameter {name}: this kernel knows nothing of {needs.mode}"
    return "" if value in ("Y", "1") else f"kvm_amd.{name} is off"


def _parameter_remedy(facts: Facts, needs: Needs) -> str:
    if not facts.parameters:
        return "modprobe kvm_amd; SVM must be enabled in the BIOS"
    name = KVM_PARAMETERS[needs.mode]
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


def _kvm_remedy(facts: Facts, _needs: Needs) -> str:
    if set(GUEST_TOOLS) & set(facts.missing_tools):
        return "see the rule guest tools"
    return "enable SVM in the BIOS; usermod -a -G kvm $USER; not inside another guest"


def _qemu_object(needs: Needs) -> str:
    return "sev-snp-guest" if needs.mode == "sev-snp" else "sev-guest"


def _qemu_problem(facts: Facts, needs: Needs) -> str:
    if facts.qemu is None:
        return facts.qemu_problem or f"{QEMU_NAME} is missing"
    return f"QEMU {facts.qemu} is older than {needs.qemu}" if _older(facts.qemu, needs.qemu) else ""


def _hashes_found(facts: Facts, needs: Needs) -> str:
    name = _qemu_object(needs)
    if name not in facts.qemu_objects:
        return f"not asked of a QEMU without {name}"
    there = "has" if name in facts.qemu_hashes else "has not"
    return f"{name} {there} the property kernel-hashes"


def _hashes_problem(facts: Facts, needs: Needs) -> str:
    name = _qemu_object(needs)
    if not needs.kernel_hashes or name not in facts.qemu_objects or name in facts.qemu_hashes:
        return ""  # the rule before says what else there is to say
    return f"{name} of this QEMU can't hand over kernel hashes: nothing but firmware is measured"


def _tools_rule(name: str, modes: Sequence[str], tools: Mapping[str, str]) -> "Rule[Needs]":
    """Whether all of `tools` are there: program, header or library → Debian package."""

    def missing(facts: Facts) -> list[str]:
        return [tool for tool in facts.missing_tools if tool in tools]

    def problem(facts: Facts, _needs: Needs) -> str:
        return f"missing: {', '.join(missing(facts))}" if missing(facts) else ""

    def remedy(facts: Facts, _needs: Needs) -> str:
        return "apt-get install " + " ".join(sorted({tools[tool] for tool in missing(facts)}))

    return Rule(
        name, modes, lambda facts, needs: problem(facts, needs) or "all there", problem, remedy
    )


RULES: Sequence[Rule[Needs]] = (
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
        lambda facts, needs: f"{KVM_PARAMETERS[needs.mode]}={_parameter(facts, needs) or 'absent'}",
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
        _kvm_remedy,
    ),
    Rule(
        "qemu",
        _GUESTS,
        lambda facts, _: facts.qemu or "missing",
        _qemu_problem,
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
        "kernel hashes",
        _SEV,
        _hashes_found,
        _hashes_problem,
        lambda *_: f"apt-get install {QEMU_PACKAGE}, 6.2 or later; 9.1 for sev-snp",
    ),
    _tools_rule("guest tools", _GUESTS, GUEST_TOOLS),
    Rule(
        "host firmware",
        _SEV,
        lambda facts, _: (
            ", ".join(f"{path} ({said})" for path, said in facts.firmware.items())
            or "none; an image brings its own"
        ),
        lambda *_: "",  # no image needs it
        lambda *_: "",
    ),
    _tools_rule("build tools", ("build",), BUILD_TOOLS),
)
"""What is asked of a host for any image."""


def _memory_found(facts: Facts, needs: ImageNeeds) -> str:
    return (
        f"{facts.free_mib} MiB free; {needs.default_mib} by default, {needs.minimum_mib} at least"
    )


IMAGE_RULES: Sequence[Rule[ImageNeeds]] = (
    Rule(
        "image",
        _ALL,
        lambda _, needs: (
            f"{len(needs.differences)} differences" if needs.differences else "as published"
        ),
        lambda _, needs: "; ".join(needs.differences),
        lambda *_: "get or build the image again",
    ),
    Rule(
        "image mode",
        _SEV,
        lambda _, needs: ", ".join(needs.modes) or "none",
        lambda _, needs: "; ".join(needs.mode_problems),
        lambda _, needs: (
            f"build an image for {needs.mode}: launch.modes and firmware of its recipe"
        ),
    ),
    Rule(
        "image cpu",
        _SEV,
        lambda facts, needs: ", ".join(
            name if name in facts.qemu_cpus else f"{name} (not of this QEMU)" for name in needs.cpus
        ),
        lambda facts, needs: (
            f"this QEMU has no CPU model {needs.cpus[0]}, which a launch takes by default"
            if facts.qemu is not None and set(needs.cpus[:1]) - set(facts.qemu_cpus)
            else ""
        ),
        lambda *_: f"a newer {QEMU_PACKAGE}, or another model first in launch.cpus of the recipe",
    ),
    Rule(
        "image vcpus",
        _GUESTS,
        lambda facts, needs: f"{', '.join(map(str, needs.vcpus))} for {facts.cpus} CPUs",
        lambda facts, needs: (
            f"the image is made for {min(needs.vcpus)} and more, and the host has {facts.cpus}"
            if facts.cpus < min(needs.vcpus, default=1)
            else ""
        ),
        lambda *_: "a host with more CPUs, or a smaller number in launch.vcpus of the recipe",
    ),
    Rule(
        "image memory",
        _GUESTS,
        _memory_found,
        lambda facts, needs: (
            f"{facts.free_mib} MiB are free, and a guest takes {needs.default_mib} by default"
            if facts.free_mib < needs.default_mib
            else ""
        ),
        lambda _, needs: f"free some; the guest boots from --memory {needs.minimum_mib}M on",
    ),
    Rule(
        "locked memory",
        ("sev", "sev-es"),
        lambda facts, _: "no limit" if facts.lockable_mib is None else f"{facts.lockable_mib} MiB",
        # arch/x86/kvm/svm/sev.c: sev_pin_memory(); SEV-SNP keeps its pages elsewhere.
        lambda facts, needs: (
            f"this user may lock {facts.lockable_mib} MiB, and KVM locks the guest's "
            f"{needs.default_mib}"
            if facts.lockable_mib is not None and facts.lockable_mib < needs.default_mib
            else ""
        ),
        lambda *_: "ulimit -l unlimited, by a line with memlock in /etc/security/limits.conf",
    ),
)
"""What is asked for one image beside it."""


def judge(facts: Facts, needs: Needs) -> list[Finding]:
    """What each rule of the mode says of a host, in the order in which one mends it."""
    return list(_judged(facts, needs))


def _judged(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if isinstance(needs, ImageNeeds):
        for of_image in IMAGE_RULES:
            if needs.mode in of_image.modes:
                yield of_image.judge(facts, needs)
    for rule in RULES:
        if needs.mode in rule.modes:
            yield rule.judge(facts, needs)


def needs_of_mode(mode: str) -> Needs:
    """What a mode asks for, whatever the image; ``none`` boots and ``build`` builds without SEV."""
    versions = VERSIONS.get(cast(Mode, mode))
    if versions is None:
        return Needs(mode, host_kernel="5.10", qemu="7.2")
    return Needs(mode, versions.host_kernel, versions.qemu)


def needs_of_image(folder: Path, mode: str | None = None) -> dict[str, ImageNeeds]:
    """Mode → what the image in `folder` asks for in it, and whether it is as it was published.

    Without `mode` the modes that the image can do, and none. Measured kernels need a newer QEMU
    than a mode alone. Raises `ImageError` when there is no manifest that can be read.
    """
    manifest, found = load(folder), tuple(differences(folder))
    modes = [mode] if mode else [*manifest.possible_modes, "none"]
    return {one: replace(_needs_of_manifest(manifest, one), differences=found) for one in modes}


def _needs_of_manifest(manifest: Manifest, mode: str) -> ImageNeeds:
    least, facts = needs_of_mode(mode), manifest.launch.modes.get(cast(Mode, mode))
    hashed = facts is not None and facts.kernel_hashes
    qemu = least.qemu if facts is None else facts.qemu_kernel_hashes if hashed else facts.qemu
    return ImageNeeds(
        mode,
        host_kernel=least.host_kernel if facts is None else facts.host_kernel,
        qemu=qemu,
        kernel_hashes=hashed,
        mode_problems=manifest.mode_problems(cast(Mode, mode)) if mode in VERSIONS else (),
        modes=manifest.possible_modes,
        cpus=manifest.launch.cpus,
        vcpus=manifest.launch.vcpus,
        default_mib=manifest.memory.default_mib,
        minimum_mib=manifest.memory.minimum_mib,
    )
