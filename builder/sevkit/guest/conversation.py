# SPDX-License-Identifier: Apache-2.0
"""One connection to an agent: requests and their answers, processes and their windows.

Takes and gives bytes; whoever owns it does the I/O and keeps the time. Anything out of order from
the guest is a `ViolationError`. Holds no output: a sink takes what arrives at once, and only then
more is granted.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sevkit.canonical import Json
from sevkit.errors import ImageError, RecipeError
from sevkit.guest.channel import (
    CONTROL,
    PROTOCOL,
    WINDOW_BYTES,
    Decoder,
    Frame,
    FrameType,
    ViolationError,
    credit,
    decode_credit,
    decode_message,
    encode_message,
)
from sevkit.printable import printable

Report = dict[str, Json]
Result = dict[str, Json]
Sink = Callable[[bytes], object]
"""Takes output of a process; when it returns, it has dealt with the bytes."""

_OUTPUT = (FrameType.STDOUT, FrameType.STDERR)
_STARTING = ("run", "create", "exec")
_GRANT_BYTES = 8192
"""Less is not worth a frame: three quarters of the window are still open."""
_QUEUE_BYTES = 65536


class RefusedError(ImageError):
    """The agent could not do what was asked: its words, made fit to show, and Linux's `errno`."""

    def __init__(self, method: str, what: str, errno: int) -> None:
        code = f" (errno {errno})" if errno else ""
        super().__init__(f"the agent could not {method}: {what}{code}")
        self.errno = errno


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit status, or the signal that ended it."""

    status: int | None
    signal: int | None
    oom: bool = False
    """Whether the kernel killed something in the container for want of memory."""

    @property
    def exit_status(self) -> int:
        """As a shell says it: 128 + the signal."""
        return 128 + (self.signal or 0) if self.status is None else self.status


@dataclass
class Request:
    """A request that was made; `result` or `error` is there once it was answered."""

    method: str
    params: Mapping[str, Json]
    process: "Process | None" = None
    """The process that it started, once answered, or that it is about."""
    result: Result | None = None
    error: RefusedError | None = None
    sinks: Mapping[FrameType, Sink] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether the guest has answered it."""
        return self.result is not None or self.error is not None

    def outcome(self) -> Result:
        """The result of an answered request. Raises its `RefusedError`."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


@dataclass
class Process:
    """A process in the guest. `room` is how many bytes of input it takes now."""

    number: int
    sinks: Mapping[FrameType, Sink]
    room: int = 0
    takes_input: bool = False
    ending: Ending | None = None
    granted: dict[FrameType, int] = field(default_factory=dict)
    """Stream → how many bytes the guest may still send; a stream that has ended is not there."""
    taken: dict[FrameType, int] = field(default_factory=dict)
    """Stream → how many bytes were dealt with and not granted anew."""


class Conversation:
    """What is said on one connection. `agent_version` is empty until the greeting came."""

    def __init__(self) -> None:
        self.agent_version = ""
        self._outgoing = bytearray()
        self._decoder = Decoder()
        self._numbers = itertools.count(1)
        self._open: dict[int, Request] = {}
        self._processes: dict[int, Process] = {}

    @property
    def has_room(self) -> bool:
        """Whether more input may be queued: the guest reads what it is sent."""
        return len(self._outgoing) < _QUEUE_BYTES

    def outgoing(self) -> bytearray:
        """What is to be sent; the owner deletes what it has sent.

        A guest that reads nothing is granted nothing, so what it makes us send stays bounded.
        """
        for process in self._processes.values():
            for stream, size in process.taken.items():
                if size >= _GRANT_BYTES and stream in process.granted and self.has_room:
                    self._outgoing += credit(process.number, stream, size).encode()
                    process.granted[stream] += size
                    process.taken[stream] = 0
        return self._outgoing

    def ask(
        self,
        method: str,
        params: Mapping[str, Json],
        *,
        process: Process | None = None,
        sinks: Mapping[FrameType, Sink] | None = None,
    ) -> Request:
        """Make a request. `sinks` take the output of the process that it starts.

        Raises `RecipeError` when it can't be put in a message.
        """
        request = Request(method, params, process, sinks=sinks or {})
        number = next(self._numbers)
        try:
            self._outgoing += encode_message(
                {"id": number, "method": method, "params": dict(params)}
            )
        except UnicodeEncodeError:
            raise RecipeError("the command is not UTF-8, which the agent's protocol is") from None
        except ValueError as error:
            raise RecipeError(
                f"the command is too long for one message: {error}",
                hint="put it in a file of the root file system",
            ) from None
        self._open[number] = request
        return request

    def give_input(self, process: Process, data: bytes) -> None:
        """Input for a process, at most its `room`; empty is its end. Ignored after its end."""
        if not process.takes_input:
            return
        assert len(data) <= process.room
        process.room -= len(data)
        process.takes_input = bool(data)
        self._outgoing += Frame(FrameType.STDIN, process.number, data).encode()

    def receive(self, data: bytes) -> None:
        """Take what the guest sent. Raises `ViolationError`; `ImageError` for another protocol."""
        for frame in self._decoder.feed(data):
            if frame.type is FrameType.MESSAGE:
                if frame.process != CONTROL:
                    raise ViolationError(f"a message for process {frame.process}")
                self._take_message(decode_message(frame.payload))
            elif frame.type is FrameType.STDIN:
                raise ViolationError("input for the host")
            elif frame.type is FrameType.CREDIT:
                self._take_credit(frame)
            else:
                self._take_output(frame)

    def _take_output(self, frame: Frame) -> None:
        process = self._process(frame.process, "output")
        room = process.granted.get(frame.type)
        if room is None:
            raise ViolationError(f"output of process {frame.process} after the end of that stream")
        if len(frame.payload) > room:
            raise ViolationError(f"more output of process {frame.process} than was granted")
        if not frame.payload:
            del process.granted[frame.type]
            return
        process.granted[frame.type] -= len(frame.payload)
        process.sinks.get(frame.type, _nobody)(frame.payload)
        process.taken[frame.type] = process.taken.get(frame.type, 0) + len(frame.payload)

    def _take_credit(self, frame: Frame) -> None:
        process = self._process(frame.process, "credit")
        stream, size = decode_credit(frame.payload)
        if stream != FrameType.STDIN:
            raise ViolationError(f"credit for the stream {stream}")
        if process.room + size > WINDOW_BYTES:
            raise ViolationError(f"more credit for process {frame.process} than its window")
        process.room += size

    def _process(self, number: int, what: str) -> Process:
        process = self._processes.get(number)
        if process is None:
            raise ViolationError(f"{what} of process {number}, which does not run")
        return process

    def _take_message(self, message: dict[str, Json]) -> None:
        if "event" in message:
            self._take_event(message.get("event"), message.get("params"))
            return
        if not self.agent_version:
            raise ViolationError("an answer before its greeting")
        number = message.get("id")
        request = self._open.pop(number, None) if type(number) is int else None
        if request is None:
            raise ViolationError("an answer to no request")
        result, error = message.get("result"), message.get("error")
        if isinstance(error, dict) and result is None:
            request.error = _refusal(request.method, error)
        elif isinstance(result, dict) and error is None:
            self._take_result(request, result)
        else:
            raise ViolationError("an answer that is neither a result nor an error")

    def _take_event(self, name: Json, params: Json) -> None:
        body = params if isinstance(params, dict) else {}
        if name == "malformed":
            what = _shown(body.get("what"))
            raise ViolationError(f"it says that the host does: {what}")
        if name == "hello" and not self.agent_version:
            self.agent_version = _greeting(body)
            return
        raise ViolationError(f"the event '{_shown(name)}', out of order")

    def _take_result(self, request: Request, result: Result) -> None:
        if request.method in _STARTING:
            request.process = self._started(request, result)
        elif request.method == "wait" and request.process is not None:
            request.process.ending = _ending(result)
            request.process.takes_input = False
            del self._processes[request.process.number]
        request.result = result

    def _started(self, request: Request, result: Result) -> Process:
        number = result.get("process")
        if type(number) is not int or not 1 <= number <= 65535 or number in self._processes:
            raise ViolationError("a process without a number of its own")
        has_tty = bool(request.params.get("tty")) or result.get("tty") is True
        streams = _OUTPUT[:1] if has_tty else _OUTPUT
        process = Process(
            number,
            request.sinks,
            room=WINDOW_BYTES,
            takes_input=request.params.get("stdin") is True,
            granted=dict.fromkeys(streams, WINDOW_BYTES),
        )
        self._processes[number] = process
        return process


def _nobody(_: bytes) -> None:
    """Where output goes that nobody asked for."""


def _greeting(body: Report) -> str:
    protocol, agent = body.get("protocol"), body.get("agent")
    if type(protocol) is not int or not isinstance(agent, str):
        raise ViolationError("a greeting without 'protocol' and 'agent'")
    if protocol != PROTOCOL:
        raise ImageError(
            f"the agent speaks protocol {protocol}, and this sevkit {PROTOCOL}",
            hint="build the image again with this sevkit",
        )
    return printable(agent[:80]) or "unknown"


def _refusal(method: str, body: Report) -> RefusedError:
    number = body.get("errno")
    code = number if type(number) is int and 0 < number < 4096 else 0
    return RefusedError(method, _shown(body.get("what"), "it gives no reason"), code)


def _shown(value: Json, otherwise: str = "") -> str:
    return printable(value[:500]) if isinstance(value, str) else otherwise


def _ending(body: Result) -> Ending:
    status, signal = body.get("status"), body.get("signal")
    oom = body.get("oom") is True
    if type(status) is int and 0 <= status <= 255 and signal is None:
        return Ending(status, None, oom)
    if type(signal) is int and 1 <= signal <= 64 and status is None:
        return Ending(None, signal, oom)
    raise ViolationError("an end of the command that is neither a status nor a signal")
