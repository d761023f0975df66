# SPDX-License-Identifier: Apache-2.0
"""Boots a guest: for a block that asks it things, for one command, or only to watch its console.

What goes wrong is an `ImageError` with the end of the guest's console. Never prints; output goes
where the caller says.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevkit.errors import HostError, ImageError, RecipeError
from sevkit.guest.console import Console
from sevkit.guest.conversation import Conversation, RefusedError, Report, Sink
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.machine import Machine
from sevkit.guest.qemu import ROOTFS_TAG, GuestSpec, qemu_argv
from sevkit.guest.running import Deadline, Guest, Limits, Streams, check_qemu, silent
from sevkit.terminal import write_all

ENVIRONMENT = (
    "HOME=/root",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)


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


@contextlib.contextmanager
def booted(spec: GuestSpec, setting: Setting) -> Iterator[Guest]:
    """A guest that has greeted, for the length of a `with` block.

    It is not shut down in the end but killed; `Guest.shut_down` does it well. Raises `RecipeError`
    for a call that can't work, `HostError` when QEMU does not start, `ImageError` for a guest that
    does not do its part. QEMU never survives the block.
    """
    _check_rootfs(setting.rootfs)
    conversation = Conversation()
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
        guest = Guest(machine, conversation, console, setting.limits)
        with machine, _explained(console, machine):
            guest.greet()
            yield guest


def boot(
    spec: GuestSpec,
    setting: Setting,
    *,
    command: Sequence[str],
    stdout: Sink,
    stderr: Sink,
    stdin: int | None = None,
    on_report: Callable[[Report], None] = lambda _: None,
) -> Outcome:
    """Boot, run `command` when there is one, shut down.

    Output goes to `stdout` and `stderr` byte for byte as it arrives; `stdin` is a descriptor that
    the command reads. The root of `setting` is the command's.

    Raises as `booted` does, and what `stdout` and `stderr` raise.
    """
    started = time.monotonic()
    status = 0
    with booted(spec, setting) as guest:
        reports = [guest.report()]
        arrived = time.monotonic()
        on_report(reports[0])
        if command:
            process = guest.run(
                command,
                Streams(stdout, stderr, stdin),
                env=ENVIRONMENT,
                share=None if setting.rootfs is None else ROOTFS_TAG,
            )
            status = guest.wait(process, setting.limits.command).exit_status
            reports.append(guest.report())
            on_report(reports[1])
        guest.shut_down()
    return Outcome(
        exit_status=status,
        reports=tuple(reports),
        agent_version=guest.agent_version,
        seconds_to_report=arrived - started,
        seconds=time.monotonic() - started,
    )


def watch(
    spec: GuestSpec,
    setting: Setting,
    *,
    stdout: Sink,
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
            stdout(data)

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
        deadline = Deadline(limit, setting.limits.panic)
        with machine, _explained(console, machine):
            while True:
                ended = machine.wait(deadline.left(console), outgoing=bytearray())
                if until is not None and console.contains(wanted):
                    break
                if ended:
                    check_qemu(machine, console, was_heard=False)
                    if until is not None:
                        raise ImageError(f"the guest powered off without printing '{until}'")
                    break
                if deadline.is_over(console):
                    raise silent(console, f"to print '{until}'" if until else "to power off", limit)
    return time.monotonic() - started


@contextlib.contextmanager
def _explained(console: Console, machine: Machine) -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise
    except (ImageError, HostError) as error:
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


def writer(descriptor: int) -> Sink:
    """A sink that has written everything to `descriptor` when it returns.

    Raises `HostError` when it can't be written to, and so does the sink, which raises
    `BrokenPipeError` when nobody reads any more. A closed descriptor is refused at once: the next
    file to be opened would have its number.
    """

    def write(data: bytes) -> None:
        with _writing():
            write_all(descriptor, data)

    with _writing():
        os.fstat(descriptor)
    return write


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError("the guest's output can't be written", why=str(error)) from error


def _check_rootfs(rootfs: Path | None) -> None:
    if rootfs is not None and not rootfs.is_dir():
        raise RecipeError(f"--rootfs: {rootfs} is not a folder")
