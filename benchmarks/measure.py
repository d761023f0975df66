# SPDX-License-Identifier: Apache-2.0
"""Timing for the benchmarks: every figure is a ratio against a peer measured in the same run."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SEVKIT = [sys.executable, "-m", "sevkit"]


@dataclass(frozen=True)
class Ratio:
    """Two times in seconds, and what each is."""

    ours: str
    ours_seconds: float
    peer: str
    peer_seconds: float
    bound: str

    def __str__(self) -> str:
        ratio = self.ours_seconds / self.peer_seconds
        return (
            f"{self.ours} {self.ours_seconds:.3f} s ÷ {self.peer} {self.peer_seconds:.3f} s"
            f" = {ratio:.2f}  ({self.bound})"
        )


def seconds(
    argv: Sequence[str | Path], *, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None
) -> float:
    """Wall time of one command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    taken = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(f"{argv}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return taken


def alternately(
    ours: Sequence[str | Path],
    peer: Sequence[str | Path],
    rounds: int,
    env: Mapping[str, str] | None = None,
) -> tuple[float, float]:
    """Median wall times of two commands, run in turns so that noise meets both."""
    pairs = [(seconds(ours, env=env), seconds(peer, env=env)) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
