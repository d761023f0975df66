# SPDX-License-Identifier: Apache-2.0
"""What a disk does to a build: bytes that must reach it, folders that resist, and no room left.

Knows nothing of what the files are.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sevkit.errors import BuildError, HostError, SevkitError

_FSYNC_EACH_UP_TO = 64
_FULL_BELOW_BYTES = 256 << 10
_SAID = "No space left on device"
"""strerror(3) of ENOSPC in the C locale, in which every command of a build step runs."""


class FullDiskError(HostError):
    """There is no room left on a disk."""


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(
    path: Path, data: bytes, *, mode: int | None = None, drafts: Path | None = None
) -> None:
    """Write the file `path` at once: it is there whole, or as it was, also when power is lost.

    What is there, a symbolic link too, is replaced. `mode` is the umask's when nobody says;
    `drafts` a folder of the same file system to write in first, for a file in one that must hold
    nothing else. Raises `OSError`, and leaves nothing then.
    """
    draft = (drafts or path.parent) / f".{path.name}.{secrets.token_hex(4)}"
    try:
        draft.write_bytes(data)
        if mode is not None:
            draft.chmod(mode)
        fsync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_named(path: Path, data: bytes, *, mode: int) -> None:
    """Write the file that a user names, at once: where a symbolic link leads, if it is one.

    What is no regular file, a device or a pipe, is written to and stays what it is. Raises
    `OSError`.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_whole(path.resolve(), data, mode=mode)


def settle(folder: Path, count: int) -> None:
    """Bring a folder to the disk, file by file or, when it holds many, the whole file system."""
    if count <= _FSYNC_EACH_UP_TO:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    fsync(path)
            fsync(Path(parent))
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def remove(folder: Path) -> bool:
    """Remove a folder even where a build made parts of it read-only; whether it is gone.

    What lies beside it, and the folder that holds it, stay as they are.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir() and not folder.is_symlink():
        _open_to_owner(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _open_to_owner(folder: Path) -> None:
    """Add the owner's rights on a folder and all folders in it, as far as they are this user's."""
    with contextlib.suppress(OSError):
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_to_owner(Path(entry.path))


@contextlib.contextmanager
def full_disk_explained(*places: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT, met here or by a command, into an error that names the full disk.

    `places` are what is written to while the block runs, the most likely first.
    """
    try:
        yield
    except OSError as error:
        for one in _causes(error):
            if one.errno in (errno.ENOSPC, errno.EDQUOT):
                what = f"while writing {one.filename or 'a file'}"
                raise _no_space(places, what) from error
        raise
    except FullDiskError:
        raise
    except SevkitError as error:
        hit = isinstance(error, BuildError) and any(map(_is_full, places))
        if not hit and _SAID not in str(error):
            raise
        raise _no_space(places, error.what, error) from error


def _causes(error: OSError) -> list[OSError]:
    """`error`; or those of a whole tree that shutil.copytree() has told as text."""
    if not isinstance(error, shutil.Error) or isinstance(error.args[0], str):
        return [error]
    found = []
    for _, target, why in error.args[0]:
        match = re.match(r"\[Errno (\d+)\]", why)
        if match is not None:
            found.append(OSError(int(match[1]), why, target))
    return found


def _no_space(places: tuple[Path, ...], why: str, cause: SevkitError | None = None) -> SevkitError:
    full = next(filter(_is_full, places), places[0])
    return FullDiskError(
        f"no space left on the disk that holds {full}",
        why="\n".join([why, *(cause.why.splitlines() if cause else [])]),
        hint="free some space (sevkit gc --max-size 1GiB), or use another disk: SEVKIT_STORE for "
        "the store, --output for images",
        log=cause.log if cause else None,
    )


def _is_full(place: Path) -> bool:
    """Whether the file system of `place` has next to no room left for us (statvfs(3))."""
    while not place.exists() and place != place.parent:
        place = place.parent
    free = os.statvfs(place)
    return free.f_bavail * free.f_frsize < _FULL_BELOW_BYTES
