# SPDX-License-Identifier: Apache-2.0
"""Many runs of a reader in processes of their own: one that a run kills loses no input.

A process is given a stretch of numbers. It says in shared memory which one it is at, so that
whoever started it can make the input again and go on behind it.
"""

import mmap
import multiprocessing
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

from .files import scratch
from .mutation import mutated, mutated_json
from .targets import Target
from .trial import Crashes, limit_this_process, memory_mib, tried

_FORK = multiprocessing.get_context("fork")
_NUMBER = struct.Struct("<Q")


def input_of(target: Target, number: int) -> bytes:
    """The input of run `number`, the same everywhere."""
    random, starts = Random(f"{target.name} {number}"), target.starts
    if number < len(starts):
        return starts[number]
    if target.is_json and random.random() < 0.6:
        return mutated_json(starts, random)
    return mutated(starts, target.words, random)


@dataclass
class Tally:
    """How some runs went. Seconds are those of all processes together."""

    ways: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    mib: int = 0

    def add(self, other: "Tally") -> None:
        """Count what `other` has counted."""
        self.ways.update(other.ways)
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.mib = max(self.mib, other.mib)

    def __str__(self) -> str:
        return (
            f"{self.ways.total()} runs, {self.ways['crashed']} crashes, "
            f"{self.ways['answered']} answered, {self.ways['refused']} refused, "
            f"{self.seconds:.1f} s, slowest {self.slowest:.2f} s, {self.mib} MiB"
        )


@dataclass(frozen=True)
class Stretch:
    """Runs of one target, one after the other, for at most `seconds`."""

    target: Target
    numbers: range
    seconds: float

    def carry_out(self, crashes: Crashes, folder: Path, at: mmap.mmap) -> Tally:
        """Make the runs in this process; `at` always holds the number of the one under way."""
        tally, started = Tally(), time.monotonic()
        self.target.prepare(folder)
        for number in self.numbers:
            before = time.monotonic()
            if before - started > self.seconds:
                break
            at[:] = _NUMBER.pack(number)
            data = input_of(self.target, number)
            way, told = tried(self.target, data, folder)
            tally.slowest = max(tally.slowest, time.monotonic() - before)
            tally.ways[way] += 1
            if way == "crashed":
                crashes.note(number, data, told)
        tally.seconds, tally.mib = time.monotonic() - started, memory_mib()
        return tally


class _Worker:
    """A process with a stretch."""

    def __init__(self, stretch: Stretch, crashes: Path):
        self.stretch = stretch
        self.crashes = Crashes(stretch.target, crashes)
        self._folder = scratch()
        self._at = mmap.mmap(-1, _NUMBER.size)
        self._started = time.monotonic()
        self.result, end = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=self._work, args=(end,), daemon=True)
        self._process.start()
        end.close()

    def _work(self, end: Connection) -> None:
        limit_this_process()
        end.send(self.stretch.carry_out(self.crashes, Path(self._folder.name), self._at))

    def ended(self) -> tuple[Tally, Stretch | None]:
        """How it went, and what is left when a run was the end of the process."""
        try:
            tally, left = self.result.recv(), None
        except EOFError:
            tally, left = self._killed()
        self._process.join()
        self._at.close()
        self._folder.cleanup()
        return tally, left

    def _killed(self) -> tuple[Tally, Stretch]:
        self._process.join()
        [number] = _NUMBER.unpack(self._at[:])
        told = f"the process ended with {self._process.exitcode}\n"
        self.crashes.note(number, input_of(self.stretch.target, number), told)
        seconds = time.monotonic() - self._started
        done = number - self.stretch.numbers.start
        tally = Tally(Counter(crashed=1, unknown=done), seconds)
        numbers = range(number + 1, self.stretch.numbers.stop)
        return tally, Stretch(self.stretch.target, numbers, self.stretch.seconds - seconds)


def carry_out(
    stretches: Iterable[Stretch], jobs: int, crashes: Path
) -> Iterator[tuple[Target, Tally]]:
    """Make all runs in `jobs` processes at a time: target and tally of each stretch, as it ends."""
    pending = list(reversed(list(stretches)))
    working: dict[Connection, _Worker] = {}
    while pending or working:
        while pending and len(working) < jobs:
            worker = _Worker(pending.pop(), crashes)
            working[worker.result] = worker
        for result in wait(list(working)):
            assert isinstance(result, Connection)
            worker = working.pop(result)
            tally, left = worker.ended()
            if left is not None:
                pending.append(left)
            yield worker.stretch.target, tally
