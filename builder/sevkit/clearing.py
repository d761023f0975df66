# SPDX-License-Identifier: Apache-2.0
"""Removes what is ours from a folder that somebody named, and that may hold anything else too.

What is not known to be ours stays. Symbolic links are removed where they are ours, never followed.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sevkit.disk import remove


@dataclass
class Clearing:
    """What is to be removed, found before anything is."""

    ours: list[Path] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    """What stays, because nothing says that it is ours."""
    _folders: list[Path] = field(default_factory=list)

    def sort(self, folder: Path, is_ours: Callable[[str], object]) -> None:
        """Add all that `folder` holds, by its name, and the folder, if nothing is left in it."""
        for path in sorted(folder.iterdir()):
            (self.ours if is_ours(path.name) else self.left).append(path)
        self.close(folder)

    def close(self, folder: Path) -> None:
        """Have `folder` go if nothing is left in it; to be said after all that is in it."""
        self._folders.append(folder)

    def carry_out(self) -> None:
        """Remove it. Raises `OSError` for what this user can't remove."""
        for path in self.ours:
            if is_folder(path):
                remove(path)
            if path.is_symlink() or path.exists():
                (path.rmdir if is_folder(path) else path.unlink)()
        for folder in self._folders:
            if is_folder(folder):
                with contextlib.suppress(OSError):  # something is left in it
                    folder.rmdir()


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, and no symbolic link to one."""
    return path.is_dir() and not path.is_symlink()
