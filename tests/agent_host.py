# SPDX-License-Identifier: Apache-2.0
"""The host's end of a connection to the agent, as small as it can be: frames, answers, windows.

Written for the tests alone and independent of `sevkit.guest`, so that an error in one of the two
does not hide in the other.
"""

import json
import os
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTROL, STDIN, STDOUT, STDERR, CREDIT = range(5)
SHUTDOWN, HOST_LEFT, SIGNALLED, FAILED = range(10, 14)
WINDOW = 32768
PATIENCE = 30.0


class RefusedError(Exception):
    """The agent's answer was an error: ``what`` and ``errno``."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(what, errno)
        self.what, self.errno = what, errno


class Host:
    """One connection. Grants output at once, unless `greedy` is turned off."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.greedy = True
        self.events: list[Any] = []
        self.answers: dict[int, Any] = {}
        self.output: dict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self.ended: set[tuple[int, int]] = set()
        self.window: dict[int, int] = defaultdict(lambda: WINDOW)
        self._last_id = 0

    def send(self, kind: int, payload: bytes, process: int = 0) -> None:
        self.sock.sendall(struct.pack("<IBBH", len(payload), kind, 0, process) + payload)

    def ask(self, method: str, **params: Any) -> int:
        """Send a request; returns its id."""
        self._last_id += 1
        request = {"id": self._last_id, "method": method, "params": params}
        self.send(CONTROL, json.dumps(request).encode())
        return self._last_id

    def answer(self, number: int) -> Any:
        """The result of the request `number`. Raises `RefusedError`."""
        while number not in self.answers:
            self.receive()
        answer = self.answers.pop(number)
        assert set(answer) in ({"id", "result"}, {"id", "error"})
        if "error" in answer:
            assert set(answer["error"]) == {"what", "errno"}
            raise RefusedError(**answer["error"])
        return answer["result"]

    def call(self, method: str, **params: Any) -> Any:
        return self.answer(self.ask(method, **params))

    def run(self, *argv: str, **params: Any) -> int:
        params.setdefault("env", [f"PATH={os.environ['PATH']}"])
        result = self.call("run", argv=argv, **params)
        assert set(result) == {"process"}
        return int(result["process"])

    def outcome(self, process: int) -> tuple[dict[str, Any], bytes, bytes]:
        """How the process ended, and all that it wrote to stdout and stderr."""
        end = self.call("wait", process=process)
        streams = [bytes(self.output.pop((process, kind), b"")) for kind in (STDOUT, STDERR)]
        return end, streams[0], streams[1]

    def feed(self, process: int, data: bytes) -> None:
        """Send stdin as far as the window goes, waiting for more of it."""
        view = memoryview(data)
        while view:
            while not self.window[process]:
                self.receive()
            piece = view[: self.window[process]]
            self.window[process] -= len(piece)
            self.send(STDIN, piece.tobytes(), process)
            view = view[len(piece) :]

    def end_stdin(self, process: int) -> None:
        self.send(STDIN, b"", process)

    def grant(self, process: int, kind: int, count: int) -> None:
        self.send(CREDIT, struct.pack("<II", kind, count), process)

    def receive(self) -> None:
        """Take in one frame."""
        length, kind, zero, process = struct.unpack("<IBBH", self._exactly(8))
        assert zero == 0
        payload = self._exactly(length)
        if kind == CONTROL:
            assert process == 0
            message = json.loads(payload)
            if "event" in message:
                self.events.append(message)
            else:
                assert message["id"] not in self.answers
                self.answers[message["id"]] = message
        elif kind == CREDIT:
            stream, count = struct.unpack("<II", payload)
            assert stream == STDIN
            self.window[process] += count
            assert 0 < count <= self.window[process] <= WINDOW
        else:
            assert kind in (STDOUT, STDERR)
            assert (process, kind) not in self.ended
            self.output[process, kind] += payload
            if not payload:
                self.ended.add((process, kind))
            elif self.greedy:
                self.grant(process, kind, length)

    def event(self) -> Any:
        while not self.events:
            self.receive()
        return self.events.pop(0)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError(f"the agent left after {bytes(data)!r}")
            data += piece
        return bytes(data)


class Agent:
    """The service as a process, its owner's connection, and a way to open another."""

    def __init__(self, owner: Host, process: "subprocess.Popen[str]", address: Path) -> None:
        self.owner = owner
        self.process = process
        self.pid = process.pid
        self._address = address

    @contextmanager
    def another(self) -> Iterator[Host]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self._address))
            yield Host(sock)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def serving(
    program: Path, folder: Path, *, sealed: bool = False, through: Sequence[str] = ()
) -> Iterator[Agent]:
    """Start tests/serve.c with a port and a listener; `through` starts it in its turn."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    address = folder / "listener"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        fds = [theirs.fileno(), listener.fileno()]
        argv = [*through, str(program), *map(str, fds), *(["sealed"] if sealed else [])]
        process = subprocess.Popen(
            argv, pass_fds=fds, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    theirs.close()
    with process:
        try:
            yield Agent(Host(ours), process, address)
        finally:
            ours.close()
            process.kill()


IGNORING_32_AND_33 = (
    sys.executable,
    "-c",
    """
import ctypes, os, struct, sys
ignore = struct.pack("<4Q", 1, 0, 0, 0)
for number in (32, 33):
    assert ctypes.CDLL(None).syscall(13, number, ignore, None, 8) == 0
os.execv(sys.argv[1], sys.argv[1:])
""",
)
"""Some parents ignore the signals that the C library refuses to touch: rt_sigaction(2) itself."""
