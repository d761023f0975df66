# SPDX-License-Identifier: Apache-2.0
"""Runs mutations of good input against a reader, and keeps each that crashes it as a file.

    python -m tests.fuzz TARGET… [--runs 100000] [--seconds S] [--first N] [--crashes FOLDER]
    python -m tests.fuzz TARGET --again FILE
    python -m tests.fuzz all --starts

From the root of the repository. Run N of a target is the same on every host and every day.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent.parent / "unit")]

from .files import scratch  # noqa: E402
from .mutation import mutated, mutated_json  # noqa: E402
from .targets import TARGETS, Target  # noqa: E402
from .trial import Crashes, limit_this_process, memory_mib, tried  # noqa: E402


def _input(target: Target, number: int) -> bytes:
    random, starts = Random(f"{target.name} {number}"), target.starts
    if number < len(starts):
        return starts[number]
    if target.is_json and random.random() < 0.6:
        return mutated_json(starts, random)
    return mutated(starts, target.words, random)


def _fuzz(target: Target, arguments: argparse.Namespace, folder: Path) -> int:
    """The number of crashes."""
    crashes = Crashes(target, arguments.crashes)
    slowest, started, ways = 0.0, time.monotonic(), Counter[str]()
    for number in range(arguments.first, arguments.first + arguments.runs // target.costs):
        before = time.monotonic()
        if before - started > arguments.seconds:
            break
        data = _input(target, number)
        way, told = tried(target, data, folder)
        slowest = max(slowest, time.monotonic() - before)
        ways[way] += 1
        if way == "crashed":
            crashes.note(number, data, told)
    seconds = time.monotonic() - started
    print(
        f"{target.name}: {ways.total()} runs, {crashes.count} crashes, "
        f"{ways['answered']} answered, {ways['refused']} refused, {seconds:.1f} s, "
        f"slowest {slowest:.2f} s, {memory_mib()} MiB",
        flush=True,
    )
    return crashes.count


def _start(target: Target, folder: Path) -> int:
    """The number of things that mutations start from and the reader takes in another way."""
    wrong = 0
    for number, data in enumerate(target.starts):
        way, told = tried(target, data, folder)
        due = "answered" if number < len(target.seeds) else "refused"
        print(f"{target.name} start {number}: {way}", told if way != due else "")
        wrong += way != due
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each target")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--again", type=Path, help="one input instead of mutations")
    parser.add_argument("--starts", action="store_true", help="check what mutations start from")
    arguments = parser.parse_args()
    names = list(TARGETS) if "all" in arguments.target else arguments.target
    limit_this_process()
    crashes = 0
    for name in names:
        target = TARGETS[name]
        with scratch() as folder:
            target.prepare(Path(folder))
            if arguments.starts:
                crashes += _start(target, Path(folder))
            elif arguments.again:
                way, told = tried(target, arguments.again.read_bytes(), Path(folder))
                print(f"{name}: {way}\n{told}".strip())
                crashes += way == "crashed"
            else:
                crashes += _fuzz(target, arguments, Path(folder))
    return min(crashes, 1)


if __name__ == "__main__":
    sys.exit(main())
