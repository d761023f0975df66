# SPDX-License-Identifier: Apache-2.0
"""Runs mutations of good input against a reader, and keeps each that crashes it as a file.

    python -m tests.fuzz TARGET… [--runs 100000] [--seconds S] [--first N] [--jobs J]
                         [--crashes FOLDER]
    python -m tests.fuzz TARGET --again FILE
    python -m tests.fuzz all --starts

From the root of the repository. Run N of a target is the same on every host and every day.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "unit")]

from .files import scratch  # noqa: E402
from .runs import Stretch, Tally, carry_out  # noqa: E402
from .targets import TARGETS, Target  # noqa: E402
from .trial import limit_this_process, tried  # noqa: E402


def _fuzz(targets: Sequence[Target], arguments: argparse.Namespace) -> int:
    """The number of crashes. Prints a line for each target, and one for all when it is several."""
    stretches = list(_stretches(targets, arguments))
    parts = Counter(stretch.target.name for stretch in stretches)
    tallies = {target.name: Tally() for target in targets}
    total = Tally()
    for target, tally in carry_out(stretches, arguments.jobs, arguments.crashes):
        tallies[target.name].add(tally)
        total.add(tally)
        parts[target.name] -= "unknown" not in tally.ways
        if not parts[target.name]:
            print(f"{target.name}: {tallies[target.name]}", flush=True)
    if len(targets) > 1:
        print(f"all of {len(targets)}: {total}")
    return total.ways["crashed"]


def _stretches(targets: Sequence[Target], arguments: argparse.Namespace) -> Iterator[Stretch]:
    for target in targets:
        first, jobs = arguments.first, arguments.jobs
        runs = -(-arguments.runs // target.costs)
        ends = [first + runs * part // jobs for part in range(jobs + 1)]
        for start, stop in pairwise(ends):
            yield Stretch(target, range(start, stop), arguments.seconds)


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
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="for each target, in each process"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--again", type=Path, help="one input instead of mutations")
    parser.add_argument("--starts", action="store_true", help="check what mutations start from")
    arguments = parser.parse_args()
    names = list(TARGETS) if "all" in arguments.target else arguments.target
    targets = [TARGETS[name] for name in names]
    if not (arguments.starts or arguments.again):
        return min(_fuzz(targets, arguments), 1)
    limit_this_process()
    crashes = 0
    for target in targets:
        with scratch() as folder:
            target.prepare(Path(folder))
            if arguments.starts:
                crashes += _start(target, Path(folder))
            else:
                way, told = tried(target, arguments.again.read_bytes(), Path(folder))
                print(f"{target.name}: {way}\n{told}".strip())
                crashes += way == "crashed"
    return min(crashes, 1)


if __name__ == "__main__":
    sys.exit(main())
