# SPDX-License-Identifier: Apache-2.0
"""The store: fetched files and stage results, named by content, shared by concurrent builds.

    blobs/ab/<sha256>       one file
    commits/<commit>        the SHA-256 of the blob that holds a git commit's archive
    entries/ab/<key>/       key.json (the stage record), content.json (the listing), data/
    last/<recipe>/<stage>   the key that was built last under this name
    leftovers/<kind>/       what stages of a kind leave to spare the next one some work
    partial/                files that are being fetched
    tmp/<name>/             unfinished work; its owner holds tmp/<name>.lock
    locks/<key>             held by the process that builds the key

An entry becomes visible by one rename, complete or not at all. Whatever is read is hashed first.
Locks are flock(2), so they die with their process. The store knows nothing of recipes.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from sevkit.errors import HostError, ImageError, SevkitError
from sevkit.stage import Json, Stage, canonical_json

NOT_SOURCES = frozenset({".git", "__pycache__", "build"})
"""Folders of a project that hold products or history, and so are no input of a stage."""

_FSYNC_EACH_UP_TO = 64


def default_root(environment: Mapping[str, str]) -> Path:
    """`$SEVKIT_STORE`, else `$XDG_CACHE_HOME/sevkit`, else `~/.cache/sevkit`."""
    if named := environment.get("SEVKIT_STORE"):
        return Path(named).absolute()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "sevkit"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_tree(root: Path, *, leave_out: Collection[str] = ()) -> list[dict[str, Json]]:
    """Every path below `root`, sorted: type, executable bit, size, SHA-256 or link target.

    Folders called as in `leave_out` are passed over. Raises `ImageError` for anything but files,
    folders and symbolic links.
    """
    rows: list[dict[str, Json]] = []
    files: list[tuple[int, Path]] = []
    for folder, folder_names, file_names in os.walk(root):
        folder_names[:] = [name for name in folder_names if name not in leave_out]
        for name in [*folder_names, *file_names]:
            path = Path(folder, name)
            status = path.lstat()
            row: dict[str, Json] = {"path": path.relative_to(root).as_posix()}
            if stat.S_ISLNK(status.st_mode):
                row |= {"type": "link", "target": os.readlink(path)}  # noqa: PTH115
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


def list_local(root: Path) -> list[dict[str, Json]]:
    """`list_tree` of a project's folder, without what tools leave in it."""
    return list_tree(root, leave_out=NOT_SOURCES)


def tree_digest(rows: list[dict[str, Json]]) -> str:
    """The digest that names a listing: SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()


class Store:
    """A folder of blobs and entries. Safe for many threads and processes at once."""

    def __init__(self, root: Path):
        self.root = root
        try:
            for name in ("blobs", "commits", "entries", "last", "locks", "partial", "pins", "tmp"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"the store {root} can't be used: {error.strerror}",
                hint="set SEVKIT_STORE to a folder that you can write to",
            ) from error

    # --- blobs -----------------------------------------------------------------------------

    def _blob_path(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest

    def _digest_of(self, reference: str) -> str | None:
        kind, _, value = reference.partition(":")
        if kind == "blob":
            return value
        if kind == "git":
            try:
                return (self.root / "commits" / value).read_text().strip()
            except FileNotFoundError:
                return None
        raise ValueError(f"{reference} does not name one file")

    def has_blob(self, reference: str) -> bool:
        """Whether the file of a `blob:` or `git:` reference is here; its bytes are not read."""
        digest = self._digest_of(reference)
        return digest is not None and self._blob_path(digest).is_file()

    def blob(self, reference: str) -> Path:
        """The file of a `blob:` or `git:` reference, after its bytes were hashed.

        Raises `ImageError` when it is missing or damaged; a damaged one is removed.
        """
        digest = self._digest_of(reference)
        path = self._blob_path(digest) if digest else None
        if path is None or not path.is_file():
            raise ImageError(f"{reference} is not in the store", hint="sevkit fetch")
        found = sha256_of(path)
        if found != digest:
            path.unlink(missing_ok=True)
            raise ImageError(
                f"a file in the store was damaged: {path}",
                why=f"its SHA-256 is {found}",
                hint="build again: the file was removed and will be fetched anew",
            )
        return path

    def partial(self, reference: str) -> Path:
        """Where a file is written while it is fetched; it survives a failure, to be resumed."""
        return self.root / "partial" / reference.replace(":", "-")

    def add_blob(self, file: Path, reference: str) -> None:
        """Take over `file` (moved, not copied) as the content of `reference`.

        Raises `ImageError` when the bytes are not those that a `blob:` reference names.
        """
        digest = sha256_of(file)
        kind, _, value = reference.partition(":")
        if kind == "blob" and value != digest:
            raise ImageError(f"{file} has SHA-256 {digest}, not {value}")
        target = self._blob_path(digest)
        target.parent.mkdir(exist_ok=True)
        file.chmod(0o444)
        _fsync(file)
        file.replace(target)
        if kind == "git":
            self._write_atomically(self.root / "commits" / value, digest + "\n")

    def _write_atomically(self, path: Path, text: str) -> None:
        with self.scratch() as scratch:
            draft = scratch / path.name
            draft.write_text(text)
            _fsync(draft)
            draft.replace(path)

    # --- local files and folders -------------------------------------------------------------

    def add_local(self, path: Path, reference: str) -> None:
        """Copy a file (`blob:`) or folder (`tree:`) of this machine into the store.

        Raises `ImageError` when it changed since the plan was made.
        """
        kind, _, digest = reference.partition(":")
        changed = ImageError(f"{path} changed while the build was starting", hint="build again")
        if kind == "blob":
            if not self.has_blob(reference):
                with self.scratch() as scratch:
                    shutil.copyfile(path, scratch / "file")
                    if sha256_of(scratch / "file") != digest:
                        raise changed
                    self.add_blob(scratch / "file", reference)
            return
        rows = list_local(path)
        if tree_digest(rows) != digest:
            raise changed
        for row in rows:
            if row["type"] == "file":
                self.add_local(path / str(row["path"]), f"blob:{row['sha256']}")
        if not self.has_blob(f"blob:{digest}"):
            with self.scratch() as scratch:
                (scratch / "listing").write_text(canonical_json(rows), encoding="utf-8")
                self.add_blob(scratch / "listing", f"blob:{digest}")

    def lay_out(self, reference: str, destination: Path) -> None:
        """Write the folder that a `tree:` reference names to `destination`, a new folder."""
        rows = json.loads(self.blob("blob:" + reference.partition(":")[2]).read_bytes())
        destination.mkdir()
        for row in rows:  # sorted, so a folder comes before what is in it
            path = destination / row["path"]
            if row["type"] == "folder":
                path.mkdir()
            elif row["type"] == "link":
                path.symlink_to(row["target"])
            else:
                shutil.copyfile(self.blob(f"blob:{row['sha256']}"), path)
                path.chmod(0o755 if row["executable"] else 0o644)

    # --- entries -----------------------------------------------------------------------------

    def _entry(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the result of a stage is here; its bytes are not read."""
        return (self._entry(key) / "content.json").is_file()

    def record(self, key: str) -> dict[str, Json]:
        """The stage record that was hashed into `key`, as kept in key.json."""
        record: dict[str, Json] = json.loads((self._entry(key) / "key.json").read_bytes())
        return record

    def place(self, key: str) -> Path:
        """Where the output folder of a stage is or will be."""
        return self._entry(key) / "data"

    def last_key(self, recipe: str, stage: str) -> str | None:
        """The key under which the stage of that name was built last for the recipe."""
        try:
            return (self.root / "last" / recipe / stage).read_text().strip()
        except FileNotFoundError:
            return None

    def remember_last(self, recipe: str, stage: Stage) -> None:
        """Note `stage` as the one to compare with when a later one of its name is stale."""
        (self.root / "last" / recipe).mkdir(parents=True, exist_ok=True)
        self._write_atomically(self.root / "last" / recipe / stage.name, stage.key + "\n")

    def open(self, key: str, *, checked: bool = False) -> Path:
        """The output folder of a stage, after every byte of it was hashed.

        `checked` says that this process published it a moment ago. Raises `ImageError` when it is
        missing or damaged; a damaged entry is removed first.
        """
        entry = self._entry(key)
        if checked:
            return entry / "data"
        try:
            expected = json.loads((entry / "content.json").read_bytes())
            found = list_tree(entry / "data")
        except (OSError, ValueError) as error:
            self._set_aside(key)
            raise self._damaged(entry, str(error)) from error
        if found != expected:
            rows = {row["path"]: row for row in expected}
            names = {row["path"] for row in found if rows.get(row["path"]) != row}
            names |= rows.keys() - {row["path"] for row in found}
            self._set_aside(key)
            raise self._damaged(entry, "changed: " + ", ".join(sorted(map(str, names))[:5]))
        return entry / "data"

    def _damaged(self, entry: Path, why: str) -> ImageError:
        return ImageError(
            f"a store entry was damaged: {entry}",
            why=why,
            hint="build again: the entry was removed and will be built anew",
        )

    def _set_aside(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self.scratch() as scratch:
            self._entry(key).rename(scratch / key)

    def publish(self, stage: Stage, data: Path) -> bool:
        """Make the folder `data` the result of `stage`, at once and for good. It is moved.

        Returns whether the bytes are new: False when the same result was there already. Other
        bytes under the same key replace the old ones.
        """
        rows = list_tree(data)
        entry = self._entry(stage.key)
        with self.scratch() as scratch:
            draft = scratch / "entry"
            draft.mkdir()
            data.rename(draft / "data")
            record = json.dumps(stage.record(), indent=2, sort_keys=True) + "\n"
            (draft / "key.json").write_text(record, encoding="utf-8")
            (draft / "content.json").write_text(canonical_json(rows), encoding="utf-8")
            _settle(draft, len(rows))
            entry.parent.mkdir(exist_ok=True)
            if self.has(stage.key):
                if json.loads((entry / "content.json").read_bytes()) == rows:
                    return False
                self._set_aside(stage.key)
            with contextlib.suppress(FileNotFoundError):
                entry.rename(scratch / "incomplete")
            draft.rename(entry)
        return True

    def leftovers(self, kind: str) -> Path:
        """The folder in which stages of `kind` leave work for each other."""
        folder = self.root / "leftovers" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # --- work in progress --------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder on the store's file system, removed at the end whatever happens."""
        folder, lock_path, lock = self._new_scratch()
        with lock:
            try:
                yield folder
            finally:
                _remove(folder)
                lock_path.unlink(missing_ok=True)

    def _new_scratch(self) -> tuple[Path, Path, IO[str]]:
        """A new folder of tmp/, its lock file, and that file opened and locked."""
        while True:
            folder = self.root / "tmp" / secrets.token_hex(8)
            lock_path = folder.with_suffix(".lock")
            lock = lock_path.open("w")
            if _try_lock(lock) and lock_path.exists():  # else a sweep was faster
                folder.mkdir()
                return folder, lock_path, lock
            lock.close()

    def sweep(self) -> None:
        """Remove what killed processes left in tmp/."""
        for lock_path in (self.root / "tmp").glob("*.lock"):
            with contextlib.suppress(FileNotFoundError), lock_path.open("r+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                _remove(lock_path.with_suffix(""))
                lock_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock `name` against every other thread and process.

        `waiting` is called again and again while somebody else holds it; it may raise.
        """
        with (self.root / "locks" / name).open("w") as lock:
            while not _try_lock(lock):
                waiting()
                time.sleep(0.05)
            yield


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(folder: Path, count: int) -> None:
    """Bring a folder to the disk, file by file or, when it holds many, the whole file system."""
    if count <= _FSYNC_EACH_UP_TO:
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    _fsync(path)
            _fsync(Path(parent))
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder even where a build made parts of it read-only."""

    def make_writable_and_retry(function: Callable[[str], object], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            if Path(path).is_dir() and not Path(path).is_symlink():
                Path(path).chmod(0o700)
            function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=make_writable_and_retry)


@contextlib.contextmanager
def full_disk_explained(where: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into an error that names the file system."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SevkitError(
            f"no space left on the disk that holds {where}",
            why=f"while writing {error.filename or 'a file'}",
            hint="free some space (sevkit clean --store) or set SEVKIT_STORE to another disk",
        ) from error
