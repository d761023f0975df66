# SPDX-License-Identifier: Apache-2.0
"""One running QEMU and the sockets to it. Dies with the block that holds it, and with sevkit.

QEMU inherits one end of each socket pair: nothing has a name in the file system, so nobody else can
connect and nothing is left behind. Knows nothing of what is said over them.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevkit.guest.console import Console
from sevkit.guest.launch import tied_to_us

_CHUNK_BYTES = 65536
_CONSOLE_CHUNK_BYTES = 16384


@dataclass(frozen=True)
class Input:
    """Who takes what a descriptor of ours has to read, and how much at once; empty is its end."""

    take: Callable[[bytes], None]
    most_bytes: int


class Machine:
    """A guest that runs: a context manager that starts it, and kills what is left in the end.

    `make_argv` is given the descriptors of the agent's port and of the console that QEMU inherits.
    `on_agent` and `on_console` take what arrives; QEMU's own words go to `complaints`. It also
    inherits the descriptors `inherited`, and sees the environment `env` instead of ours.
    """

    def __init__(
        self,
        make_argv: Callable[[int, int], Sequence[str]],
        *,
        on_agent: Callable[[bytes], None],
        on_console: Callable[[bytes], None],
        inherited: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._make_argv = make_argv
        self._inherited = tuple(inherited)
        self._env = env
        self.argv: Sequence[str] = ()
        """QEMU's command line, once it was started."""
        self.complaints = Console()
        self.exit_status: int | None = None
        """Of QEMU once it has ended; -n after signal n."""
        self._handlers = {
            "agent": on_agent,
            "console": on_console,
            "complaints": self.complaints.feed,
        }
        self._sockets: dict[int, tuple[socket.socket, Callable[[bytes], None]]] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Machine":
        with contextlib.ExitStack() as cleanup, contextlib.ExitStack() as handed_over:
            theirs = {}
            for name, handler in self._handlers.items():
                ours, theirs[name] = socket.socketpair()
                cleanup.enter_context(ours)
                handed_over.enter_context(theirs[name])
                ours.setblocking(False)
                self._sockets[ours.fileno()] = ours, handler
                if name == "agent":
                    self._agent = ours
            agent_fd, console_fd = theirs["agent"].fileno(), theirs["console"].fileno()
            self.argv = self._make_argv(agent_fd, console_fd)
            self._process = subprocess.Popen(
                tied_to_us(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=theirs["complaints"].fileno(),
                pass_fds=(agent_fd, console_fd, *self._inherited),
                env=self._env,
                start_new_session=True,
            )
            cleanup.callback(self._kill)
            self._pidfd = os.pidfd_open(self._process.pid)
            cleanup.callback(os.close, self._pidfd)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """Of QEMU."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Time that QEMU, and what it runs in, have had of a CPU (proc(5), /proc/pid/stat)."""
        ticks, pids = 0, [self.pid]
        while pids:
            pid = pids.pop()
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
                ticks += sum(map(int, fields.split()[11:13]))
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
                pids += map(int, children.split())
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait(
        self,
        seconds: float,
        *,
        outgoing: bytearray,
        inputs: Mapping[int, "Input"] | None = None,
    ) -> bool:
        """Handle what happens next, for at most `seconds` (and an hour). True once QEMU has ended.

        Sends from the front of `outgoing` and deletes what was sent. Reads the descriptors that
        are the keys of `inputs`.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        for descriptor in self._sockets:
            poll.register(descriptor, select.POLLIN)
        if outgoing and self._agent.fileno() in self._sockets:
            poll.register(self._agent, select.POLLIN | select.POLLOUT)
        for descriptor in inputs or {}:
            poll.register(descriptor, select.POLLIN)
        events = dict(poll.poll(1 + int(min(max(seconds, 0), 3600) * 1000)))
        if self._agent.fileno() in events and outgoing:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                del outgoing[: self._agent.send(outgoing)]
        for descriptor in events.keys() & self._sockets.keys():
            self._receive(descriptor)
        for descriptor, given in (inputs or {}).items():
            if descriptor in events:
                given.take(_read(descriptor, given.most_bytes))
        if self._pidfd not in events:
            return False
        for descriptor in list(self._sockets):
            while self._receive(descriptor):
                pass
        self.exit_status = self._process.wait()
        return True

    def _receive(self, descriptor: int) -> bool:
        connection, handler = self._sockets[descriptor]
        size = _CHUNK_BYTES if connection is self._agent else _CONSOLE_CHUNK_BYTES
        try:
            data = connection.recv(size)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            del self._sockets[descriptor]
            return False
        handler(data)
        return True

    def _kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _read(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes; what can't be read (a folder, a closed descriptor) is at its end."""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
