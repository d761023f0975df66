# SPDX-License-Identifier: Apache-2.0
"""One container in a guest of its own: from its creation to its end.

Knows the order of requests and nothing of image formats. Never prints; output goes where the
caller says.
"""

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from signal import SIGWINCH

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.guest.boot import writer
from sevkit.guest.conversation import Ending, RefusedError, Report, Result
from sevkit.guest.qemu import ROOTFS_TAG
from sevkit.guest.running import Guest, Streams
from sevkit.guest.session import Session
from sevkit.terminal import PASSED_ON, raw, signals, size_of

NAME = "c1"
LEAST_BYTES = 6 << 20
"""crun itself needs as much while it makes a container."""
_UNITS = {"K": 10, "KB": 10, "KIB": 10, "M": 20, "MB": 20, "MIB": 20, "G": 30, "GB": 30, "GIB": 30}


@dataclass(frozen=True)
class ContainerOutcome:
    """How a container and its guest ended. Seconds count from the start of QEMU."""

    ending: Ending
    reports: tuple[Report, Report]
    """Before the container was made, and after its end."""
    stats: Result | None
    """Of its cgroup at its end; null when the agent could not tell."""
    agent_version: str
    qemu_argv: tuple[str, ...]
    seconds_to_start: float
    seconds: float


def our_streams(*, tty: bool, interactive: bool) -> Streams:
    """Our own streams for a container: with a terminal of the size of ours, and with our input.

    Raises `RecipeError` for both where our input is no terminal, and `HostError` for output that
    can't be written.
    """
    if tty and interactive and not os.isatty(0):
        raise RecipeError("-t with -i: standard input is not a terminal", hint="leave out -t")
    return Streams(
        writer(1),
        writer(2),
        stdin=0 if interactive else None,
        tty=size_of(0) if tty else None,
    )


def run_container(
    session: Session, streams: Streams, *, config: Mapping[str, Json] | None
) -> ContainerOutcome:
    """Boot, run one container to its end, shut down.

    Its root is the 9p share of the session's setting, or the workload image that the session
    attaches; without `config` that image's own holds. A terminal that it has for input and as its
    own is raw while it runs.

    Raises as `Guest` does; `KeyboardInterrupt` for a third SIGINT.
    """
    started = time.monotonic()
    setting = session.setting
    has_terminal = streams.tty is not None and streams.stdin is not None
    terminal = streams.stdin if has_terminal else None
    with session.guest() as guest:
        before = guest.report()
        process = guest.create(
            NAME, streams, config=config, share=ROOTFS_TAG if setting.rootfs else None
        )

        def pass_on(number: int) -> None:
            guest.post("signal", {"process": process.number, "signal": number})

        def resize(_: int = 0) -> None:
            rows, columns = size_of(terminal or 0)
            guest.post("resize", {"process": process.number, "rows": rows, "columns": columns})

        with contextlib.ExitStack() as stack:
            if terminal is None:
                stack.enter_context(signals(PASSED_ON, guest.watch, pass_on))
            else:
                stack.enter_context(raw(terminal))
                stack.enter_context(signals((SIGWINCH,), guest.watch, resize))
                resize()
            guest.start(NAME)
            running = time.monotonic()
            ending = guest.wait(process, setting.limits.command)
            guest.unwatch()
        stats = _stats(guest)
        after = guest.report()
        guest.delete(NAME)
        guest.shut_down()
    return ContainerOutcome(
        ending=ending,
        reports=(before, after),
        stats=stats,
        agent_version=guest.agent_version,
        qemu_argv=tuple(guest.qemu_argv),
        seconds_to_start=running - started,
        seconds=time.monotonic() - started,
    )


def container_record(session: Session, outcome: ContainerOutcome) -> dict[str, object]:
    """What became of a container, as plain data; `cmdline` is exactly what was measured."""
    ending = outcome.ending
    return {
        "name": session.manifest.name,
        "version": session.manifest.version,
        "build_id": session.manifest.build_id,
        "accelerator": session.setting.launch.accelerator,
        "memory_mib": session.spec.memory_mib,
        "cmdline": session.spec.cmdline,
        "qemu": list(outcome.qemu_argv),
        "agent": outcome.agent_version,
        "exit_status": ending.exit_status,
        "signal": ending.signal,
        "oom": ending.oom,
        "stats": outcome.stats,
        "seconds_to_start": round(outcome.seconds_to_start, 3),
        "seconds": round(outcome.seconds, 3),
        "reports": list(outcome.reports),
    }


def _stats(guest: Guest) -> Result | None:
    try:
        return guest.stats(NAME)
    except RefusedError:
        return None


def parse_bytes(flag: str, text: str) -> int:
    """Bytes of ``64M``, ``1g``, ``512 MiB``: binary units, as docker reads them.

    Raises `RecipeError` for anything else, and for less than 6 MiB.
    """
    match = re.fullmatch(r"\s*([0-9]{1,12})\s*([A-Za-z]+)\s*", text, re.ASCII)
    shift = _UNITS.get(match[2].upper()) if match else None
    if match is None or shift is None:
        raise RecipeError(f"{flag}: '{text}' is not a size", hint=f"{flag} 64M, {flag} 1G")
    size = int(match[1]) << shift
    if not LEAST_BYTES <= size < 1 << 50:
        raise RecipeError(f"{flag}: '{text}' is not from 6 MiB to 1 PiB", hint=f"{flag} 64M")
    return size
