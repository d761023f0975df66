# SPDX-License-Identifier: Apache-2.0
"""What this host can launch: SEV where it has it, else KVM where it truly works, else TCG.

Owns finding out; never starts a guest that lasts.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sevkit.disk import write_whole
from sevkit.errors import HostError, RecipeError
from sevkit.firmware.ovmf import Mode
from sevkit.guest.cpuid import cpuid
from sevkit.image.requirements import VERSIONS, is_older

Accelerator = Literal["sev-snp", "sev-es", "sev", "kvm", "tcg"]
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)

QEMU_NAME = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"

KVM_PARAMETERS: Mapping[str, str] = {"sev": "sev", "sev-es": "sev_es", "sev-snp": "sev_snp"}
"""Mode → parameter of kvm_amd."""
SEV_LEAF = 0x8000001F
SEV_BITS: Mapping[Mode, int] = {"sev": 1, "sev-es": 3, "sev-snp": 4}
"""Mode → bit of CPUID 8000001f EAX (AMD APM volume 3, E.4.17)."""

# The assembled bytes of probe.S: its beginning, and the jump at the reset vector.
_PROBE_SIZE = 0x400
_PROBE_RESET = 0x3F0
_PROBE_HEAD = bytes.fromhex(
    "fadbe331c08ed82e660f0116c8fc0f20c00c010f22c066ea1efc0f00080066b8"
    "10008ed88ed0c7050010000003200000c7050020000003300000c70500300000"
    "83000000b8001000000f22d8b8200600000f22e0b9800000c00f320d00010000"
    "0f30b8130000800f22c0ea71fc0f001800b9a086010066480f6ec1660fefc966"
    "0fd4c8ffc975f866480f7ec848ba00e40b54020000004839d07504b02ae6f4f4"
    "ebfd8db4000066900000000000000000ffff0000009bcf00ffff00000093cf00"
    "ffff0000009baf001f00a8fc0f"
)
_PROBE_JUMP = bytes.fromhex("e90dfc")
_PROBE_PASSED = 0x2A * 2 + 1
_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Qemu:
    """The QEMU of this host."""

    path: Path
    version: tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """How a guest is run here."""

    accelerator: Accelerator
    c_bit: int = 0
    """Position of the encryption bit in a page table entry; SEV only."""
    reduced_phys_bits: int = 0
    """Physical address bits that encryption costs; SEV only."""
    passed_over: tuple[str, ...] = ()
    """Why each better accelerator was not taken, a line each."""

    @property
    def is_sev(self) -> bool:
        """Whether the guest's memory is encrypted."""
        return self.accelerator.startswith("sev")


def find_qemu() -> Qemu:
    """The QEMU in PATH. Raises `HostError` when there is none or it does not run."""
    found = shutil.which(QEMU_NAME)
    if found is None:
        raise HostError(
            f"{QEMU_NAME} is missing, which boots images",
            hint=f"apt-get install {QEMU_PACKAGE}",
        )
    try:
        answer = subprocess.run(
            [found, "--version"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{found} does not run", why=str(error)) from error
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or match is None:
        raise HostError(
            f"{found} does not tell its version",
            why=(answer.stderr or answer.stdout).strip(),
            hint=f"apt-get install --reinstall {QEMU_PACKAGE}",
        )
    major, minor, patch = map(int, match.groups())
    return Qemu(Path(found), (major, minor, patch))


def tied_to_us(argv: Sequence[str]) -> list[str]:
    """The command so that the kernel kills it when the thread that starts it ends in any way.

    prctl(2), PR_SET_PDEATHSIG; through setpriv(1), because Python can't run code safely between
    fork and exec.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise HostError(
            "setpriv is missing, which ends QEMU when sevkit is killed",
            hint="apt-get install util-linux",
        )
    return [setpriv, "--pdeathsig", "KILL", "--", *argv]


def choose(
    qemu: Qemu,
    *,
    wanted: Accelerator | None = None,
    modes: Sequence[str] = (),
    cache: Path,
    host: Path = Path("/"),
    ask_cpu: Callable[[int], tuple[int, int, int, int]] = cpuid,
) -> Launch:
    """The best accelerator that works here, or the one that is `wanted`.

    `modes` are those that the image can be launched in. What takes a trial is remembered in the
    folder `cache` for as long as the host runs. `host` is where /dev, /sys and /proc are found.

    Raises `RecipeError` when the image is not made for the mode that is wanted, `HostError` when
    the host can't do it.
    """
    passed_over: list[str] = []
    if wanted in VERSIONS and wanted not in modes:
        raise RecipeError(
            f"the image is not made for {wanted}",
            why=f"its manifest lists: {', '.join(modes) or 'no mode'}",
            hint=f"add '{wanted}' to launch.modes of its recipe",
        )
    for name in ACCELERATORS if wanted is None else (wanted,):
        if name == "tcg":
            return Launch("tcg", passed_over=tuple(passed_over))
        if name == "kvm":
            problem = kvm_problem(qemu, cache, host)
            if not problem:
                return Launch("kvm", passed_over=tuple(passed_over))
        elif name in modes:
            problem = sev_problem(name, qemu, host, ask_cpu)
            if not problem:
                bits = ask_cpu(SEV_LEAF)[1]
                return Launch(name, bits & 0x3F, bits >> 6 & 0x3F, tuple(passed_over))
        else:
            continue
        passed_over.append(f"{name}: {problem}")
    raise HostError(
        f"this host can't launch a guest with {wanted}",
        why=passed_over[-1],
        hint="leave out --accel to take what works here",
    )


def sev_problem(
    mode: Mode, qemu: Qemu, host: Path, ask_cpu: Callable[[int], tuple[int, int, int, int]]
) -> str:
    """Why `mode` can't be launched on this host; empty when it can."""
    setting = host / "sys/module/kvm_amd/parameters" / KVM_PARAMETERS[mode]
    try:
        enabled = setting.read_text().strip() in ("Y", "1")
    except OSError:
        return "the host kernel has no SEV (kvm_amd is not loaded or too old)"
    if not enabled:
        return f"{setting} is off"
    for device in ("dev/sev", "dev/kvm"):
        if not os.access(host / device, os.R_OK | os.W_OK):
            there = (host / device).exists()
            return f"/{device} is {'not accessible to this user' if there else 'missing'}"
    least = VERSIONS[mode].qemu
    if is_older(_dotted(qemu.version), least):
        return f"QEMU {_dotted(qemu.version)} is older than {least}"
    if not ask_cpu(0x80000000)[0] >= SEV_LEAF or not ask_cpu(SEV_LEAF)[0] >> SEV_BITS[mode] & 1:
        return "the CPU does not have it"
    return ""


def kvm_problem(qemu: Qemu, cache: Path, host: Path = Path("/")) -> str:
    """Why QEMU can't run a guest under KVM here; empty when it can.

    A /dev/kvm says little: nested or emulated KVM may abort QEMU, or hang at the first instruction
    that it does not know. So a guest of 200 bytes is run that goes through all modes of the CPU.
    """
    device = host / "dev/kvm"
    if not device.exists():
        return "/dev/kvm is missing"
    if not os.access(device, os.R_OK | os.W_OK):
        return "/dev/kvm is not accessible to this user"
    boot_id = (host / "proc/sys/kernel/random/boot_id").read_text().strip()
    question = f"{boot_id} {qemu.path} {_dotted(qemu.version)}"
    memory = cache / "kvm-probe.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_bytes())
        if known["question"] == question and isinstance(known["problem"], str):
            return known["problem"]
    problem, is_certain = run_probe(qemu, "kvm")
    if is_certain:
        _remember(memory, {"question": question, "problem": problem})
    return problem


def probe_firmware() -> bytes:
    """64 KiB of firmware that hold probe.S at their end."""
    code = _PROBE_HEAD.ljust(_PROBE_RESET, b"\0") + _PROBE_JUMP
    return code.ljust(_PROBE_SIZE, b"\xf4").rjust(65536, b"\xf4")


def run_probe(qemu: Qemu, accelerator: str) -> tuple[str, bool]:
    """What keeps the accelerator from running a trial guest, and whether that is sure to stay so.

    Nothing keeps it: an empty text. Not ending in 2 s may be a busy host and is not sure.
    """
    with tempfile.TemporaryDirectory(prefix="sevkit-probe-") as folder:
        firmware = Path(folder) / "probe.bin"
        firmware.write_bytes(probe_firmware())
        argv = [str(qemu.path), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-machine", "q35", "-m", "16", "-accel", accelerator]
        argv += ["-cpu", "host" if accelerator == "kvm" else "max", "-bios", str(firmware)]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        with subprocess.Popen(
            tied_to_us(argv),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                _, output = process.communicate(timeout=_PROBE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                _, output = process.communicate()
                said = b"KVM internal error" in output
                cause = "KVM internal error" if said else "it does not end"
                return f"QEMU can't run a trial guest: {cause}", said
            finally:
                process.kill()
    if process.returncode == _PROBE_PASSED:
        return "", True
    lines = output.decode(errors="replace").strip().splitlines() or [""]
    how = f"signal {-process.returncode}" if process.returncode < 0 else process.returncode
    return f"QEMU can't run a trial guest ({how}): {lines[0]}".rstrip(": "), True


def _remember(path: Path, record: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record).encode())


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
