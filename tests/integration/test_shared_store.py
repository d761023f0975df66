# SPDX-License-Identifier: Apache-2.0
"""One store, many processes: builds beside a collector, and users beside each other."""

import subprocess
import sys
import textwrap
from pathlib import Path

from crash_lab import Lab, damage

from sevkit.store import Store
from sevkit.store_gc import collect

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent

BUILDER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from crash_lab import Lab
    place = Path({place!r})
    end, count = time.monotonic() + {seconds}, 0
    while time.monotonic() < end:
        Lab.in_folder(place / "lab", str(count % 3)).build(place)
        count += 1
    print(count)
"""
COLLECTOR = """
    import sys, time
    from pathlib import Path
    from sevkit.store import Store
    from sevkit.store_gc import collect
    end, count = time.monotonic() + {seconds}, 0
    while time.monotonic() < end:
        done = collect(Store(Path({place!r}) / "store"), older_than_seconds=0, max_bytes=0)
        count += done.counts["entries"]
    print(count)
"""


def start(code: str, **values: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code).format(**values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_build_fails_while_everything_unused_is_collected_all_the_time(tmp_path: Path) -> None:
    Lab.in_folder(tmp_path / "lab")
    values = {"tests": str(TESTS), "place": str(tmp_path), "seconds": 8}
    builders = [start(BUILDER, **values) for _ in range(3)]
    collectors = [start(COLLECTOR, **values) for _ in range(2)]
    counts = []
    for process in [*builders, *collectors]:
        said, trouble = process.communicate(timeout=120)
        assert process.returncode == 0, trouble
        counts.append(int(said))
    assert min(counts[:3]) >= 3
    assert sum(counts[3:]) >= 8, "nothing was collected beside the builds"
    assert list(damage(tmp_path)) == []
    collect(Store(tmp_path / "store"), max_bytes=0)
    assert list((tmp_path / "store").glob("entries/*/*")) == []
