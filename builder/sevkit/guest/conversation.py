# SPDX-License-Identifier: Apache-2.0
"""What is said between host and agent, and in which order: hello, report, run, output, end.

Takes and gives bytes; whoever owns it does the I/O and keeps the time. Anything out of order from
the guest is a `ViolationError`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from sevkit.errors import ImageError, RecipeError
from sevkit.guest.channel import (
    CONTROL,
    MAX_PAYLOAD,
    PROTOCOL,
    Decoder,
    Frame,
    FrameType,
    ViolationError,
    decode_message,
    encode_message,
)
from sevkit.guest.console import visible
from sevkit.stage import Json

ROOTFS_TAG = "rootfs"
_PROCESS = 1

Report = dict[str, Json]


@dataclass(frozen=True)
class Command:
    """A command in the guest. `env` are NAME=value; the agent's own search path applies without."""

    argv: Sequence[str]
    env: Sequence[str] = (
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )
    cwd: str = "/"
    in_rootfs: bool = False
    reads_stdin: bool = False

    def encode(self) -> bytes:
        """The request. Raises `RecipeError` when it can't be put in a message."""
        rootfs = {"type": "9p", "tag": ROOTFS_TAG} if self.in_rootfs else None
        try:
            return encode_message(
                "run",
                {
                    "argv": list(self.argv),
                    "env": list(self.env),
                    "cwd": self.cwd,
                    "rootfs": rootfs,
                    "stdin": self.reads_stdin,
                },
            )
        except UnicodeEncodeError:
            raise RecipeError("the command is not UTF-8, which the agent's protocol is") from None
        except ValueError as error:
            raise RecipeError(
                f"the command is too long for one message: {error}",
                hint="put it in a file of the root that --rootfs gives",
            ) from None


class Phase(Enum):
    """What the guest owes next."""

    HELLO = "its greeting"
    REPORT = "its report"
    RUNNING = "the command's end"
    LAST_REPORT = "its report after the command"
    POWER_OFF = "to power off"


class Conversation:
    """One guest from its greeting to its end.

    `output` takes what the command writes, `on_report` each report as it arrives.
    """

    def __init__(
        self,
        command: Command | None,
        output: Callable[[FrameType, bytes], None],
        on_report: Callable[[Report], None],
    ) -> None:
        self.phase = Phase.HELLO
        self.agent_version = ""
        self.exit_status: int | None = None
        """Of the command: its own, or 128 + the signal that ended it. 0 when there is none."""
        self._command = command
        self._request = command.encode() if command else b""
        self._output = output
        self._on_report = on_report
        self._decoder = Decoder()
        self._outgoing = bytearray()

    @property
    def outgoing(self) -> bytearray:
        """What is to be sent; the owner deletes what it has sent."""
        return self._outgoing

    @property
    def reads_stdin(self) -> bool:
        """Whether the command runs and wants input."""
        return (
            self.phase is Phase.RUNNING and self._command is not None and self._command.reads_stdin
        )

    def give_stdin(self, data: bytes) -> None:
        """Input of the command; empty is its end."""
        for start in range(0, max(1, len(data)), MAX_PAYLOAD):
            piece = data[start : start + MAX_PAYLOAD]
            self._outgoing += Frame(FrameType.STDIN, _PROCESS, piece).encode()

    def receive(self, data: bytes) -> None:
        """Take what the guest sent. Raises `ViolationError`; `ImageError` for what it can't do."""
        for frame in self._decoder.feed(data):
            if frame.type is FrameType.MESSAGE:
                if frame.process != CONTROL:
                    raise ViolationError(f"a message for process {frame.process}")
                self._take_message(*decode_message(frame.payload))
            else:
                self._take_output(frame)

    def _take_output(self, frame: Frame) -> None:
        if frame.type is FrameType.STDIN:
            raise ViolationError("input for the host")
        if self.phase is not Phase.RUNNING or frame.process != _PROCESS:
            raise ViolationError(f"output of process {frame.process}, which does not run")
        self._output(frame.type, frame.payload)

    def _take_message(self, name: str, body: Report) -> None:
        if name == "error":
            raise _refusal(body)
        expected = {
            Phase.HELLO: "hello",
            Phase.REPORT: "report",
            Phase.RUNNING: "exited",
            Phase.LAST_REPORT: "report",
        }.get(self.phase)
        if name != expected:
            shown = visible(name[:40])
            raise ViolationError(f"the message '{shown}' when it owed {self.phase.value}")
        if name == "hello":
            self._take_hello(body)
        elif name == "exited":
            self.exit_status = _exit_status(body)
            self.phase = Phase.LAST_REPORT
        else:
            self._on_report(body)
            self._go_on()

    def _take_hello(self, body: Report) -> None:
        protocol, agent = body.get("protocol"), body.get("agent")
        if type(protocol) is not int or not isinstance(agent, str):
            raise ViolationError("a greeting without 'protocol' and 'agent'")
        if protocol != PROTOCOL:
            raise ImageError(
                f"the agent speaks protocol {protocol}, and this sevkit {PROTOCOL}",
                hint="build the image again with this sevkit",
            )
        self.agent_version = agent
        self.phase = Phase.REPORT

    def _go_on(self) -> None:
        if self.phase is Phase.REPORT and self._command is not None:
            self._outgoing += self._request
            self.phase = Phase.RUNNING
            return
        if self._command is None:
            self.exit_status = 0
        self._outgoing += encode_message("shutdown", {})
        self.phase = Phase.POWER_OFF


def _refusal(body: Report) -> ImageError:
    what, number = body.get("what"), body.get("errno")
    cause = visible(what[:500]) if isinstance(what, str) else "without a reason"
    code = f" (errno {number})" if type(number) is int and 0 < number < 4096 else ""
    return ImageError(f"the agent could not do what was asked: {cause}{code}")


def _exit_status(body: Report) -> int:
    status, signal = body.get("status"), body.get("signal")
    if type(status) is int and 0 <= status <= 255 and signal is None:
        return status
    if type(signal) is int and 1 <= signal <= 64 and status is None:
        return 128 + signal
    raise ViolationError("an end of the command that is neither a status nor a signal")
