# SPDX-License-Identifier: Apache-2.0
"""One input for one reader: what is wrong with how it took it."""

import resource
import signal
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .targets import Target

_MOST_SECONDS = 10
_MOST_MEMORY = 3 << 30
_MOST_PLACES = 20


class _TooLongError(BaseException):
    """One run took longer than a reader of small input ever may: no reader may catch it."""


class _Clock:
    """Ends a run that takes too long, and knows of it also when nobody lets the error through."""

    def __init__(self) -> None:
        self.has_rung = False

    def start(self) -> None:
        self.has_rung = False
        signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS, 1)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def ring(self, _: int, __: FrameType | None) -> None:
        self.has_rung = True
        raise _TooLongError(f"more than {_MOST_SECONDS} seconds for one input")


_CLOCK = _Clock()


def limit_this_process() -> None:
    """Make memory beyond what any reader may take an error, and time, too, during a trial."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    signal.signal(signal.SIGALRM, _CLOCK.ring)


def memory_mib() -> int:
    """The most that this process ever had resident, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


Way = Literal["answered", "refused", "crashed"]


def tried(target: "Target", data: bytes, folder: Path) -> tuple[Way, str]:
    """How the reader took it, and in which words when it did not answer."""
    way: Way = "answered"
    told = ""
    try:
        _CLOCK.start()
        target.run(data, folder)
    except target.refusals as error:
        way, told = "refused", str(error)
        if _lacked_memory(error):
            way, told = "crashed", traceback.format_exc()
    except (Exception, _TooLongError):
        way, told = "crashed", traceback.format_exc()
    finally:
        _CLOCK.stop()
    if _CLOCK.has_rung and way != "crashed":
        return "crashed", f"{way} only after {_MOST_SECONDS} seconds"
    return way, told


def _lacked_memory(error: BaseException | None) -> bool:
    """Whether a refusal is no more than a name for memory that could not be had."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Crashes:
    """Counts crashes, and keeps the input of each that happened at a place of its own."""

    def __init__(self, target: "Target", folder: Path):
        self._target = target
        self._folder = folder
        self._places: set[str] = set()
        self.count = 0

    def note(self, number: int, data: bytes, told: str) -> None:
        """Run `number` went wrong with `data`, as `told`."""
        self.count += 1
        place = "".join(line for line in told.splitlines(True) if line.startswith("  File "))
        if place in self._places or len(self._places) == _MOST_PLACES:
            return
        self._places.add(place)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._folder / f"{self._target.name}-{number}"
        kept.write_bytes(data)
        print(f"{self._target.name} run {number}, kept as {kept}:\n{told}", flush=True)
