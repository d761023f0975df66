# SPDX-License-Identifier: Apache-2.0
"""Runs mutations of good input against a reader, and keeps each that crashes it as a file.

    python -m tests.fuzz TARGET… [--runs 100000] [--seconds S] [--first N] [--crashes FOLDER]
    python -m tests.fuzz TARGET --again FILE

From the root of the repository. Run N of a target is the same on every host and every day.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import FrameType

sys.path[:0] = [str(Path(__file__).parent.parent / "unit")]

from .mutation import mutated, mutated_json  # noqa: E402
from .targets import TARGETS, Target  # noqa: E402

_MOST_SECONDS = 10
_MOST_MEMORY = 3 << 30
_MOST_CRASHES = 20


class _TooLongError(Exception):
    """One run took longer than a reader of small input ever may."""


def _too_long(_: int, __: FrameType | None) -> None:
    raise _TooLongError(f"more than {_MOST_SECONDS} seconds for one input")


def _input(target: Target, number: int) -> bytes:
    random = Random(f"{target.name} {number}")
    if number < len(target.seeds):
        return target.seeds[number]
    if target.is_json and random.random() < 0.6:
        return mutated_json(target.seeds, random)
    return mutated(target.seeds, target.words, random)


def _crash(target: Target, data: bytes, folder: Path) -> str:
    """What went wrong, empty when the reader answered or refused as it should."""
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    try:
        target.run(data, folder)
    except target.refusals as error:
        str(error)
    except Exception:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _fuzz(target: Target, arguments: argparse.Namespace, folder: Path) -> int:
    """The number of crashes."""
    places: set[str] = set()
    crashes, slowest, started, done = 0, 0.0, time.monotonic(), 0
    for number in range(arguments.first, arguments.first + arguments.runs):
        before = time.monotonic()
        if before - started > arguments.seconds:
            break
        data = _input(target, number)
        trouble = _crash(target, data, folder)
        slowest = max(slowest, time.monotonic() - before)
        done += 1
        if not trouble:
            continue
        crashes += 1
        place = "".join(line for line in trouble.splitlines(True) if line.startswith("  File "))
        if place not in places and len(places) < _MOST_CRASHES:
            places.add(place)
            arguments.crashes.mkdir(parents=True, exist_ok=True)
            kept = arguments.crashes / f"{target.name}-{number}"
            kept.write_bytes(data)
            print(f"{target.name} run {number}, kept as {kept}:\n{trouble}", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    seconds = time.monotonic() - started
    print(
        f"{target.name}: {done} runs, {crashes} crashes, {seconds:.1f} s, "
        f"slowest {slowest:.2f} s, {memory} MiB",
        flush=True,
    )
    return crashes


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
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    crashes = 0
    for name in names:
        target = TARGETS[name]
        with tempfile.TemporaryDirectory() as folder:
            target.prepare(Path(folder))
            if arguments.again:
                trouble = _crash(target, arguments.again.read_bytes(), Path(folder))
                print(trouble or f"{name}: answered or refused")
                crashes += bool(trouble)
            else:
                crashes += _fuzz(target, arguments, Path(folder))
    return min(crashes, 1)


if __name__ == "__main__":
    sys.exit(main())
