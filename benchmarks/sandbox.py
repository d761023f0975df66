# SPDX-License-Identifier: Apache-2.0
"""A stage that starts thousands of processes, in the sandbox beside without it.

Usage: python benchmarks/sandbox.py [RECIPE:STAGE]. Builds three times each way, in turns that begin
with another one each time, and takes the medians. The sandbox may well win: its /tmp, where
compilers keep what passes from one pass to the next, is memory.
"""

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from build import seed
from measure import REPOSITORY, SEVKIT, Ratio, seconds

from sevkit.store.store import default_root

_ROUNDS = 3


def main() -> None:
    """Print the ratio."""
    target = sys.argv[1] if len(sys.argv) > 1 else "sev-guest-lean:firmware"
    seconds([*SEVKIT, "fetch", target.partition(":")[0]])
    took: dict[str, list[float]] = {"bwrap": [], "none": []}
    with tempfile.TemporaryDirectory(prefix="sevkit-bench-") as name:
        for turn in range(_ROUNDS):
            for sandbox in sorted(took, reverse=turn % 2 == 1):
                store = seed(default_root(os.environ), Path(name) / f"{sandbox}-{turn}")
                words = ["build", target, "--offline", f"--sandbox={sandbox}"]
                where = ["-C", str(REPOSITORY), "--output", f"{name}/output"]
                environment = {"SEVKIT_STORE": str(store)}
                took[sandbox].append(seconds([*SEVKIT, *where, *words], env=environment))
                shutil.rmtree(store)
    confined, open_ = map(statistics.median, (took["bwrap"], took["none"]))
    print(Ratio(f"{target} in the sandbox", confined, "without", open_, "at most 1.03"))


if __name__ == "__main__":
    main()
