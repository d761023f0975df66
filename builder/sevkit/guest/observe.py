# SPDX-License-Identifier: Apache-2.0
"""What becomes of a boot that firmware may refuse: seen from outside, through QEMU's monitor.

Either the guest's system runs, or the CPU stands in a loop of the firmware. In which module it
stands tells a verifier that stopped from firmware that passed the kernel over and then found
nothing else to start: that one would have started whatever else a host offers.
"""

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sevkit.firmware.loaded import LoadedModules
from sevkit.firmware.verifier import LOADER
from sevkit.guest.machine import Machine

Outcome = Literal["booted", "refused", "passed-over", "unclear"]

PAUSE_SECONDS = 0.1
"""Between two looks at a guest."""

_SAMPLES = 12
_BUSY_SECONDS = 0.5
"""Of a CPU's time: a guest that got none stands still as well, and that proves nothing."""
_LOOP_BYTES = 64
"""CpuDeadLoop() of edk2's MdePkg/Library/BaseLib/CpuDeadLoop.c is shorter."""
_FIRMWARE_END = 1 << 32
_KERNEL_FROM = 0xFFFF_8000_0000_0000
"""Documentation/arch/x86/x86_64/mm.rst: the kernel's half; firmware uses the other."""
_ANSWER_SECONDS = 30.0
_ENDING_SECONDS = 5.0
_POINTER = re.compile(r"\b[RE]IP=([0-9a-f]{8,16})\b")
_HALTED = re.compile(r"\bHLT=1\b")
_QWORD = re.compile(r"0x([0-9a-f]{16})\b")


@dataclass(frozen=True)
class Sight:
    """What was seen of a boot."""

    outcome: Outcome
    evidence: str


class SilentError(Exception):
    """QEMU does not answer: it has ended, or is about to."""


class Monitor:
    """QEMU's monitor (docs/interop/qmp-spec.rst in its source), over an inherited socket."""

    def __init__(self) -> None:
        self._socket, self._theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER_SECONDS)
        self._lines = self._socket.makefile("r", encoding="utf-8", errors="replace")
        self._is_ready = False

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
        self._theirs.close()

    @property
    def descriptor(self) -> int:
        """QEMU's end, which it must inherit."""
        return self._theirs.fileno()

    def arguments(self) -> list[str]:
        """What tells QEMU of it."""
        chardev = f"socket,id=monitor,fd={self.descriptor}"
        return ["-chardev", chardev, "-mon", "chardev=monitor,mode=control"]

    def started(self) -> None:
        """QEMU has its end, so that it ends with QEMU."""
        self._theirs.close()

    def place(self) -> int | None:
        """The instruction pointer of the first CPU; None while that is halted."""
        answer = self._command("info registers")
        found = _POINTER.search(answer)
        if found is None:
            raise SilentError(f"QEMU does not tell where the CPU is: {answer[:100]!r}")
        return None if _HALTED.search(answer) else int(found[1], 16)

    def read(self, address: int, size: int) -> bytes:
        """Guest memory as the CPU sees it; `size` is a multiple of 8 bytes, up to 4096."""
        words = _QWORD.findall(self._command(f"x /{size // 8}xg {address:#x}"))
        return b"".join(int(word, 16).to_bytes(8, "little") for word in words)

    def _command(self, line: str) -> str:
        if not self._is_ready:
            self._next()
            self._ask("qmp_capabilities", {})
            self._is_ready = True
        return self._ask("human-monitor-command", {"command-line": line})

    def _ask(self, command: str, arguments: dict[str, str]) -> str:
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._socket.sendall(request.encode() + b"\n")
        except OSError as error:
            raise SilentError(f"QEMU's monitor: {error.strerror}") from error
        while "event" in (answer := self._next()):
            continue
        return str(answer.get("return", answer))

    def _next(self) -> dict[str, object]:
        try:
            line = self._lines.readline()
            answer = json.loads(line)
        except (OSError, ValueError) as error:
            raise SilentError("QEMU's monitor fell silent") from error
        return answer if isinstance(answer, dict) else {}


def observe(
    machine: Machine,
    monitor: Monitor,
    modules: LoadedModules,
    sign: Callable[[], str],
    *,
    soon: float,
    limit: float,
    check: Callable[[], None] = lambda: None,
) -> Sight:
    """Watch a machine that has just been started until it is clear what becomes of it.

    `sign` gives what shows that the guest's system runs, empty while nothing does; it is asked
    once more when QEMU has ended. The CPU is looked at from `soon` seconds on, and after `limit`
    seconds nothing is clear. `check` is called all the time and may raise.
    """
    started = time.monotonic()
    places = _Places(modules, monitor, machine)
    while (passed := time.monotonic() - started) < limit:
        check()
        ended = machine.wait(PAUSE_SECONDS, outgoing=bytearray())
        if evidence := sign():
            return Sight("booted", evidence)
        if ended:
            return _ended(machine)
        if passed < soon:
            continue
        try:
            sight = places.look()
        except SilentError as error:
            return _fallen_silent(machine, sign, str(error))
        if sight is not None:
            return sight
    return Sight("unclear", f"after {limit:.0f} s neither a system runs nor stands the CPU still")


def _fallen_silent(machine: Machine, sign: Callable[[], str], trouble: str) -> Sight:
    """What is clear of a QEMU that answers no more: as a rule it is about to end."""
    end = time.monotonic() + _ENDING_SECONDS
    while (left := end - time.monotonic()) > 0:
        if machine.wait(min(left, PAUSE_SECONDS), outgoing=bytearray()):
            evidence = sign()
            return Sight("booted", evidence) if evidence else _ended(machine)
    return Sight("unclear", trouble)


def _ended(machine: Machine) -> Sight:
    words = [f"QEMU ended with status {machine.exit_status}", *machine.complaints.end()]
    return Sight("unclear", ": ".join(words))


class _Places:
    """Where the CPU was, look after look."""

    def __init__(self, modules: LoadedModules, monitor: Monitor, machine: Machine):
        self._modules = modules
        self._monitor = monitor
        self._machine = machine
        self._last: list[tuple[int, float]] = []

    def look(self) -> Sight | None:
        """What is clear after one more look. Raises `SilentError`."""
        place = self._monitor.place()
        if place is None:
            self._last.clear()
            return None
        if place >= _KERNEL_FROM:
            return Sight("booted", f"the CPU is in the kernel, at {place:#x}")
        self._last.append((place, self._machine.cpu_seconds()))
        low = min(place for place, _ in self._last)
        high = max(place for place, _ in self._last)
        if high - low > _LOOP_BYTES or high >= _FIRMWARE_END:
            self._last = self._last[-1:]
            return None
        busy = self._last[-1][1] - self._last[0][1]
        if len(self._last) < _SAMPLES or busy < _BUSY_SECONDS:
            return None
        return self._standing(low)

    def _standing(self, place: int) -> Sight:
        module = self._modules.at(place, self._monitor.read)
        where = f"the CPU loops at {place:#x}"
        if module == LOADER:
            return Sight("refused", f"{where}, in {LOADER}")
        if module:
            return Sight("passed-over", f"{where}, in {module}: the firmware went on")
        return Sight("unclear", f"{where}, in no module of the firmware that is known")
