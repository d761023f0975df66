# SPDX-License-Identifier: Apache-2.0
"""Requests, answers, processes and windows, against a guest that may send anything."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkit.errors import ImageError, RecipeError
from sevkit.guest.channel import (
    WINDOW_BYTES,
    Decoder,
    Frame,
    FrameType,
    ViolationError,
    credit,
    decode_message,
    encode_message,
)
from sevkit.guest.conversation import Conversation, Ending, RefusedError, Request

HELLO = encode_message({"event": "hello", "params": {"protocol": 2, "agent": "0.2.0"}})
OUT, ERR = FrameType.STDOUT, FrameType.STDERR


def answer(number: int, **result: object) -> bytes:
    return encode_message({"id": number, "result": result})  # type: ignore[dict-item]


def out(data: bytes, process: int = 1, stream: FrameType = OUT) -> bytes:
    return Frame(stream, process, data).encode()


class Host:
    """A conversation whose greeting came, with a command that was asked for as request 1."""

    def __init__(self, **params: object) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.talk = Conversation()
        self.talk.receive(HELLO)
        self.run = self.ask(**params)

    def ask(self, **params: object) -> Request:
        sinks = {
            OUT: lambda data: self.said.append(("out", data)),
            ERR: lambda data: self.said.append(("err", data)),
        }
        return self.talk.ask("run", {"argv": ["x"], **params}, sinks=sinks)  # type: ignore[dict-item]

    def running(self) -> "Host":
        self.talk.receive(answer(1, process=1))
        self.sent()
        return self

    def sent(self) -> list[Frame]:
        queue = self.talk.outgoing()
        frames = list(Decoder().feed(bytes(queue)))
        queue.clear()
        return frames


def test_a_request_gets_its_own_answer_in_any_order() -> None:
    host = Host()
    first, second = host.talk.ask("report", {}), host.talk.ask("stats", {"container": "a"})
    messages = [decode_message(frame.payload) for frame in host.sent()]
    assert [(each["id"], each["method"]) for each in messages] == [
        (1, "run"),
        (2, "report"),
        (3, "stats"),
    ]
    host.talk.receive(answer(3, pids=1))
    assert (second.outcome(), first.answered) == ({"pids": 1}, False)
    host.talk.receive(answer(2, kernel="6.12", unknown=None))
    assert first.outcome()["kernel"] == "6.12"


def test_output_goes_to_the_sinks_of_its_own_process_and_stream() -> None:
    host = Host().running()
    other: list[bytes] = []
    host.talk.ask("exec", {}, sinks={OUT: other.append})
    host.talk.receive(answer(2, process=9))
    host.talk.receive(out(b"a") + out(b"b", stream=ERR) + out(b"c", 9) + out(b"d", 9, ERR))
    assert host.said == [("out", b"a"), ("err", b"b")]
    assert other == [b"c"]


def test_a_process_is_waited_for_and_its_number_is_free_again() -> None:
    host = Host().running()
    assert host.run.process is not None
    for number, result, ending in (
        (2, {"status": 7}, Ending(7, None)),
        (4, {"signal": 9, "oom": True}, Ending(None, 9, True)),
    ):
        process = host.run.process
        host.talk.ask("wait", {"process": 1}, process=process)
        host.talk.receive(out(b"") + answer(number, **result))
        assert process.ending == ending
        host.run = host.ask()
        host.talk.receive(answer(number + 1, process=1))
        assert host.run.process is not process
    assert Ending(None, 9).exit_status == 137


def test_output_is_granted_anew_once_it_was_taken() -> None:
    host = Host().running()
    host.talk.receive(out(bytes(WINDOW_BYTES)))
    assert host.sent() == [credit(1, OUT, WINDOW_BYTES)]
    host.talk.receive(out(bytes(WINDOW_BYTES)) + out(b"", stream=ERR) + out(b""))
    assert host.sent() == []


def test_a_guest_that_reads_nothing_can_not_make_the_host_queue_without_end() -> None:
    host = Host().running()
    peak = 0

    def flood() -> None:
        nonlocal peak
        for _ in range(1_000_000):
            host.talk.receive(out(bytes(WINDOW_BYTES // 4)))
            peak = max(peak, len(host.talk.outgoing()))

    with pytest.raises(ViolationError, match="more output of process 1 than was granted"):
        flood()
    assert 60_000 < peak < 70_000


def test_input_is_given_as_far_as_the_window_goes() -> None:
    host = Host(stdin=True).running()
    process = host.run.process
    assert process is not None
    host.talk.give_input(process, bytes(WINDOW_BYTES))
    assert (process.room, process.takes_input) == (0, True)
    host.talk.receive(credit(1, FrameType.STDIN, 100).encode())
    assert process.room == 100
    host.talk.give_input(process, b"")
    host.talk.give_input(process, b"late")
    assert [len(frame.payload) for frame in host.sent()] == [WINDOW_BYTES, 0]


RUNNING = answer(1, process=1)


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        (HELLO, "the event 'hello', out of order"),
        (encode_message({"event": "\x1b[2J"}), r"the event '\\x1b\[2J'"),
        (encode_message({"event": 7}), "the event ''"),
        (encode_message({"event": "malformed", "params": {"what": "a\nb"}}), r"does: a\\nb"),
        (encode_message({"event": "malformed", "params": 3}), "the host does: "),
        (answer(2), "an answer to no request"),
        (answer(1, process=1) + answer(1, process=2), "an answer to no request"),
        (encode_message({"id": True, "result": {}}), "an answer to no request"),
        (encode_message({"id": "1", "result": {}}), "an answer to no request"),
        (encode_message({}), "an answer to no request"),
        (encode_message({"id": 1}), "neither a result nor an error"),
        (encode_message({"id": 1, "result": 3}), "neither a result nor an error"),
        (encode_message({"id": 1, "result": {}, "error": {}}), "neither a result nor an error"),
        (answer(1), "a process without a number"),
        (answer(1, process=0), "a process without a number"),
        (answer(1, process=65536), "a process without a number"),
        (answer(1, process=True), "a process without a number"),
        (out(b"early"), "output of process 1, which does not run"),
        (RUNNING + out(b"x", 2), "output of process 2, which does not run"),
        (RUNNING + out(b"", 2), "output of process 2, which does not run"),
        (RUNNING + out(b"") + out(b"x"), "after the end of that stream"),
        (RUNNING + out(bytes(WINDOW_BYTES)) + out(b"x"), "more output of process 1 than"),
        (RUNNING + out(bytes(WINDOW_BYTES + 1)), "more output of process 1 than"),
        (RUNNING + Frame(FrameType.STDIN, 1, b"").encode(), "input for the host"),
        (RUNNING + credit(1, FrameType.STDIN, 1).encode(), "more credit for process 1 than"),
        (RUNNING + credit(1, OUT, 1).encode(), "credit for the stream 2"),
        (RUNNING + credit(2, FrameType.STDIN, 1).encode(), "credit of process 2, which"),
        (RUNNING + Frame(FrameType.CREDIT, 1, b"1234").encode(), "a credit of 4 bytes"),
        (Frame(FrameType.MESSAGE, 1, b"{}").encode(), "a message for process 1"),
    ],
)
def test_what_is_out_of_order_is_refused(sent: bytes, cause: str) -> None:
    with pytest.raises(ViolationError, match=cause):
        Host().talk.receive(sent)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"status": 256},
        {"status": True},
        {"status": -1},
        {"signal": 0},
        {"signal": 65},
        {"status": 0, "signal": 9},
        {"status": "0"},
    ],
)
def test_an_end_that_is_none_is_refused(result: dict[str, object]) -> None:
    host = Host().running()
    host.talk.ask("wait", {"process": 1}, process=host.run.process)
    with pytest.raises(ViolationError, match="neither a status nor a signal"):
        host.talk.receive(answer(2, **result))


def test_two_processes_can_not_have_one_number() -> None:
    host = Host().running()
    host.ask()
    with pytest.raises(ViolationError, match="without a number of its own"):
        host.talk.receive(answer(2, process=1))


def test_a_terminal_has_no_stderr() -> None:
    host = Host(tty={"rows": 24, "columns": 80}).running()
    host.talk.receive(out(b"x"))
    with pytest.raises(ViolationError, match="after the end of that stream"):
        host.talk.receive(out(b"x", stream=ERR))


def test_nothing_is_taken_before_the_greeting() -> None:
    for sent in (answer(1, process=1), out(b"x")):
        talk = Conversation()
        talk.ask("run", {})
        with pytest.raises(ViolationError):
            talk.receive(sent)


@pytest.mark.parametrize("params", [{}, {"protocol": True, "agent": "x"}, {"protocol": 2}, None])
def test_a_greeting_without_its_parts_is_refused(params: dict[str, object] | None) -> None:
    with pytest.raises(ViolationError, match="a greeting without"):
        Conversation().receive(encode_message({"event": "hello", "params": params}))  # type: ignore[dict-item]


def test_another_protocol_is_refused_with_a_way_out() -> None:
    hello = encode_message({"event": "hello", "params": {"protocol": 3, "agent": "9"}})
    with pytest.raises(ImageError, match="speaks protocol 3") as caught:
        Conversation().receive(hello)
    assert "build the image again" in caught.value.hint


def test_what_the_agent_can_not_do_is_said_in_its_words_made_fit_to_show() -> None:
    host = Host()
    error = {"what": "cannot mount\x1b]0;x\x07\ud800", "errno": 2}
    payload = json.dumps({"id": 1, "error": error}).encode()
    host.talk.receive(Frame(FrameType.MESSAGE, 0, payload).encode())
    with pytest.raises(RefusedError) as caught:
        host.run.outcome()
    assert caught.value.what.endswith("cannot mount\\x1b]0;x\\x07\\ud800 (errno 2)")
    assert caught.value.errno == 2


def test_a_refusal_of_any_shape_is_one() -> None:
    for error in ({}, {"what": 3, "errno": True}, {"errno": 1 << 60}):
        host = Host()
        host.talk.receive(encode_message({"id": 1, "error": error}))
        with pytest.raises(RefusedError, match="gives no reason"):
            host.run.outcome()


def test_a_command_that_fits_no_message_is_refused() -> None:
    host = Host()
    host.talk.ask("run", {"argv": ["x" * 60000]})
    with pytest.raises(RecipeError, match="too long"):
        host.talk.ask("run", {"argv": ["x" * 70000]})
    with pytest.raises(RecipeError, match="not UTF-8"):
        host.talk.ask("run", {"argv": ["\udcff"]})


pieces = st.one_of(
    st.sampled_from([RUNNING, answer(2, status=0), out(b"x"), out(b""), HELLO]),
    st.builds(out, st.binary(max_size=40), st.integers(0, 3), st.sampled_from(FrameType)),
    st.binary(max_size=20),
)


@given(st.lists(pieces, max_size=12))
def test_nothing_that_a_guest_sends_ends_in_another_error_than_the_own_one(
    sent: list[bytes],
) -> None:
    host = Host()
    with contextlib.suppress(ViolationError):
        for piece in sent:
            host.talk.receive(piece)
    assert len(host.talk.outgoing()) < 2 * WINDOW_BYTES
