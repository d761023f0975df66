# SPDX-License-Identifier: Apache-2.0
"""What a guest may say on its channel: frames as they are, and frames spelled as JSON.

Two processes are started and waited for, so that output, credit and endings belong to something.
"""

import json
from typing import Any

from sevkit.guest.channel import Frame, FrameType, credit, encode_message
from sevkit.guest.conversation import Conversation, Request
from sevkit.guest.report import report_lines

_PIECE = 16
"""Shorter than any frame that answers: what an answer leads us to ask is asked before the next."""
_SINKS = dict.fromkeys((FrameType.STDOUT, FrameType.STDERR), lambda _: None)
_HELLO = {"event": "hello", "params": {"protocol": 2, "agent": "0.2.0"}}
_REPORT = {
    "kernel": "6.12.30-sevkit",
    "uptime_ms": 900,
    "sev": {"active": "SEV-SNP", "features": ["SEV", "SEV-ES", "SEV-SNP"]},
    "swiotlb": {"total_slots": 32768, "hiwater_slots": 12, "slot_bytes": 2048},
    "virtio": [{"id": 3, "access_platform": True}, {"id": 9, "access_platform": None}],
    "memory": {"used_kib": 20480, "total_kib": 262144},
    "agent_rss_kib": 640,
    "root_fstype": "rootfs",
    "debug": True,
}


def converse(data: bytes) -> None:
    """Ask for a report and two processes, wait for both, and show what was answered."""
    conversation = Conversation()
    report = conversation.ask("report", {})
    starts = [
        conversation.ask("run", {"argv": ["a"], "stdin": True}, sinks=_SINKS),
        conversation.ask("exec", {"argv": ["b"], "tty": True}, sinks=_SINKS),
    ]
    waits: list[Request] = []
    for start in range(0, len(data), _PIECE):
        conversation.receive(data[start : start + _PIECE])
        for request in [one for one in starts if one.process is not None]:
            process = request.process
            assert process is not None
            starts.remove(request)
            conversation.give_input(process, b"in"[: process.room])
            waits.append(conversation.ask("wait", {}, process=process))
        del conversation.outgoing()[:]
    if report.answered:
        "\n".join(report_lines(report.outcome(), seconds_to_report=1.5)).encode()
    for request in (*starts, *waits):
        if request.answered:
            request.outcome()
            assert request.process is None or request.process.ending is not None


def converse_json(data: bytes) -> None:
    """A list of frames: an object is a message, a list a frame of type, process and payload."""
    try:
        frames = json.loads(data)
    except (ValueError, RecursionError):
        frames = [data.decode("utf-8", "replace")]
    converse(b"".join(map(_frame, frames if isinstance(frames, list) else [frames])))


def _frame(spelled: Any) -> bytes:
    match spelled:
        case [str(kind), int(process), payload] if kind.upper() in FrameType.__members__:
            body = bytes.fromhex(payload) if _is_hex(payload) else json.dumps(payload).encode()
            return Frame(FrameType[kind.upper()], process & 0xFFFF, body).encode()
    return Frame(FrameType.MESSAGE, 0, json.dumps(spelled).encode()).encode()


def _is_hex(payload: Any) -> bool:
    return (
        isinstance(payload, str) and len(payload) % 2 == 0 and set(payload) <= {*"0123456789abcdef"}
    )


_STARTED = [_HELLO, {"id": 1, "result": _REPORT}, {"id": 2, "result": {"process": 1}}]
_CREDIT = credit(1, FrameType.STDIN, 2)
_TALK: list[Any] = [
    *_STARTED,
    ["stdout", 1, b"output".hex()],
    ["credit", 1, _CREDIT.payload.hex()],
    {"id": 3, "result": {"process": 2, "tty": True}},
    ["stderr", 1, b"trouble".hex()],
    ["stdout", 1, ""],
    ["stdout", 2, b"more".hex()],
    {"id": 4, "result": {"status": 0}},
    {"id": 5, "result": {"signal": 9, "oom": True}},
]
_REFUSED: list[Any] = [
    _HELLO,
    {"id": 1, "error": {"what": "no", "errno": 2}},
    {"id": 2, "error": {"what": "no such file", "errno": 2}},
]


def _wire(frames: list[Any]) -> bytes:
    return b"".join(
        encode_message(each) if isinstance(each, dict) else _frame(each) for each in frames
    )


SEEDS = (_wire(_STARTED), _wire(_TALK))
REFUSED = (_wire(_REFUSED),)
JSON_SEEDS = (json.dumps(_TALK).encode(),)
JSON_REFUSED = (json.dumps(_REFUSED).encode(),)
WORDS = (
    *(_CREDIT.encode(), _wire([["stdout", 1, b"output".hex()]]), _wire([["stdout", 1, ""]])),
    *(_wire([_HELLO]), _wire([{"id": 4, "result": {"status": 1}}]), b'"id":', b"null", b"1e999"),
    *(b"{" * 500, b"[" * 5000, b"-0", b'"oom":true', b'"signal":', b'"tty":true'),
)
