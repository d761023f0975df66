# SPDX-License-Identifier: Apache-2.0
"""What happens during a build, as data. The engine reports; listeners draw, print or record."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from sevkit.errors import SevkitError

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


@dataclass(frozen=True)
class TaskPlanned:
    """What a build would do, where it is only asked; `reason` as in `TaskStarted`."""

    recipe: str
    task: str
    reason: str


@dataclass(frozen=True)
class Result:
    """What a verb gave for a recipe; the last event of one that succeeded.

    `path` is an image directory, a stage's result or a vendored folder; None where nothing was
    written. `idle` is whether there was nothing to do. `text` says it to a person.
    """

    recipe: str
    path: Path | None
    idle: bool
    text: str


@dataclass(frozen=True)
class BuildFailed:
    """The last event of a verb that did not succeed, also where no task was begun.

    The fields are those of a `SevkitError`; `exit_code` will be the status of the process.
    """

    what: str
    why: str
    hint: str
    log: Path | None
    exit_code: int

    @classmethod
    def of(cls, error: SevkitError) -> Self:
        """What `error` says."""
        return cls(error.what, error.why, error.hint, error.log, error.exit_code)


Event = TaskStarted | TaskProgress | TaskFinished | TaskPlanned | Notice | Result | BuildFailed
Listener = Callable[[Event], None]
