# SPDX-License-Identifier: Apache-2.0
"""A guest that runs: what it can be asked, one call for each request of the protocol.

Owns the time: whatever the guest owes has a limit, so a guest that dies, panics or falls silent is
an `ImageError`. One thread: while a call waits for its own answer, the streams of all processes go
on. Never prints.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sevkit.canonical import Json
from sevkit.errors import HostError, ImageError
from sevkit.guest.channel import FrameType, ViolationError
from sevkit.guest.console import Console
from sevkit.guest.conversation import (
    Conversation,
    Ending,
    Process,
    Report,
    Request,
    Result,
    Sink,
)
from sevkit.guest.machine import Input, Machine

_SLOW = ("create", "start", "exec", "delete", "run")
_OWED = {"report": "its report", "run": "the command's start", "wait": "the command's end"}


@dataclass(frozen=True)
class Limits:
    """How long a guest may take, in seconds: absolute, whatever it says meanwhile."""

    hello: float
    answer: float
    power_off: float
    command: float | None = None
    panic: float = 3.0
    """From the kernel's last words to the end of QEMU."""
    container: float = 180.0
    """For what crun does."""


@dataclass(frozen=True)
class Streams:
    """What becomes of a process's output, and where its input comes from.

    `stdin` is a descriptor that is read to its end; None is an empty input. `tty` is the size of a
    terminal in rows and columns, when it gets one.
    """

    stdout: Sink = field(default=lambda _: None)
    stderr: Sink = field(default=lambda _: None)
    stdin: int | None = None
    tty: tuple[int, int] | None = None

    def sinks(self) -> Mapping[FrameType, Sink]:
        """The same by frame type."""
        return {FrameType.STDOUT: self.stdout, FrameType.STDERR: self.stderr}


class Guest:
    """The agent of a running guest, after its greeting.

    Each call raises `RefusedError` for what the agent could not do, `RecipeError` for what fits no
    message, and `ImageError` for a guest that breaks the protocol, dies or falls silent.
    """

    def __init__(
        self, machine: Machine, conversation: Conversation, console: Console, limits: Limits
    ) -> None:
        self.console = console
        self.limits = limits
        self._machine = machine
        self._conversation = conversation
        self._inputs: dict[int, Process] = {}
        self._watched: dict[int, Input] = {}

    @property
    def agent_version(self) -> str:
        """As the greeting says it, fit to show."""
        return self._conversation.agent_version

    @property
    def qemu_pid(self) -> int:
        """The process that holds the guest's memory."""
        return self._machine.pid

    @property
    def qemu_argv(self) -> Sequence[str]:
        """The command line of that process."""
        return self._machine.argv

    def greet(self) -> None:
        """Wait for the greeting."""
        self._until(lambda: self.agent_version != "", "its greeting", self.limits.hello)

    def report(self) -> Report:
        """What the guest says of itself."""
        return self._call("report", {})

    def run(
        self,
        argv: Sequence[str],
        streams: Streams,
        *,
        env: Sequence[str] = (),
        cwd: str = "/",
        share: str | None = None,
    ) -> Process:
        """Start a command outside any container; its root is the 9p `share`, or the initramfs."""
        params = self._command(argv, streams, env, cwd)
        return self._begin("run", {**params, "rootfs": _share(share)}, streams)

    def create(
        self,
        container: str,
        streams: Streams,
        *,
        config: Mapping[str, Json] | None = None,
        share: str | None = None,
    ) -> Process:
        """Make a container of a 9p `share` or of the workload image; gives its first process.

        Without `config` that of the workload image holds.
        """
        rows, columns = streams.tty or (24, 80)
        params: dict[str, Json] = {
            "container": container,
            "config": None if config is None else json.dumps(config, separators=(",", ":")),
            "rootfs": _share(share) or {"type": "image"},
            "stdin": streams.stdin is not None,
            "rows": rows,
            "columns": columns,
        }
        return self._begin("create", params, streams)

    def start(self, container: str) -> None:
        """Let the first process of a container go."""
        self._call("start", {"container": container})

    def exec(
        self,
        container: str,
        argv: Sequence[str],
        streams: Streams,
        *,
        env: Sequence[str] = (),
        cwd: str = "/",
        user: tuple[int, int] = (0, 0),
    ) -> Process:
        """Start another process in a container, as `user` (uid, gid)."""
        params = self._command(argv, streams, env, cwd)
        params |= {"container": container, "user": {"uid": user[0], "gid": user[1]}}
        return self._begin("exec", params, streams)

    def stats(self, container: str) -> Result:
        """Memory, processes and CPU time of a container."""
        return self._call("stats", {"container": container})

    def delete(self, container: str) -> None:
        """Kill what is left of a container and remove it."""
        self._call("delete", {"container": container})

    def wait(self, process: Process, seconds: float | None = None) -> Ending:
        """How `process` ended; all its output was taken. `seconds`: no limit without."""
        self._call("wait", {"process": process.number}, process=process, limit=seconds)
        self._forget(process)
        assert process.ending is not None
        return process.ending

    def signal(self, process: Process, number: int) -> None:
        """Send a signal, 1 to 64."""
        self._call("signal", {"process": process.number, "signal": number})

    def resize(self, process: Process, rows: int, columns: int) -> None:
        """Set the size of its terminal, 1 to 65535 each."""
        self._call("resize", {"process": process.number, "rows": rows, "columns": columns})

    def post(self, method: str, params: Mapping[str, Json]) -> Request:
        """Make a request without waiting for its answer: for handlers that run inside a call."""
        return self._conversation.ask(method, params)

    def attest(self, data: bytes) -> Result:
        """The attestation report that binds `data`, 64 bytes."""
        return self._call("attest", {"data": data.hex()})

    def marker(self, seed: int) -> None:
        """Have the agent keep a page that `seed`, 64 bits, makes."""
        self._call("marker", {"seed": f"{seed:016x}"})

    def shut_down(self) -> None:
        """Power off, and wait for the end of QEMU."""
        self._conversation.ask("shutdown", {})
        self._until(lambda: False, "to power off", self.limits.power_off, ends=True)

    def watch(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        """Have `take` called with what `descriptor` has to read, inside whatever call waits."""
        self._watched[descriptor] = Input(take, 4096)

    def unwatch(self) -> None:
        """Forget the descriptors of `watch`."""
        self._watched.clear()

    def _command(
        self, argv: Sequence[str], streams: Streams, env: Sequence[str], cwd: str
    ) -> dict[str, Json]:
        rows, columns = streams.tty or (0, 0)
        return {
            "argv": list(argv),
            "env": list(env),
            "cwd": cwd,
            "stdin": streams.stdin is not None,
            "tty": {"rows": rows, "columns": columns} if streams.tty else None,
        }

    def _begin(self, method: str, params: Mapping[str, Json], streams: Streams) -> Process:
        request = self._conversation.ask(method, params, sinks=streams.sinks())
        self._answered(request, self.limits.container)
        request.outcome()
        assert request.process is not None
        if streams.stdin is not None:
            self._inputs[streams.stdin] = request.process
        return request.process

    def _call(
        self,
        method: str,
        params: Mapping[str, Json],
        *,
        process: Process | None = None,
        limit: float | None = None,
    ) -> Result:
        request = self._conversation.ask(method, params, process=process)
        if method != "wait":
            limit = self.limits.container if method in _SLOW else self.limits.answer
        self._answered(request, limit)
        return request.outcome()

    def _answered(self, request: Request, limit: float | None) -> None:
        owed = _OWED.get(request.method, f"the answer to '{request.method}'")
        self._until(lambda: request.answered, owed, limit)

    def _until(
        self, done: Callable[[], bool], owed: str, limit: float | None, *, ends: bool = False
    ) -> None:
        """Handle what happens until `done()`, or the end of QEMU where that is owed."""
        deadline = Deadline(limit, self.limits.panic)
        try:
            while not done():
                ended = self._machine.wait(
                    deadline.left(self.console),
                    outgoing=self._conversation.outgoing(),
                    inputs=self._ready_inputs(),
                )
                if ended:
                    check_qemu(self._machine, self.console, was_heard=self.agent_version != "")
                    if ends or done():
                        return
                    raise ImageError(f"the guest powered off when it owed {owed}")
                if deadline.is_over(self.console) and not done():
                    raise silent(self.console, owed, limit)
        except ViolationError as error:
            raise ImageError(f"the guest broke the agent's protocol: {error}") from error

    def _ready_inputs(self) -> dict[int, Input]:
        ready = dict(self._watched)
        if self._conversation.has_room:
            for descriptor, process in self._inputs.items():
                if process.takes_input and process.room:
                    ready[descriptor] = Input(self._feeder(process), process.room)
        return ready

    def _feeder(self, process: Process) -> Callable[[bytes], None]:
        return lambda data: self._conversation.give_input(process, data)

    def _forget(self, process: Process) -> None:
        self._inputs = {key: each for key, each in self._inputs.items() if each is not process}


class Deadline:
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
        """Whether there is no time left."""
        return self.left(console) <= 0


def silent(console: Console, owed: str, limit: float | None) -> ImageError:
    """The error for a guest that did not do in time what it owed."""
    if console.panic:
        return panicked(console)
    owed = owed if owed.startswith("to ") else f"to give {owed}"
    return ImageError(f"the guest failed {owed} within {limit:g} s")


def panicked(console: Console) -> ImageError:
    """The error for a guest whose kernel gave up."""
    return ImageError("the guest's kernel panicked", why=console.panic)


def check_qemu(machine: Machine, console: Console, *, was_heard: bool) -> None:
    """Raise for a QEMU that did not end well."""
    if console.panic:
        raise panicked(console)
    status = machine.exit_status or 0
    if status < 0:
        raise ImageError(f"QEMU was ended by signal {-status}")
    if status > 0 and not was_heard and not any(console.end()):
        raise HostError("QEMU does not start the guest")
    if status > 0:
        raise ImageError(f"QEMU failed with status {status}")


def _share(tag: str | None) -> dict[str, Json] | None:
    return None if tag is None else {"type": "9p", "tag": tag}
