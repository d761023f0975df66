# SPDX-License-Identifier: Apache-2.0
"""The same readers, with mutations that go where new code was reached: atheris, on libFuzzer.

    python -m tests.fuzz.guided TARGET [--runs 100000] [--seed 1] [--corpus FOLDER]

From the root of the repository. With --corpus, inputs that reached something new are kept in
FOLDER, and taken up from there the next time.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from random import Random
from typing import NoReturn

import atheris

from .files import scratch
from .mutation import MOST_BYTES, mutated, mutated_json
from .trial import Crashes, limit_this_process, memory_mib, tried

sys.path[:0] = [str(Path(__file__).parent.parent / "unit")]

with atheris.instrument_imports(include=["sevkit"]):
    from .targets import TARGETS, Target


def _mutate(target: Target, data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's mutations and, in turns, our own, which know the words of the reader."""
    random = Random(seed)
    if random.random() < 0.5:
        return bytes(atheris.Mutate(data, most))
    if target.is_json and random.random() < 0.5:
        return mutated_json(target.starts, random)[:most]
    return mutated([data, *target.starts], target.words, random)[:most]


def _fuzz(target: Target, arguments: argparse.Namespace, folder: Path) -> NoReturn:
    """Run, say how it went, and end the process as libFuzzer has it."""
    crashes, started, done = Crashes(target, arguments.crashes), time.monotonic(), 0

    def one(data: bytes) -> None:
        nonlocal done
        way, told = tried(target, data, folder)
        if way == "crashed":
            crashes.note(done, data, told)
        done += 1
        if done == arguments.runs:
            seconds = time.monotonic() - started
            kept = sum(path.is_file() for path in arguments.corpus.iterdir())
            print(
                f"{target.name}: {done} guided runs, {crashes.count} crashes, {seconds:.1f} s, "
                f"{kept} inputs that reached something new, {memory_mib()} MiB",
                flush=True,
            )
            shutil.rmtree(folder.parent)
            os._exit(min(crashes.count, 1))

    options = ["-timeout=0", "-rss_limit_mb=0", "-detect_leaks=0", "-verbosity=0"]
    options += [f"-max_len={MOST_BYTES}", f"-seed={arguments.seed}", str(arguments.corpus)]
    atheris.Setup(
        [sys.argv[0], *options],
        one,
        custom_mutator=lambda data, most, seed: _mutate(target, data, most, seed),
    )
    atheris.Fuzz()
    sys.exit("the fuzzer ended early")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's own choices")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--corpus", type=Path)
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    limit_this_process()
    with scratch() as name:
        folder = Path(name) / "work"
        folder.mkdir()
        target.prepare(folder)
        arguments.corpus = arguments.corpus or Path(name) / "corpus"
        arguments.corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.starts):
            (arguments.corpus / f"seed-{number}").write_bytes(seed)
        _fuzz(target, arguments, folder)


if __name__ == "__main__":
    main()
