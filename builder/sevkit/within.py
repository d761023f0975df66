# SPDX-License-Identifier: Apache-2.0
"""Paths in folders that a source or its build steps have filled: no link leads out of them.

A build step is shut in, but sevkit is not when it picks up what the step made or puts a file beside
it: a symbolic link that a hostile source left there would have it read, or write, any file of the
user's. Every such path goes through here. No step runs any more by then, so that what was looked
at stays as it is.
"""

import os
import stat
from pathlib import Path, PurePath

from sevkit.errors import BuildError


def within(folder: Path, *parts: str | PurePath) -> Path:
    """The path of something in `folder`, there or not, that stays in it. `folder` is our own.

    Raises `BuildError` when a symbolic link, ``..`` or an absolute part leads out.
    """
    path = folder.joinpath(*parts)
    _place_of(path, folder)
    return path


def file_within(folder: Path, *parts: str | PurePath) -> Path:
    """The same of a regular file that is there.

    Raises `BuildError` when it is not there or something else, such as a FIFO that never ends.
    """
    path = folder.joinpath(*parts)
    try:
        kind = stat.S_IFMT(_place_of(path, folder).lstat().st_mode)
    except OSError as error:
        raise BuildError(
            f"there is no {_shown(path, folder)} in the build", why=str(error.strerror)
        ) from error
    if kind != stat.S_IFREG:
        raise BuildError(f"{_shown(path, folder)} in the build is no regular file")
    return path


def tree_within(folder: Path, *parts: str | PurePath) -> Path:
    """The path of a folder in `folder`, in which no link leads out of `folder` either.

    Raises `BuildError` as `within` does.
    """
    path = within(folder, *parts)
    for place, folder_names, file_names in os.walk(path):
        for name in (*folder_names, *file_names):
            below = Path(place, name)
            if below.is_symlink():
                _place_of(below, folder)
    return path


def place_within(folder: Path, *parts: str | PurePath) -> Path:
    """Where a file of our own is put, in a folder that is there: what has that name is removed.

    Raises `BuildError` when its folder leads out, or a folder has its name.
    """
    path = folder.joinpath(*parts)
    _place_of(path.parent, folder)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(
            f"{_shown(path, folder)} in the build can't be replaced", why=str(error.strerror)
        ) from error
    return path


def _place_of(path: Path, folder: Path) -> Path:
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # a ring of links is either, by Python's version
        raise BuildError(
            f"{_shown(path, folder)} in the build can't be used", why=str(error)
        ) from error
    if not place.is_relative_to(folder.resolve()):
        raise BuildError(
            f"{_shown(path, folder)} leads out of the build's folder",
            why=f"it means {place}",
            hint="what a source brings or its build makes must stay in there",
        )
    return place


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
