# SPDX-License-Identifier: Apache-2.0
"""Empties a store: of what a store holds, and of nothing else that lies in its folder."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from sevkit.clearing import Clearing, is_folder
from sevkit.errors import HostError, RecipeError
from sevkit.store.store import Store

_PREFIX = r"[0-9a-f]{2}"
_RANDOM = r"[0-9a-f]{16}"
_HELD = {
    "apt": r"[a-z0-9][a-z0-9-]*",
    "blobs": _PREFIX,
    "commits": r"[0-9a-f]{40,64}",
    "entries": _PREFIX,
    "hosts": r"[a-z-]+\.json.*",
    "last": r"[a-z0-9][a-z0-9._-]*",
    "leases": _RANDOM,
    "leftovers": r"[a-z_]+",
    "locks": r"[0-9a-f]{64}|(blob|git)-[0-9a-f]+",
    "partial": r"(blob|git)-[0-9a-f]+(\.FAILED)?",
    "pins": r"[0-9a-f]{32}\..*",
    "tmp": rf"{_RANDOM}(\.lock)?",
    "uptodate": rf"{_RANDOM}\.json.*",
}
"""What the folders of a store hold; store.py says what each is for."""


@contextlib.contextmanager
def store_to_remove(root: Path) -> Iterator[Clearing]:
    """All that is the store's in `root`; nobody can use the store while the block runs.

    Raises `RecipeError` for a folder that is no store, and `HostError` when a build uses it.
    """
    if not all((root / name).is_dir() for name in ("blobs", "entries", "locks", "tmp")):
        raise RecipeError(
            f"{root} is no store: nothing was deleted",
            why="it has no blobs/, entries/, locks/ and tmp/",
            hint="set SEVKIT_STORE to the folder of the store",
        )
    with Store(root).leases.alone() as used:
        if used:
            raise HostError(
                f"a running build uses the store {root}",
                hint="wait for it; sevkit gc --max-size 0B removes all that no build uses",
            )
        yield _held(root)


def _held(root: Path) -> Clearing:
    clearing = Clearing()
    for path in sorted(root.iterdir()):
        pattern = _HELD.get(path.name)
        if pattern is not None and is_folder(path):
            clearing.sort(path, re.compile(pattern).fullmatch)
        elif path.name == "gate":
            clearing.ours.append(path)
        else:
            clearing.left.append(path)
    clearing.close(root)
    return clearing
