# SPDX-License-Identifier: Apache-2.0
"""What a folder holds, as rows that are the same wherever, whoever's and however old it is."""

import hashlib
import os
import stat
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sevkit.canonical import Json, canonical_json, sha256_of
from sevkit.errors import ImageError


def list_tree(root: Path, *, leave_out: Collection[str] = ()) -> list[dict[str, Json]]:
    """Every path below `root`, sorted: type, executable bit, size, SHA-256 or link target.

    What `root` itself has under a name in `leave_out` is passed over. Raises `ImageError` for
    anything but files, folders and symbolic links, and for a name that is not UTF-8.
    """
    rows: list[dict[str, Json]] = []
    files: list[tuple[int, Path]] = []
    for folder, folder_names, file_names in os.walk(root):
        if folder == os.fspath(root):
            folder_names[:] = [name for name in folder_names if name not in leave_out]
            file_names[:] = [name for name in file_names if name not in leave_out]
        for name in [*folder_names, *file_names]:
            path = Path(folder, name)
            status = path.lstat()
            row: dict[str, Json] = {"path": _utf8(path.relative_to(root).as_posix(), path)}
            if stat.S_ISLNK(status.st_mode):
                row |= {"type": "link", "target": _utf8(os.readlink(path), path)}  # noqa: PTH115
            elif stat.S_ISDIR(status.st_mode):
                row |= {"type": "folder"}
            elif stat.S_ISREG(status.st_mode):
                executable = bool(status.st_mode & 0o100)
                row |= {"type": "file", "executable": executable, "size": status.st_size}
                files.append((len(rows), path))
            else:
                raise ImageError(f"{path}: neither a file, a folder nor a symbolic link")
            rows.append(row)
    with ThreadPoolExecutor() as pool:
        for (index, _), digest in zip(
            files, pool.map(sha256_of, [path for _, path in files]), strict=True
        ):
            rows[index]["sha256"] = digest
    return sorted(rows, key=lambda row: str(row["path"]))


def _utf8(name: str, path: Path) -> str:
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError as error:
        shown, place = (os.fsencode(p).decode("utf-8", "backslashreplace") for p in (name, path))
        raise ImageError(
            f"{place}: the name '{shown}' is not UTF-8", hint="give it a name that is"
        ) from error


def tree_digest(rows: list[dict[str, Json]]) -> str:
    """The digest that names a listing: SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()
