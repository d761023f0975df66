# SPDX-License-Identifier: Apache-2.0
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from sevkit.cli.listeners import BuildListener, JsonLines, PlainLines, ProgressBars
from sevkit.errors import HostError
from sevkit.events import (
    BuildFailed,
    Event,
    Notice,
    Result,
    TaskFinished,
    TaskPlanned,
    TaskProgress,
    TaskStarted,
)

STORY: list[Event] = [
    TaskStarted("fetch linux.deb", "not in the store"),
    TaskProgress("fetch linux.deb", 1 << 20, 10 << 20, "B", ""),
    TaskProgress("fetch linux.deb", 5 << 20, 10 << 20, "B", ""),
    TaskFinished("fetch linux.deb", "fetched", 2.0),
    TaskStarted("kernel", "never built"),
    TaskProgress("kernel", 10, 100, "", "mm/slub.o"),
    TaskProgress("kernel", 11, None, "", "mm/slub.o"),
    Notice("another build is at it"),
    TaskFinished("kernel", "failed", 3.25, Path("/logs/kernel.log")),
    TaskFinished("image", "skipped", 0),
]


def test_plain_lines_tell_starts_tenths_notices_and_ends() -> None:
    stream = io.StringIO()
    with PlainLines(stream, stream) as listener:
        for event in STORY:
            listener(event)
    lines = stream.getvalue().splitlines()
    assert "fetch linux.deb: 50 % (5/10 MiB)" in lines
    assert "kernel: 10 % (10/100) mm/slub.o" in lines
    assert "note: another build is at it" in lines
    assert "kernel: failed in 3.2 s" in lines
    assert "image: skipped" in lines


@pytest.mark.parametrize("kind", [PlainLines, ProgressBars])
def test_what_was_asked_for_goes_to_a_stream_of_its_own(
    kind: type[PlainLines] | type[ProgressBars],
) -> None:
    story, answers = io.StringIO(), io.StringIO()
    with kind(story, answers) as listener:
        listener(TaskPlanned("sev-guest", "kernel", "never built"))
        listener(Notice("looking up linux"))
        listener(Result("sev-guest", None, False, ""))
        listener(Result("sev-guest", Path("/o"), False, "built: /o\n  a remark"))
        listener(BuildFailed("no", "", "", None, 1))
    assert answers.getvalue() == "sev-guest: kernel: never built\nbuilt: /o\n  a remark\n"
    assert "looking up" in story.getvalue()
    assert "built" not in story.getvalue()


def test_a_failure_is_an_event_with_all_that_an_error_says() -> None:
    stream = io.StringIO()
    error = HostError("no flex", why="package flex", hint="apt-get install flex", log=Path("/l"))
    JsonLines(stream)(BuildFailed.of(error))
    assert json.loads(stream.getvalue()) == {
        "event": "BuildFailed",
        "what": "no flex",
        "why": "package flex",
        "hint": "apt-get install flex",
        "log": "/l",
        "exit_code": 3,
    }


def test_small_files_are_told_in_kib() -> None:
    stream = io.StringIO()
    listener = PlainLines(stream, stream)
    listener(TaskProgress("fetch a", 90 << 10, 100 << 10, "B", ""))
    listener(TaskProgress("fetch b", 40 << 20, 100 << 20, "B", ""))
    assert "90 % (90/100 KiB)" in stream.getvalue()
    assert "40 % (40/100 MiB)" in stream.getvalue()


def test_a_tenth_is_told_once() -> None:
    stream = io.StringIO()
    listener = PlainLines(stream, stream)
    for done in range(100):
        listener(TaskProgress("t", done, 100, "", ""))
    assert len(stream.getvalue().splitlines()) == 9


def test_json_lines_can_be_read_by_a_program() -> None:
    stream = io.StringIO()
    with JsonLines(stream) as listener:
        for event in STORY:
            listener(event)
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(rows) == len(STORY)
    assert rows[0] == {
        "event": "TaskStarted",
        "task": "fetch linux.deb",
        "reason": "not in the store",
    }
    assert rows[-2]["log"] == "/logs/kernel.log"


def test_bars_show_size_and_file_and_are_gone_at_the_end() -> None:
    stream = io.StringIO()
    with ProgressBars(stream, stream) as listener:
        for event in STORY:
            listener(event)
    text = stream.getvalue()
    assert "10.0M" in text
    assert "fetch linux.deb: fetched in 2.0 s" in text
    assert "kernel: failed in 3.2 s" in text


@pytest.mark.parametrize(
    "made",
    [
        lambda stream: PlainLines(stream, stream),
        JsonLines,
        lambda stream: ProgressBars(stream, stream),
    ],
    ids=["plain", "json", "bars"],
)
def test_events_from_many_threads_do_not_mix(made: Callable[[TextIO], BuildListener]) -> None:
    stream = io.StringIO()
    with made(stream) as listener:

        def tell(name: str) -> None:
            for _ in range(50):
                listener(Notice(f"<{name * 30}>"))

        threads = [threading.Thread(target=tell, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(stream.getvalue().count(f"<{name * 30}>") for name in "abcd") == 200


def test_each_part_of_a_task_has_its_own_tenths() -> None:
    stream = io.StringIO()
    listener = PlainLines(stream, stream)
    listener(TaskProgress("kernel", 9_000, 10_000, "", "unpacking"))
    listener(TaskProgress("kernel", 100, 1000, "", "mm/slub.o"))
    assert stream.getvalue().splitlines()[1] == "kernel: 10 % (100/1000) mm/slub.o"
