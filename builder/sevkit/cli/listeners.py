# SPDX-License-Identifier: Apache-2.0
"""Three ways to tell a person or a program about a build: bars, plain lines, JSON lines.

Each is a listener to the same events; none of them decides anything. Where a person listens, what
was asked for goes to one stream and the story of how it came about to another. A failure is no
part of either: the command line tells it when all is over.
"""

import dataclasses
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Never, Protocol, Self, TextIO

from sevkit.events import (
    Event,
    Notice,
    Result,
    TaskFinished,
    TaskPlanned,
    TaskProgress,
    TaskStarted,
)
from sevkit.printable import printable

if TYPE_CHECKING:
    from tqdm import tqdm

_NOTE_WIDTH = 40


class BuildListener(Protocol):
    """A listener that holds the terminal while a build runs."""

    def __call__(self, event: Event) -> None:
        """Take note of an event; called from any thread."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""


def summary(event: TaskFinished) -> str:
    """One line for the end of a task."""
    if event.outcome in ("cached", "skipped"):
        return f"{event.task}: {event.outcome}"
    return f"{event.task}: {event.outcome} in {event.seconds:.1f} s"


def answer(event: TaskPlanned | Result) -> str:
    """What a person has asked for; empty where an earlier event has said it."""
    if isinstance(event, Result):
        return event.text
    return f"{event.recipe}: {event.task}: {event.reason}"


class PlainLines:
    """One line for the start and the end of each task, and one every tenth of a long one."""

    def __init__(self, stream: TextIO, answers: TextIO):
        self._stream = stream
        self._answers = answers
        self._lock = threading.Lock()
        self._tenths: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, TaskPlanned | Result):
                text, stream = answer(event), self._answers
            else:
                text, stream = printable(self._text(event)), self._stream
            if text:
                print(text, file=stream, flush=True)

    def _text(self, event: Event) -> str:
        match event:
            case TaskStarted(task, reason):
                return f"{task}: {reason}"
            case TaskFinished():
                return summary(event)
            case Notice(text):
                return f"note: {text}"
            case TaskProgress(task, done, total, unit, note) if total:
                tenth = done * 10 // total
                if tenth > self._tenths.get((task, total), 0):
                    self._tenths[task, total] = tenth
                    return f"{task}: {tenth * 10} % ({_amount(done, total, unit)}) {note}".rstrip()
        return ""


def _amount(done: int, total: int, unit: str) -> str:
    if unit != "B":
        return f"{done}/{total}"
    shift, name = (20, "MiB") if total >= 10 << 20 else (10, "KiB")
    return f"{done >> shift}/{total >> shift} {name}"


class JsonLines:
    """Each event as one JSON object on a line: `event` is its kind, the rest its fields."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        row = {"event": type(event).__name__, **dataclasses.asdict(event)}
        text = json.dumps(row, default=_as_text)
        with self._lock:
            print(text, file=self._stream, flush=True)


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value))


class ProgressBars:
    """A tqdm bar for each running task, and a line above them for each that ended."""

    def __init__(self, stream: TextIO, answers: TextIO):
        self._stream = stream
        self._answers = answers
        self._lock = threading.Lock()
        self._bars: dict[str, tqdm[Never]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case TaskStarted(task):
                    self._bars[task] = self._bar(task, None, "")
                case TaskProgress():
                    self._advance(event)
                case TaskFinished():
                    self._close(event.task)
                    self._write(printable(summary(event)), self._stream)
                case Notice(text):
                    self._write(printable(f"note: {text}"), self._stream)
                case TaskPlanned() | Result():
                    self._write(answer(event), self._answers)

    def _bar(self, task: str, total: int | None, unit: str) -> "tqdm[Never]":
        from tqdm import tqdm

        return tqdm(
            desc=task,
            total=total,
            unit=unit or " steps",
            unit_scale=unit == "B",
            unit_divisor=1024,
            leave=False,
            file=self._stream,
            dynamic_ncols=True,
            mininterval=0.1,
        )

    def _advance(self, event: TaskProgress) -> None:
        bar = self._bars.get(event.task)
        if bar is None or bar.total != event.total or (event.unit == "B") != bool(bar.unit_scale):
            self._close(event.task)
            bar = self._bars[event.task] = self._bar(event.task, event.total, event.unit)
        bar.set_postfix_str(printable(event.note[-_NOTE_WIDTH:]), refresh=False)
        bar.update(event.done - bar.n)

    def _close(self, task: str) -> None:
        bar = self._bars.pop(task, None)
        if bar is not None:
            bar.close()

    def _write(self, text: str, stream: TextIO) -> None:
        from tqdm import tqdm

        if text:
            tqdm.write(text, file=stream)
