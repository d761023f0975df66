# SPDX-License-Identifier: Apache-2.0
"""What is changed before a boot that firmware must refuse, and what came of each such boot."""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sevkit.errors import ImageError
from sevkit.firmware.loaded import LoadedModules
from sevkit.guest.machine import Machine
from sevkit.guest.observe import Monitor, Outcome, observe
from sevkit.guest.qemu import GuestSpec

_AT_ONCE = 2
_FIRST_ENTRY_LENGTH_AT = 34
_LONGEST_SECONDS = 120.0
_SILENT_SECONDS = 20.0
"""After which a guest without a word is looked at closely."""


@dataclass(frozen=True)
class Case:
    """A boot, and what becomes of it with firmware that checks."""

    name: str
    changed: str
    """What is not as its hash says; empty for the image as it is."""
    spec: GuestSpec
    expected: tuple[Outcome, ...] = ("refused",)


@dataclass(frozen=True)
class Patience:
    """How long a boot is watched, in seconds from its start."""

    look_after: float
    """From when on the CPU is looked at."""
    limit: float
    """After which nothing is clear."""


@dataclass(frozen=True)
class Seen:
    """What became of a boot. `seconds` count from the start of QEMU."""

    case: str
    changed: str
    expected: tuple[Outcome, ...]
    seen: Outcome
    evidence: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether it went as with firmware that checks."""
        return self.seen in self.expected


def cases_of(spec: GuestSpec, scratch: Path) -> Iterator[Case]:
    """The image whole, and with one bit or the table changed; changed files go to `scratch`.

    Each change is harmless to a kernel that nobody checks: its name, the end of the archive, the
    last letter of the command line. Firmware that is given no table that fits has nothing to
    compare with: it need not stop, as long as it starts no kernel. Raises `ImageError` for a kernel
    or an initramfs that is none.
    """
    yield Case("good", "", spec, ("booted",))
    other_kernel = replace(spec, kernel=_other_kernel(spec, scratch))
    yield Case("kernel", "one bit of the kernel", other_kernel)
    if spec.initramfs is not None:
        archive = bytearray(spec.initramfs.read_bytes())
        if not archive:
            raise ImageError(f"{spec.initramfs} is empty", hint="leave it out, or build it again")
        archive[-1] ^= 1
        changed = scratch / "initramfs"
        changed.write_bytes(archive)
        yield Case("initrd", "one bit of the initrd", replace(spec, initramfs=changed))
    if spec.cmdline:
        cmdline = spec.cmdline[:-1] + chr(ord(spec.cmdline[-1]) ^ 1)
        yield Case("cmdline", "one bit of the command line", replace(spec, cmdline=cmdline))
    else:
        yield Case("cmdline", "a command line of one letter", replace(spec, cmdline="x"))
    nothing_started: tuple[Outcome, ...] = ("refused", "passed-over")
    without = replace(spec, hashes_at=None, hashes=b"")
    yield Case("no-table", "no table of hashes", without, nothing_started)
    table = bytearray(spec.hashes)
    table[_FIRST_ENTRY_LENGTH_AT] -= 1
    wrong = replace(spec, hashes=bytes(table))
    yield Case("entry-length", "the length of an entry", wrong, nothing_started)


def _other_kernel(spec: GuestSpec, scratch: Path) -> Path:
    """The kernel with one bit of its version text changed (boot.rst: kernel_version)."""
    kernel = bytearray(spec.kernel.read_bytes())
    name_at = 0x200 + struct.unpack_from("<H", kernel, 0x20E)[0] if len(kernel) > 0x210 else 0
    if kernel[0x202:0x206] != b"HdrS" or name_at >= len(kernel):
        raise ImageError(f"{spec.kernel} is no kernel: it has no setup header with a version")
    kernel[name_at] ^= 1
    changed = scratch / "vmlinuz"
    changed.write_bytes(kernel)
    return changed


def boot_all(cases: Sequence[Case], boot: Callable[[Case, Patience], Seen]) -> tuple[Seen, ...]:
    """Boot the first case, which nothing is changed in, and then the others, two at once.

    With a first case that went wrong the others show nothing and are left out.
    """
    first, *others = cases
    good = boot(first, Patience(_SILENT_SECONDS, _LONGEST_SECONDS))
    if not good.is_right:
        return (good,)
    patience = Patience(good.seconds, 4 * good.seconds + 10)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return (good, *pool.map(lambda case: boot(case, patience), others))


def watch(
    case: Case,
    machine_with: Callable[[Monitor], Machine],
    sign: Callable[[Machine], str],
    modules: LoadedModules,
    patience: Patience,
    check: Callable[[], None] = lambda: None,
) -> Seen:
    """Start the machine of a case, and say what became of it.

    The machine must let QEMU inherit the monitor. `sign` and `check` are those of `observe`.
    """
    with Monitor() as monitor:
        machine = machine_with(monitor)
        started = time.monotonic()
        with machine:
            monitor.started()
            sight = observe(
                machine,
                monitor,
                modules,
                lambda: sign(machine),
                soon=patience.look_after,
                limit=patience.limit,
                check=check,
            )
    seconds = round(time.monotonic() - started, 2)
    return Seen(case.name, case.changed, case.expected, sight.outcome, sight.evidence, seconds)
