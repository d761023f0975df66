# SPDX-License-Identifier: Apache-2.0
"""What a host is: its CPU, kernel, QEMU, tools, memory and firmware.

Looks and records, judges nothing, and changes nothing. `sevkit doctor --json` prints a record.
"""

import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sevkit.doctor.host_firmware import host_firmware
from sevkit.errors import HostError
from sevkit.guest.cpuid import cpuid
from sevkit.guest.launch import KVM_PARAMETERS, SEV_BITS, SEV_LEAF, Qemu, find_qemu, kvm_problem
from sevkit.measure.digests import CPUS
from sevkit.sandbox import is_there
from sevkit.toolchain import every_tool

GUEST_TOOLS: Mapping[str, str] = {"setpriv": "util-linux"}
"""What boots guests beside QEMU: program → Debian package that has it."""
BUILD_TOOLS: Mapping[str, str] = {
    **every_tool(),
    "apt-get": "apt",
    "bwrap": "bubblewrap",
    "git": "git",
    "libarchive.so.13": "libarchive13",
}
"""What builds use: program, header or library → Debian package that has it."""

_OBJECTS = ("sev-guest", "sev-snp-guest")
_CAP_IPC_LOCK = 14


@dataclass(frozen=True)
class Facts:
    """What a host was found to be. None: it could not be found out."""

    cpu_features: Sequence[str] = ()
    """Modes that the CPU has."""
    encrypted_guests: int = 0
    """CPUID 8000001f ECX: guests with encrypted memory at once."""
    sev_only_from: int = 0
    """CPUID 8000001f EDX: the first ASID of a guest without encrypted state."""
    cpus: int = 1
    """That this process may run on."""
    kernel: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of the module kvm_amd: name → value; empty when it is not loaded."""
    sev_device: str = "missing"
    """/dev/sev: ``ready``, ``denied`` to this user, or ``missing``."""
    kvm_problem: str = ""
    """Why KVM does not run a trial guest; empty when it does."""
    free_mib: int = 0
    """Memory that programs can have without swapping (/proc/meminfo: MemAvailable)."""
    lockable_mib: int | None = None
    """Memory that this user may lock (RLIMIT_MEMLOCK); None: without limit."""
    qemu: str | None = None
    qemu_problem: str = ""
    """Why there is no version of QEMU."""
    qemu_objects: Sequence[str] = ()
    """Of those that launch SEV guests, what `-object help` lists."""
    qemu_hashes: Sequence[str] = ()
    """The objects that have the property kernel-hashes."""
    qemu_cpus: Sequence[str] = ()
    """Models of EPYC that `-cpu help` lists."""
    machine: str = "x86_64"
    missing_tools: Sequence[str] = ()
    """Of `GUEST_TOOLS` and `BUILD_TOOLS`."""
    firmware: Mapping[str, str] = field(default_factory=dict)
    """Path → what `host_firmware` says of it."""

    @property
    def es_guests(self) -> int:
        """How many guests with encrypted state the BIOS leaves room for."""
        return max(self.sev_only_from - 1, 0)


def facts_of(
    cache: Path,
    host: Path = Path("/"),
    ask_cpu: Callable[[int], tuple[int, int, int, int]] = cpuid,
) -> Facts:
    """What this host is. `cache` remembers the trial of KVM; `host` is where /sys and /dev are."""
    leaf = (0, 0, 0, 0)
    try:
        if ask_cpu(0x80000000)[0] >= SEV_LEAF:
            leaf = ask_cpu(SEV_LEAF)
    except HostError:
        pass
    qemu, qemu_problem = None, ""
    try:
        qemu = find_qemu()
    except HostError as error:
        qemu_problem = error.what
    folder = host / "sys/module/kvm_amd/parameters"
    return Facts(
        cpu_features=[name for name, bit in SEV_BITS.items() if leaf[0] >> bit & 1],
        encrypted_guests=leaf[2],
        sev_only_from=leaf[3],
        cpus=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        parameters={
            name: _text_of(folder / name)
            for name in KVM_PARAMETERS.values()
            if (folder / name).exists()
        },
        sev_device=_device(host / "dev/sev"),
        kvm_problem=_trial(qemu, cache, host),
        free_mib=_kib("MemAvailable", _text_of(host / "proc/meminfo")) >> 10,
        lockable_mib=_lockable_mib(_text_of(host / "proc/self/status")),
        qemu=None if qemu is None else ".".join(map(str, qemu.version)),
        qemu_problem=qemu_problem,
        qemu_objects=[name for name in _OBJECTS if name in _listed(qemu, "-object", "help")],
        qemu_hashes=[
            name for name in _OBJECTS if "kernel-hashes" in _listed(qemu, "-object", f"{name},help")
        ],
        qemu_cpus=[name for name in CPUS if name in _listed(qemu, "-cpu", "help")],
        machine=platform.machine(),
        missing_tools=[
            *(name for name in GUEST_TOOLS if shutil.which(name) is None),
            *(name for name in BUILD_TOOLS if not _is_there(name)),
        ],
        firmware=host_firmware(host),
    )


def _trial(qemu: Qemu | None, cache: Path, host: Path) -> str:
    if qemu is None:
        return "no QEMU to try it with"
    try:
        return kvm_problem(qemu, cache, host)
    except HostError as error:
        return f"it can't be tried: {error.what}"


def _listed(qemu: Qemu | None, option: str, value: str) -> set[str]:
    """The first word of each line of one of QEMU's lists, without a ``=<type>`` after it."""
    if qemu is None:
        return set()
    try:
        answer = subprocess.run(
            [str(qemu.path), option, value], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"^(?:x86)? +([\w.-]+)", answer.stdout, re.MULTILINE))


def _is_there(tool: str) -> bool:
    if ".so." not in tool:
        return is_there(tool)
    try:
        ctypes.CDLL(tool)
    except OSError:
        return False
    return True


def _lockable_mib(status: str) -> int | None:
    """proc(5), /proc/PID/status: CapEff; capabilities(7): CAP_IPC_LOCK lifts the limit."""
    held = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or (held and int(held[1], 16) >> _CAP_IPC_LOCK & 1):
        return None
    return soft >> 20


def _kib(name: str, text: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def _device(path: Path) -> str:
    if not path.exists():
        return "missing"
    return "ready" if os.access(path, os.R_OK | os.W_OK) else "denied"


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
