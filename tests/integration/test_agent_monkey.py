# SPDX-License-Identifier: Apache-2.0
"""A host that does anything at all, in any order, over several connections: the agent's sanitizers
and its last answers tell whether it minded."""

import contextlib
import json
import os
import random
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_host import FAILED, HOST_LEFT, PATIENCE, SHUTDOWN, Agent, Host, serving

# Only what ends by itself or with the agent, and harms nobody: the host's own system runs these.
COMMANDS = (
    ["true"],
    ["cat"],
    ["yes"],
    ["sh", "-c", "sleep 0.01; exit 3"],
    ["sh", "-c", "echo out; echo err >&2; kill -9 $$"],
    ["sh", "-c", "trap '' HUP PIPE; sleep 0.2; echo late"],
    ["no-such-command"],
)


class Monkey:
    """Sends requests, streams and nonsense that a seed chooses."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.next_id = 0

    def request(self) -> bytes:
        pick = self.choice
        self.next_id += pick.choice((1, 1, 1, 1, 1, 2))
        number = pick.randrange(1, 12)
        method, params = pick.choice(
            (
                ("run", self.run_params()),
                ("run", self.run_params()),
                ("run", self.run_params()),
                ("wait", {"process": number}),
                ("wait", {"process": number}),
                ("signal", {"process": number, "signal": pick.choice((1, 2, 9, 15, 18, 19))}),
                ("resize", {"process": number, "rows": pick.randrange(1, 99), "columns": 1}),
                ("report", {}),
                ("attest", {"data": "00" * 64}),
                ("start", {"container": "a"}),
                ("stats", {"container": "a"}),
                ("marker", {"seed": "0" * pick.choice((15, 16))}),
                ("dance", {"with": [None, True, -1, "x" * pick.randrange(1000)]}),
            )
        )
        message = {"id": self.next_id, "method": method, "params": params}
        return self.frame(0, 0, json.dumps(message).encode())

    def run_params(self) -> dict[str, object]:
        tty = self.choice.choice((None, None, {"rows": 24, "columns": 80}))
        params: dict[str, object] = {
            "argv": self.choice.choice(COMMANDS),
            "env": [f"PATH={os.environ['PATH']}"],
            "tty": tty,
        }
        if self.choice.random() < 0.5:
            params["stdin"] = True
        if self.choice.random() < 0.1:
            params["cwd"] = "/no/such/folder"
        return params

    def stream(self) -> bytes:
        pick = self.choice
        process = pick.randrange(1, 6)
        if pick.random() < 0.98:
            return self.frame(1, process, b"\x04\n" * pick.choice((0, 1, 50, 2000)))
        return self.frame(4, process, struct.pack("<II", pick.choice((2, 3)), 1))

    def nonsense(self) -> bytes:
        return self.choice.randbytes(self.choice.randrange(1, 30))

    @staticmethod
    def frame(kind: int, process: int, payload: bytes) -> bytes:
        return struct.pack("<IBBH", len(payload), kind, 0, process) + payload

    def play(self, host: Host, turns: int) -> None:
        """Send, and read now and then; until the agent has had enough."""
        host.sock.setblocking(False)
        kinds: list[Callable[[], bytes]] = [self.request] * 12 + [self.stream] * 3
        with contextlib.suppress(EOFError, OSError):
            for _ in range(6):
                push(host.sock, self.request())
            for turn in range(turns):
                data = self.choice.choice(kinds)()
                if turn > turns // 2 and self.choice.random() < 0.01:
                    data = self.nonsense()
                cut = self.choice.randrange(len(data) + 1)
                push(host.sock, data[:cut])
                push(host.sock, data[cut:])
                if self.choice.random() < 0.8:
                    drain(host.sock)


def drain(sock: socket.socket) -> None:
    """Throw away what has arrived. The end of the connection is an `EOFError`."""
    with contextlib.suppress(BlockingIOError):
        while True:
            if not sock.recv(65536):
                raise EOFError


def push(sock: socket.socket, data: bytes) -> None:
    """Send all of it. An agent whose answers nobody reads does not read either."""
    while data:
        readable, writable, _ = select.select([sock], [sock], [], PATIENCE)
        assert readable or writable, "the agent neither reads nor answers"
        if readable:
            drain(sock)
        if writable:
            data = data[sock.send(data) :]


def is_alive(agent: Agent) -> bool:
    return agent.process.poll() is None


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEVKIT_MONKEYS", "2"))))
def test_whatever_a_host_does_the_agent_ends_only_as_it_should(
    agent_check_dir: Path, tmp_path: Path, seed: int
) -> None:
    monkey = Monkey(seed)
    with serving(agent_check_dir / "serve", tmp_path) as agent:
        for _ in range(3):
            with agent.another() as second:
                monkey.play(second, 60)
            assert is_alive(agent)  # another connection's end is its own
        sane = agent.owner
        assert sane.outcome(sane.run("echo", "sane"))[1] == b"sane\n"
        monkey.play(agent.owner, 100)
        agent.owner.sock.close()
        assert agent.end() in (SHUTDOWN, HOST_LEFT, FAILED)
        _, complaint = agent.process.communicate()
        assert "Sanitizer" not in complaint
        assert "runtime error" not in complaint
