# SPDX-License-Identifier: Apache-2.0
"""A build with nothing to do, and --help, beside an interpreter that does nothing.

Needs a built sev-guest (make image). Usage: python benchmarks/noop.py
"""

import sys

from measure import SEVKIT, Ratio, alternately, seconds

ROUNDS = 30


def main() -> None:
    """Print the ratios."""
    build = [*SEVKIT, "build", "sev-guest"]
    for _ in range(3):  # the first may build, the second records that nothing was to do
        seconds(build)
    floor = [sys.executable, "-c", "pass"]
    for name, argv in (("no-op build", build), ("--help", [*SEVKIT, "--help"])):
        ours, peer = alternately(argv, floor, ROUNDS)
        print(Ratio(name, ours, "python -c pass", peer, "as near 1 as can be"))


if __name__ == "__main__":
    main()
