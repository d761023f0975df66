# SPDX-License-Identifier: Apache-2.0
"""The agent's frames and messages as bytes: docs/agent-protocol.md, version 2.

The other end is a guest, which may be hostile: whatever arrives is bounded in size, depth and
number, and anything that is not exactly a frame or a message is a `ViolationError`. Does no I/O.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

from sevkit.canonical import Json

PROTOCOL = 2
MAX_PAYLOAD = 65536
MAX_DEPTH = 16
MAX_VALUES = 4096
WINDOW_BYTES = 32768
"""Of one stream: as much may be on its way without a grant."""
PORT_NAME = "org.sevkit.agent.0"
CONTROL = 0
"""The process number of frames that belong to no process."""

_HEADER = struct.Struct("<IBBH")
_CREDIT = struct.Struct("<II")


class FrameType(IntEnum):
    """What a frame carries."""

    MESSAGE = 0
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    CREDIT = 4


class ViolationError(Exception):
    """The other end broke the protocol; the text says how, and is safe to show."""


@dataclass(frozen=True)
class Frame:
    """One frame: payload up to 65536 bytes, process 0 for messages."""

    type: FrameType
    process: int
    payload: bytes

    def encode(self) -> bytes:
        """The frame as it goes over the wire."""
        return _HEADER.pack(len(self.payload), self.type, 0, self.process) + self.payload


class Decoder:
    """Cuts a stream into frames. Holds at most one frame and what was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises `ViolationError` at the first bad header."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            length, kind, zero, process = _HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                raise ViolationError(f"a frame of {length} bytes, more than {MAX_PAYLOAD}")
            if kind > max(FrameType):
                raise ViolationError(f"a frame of the unknown type {kind}")
            if zero != 0:
                raise ViolationError(f"a frame whose reserved byte is {zero}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Frame(FrameType(kind), process, payload)


def credit(process: int, stream: FrameType, size: int) -> Frame:
    """The frame that grants `size` more bytes (1 to 32768) of a stream."""
    return Frame(FrameType.CREDIT, process, _CREDIT.pack(stream, size))


def decode_credit(payload: bytes) -> tuple[int, int]:
    """The stream's type and the bytes that a credit frame grants. Raises `ViolationError`."""
    if len(payload) != _CREDIT.size:
        raise ViolationError(f"a credit of {len(payload)} bytes instead of {_CREDIT.size}")
    stream, size = _CREDIT.unpack(payload)
    if not 1 <= size <= WINDOW_BYTES:
        raise ViolationError(f"a credit for {size} bytes")
    return stream, size


def encode_message(message: Mapping[str, Json]) -> bytes:
    """A message as the frame that carries it. Raises `ValueError` when it does not fit one."""
    payload = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{len(payload)} bytes, more than {MAX_PAYLOAD}")
    return Frame(FrameType.MESSAGE, CONTROL, payload).encode()


def decode_message(payload: bytes) -> dict[str, Json]:
    """The object that is a message. Raises `ViolationError`."""
    try:
        message = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_float=_no_number,
            parse_int=_whole_number,
        )
    except RecursionError:
        raise ViolationError(f"a message nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ViolationError(f"a message that is not JSON ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ViolationError("a message that is not an object")
    _check_size(message)
    return message


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ViolationError("a message that has a key twice")
    return made


def _no_number(_: str) -> NoReturn:
    raise ViolationError("a message with a number that is not an integer")


def _whole_number(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ViolationError("a message with a number beyond 64 bits")
    return int(text)


def _check_size(value: object) -> None:
    layer: list[object] = [value]
    depth = values = 0
    while layer:
        depth += 1
        values += len(layer)
        if depth > MAX_DEPTH:
            raise ViolationError(f"a message nested deeper than {MAX_DEPTH}")
        if values > MAX_VALUES:
            raise ViolationError(f"a message of more than {MAX_VALUES} values")
        inner: list[object] = []
        for item in layer:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        layer = inner
