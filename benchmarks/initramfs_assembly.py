# SPDX-License-Identifier: Apache-2.0
"""How long an initramfs takes to write, beside `find | sort | cpio | zstd` of the same tree.

Both read the same files and compress at the same level with as many threads; each is run several
times in turn and the shortest time counts. Needs cpio and zstd.

    benchmarks/initramfs_assembly.py [--tree FOLDER] [--level N]... [--rounds N]
"""

import argparse
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sevkit.rootfs import cpio
from sevkit.rootfs.compress import compress
from sevkit.rootfs.loader import FolderTree, closure

DEFAULT_PROGRAMS = (
    "/usr/bin/gpg",
    "/usr/bin/git",
    "/usr/bin/perl",
    "/usr/bin/bash",
    "/usr/bin/ssh",
)


def a_tree(folder: Path) -> None:
    """Programs of this machine with their libraries: about what an initramfs holds."""
    host = FolderTree(Path("/"), {})
    programs = [path for path in DEFAULT_PROGRAMS if Path(path).is_file()]
    for path in closure(host, programs).files:
        place = Path(f"{folder}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(host.read(path))
        place.chmod(0o755)


def entries_of(folder: Path) -> list[cpio.Entry]:
    """The folder as a list of entries, links and modes kept."""
    entries: list[cpio.Entry] = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            guest = "/" + path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                entries.append(cpio.Symlink(path=guest, target=str(path.readlink())))
            elif stat.S_ISDIR(mode):
                entries.append(cpio.Directory(path=guest, mode=stat.S_IMODE(mode)))
            elif stat.S_ISREG(mode):
                entries.append(cpio.File(path=guest, data=path, mode=stat.S_IMODE(mode)))
    return entries


def ours(folder: Path, work: Path, level: int | None, threads: int) -> int:
    """List, write and compress as the stage does; the bytes of the result."""
    archive, packed = work / "ours.cpio", work / "ours.cpio.zst"
    with archive.open("wb", buffering=1 << 20) as stream:
        cpio.write(entries_of(folder), stream)
    if level is None:
        return archive.stat().st_size
    compress("zstd", level, archive, packed, threads=threads, run=no_tool)
    return packed.stat().st_size


def no_tool(argv: Sequence[str | Path]) -> None:
    """zstd needs none."""
    raise AssertionError(argv)


def usual(folder: Path, work: Path, level: int | None, threads: int) -> int:
    """The pipe that everybody writes; the bytes of the result."""
    packed = work / "usual.cpio.zst"
    pipe = "find . -mindepth 1 -printf '%P\\0' | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc"
    if level is not None:
        pipe += f" | zstd -q -{level} -T{threads}"
    with packed.open("wb") as file:
        subprocess.run(["sh", "-c", pipe], cwd=folder, stdout=file, check=True)
    return packed.stat().st_size


def shortest(functions: Sequence[Callable[[], int]], rounds: int) -> list[tuple[float, int]]:
    """Seconds and result of each function, run in turn."""
    best = [(float("inf"), 0) for _ in functions]
    for _ in range(rounds):
        for index, function in enumerate(functions):
            started = time.perf_counter()
            size = function()
            best[index] = min(best[index], (time.perf_counter() - started, size))
    return best


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--tree", type=Path, help="what to pack (default: programs of this machine)"
    )
    parser.add_argument(
        "--level", type=int, action="append", help="zstd level (default: 1, 10, 19)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tree = options.tree
        if tree is None:
            tree = work / "tree"
            tree.mkdir()
            a_tree(tree)
        count = sum(1 for _ in tree.rglob("*"))
        size = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())
        print(f"{count} paths, {size / 2**20:.1f} MiB, {threads} threads, best of {options.rounds}")
        print(
            f"{'compression':14}{'sevkit':>10}{'find|cpio':>12}{'ratio':>8}{'bytes':>12}{'bytes':>12}"
        )
        for level in (None, *(options.level or (1, 10, 19))):
            results = shortest(
                [
                    lambda level=level: ours(tree, work, level, threads),
                    lambda level=level: usual(tree, work, level, threads),
                ],
                options.rounds,
            )
            (our_time, our_size), (usual_time, usual_size) = results
            title = "none" if level is None else f"zstd -{level}"
            print(
                f"{title:14}{our_time:9.3f}s{usual_time:11.3f}s{our_time / usual_time:8.2f}"
                f"{our_size:12}{usual_size:12}"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
