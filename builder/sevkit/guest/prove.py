# SPDX-License-Identifier: Apache-2.0
"""Shows whether firmware refuses what it measures: boots an image as it is, then changed.

The table of hashes is where a SEV host would put it, so that this needs no SEV: the code that
compares is the same. Every boot is under TCG and ends with what was seen of it: the guest's system
ran, or the CPU stood in a loop of the firmware. Anything else proves nothing.
"""

import contextlib
import json
import re
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from sevkit.errors import ImageError
from sevkit.guest.boot import Setting
from sevkit.guest.console import Console
from sevkit.guest.conversation import Conversation
from sevkit.guest.machine import Machine
from sevkit.guest.qemu import GuestSpec, qemu_argv
from sevkit.guest.session import Session

Outcome = Literal["booted", "refused", "unclear"]

_AT_ONCE = 2
_SAMPLES = 12
_SAMPLE_SECONDS = 0.1
_LOOP_BYTES = 64
"""CpuDeadLoop() of edk2's MdePkg/Library/BaseLib/CpuDeadLoop.c is shorter."""
_FIRMWARE_END = 1 << 32
_FIRST_ENTRY_LENGTH_AT = 34
_KERNEL_SAYS = (b"Kernel panic", b"Initramfs unpacking failed", b"Linux version")
_GREETING_SECONDS = 120.0
_RIP = re.compile(r"RIP=([0-9a-f]{16})")


@dataclass(frozen=True)
class Case:
    """A boot, and what firmware that checks makes of it."""

    name: str
    changed: str
    """What is not as its hash says; empty for the image as it is."""
    spec: GuestSpec

    @property
    def expected(self) -> Outcome:
        """What firmware that checks does."""
        return "refused" if self.changed else "booted"


@dataclass(frozen=True)
class Seen:
    """What became of a boot."""

    case: str
    changed: str
    expected: Outcome
    seen: Outcome
    evidence: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether it went as with firmware that checks."""
        return self.seen == self.expected


@dataclass(frozen=True)
class Proof:
    """All boots of an image, and what they were of. Digests are SHA-256."""

    image: str
    firmware: str
    kernel: str
    initramfs: str | None
    cmdline: str
    qemu: str
    cases: tuple[Seen, ...]

    @property
    def is_proven(self) -> bool:
        """Whether every case went as it must."""
        return all(seen.is_right for seen in self.cases)

    def text(self) -> str:
        """As JSON, every case on a line of its own."""
        head = {key: value for key, value in asdict(self).items() if key != "cases"}
        rows = [json.dumps(asdict(seen)) for seen in self.cases]
        facts = json.dumps({**head, "accelerator": "tcg", "proven": self.is_proven}, indent=2)
        return facts[:-2] + ',\n  "cases": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def cases_of(spec: GuestSpec, scratch: Path) -> Iterator[Case]:
    """The image whole, and with one bit or the table changed; changed files go to `scratch`.

    Each change is harmless to a kernel that nobody checks: its name, the end of the archive, the
    last letter of the command line.
    """
    yield Case("good", "", spec)
    kernel = bytearray(spec.kernel.read_bytes())
    [name_at] = struct.unpack_from("<H", kernel, 0x20E)  # boot.rst: kernel_version, less 0x200
    kernel[name_at + 0x200] ^= 1
    changed = scratch / "vmlinuz"
    changed.write_bytes(kernel)
    yield Case("kernel", "one bit of the kernel", replace(spec, kernel=changed))
    if spec.initramfs is not None:
        archive = bytearray(spec.initramfs.read_bytes())
        archive[-1] ^= 1
        changed = scratch / "initramfs"
        changed.write_bytes(archive)
        yield Case("initrd", "one bit of the initrd", replace(spec, initramfs=changed))
    if spec.cmdline:
        cmdline = spec.cmdline[:-1] + chr(ord(spec.cmdline[-1]) ^ 1)
        yield Case("cmdline", "one bit of the command line", replace(spec, cmdline=cmdline))
    else:
        yield Case("cmdline", "a command line of one letter", replace(spec, cmdline="x"))
    yield Case("no-table", "no table of hashes", replace(spec, hashes_at=None, hashes=b""))
    table = bytearray(spec.hashes)
    table[_FIRST_ENTRY_LENGTH_AT] -= 1
    yield Case("entry-length", "the length of an entry", replace(spec, hashes=bytes(table)))


def prove(session: Session) -> Proof:
    """Boot every case of the image of `session`, which must run under TCG.

    Raises `ImageError` for firmware without a place for hashes, and when not even the image as it
    is boots.
    """
    spec, manifest = session.spec, session.manifest
    if spec.hashes_at is None:
        raise ImageError(
            f"{manifest.name}: its firmware has no place for hashes: there is nothing to prove",
            hint="sevkit firmware inspect says what it has; sev-guest builds firmware that checks",
        )
    with tempfile.TemporaryDirectory(prefix="sevkit-prove-") as name:
        good, *others = cases_of(spec, Path(name))
        first = observe(good, session.setting, Path(name), soon=0, limit=_GREETING_SECONDS)
        if not first.is_right:
            raise ImageError(f"{manifest.name} does not boot as it is", why=first.evidence)
        limit = 4 * first.seconds + 10
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            rest = pool.map(
                lambda case: observe(
                    case, session.setting, Path(name), soon=first.seconds, limit=limit
                ),
                others,
            )
            seen = (first, *rest)
    digests = {role: file.sha256 for role, file in manifest.files.items()}
    return Proof(
        image=f"{manifest.name} {manifest.version}-{manifest.build_id}",
        firmware=digests["firmware"],
        kernel=digests["kernel"],
        initramfs=digests.get("initramfs"),
        cmdline=spec.cmdline,
        qemu=".".join(map(str, session.setting.qemu.version)),
        cases=seen,
    )


def observe(case: Case, setting: Setting, folder: Path, *, soon: float, limit: float) -> Seen:
    """Boot the case until it is clear what becomes of it, at most `limit` seconds.

    The CPU is looked at from `soon` seconds on; `folder` holds the socket of QEMU's monitor.
    """
    conversation, console = Conversation(), Console()
    door = folder / f"{case.name}.qmp"
    machine = Machine(
        lambda agent, tty: qemu_argv(
            setting.qemu,
            setting.launch,
            case.spec,
            agent_fd=agent,
            console_fd=tty,
            extra_args=["-qmp", f"unix:{door},server=on,wait=off"],
        ),
        on_agent=conversation.receive,
        on_console=console.feed,
    )
    started = time.monotonic()

    def seen(outcome: Outcome, evidence: str) -> Seen:
        seconds = round(time.monotonic() - started, 2)
        return Seen(case.name, case.changed, case.expected, outcome, evidence, seconds)

    with contextlib.ExitStack() as stack:
        stack.enter_context(machine)
        monitor: _Monitor | None = None
        places: list[int] = []
        while time.monotonic() - started < limit:
            ended = machine.wait(_SAMPLE_SECONDS, outgoing=bytearray())
            if conversation.agent_version:
                return seen("booted", "the agent greets")
            if said := next((text for text in _KERNEL_SAYS if console.contains(text)), None):
                return seen("booted", f"the kernel says '{said.decode()}'")
            if ended:
                complaint = " ".join(machine.complaints.end())
                return seen("unclear", f"QEMU ended with status {machine.exit_status}: {complaint}")
            if time.monotonic() - started < soon:
                continue
            if monitor is None:
                monitor = stack.enter_context(_Monitor(door))
            places = [*places, monitor.instruction_pointer()][-_SAMPLES:]
            low, high = min(places), max(places)
            if len(places) == _SAMPLES and high - low <= _LOOP_BYTES and high < _FIRMWARE_END:
                return seen("refused", f"the CPU loops at {low:#x}, in the firmware")
    return seen("unclear", f"nothing was heard for {limit:.0f} s, and the CPU does not stand still")


class _Monitor:
    """QEMU's monitor (docs/interop/qmp-spec in its source): where the guest's CPU is."""

    def __init__(self, door: Path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(door))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()
        self._ask("qmp_capabilities")

    def __enter__(self) -> "_Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def instruction_pointer(self) -> int:
        """RIP of the first CPU."""
        answer = self._ask("human-monitor-command", {"command-line": "info registers"})
        found = _RIP.search(answer)
        if found is None:
            raise ImageError("QEMU does not tell where the CPU is", why=answer[:200])
        return int(found[1], 16)

    def _ask(self, command: str, arguments: dict[str, str] | None = None) -> str:
        request = {"execute": command, "arguments": arguments or {}}
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while line := self._lines.readline():
                answer = json.loads(line)
                if "event" not in answer:
                    return str(answer.get("return", answer))
        raise ImageError("QEMU ended while it was asked where the CPU is")
