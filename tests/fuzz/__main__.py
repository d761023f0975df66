# SPDX-License-Identifier: Apache-2.0
"""Runs mutations of good input against a reader, and keeps each that crashes it as a file.

    python -m tests.fuzz TARGET… [--runs 100000] [--seconds S] [--first N] [--crashes FOLDER]
    python -m tests.fuzz TARGET --again FILE

From the root of the repository. Run N of a target is the same on every host and every day.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent.parent / "unit")]

from .mutation import mutated, mutated_json  # noqa: E402
from .targets import TARGETS, Target  # noqa: E402
from .trial import Crashes, limit_this_process, memory_mib, trouble  # noqa: E402


def _input(target: Target, number: int) -> bytes:
    random = Random(f"{target.name} {number}")
    if number < len(target.seeds):
        return target.seeds[number]
    if target.is_json and random.random() < 0.6:
        return mutated_json(target.seeds, random)
    return mutated(target.seeds, target.words, random)


def _fuzz(target: Target, arguments: argparse.Namespace, folder: Path) -> int:
    """The number of crashes."""
    crashes = Crashes(target, arguments.crashes)
    slowest, started, done = 0.0, time.monotonic(), 0
    for number in range(arguments.first, arguments.first + arguments.runs):
        before = time.monotonic()
        if before - started > arguments.seconds:
            break
        data = _input(target, number)
        told = trouble(target, data, folder)
        slowest = max(slowest, time.monotonic() - before)
        done += 1
        if told:
            crashes.note(number, data, told)
    seconds = time.monotonic() - started
    print(
        f"{target.name}: {done} runs, {crashes.count} crashes, {seconds:.1f} s, "
        f"slowest {slowest:.2f} s, {memory_mib()} MiB",
        flush=True,
    )
    return crashes.count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each target")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--again", type=Path, help="one input instead of mutations")
    arguments = parser.parse_args()
    names = list(TARGETS) if "all" in arguments.target else arguments.target
    limit_this_process()
    crashes = 0
    for name in names:
        target = TARGETS[name]
        with tempfile.TemporaryDirectory() as folder:
            target.prepare(Path(folder))
            if arguments.again:
                told = trouble(target, arguments.again.read_bytes(), Path(folder))
                print(told or f"{name}: answered or refused")
                crashes += bool(told)
            else:
                crashes += _fuzz(target, arguments, Path(folder))
    return min(crashes, 1)


if __name__ == "__main__":
    sys.exit(main())
