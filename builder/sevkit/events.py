# SPDX-License-Identifier: Apache-2.0
"""What happens during a build, as data. The engine reports; listeners draw, print or record."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["built", "cached", "fetched", "failed", "skipped"]


@dataclass(frozen=True)
class TaskStarted:
    """A stage is being built or a source fetched. `reason` says why it is not up to date."""

    task: str
    reason: str


@dataclass(frozen=True)
class TaskProgress:
    """`done` of `total` `unit`s (``B`` for bytes); `total` is None where nobody knows it."""

    task: str
    done: int
    total: int | None
    unit: str
    note: str


@dataclass(frozen=True)
class TaskFinished:
    """The end of a task; `seconds` is 0 for one that had nothing to do."""

    task: str
    outcome: Outcome
    seconds: float
    log: Path | None = None


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not an error."""

    text: str


Event = TaskStarted | TaskProgress | TaskFinished | Notice
Listener = Callable[[Event], None]
