# SPDX-License-Identifier: Apache-2.0
"""A whole clean build, sources fetched, beside a bare `make bzImage` of the same tree and config.

Usage: python benchmarks/build.py [RECIPE [NAME=VALUE]...]. Takes two kernel compilations.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import REPOSITORY, SEVKIT, Ratio, seconds

from sevkit.store.store import default_root


def main() -> None:
    """Print the ratio."""
    words = sys.argv[1:] or ["sev-guest"]
    jobs = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="sevkit-bench-") as name:
        scratch = Path(name)
        seconds([*SEVKIT, "fetch", *words])
        store = seed(default_root(os.environ), scratch / "store")
        where = ["-C", str(REPOSITORY), "--output", str(scratch / "output")]
        whole = seconds(
            [*SEVKIT, *where, "build", *words, "--offline", "-j", jobs],
            env={"SEVKIT_STORE": str(store)},
        )
        [image] = (scratch / "output").glob("*/latest")
        tree = bare_tree(image, store, scratch)
        bare = seconds(["make", f"-j{jobs}", "bzImage"], cwd=tree)
    print(Ratio("clean build", whole, f"make -j{jobs} bzImage", bare, "at most 1.10"))


def seed(source: Path, store: Path) -> Path:
    """A store that has what was fetched, and no results."""
    for folder in ("blobs", "commits", "pins"):
        shutil.copytree(source / folder, store / folder)
    return store


def bare_tree(image: Path, store: Path, scratch: Path) -> Path:
    """The same source, patches and config, by the tools that a person would use."""
    import json

    manifest = json.loads((image / "manifest.json").read_text())
    [linux] = [row for row in manifest["sources"] if row["source"] == "linux"]
    digest = linux["reference"].partition(":")[2]
    deb = store / "blobs" / digest[:2] / digest
    subprocess.run(["dpkg-deb", "-x", deb, scratch / "deb"], check=True)
    [tarball] = (scratch / "deb" / "usr" / "src").glob("*.tar.xz")
    subprocess.run(["tar", "xf", tarball, "-C", scratch], check=True)
    [tree] = scratch.glob("linux-source-*")
    series = "6.1" if tree.name.endswith("6.1") else "6.12"
    folder = REPOSITORY / "patches" / f"linux-{series}"
    for line in (folder / "series").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            with (folder / line.split()[0]).open("rb") as patch:
                subprocess.run(["patch", "-p1", "-s"], cwd=tree, stdin=patch, check=True)
    shutil.copyfile(image / "config", tree / ".config")
    subprocess.run(["make", "-s", "olddefconfig"], cwd=tree, check=True)
    return tree


if __name__ == "__main__":
    main()
