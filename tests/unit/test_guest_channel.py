# SPDX-License-Identifier: Apache-2.0
"""Frames, messages, and their order, against a guest that may send anything."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkit.errors import ImageError, RecipeError
from sevkit.guest.channel import (
    MAX_PAYLOAD,
    Decoder,
    Frame,
    FrameType,
    ViolationError,
    decode_message,
    encode_message,
)
from sevkit.guest.conversation import Command, Conversation, Phase, Report

HELLO = encode_message("hello", {"protocol": 1, "agent": "0.1.0"})
REPORT = encode_message("report", {"kernel": "6.12"})
TRUE = Command(["true"])
EXITED = encode_message("exited", {"status": 7})

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
        ("00000000 04 00 0100", "unknown type 4"),
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
    [frame] = Decoder().feed(encode_message("run", {"argv": ["ä", "\x1b"], "stdin": False}))
    assert decode_message(frame.payload) == ("run", {"argv": ["ä", "\x1b"], "stdin": False})


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b'{"report": {}', "not JSON"),
        (b"[]", "exactly one key"),
        (b"{}", "exactly one key"),
        (b'{"report": {}, "hello": {}}', "exactly one key"),
        (b'{"report": {}, "report": {}}', "a key twice"),
        (b'{"report": 3}', "body is not an object"),
        (b'{"report": {"x": NaN}}', "not an integer"),
        (b'{"report": {"x": 1e999}}', "not an integer"),
        (b'{"report": {"x": ' + b"9" * 5000 + b"}}", "not JSON"),
        (b'{"report": {"x": ' + b"[" * 15 + b"]" * 15 + b"}}", "nested deeper"),
        (b'{"report": ' + b"[" * 60000, "nested deeper"),
        (b'{"report": {"x": ' + b"[" * 30000 + b"]" * 30000 + b"}}", "nested deeper"),
    ],
)
def test_what_is_not_a_message_is_refused(payload: bytes, cause: str) -> None:
    with pytest.raises(ViolationError, match=cause):
        decode_message(payload)


def test_a_message_may_be_nested_sixteen_deep() -> None:
    body = b'{"report": {"x": ' + b"[" * 13 + b"1" + b"]" * 13 + b"}}"
    assert decode_message(body)[0] == "report"


class Heard:
    """Collects what a conversation lets through."""

    def __init__(self, command: Command | None = TRUE) -> None:
        self.output: list[tuple[FrameType, bytes]] = []
        self.reports: list[Report] = []
        self.conversation = Conversation(
            command, lambda *what: self.output.append(what), self.reports.append
        )

    def sent(self) -> list[str]:
        made = Decoder().feed(bytes(self.conversation.outgoing))
        return [decode_message(frame.payload)[0] for frame in made]


def out(data: bytes, process: int = 1) -> bytes:
    return Frame(FrameType.STDOUT, process, data).encode()


def test_a_conversation_goes_from_greeting_to_power_off() -> None:
    heard = Heard()
    heard.conversation.receive(HELLO + REPORT)
    assert heard.sent() == ["run"]
    heard.conversation.receive(out(b"a") + out(b"b") + EXITED)
    assert heard.sent() == ["run"]
    heard.conversation.receive(REPORT)
    assert heard.sent() == ["run", "shutdown"]
    assert heard.conversation.phase is Phase.POWER_OFF
    assert heard.conversation.exit_status == 7
    assert heard.output == [(FrameType.STDOUT, b"a"), (FrameType.STDOUT, b"b")]
    assert len(heard.reports) == 2


def test_without_a_command_the_guest_is_shut_down_after_its_report() -> None:
    heard = Heard(command=None)
    heard.conversation.receive(HELLO + REPORT)
    assert heard.sent() == ["shutdown"]
    assert heard.conversation.exit_status == 0


def test_a_command_that_a_signal_ends_has_the_status_of_a_shell() -> None:
    heard = Heard()
    heard.conversation.receive(HELLO + REPORT + encode_message("exited", {"signal": 9}))
    assert heard.conversation.exit_status == 137


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        (REPORT, "'report' when it owed its greeting"),
        (HELLO + HELLO, "'hello' when it owed its report"),
        (HELLO + EXITED, "'exited' when it owed its report"),
        (HELLO + REPORT + REPORT, "'report' when it owed the command's end"),
        (HELLO + REPORT + EXITED + EXITED, "'exited' when it owed its report after"),
        (HELLO + REPORT + EXITED + REPORT + REPORT, "'report' when it owed to power off"),
        (HELLO + REPORT + EXITED + out(b"late"), "output of process 1, which does not run"),
        (out(b"early"), "output of process 1, which does not run"),
        (HELLO + REPORT + out(b"x", 2), "output of process 2"),
        (HELLO + REPORT + Frame(FrameType.STDIN, 1, b"").encode(), "input for the host"),
        (Frame(FrameType.MESSAGE, 1, b"{}").encode(), "a message for process 1"),
        (encode_message("\x1b[2J", {}), r"message '\\x1b\[2J'"),
        (encode_message("hello", {"protocol": True, "agent": "x"}), "greeting without"),
        (encode_message("hello", {"protocol": 1}), "greeting without"),
        (HELLO + REPORT + encode_message("exited", {"status": 256}), "neither"),
        (HELLO + REPORT + encode_message("exited", {"status": True}), "neither"),
        (HELLO + REPORT + encode_message("exited", {"signal": 0}), "neither"),
        (HELLO + REPORT + encode_message("exited", {"status": 0, "signal": 9}), "neither"),
    ],
)
def test_what_is_out_of_order_is_refused(sent: bytes, cause: str) -> None:
    with pytest.raises(ViolationError, match=cause):
        Heard().conversation.receive(sent)


def test_another_protocol_is_refused_with_a_way_out() -> None:
    with pytest.raises(ImageError, match="speaks protocol 2") as caught:
        Heard().conversation.receive(encode_message("hello", {"protocol": 2, "agent": "9"}))
    assert "build the image again" in caught.value.hint


def test_what_the_agent_can_not_do_is_said_in_its_words_made_fit_to_show() -> None:
    error = {"request": "run", "what": "cannot mount\x1b]0;x\x07\ud800", "errno": 2}
    payload = json.dumps({"error": error}).encode()
    with pytest.raises(ImageError) as caught:
        Heard().conversation.receive(HELLO + Frame(FrameType.MESSAGE, 0, payload).encode())
    assert "cannot mount\\x1b]0;x\\x07\\ud800 (errno 2)" in caught.value.what


def test_input_is_cut_into_frames_and_ends_with_an_empty_one() -> None:
    heard = Heard(Command(["cat"], reads_stdin=True))
    heard.conversation.receive(HELLO + REPORT)
    assert heard.conversation.reads_stdin
    heard.conversation.outgoing.clear()
    heard.conversation.give_stdin(b"x" * (MAX_PAYLOAD + 1))
    heard.conversation.give_stdin(b"")
    made = list(Decoder().feed(bytes(heard.conversation.outgoing)))
    assert [len(frame.payload) for frame in made] == [MAX_PAYLOAD, 1, 0]
    assert {(frame.type, frame.process) for frame in made} == {(FrameType.STDIN, 1)}


def test_a_command_that_fits_no_message_is_refused_before_a_guest_starts() -> None:
    assert Heard(Command(["x" * 60000])).conversation.phase is Phase.HELLO
    with pytest.raises(RecipeError, match="too long"):
        Heard(Command(["x" * 70000]))
    with pytest.raises(RecipeError, match="not UTF-8"):
        Heard(Command(["\udcff"]))
