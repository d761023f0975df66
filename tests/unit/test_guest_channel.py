# SPDX-License-Identifier: Apache-2.0
"""Frames, messages, and their order, against a guest that may send anything."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkit.guest.channel import (
    MAX_PAYLOAD,
    Decoder,
    Frame,
    FrameType,
    ViolationError,
    credit,
    decode_credit,
    decode_message,
    encode_message,
)

frames = st.builds(
    Frame, st.sampled_from(FrameType), st.integers(0, 65535), st.binary(max_size=300)
)


@given(st.lists(frames, max_size=8), st.integers(1, 50))
def test_frames_survive_any_cutting_of_the_stream(sent: list[Frame], piece: int) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    decoder = Decoder()
    arrived: list[Frame] = []
    for start in range(0, len(wire), piece):
        arrived += decoder.feed(wire[start : start + piece])
    assert arrived == sent


def test_a_frame_of_64_kib_passes() -> None:
    frame = Frame(FrameType.STDOUT, 1, b"x" * MAX_PAYLOAD)
    assert list(Decoder().feed(frame.encode())) == [frame]


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        ("01000100 02 00 0100", "a frame of 65537 bytes"),
        ("ffffffff 02 00 0100", "a frame of 4294967295 bytes"),
        ("00000000 05 00 0100", "unknown type 5"),
        ("00000000 02 01 0100", "reserved byte is 1"),
    ],
)
def test_a_bad_header_is_refused_before_its_payload_comes(header: str, cause: str) -> None:
    with pytest.raises(ViolationError, match=cause):
        list(Decoder().feed(bytes.fromhex(header)))


@given(st.binary(max_size=400))
def test_no_bytes_break_the_decoder_in_another_way_than_by_its_own_error(data: bytes) -> None:
    with contextlib.suppress(ViolationError):
        for frame in Decoder().feed(data):
            decode_message(frame.payload)


def test_a_message_is_read_as_it_was_written() -> None:
    message = {"id": 1, "method": "run", "params": {"argv": ["ä", "\x1b"], "stdin": False}}
    [frame] = Decoder().feed(encode_message(message))
    assert decode_message(frame.payload) == message


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b'{"result": {}', "not JSON"),
        (b"[]", "not an object"),
        (b'"id"', "not an object"),
        (b'{"id": 1, "id": 1}', "a key twice"),
        (b'{"id": {"x": 1, "x": 1}}', "a key twice"),
        (b'{"id": NaN}', "not an integer"),
        (b'{"id": 1e999}', "not an integer"),
        (b'{"id": 18446744073709551616}', "beyond 64 bits"),
        (b'{"id": -9223372036854775809}', "beyond 64 bits"),
        (b'{"id": ' + b"9" * 5000 + b"}", "beyond 64 bits"),
        (b'{"id": ' + b"[" * 16 + b"]" * 16 + b"}", "nested deeper"),
        (b'{"id": ' + b"[" * 60000, "nested deeper"),
        (b'{"id": ' + b"[" * 30000 + b"]" * 30000 + b"}", "nested deeper"),
        (b'{"id": [' + b"1," * 4095 + b"1]}", "more than 4096 values"),
    ],
)
def test_what_is_not_a_message_is_refused(payload: bytes, cause: str) -> None:
    with pytest.raises(ViolationError, match=cause):
        decode_message(payload)


def test_a_message_at_every_limit_passes() -> None:
    deep = b'{"id": ' + b"[" * 14 + b"1" + b"]" * 14 + b"}"
    assert list(decode_message(deep)) == ["id"]
    wide = b'{"id": [' + b"1," * 4093 + b"18446744073709551615]}"
    assert decode_message(wide)["id"][-1] == (1 << 64) - 1  # type: ignore[index]


def test_a_credit_is_read_as_it_was_written() -> None:
    frame = credit(7, FrameType.STDOUT, 32768)
    assert (frame.type, frame.process) == (FrameType.CREDIT, 7)
    assert decode_credit(frame.payload) == (2, 32768)


@pytest.mark.parametrize(
    "payload",
    [b"", b"1234567", b"123456789", struct.pack("<II", 1, 0), struct.pack("<II", 1, 32769)],
)
def test_a_credit_of_another_size_or_for_too_much_is_refused(payload: bytes) -> None:
    with pytest.raises(ViolationError, match="a credit"):
        decode_credit(payload)
