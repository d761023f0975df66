# SPDX-License-Identifier: Apache-2.0
"""A guest without a guest: a script in QEMU's place that speaks the agent's protocol, or breaks it.

It gets the same sockets as QEMU, by the numbers on its command line.
"""

import sys
import textwrap
from pathlib import Path

GUEST = """\
#!{python} -IS
import json, os, re, socket, struct, sys, time
fds = dict(re.findall(r"socket,id=(\\w+),fd=(\\d+)", " ".join(sys.argv)))
console = socket.socket(fileno=int(fds["console"]))
agent = socket.socket(fileno=int(fds["agent"])) if "agent" in fds else None
sleep = time.sleep

def frame(kind, payload, process=0):
    agent.sendall(struct.pack("<IBBH", len(payload), kind, 0, process) + payload)

def say(**message):
    frame(0, json.dumps(message).encode())

def hear():
    length, kind, _, process = struct.unpack("<IBBH", agent.recv(8, socket.MSG_WAITALL))
    payload = agent.recv(length, socket.MSG_WAITALL) if length else b""
    if kind == 4:
        return struct.unpack("<II", payload)
    return json.loads(payload) if kind == 0 else payload

def asked(method):
    while not isinstance(request := hear(), dict):
        pass
    assert request["method"] == method, request
    return request

def answer(request, **result):
    say(id=request["id"], result=result)

def hello():
    say(event="hello", params=dict(protocol=2, agent="0.2.0"))

def reports():
    answer(asked("report"), kernel="6.12")

def greet():
    hello()
    reports()

def runs():
    request = asked("run")
    answer(request, process=1)
    waits.append(asked("wait"))
    return request["params"]

waits = []

def end(status=7):
    answer(waits.pop(), status=status)
    reports()
    while (heard := hear()) == b"" or isinstance(heard, tuple):
        pass
    assert heard["method"] == "shutdown"

{body}
"""


def write_double(path: Path, body: str) -> Path:
    """Write the script whose last lines are `body`."""
    path.write_text(GUEST.format(python=sys.executable, body=textwrap.dedent(body)))
    path.chmod(0o755)
    return path
