# SPDX-License-Identifier: Apache-2.0
"""A patch put on a small tree with patch(1): all of it or nothing, and nothing anywhere else."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sevkit.errors import BuildError
from sevkit.patches import apply, read_series

from .files import put

_FILES = {"dir/numbers": "".join(f"{n}\n" for n in range(1, 10)), "old": "x\n", "other": "y\n"}


def take(data: bytes, folder: Path) -> None:
    """Apply a series of the one patch `data`."""
    place = folder / "place"
    tree = place / "tree"
    series = folder / "series"
    if not tree.exists():
        (tree / "dir").mkdir(parents=True)
        series.mkdir()
        (tree / "out").symlink_to("../outside")
        (place / "outside").mkdir()
        _fill(tree)
    put(series / "series", b"one.patch\n")
    put(series / "one.patch", data)
    read = read_series(series)
    try:
        apply(read, tree, place / "shadow", _run, subject="a tree")
    except BuildError:
        assert _content(tree) == _FILES
        raise
    finally:
        assert sorted(path.name for path in place.iterdir()) == ["outside", "tree"]
        assert not list((place / "outside").iterdir())
        if _content(tree) != _FILES:
            _fill(tree)


def _content(tree: Path) -> dict[str, str]:
    files = [path for path in tree.rglob("*") if path.is_file()]
    return {str(path.relative_to(tree)): path.read_text("latin-1") for path in files}


def _fill(tree: Path) -> None:
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
        elif path.is_dir() and not path.is_symlink():
            path.rmdir()
    for name, text in _FILES.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)


def _run(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    on_line: Callable[[str], None] | None = None,
    **_: Any,
) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    for line in (done.stdout + done.stderr).decode("utf-8", "replace").splitlines():
        if on_line:
            on_line(line)
    if done.returncode:
        raise BuildError("patch failed")
