# SPDX-License-Identifier: Apache-2.0
"""Boots one guest to its end: hears its report, runs one command in it, and lets it power off.

Owns the time: whatever the guest owes has a limit, so a guest that dies, panics or falls silent is
an `ImageError` with the end of its console. Never prints; output goes where the caller says.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from sevkit.errors import HostError, ImageError, RecipeError, SevkitError
from sevkit.guest.channel import FrameType, ViolationError
from sevkit.guest.console import Console
from sevkit.guest.conversation import Command, Conversation, Phase, Report
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.machine import Machine
from sevkit.guest.qemu import GuestSpec, qemu_argv

_QUEUE_BYTES = 131072


@dataclass(frozen=True)
class Limits:
    """How long a guest may take, in seconds: absolute, whatever it says meanwhile."""

    hello: float
    answer: float
    power_off: float
    command: float | None = None
    panic: float = 3.0
    """From the kernel's last words to the end of QEMU."""


@dataclass(frozen=True)
class Outcome:
    """How a guest ended. Seconds count from the start of QEMU."""

    exit_status: int
    """Of the command: its own, or 128 + the signal that ended it. 0 when there was none."""
    reports: tuple[Report, ...]
    agent_version: str
    seconds_to_report: float
    seconds: float


def limits_for(launch: Launch, spec: GuestSpec) -> Limits:
    """Limits that a slow and busy host keeps: emulation is slow, and so is encrypting memory."""
    if launch.accelerator == "tcg":
        return Limits(hello=120, answer=30, power_off=45)
    per_memory = spec.memory_mib / 1024 if launch.is_sev else 0
    return Limits(hello=60 + per_memory, answer=15, power_off=20)


@dataclass(frozen=True)
class Setting:
    """Where and how a guest is booted."""

    qemu: Qemu
    launch: Launch
    limits: Limits
    rootfs: Path | None = None
    log: Path | None = None
    """Where the console's beginning is kept, up to 16 MiB."""
    extra_args: Sequence[str] = ()
    """More arguments for QEMU."""


def boot(
    spec: GuestSpec,
    setting: Setting,
    *,
    command: Command | None,
    stdout: BinaryIO,
    stderr: BinaryIO,
    stdin: int | None = None,
    on_report: Callable[[Report], None] = lambda _: None,
) -> Outcome:
    """Boot, run `command` when there is one, shut down.

    Output goes to `stdout` and `stderr` byte for byte as it arrives; `stdin` is a descriptor that
    the command reads. The root of `setting` is the command's.

    Raises `RecipeError` for a call that can't work, `HostError` when QEMU does not start or output
    can't be written, `ImageError` for a guest that does not do its part, `BrokenPipeError` when
    nobody reads the output any more. QEMU never survives this function.
    """
    _check_rootfs(setting.rootfs)
    if command is not None:
        command = replace(
            command, in_rootfs=setting.rootfs is not None, reads_stdin=stdin is not None
        )
    reports: list[Report] = []
    started = time.monotonic()
    arrived = 0.0

    def relay(kind: FrameType, data: bytes) -> None:
        _write(stdout if kind is FrameType.STDOUT else stderr, data)

    def take_report(report: Report) -> None:
        nonlocal arrived
        arrived = arrived or time.monotonic()
        reports.append(report)
        on_report(report)

    conversation = Conversation(command, relay, take_report)
    with Console(setting.log) as console:
        machine = Machine(
            lambda agent, tty: qemu_argv(
                setting.qemu,
                setting.launch,
                spec,
                agent_fd=agent,
                console_fd=tty,
                rootfs=setting.rootfs,
                extra_args=setting.extra_args,
            ),
            on_agent=conversation.receive,
            on_console=console.feed,
        )
        with machine, _explained(console, machine):
            _converse(machine, conversation, console, setting.limits, stdin)
    return Outcome(
        exit_status=conversation.exit_status or 0,
        reports=tuple(reports),
        agent_version=conversation.agent_version,
        seconds_to_report=arrived - started,
        seconds=time.monotonic() - started,
    )


def watch(
    spec: GuestSpec,
    setting: Setting,
    *,
    stdout: BinaryIO,
    until: str | None = None,
    limit: float | None = None,
) -> float:
    """Boot a guest that has no agent of ours, and relay its console byte for byte.

    Ends when the guest powers off, or when it has printed `until`. `limit` is in seconds; with
    `until` and none given, that of a greeting. Returns the seconds from the start of QEMU.

    Raises like `boot`; also when the guest powers off without printing `until`.
    """
    _check_rootfs(setting.rootfs)
    if limit is not None and not limit > 0:
        raise RecipeError("--timeout: must be above 0 seconds", hint="--timeout 60")
    if limit is None and until is not None:
        limit = setting.limits.hello
    wanted = (until or "").encode()
    started = time.monotonic()
    with Console(setting.log) as console:

        def relay(data: bytes) -> None:
            console.feed(data)
            _write(stdout, data)

        machine = Machine(
            lambda _, tty: qemu_argv(
                setting.qemu,
                setting.launch,
                spec,
                agent_fd=None,
                console_fd=tty,
                rootfs=setting.rootfs,
                extra_args=setting.extra_args,
            ),
            on_agent=lambda _: None,
            on_console=relay,
        )
        deadline = _Deadline(limit, setting.limits.panic)
        with machine, _explained(console, machine):
            while True:
                ended = machine.wait(deadline.left(console), outgoing=bytearray())
                if until is not None and console.contains(wanted):
                    break
                if ended:
                    _check_qemu(machine, console, was_heard=False)
                    if until is not None:
                        raise ImageError(f"the guest powered off without printing '{until}'")
                    break
                if deadline.is_over(console):
                    raise _silent(
                        console, f"to print '{until}'" if until else "to power off", limit
                    )
    return time.monotonic() - started


class _Deadline:
    """The end of a time limit; a kernel panic brings it near."""

    def __init__(self, seconds: float | None, after_panic: float) -> None:
        now = time.monotonic()
        self._end = None if seconds is None else now + seconds
        self._after_panic = after_panic
        self._panic_end: float | None = None

    def left(self, console: Console) -> float:
        """Seconds until there is something to decide."""
        now = time.monotonic()
        if console.panic and self._panic_end is None:
            self._panic_end = now + self._after_panic
        ends = [end for end in (self._end, self._panic_end) if end is not None]
        return max(0.0, min(ends) - now) if ends else 3600.0

    def is_over(self, console: Console) -> bool:
        return self.left(console) <= 0


def _converse(
    machine: Machine,
    conversation: Conversation,
    console: Console,
    limits: Limits,
    stdin: int | None,
) -> None:
    seconds = {
        Phase.HELLO: limits.hello,
        Phase.REPORT: limits.answer,
        Phase.RUNNING: limits.command,
        Phase.LAST_REPORT: limits.answer,
        Phase.POWER_OFF: limits.power_off,
    }

    def take_input(data: bytes) -> None:
        nonlocal stdin
        conversation.give_stdin(data)
        if not data:
            stdin = None

    phase = conversation.phase
    deadline = _Deadline(seconds[phase], limits.panic)
    while True:
        has_room = conversation.reads_stdin and len(conversation.outgoing) < _QUEUE_BYTES
        ended = machine.wait(
            deadline.left(console),
            outgoing=conversation.outgoing,
            stdin=stdin if has_room else None,
            on_stdin=take_input,
        )
        if conversation.phase is not phase:
            phase = conversation.phase
            deadline = _Deadline(seconds[phase], limits.panic)
        if ended:
            _check_qemu(machine, console, was_heard=phase is not Phase.HELLO)
            if phase is Phase.POWER_OFF:
                return
            raise ImageError(f"the guest powered off when it owed {phase.value}")
        if deadline.is_over(console):
            raise _silent(console, phase.value, seconds[phase])


def _silent(console: Console, owed: str, limit: float | None) -> ImageError:
    if console.panic:
        return _panicked(console)
    owed = owed if owed.startswith("to ") else f"to give {owed}"
    return ImageError(f"the guest failed {owed} within {limit:g} s")


def _panicked(console: Console) -> ImageError:
    return ImageError("the guest's kernel panicked", why=console.panic)


def _check_qemu(machine: Machine, console: Console, *, was_heard: bool) -> None:
    if console.panic:
        raise _panicked(console)
    status = machine.exit_status or 0
    if status < 0:
        raise ImageError(f"QEMU was ended by signal {-status}")
    if status > 0 and not was_heard and not any(console.end()):
        raise HostError("QEMU does not start the guest")
    if status > 0:
        raise ImageError(f"QEMU failed with status {status}")


@contextlib.contextmanager
def _explained(console: Console, machine: Machine) -> Iterator[None]:
    try:
        yield
    except ViolationError as error:
        failure: SevkitError = ImageError(f"the guest broke the agent's protocol: {error}")
    except SevkitError as error:
        failure = error
    else:
        return
    why = [f"qemu: {line}" for line in machine.complaints.end()]
    tail = list(console.end())
    why += ["the end of its console:", *(f"  {line}" for line in tail)] if tail else []
    if not tail and isinstance(failure, ImageError):
        why.append("its console stayed empty")
    failure.why = "\n".join([*failure.why.splitlines(), *why])
    failure.log = console.log
    raise failure


def _write(stream: BinaryIO, data: bytes) -> None:
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError("the guest's output can't be written", why=str(error)) from error


def _check_rootfs(rootfs: Path | None) -> None:
    if rootfs is not None and not rootfs.is_dir():
        raise RecipeError(f"--rootfs: {rootfs} is not a folder")
