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
    leases/, gate           what running processes use: leases.py

An entry becomes visible by one rename, complete or not at all. Whatever is read is hashed first.
Locks are flock(2), so they die with their process. When a blob or an entry was used last is the
time of change of its file or folder. A store whose folder is writable by a group is kept readable
and removable by all of it, whatever their umask. The store knows nothing of recipes.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from sevkit.canonical import Json, canonical_json, sha256_of
from sevkit.disk import fsync, full_disk_explained, remove, settle
from sevkit.errors import HostError, ImageError
from sevkit.stage import Local, Stage
from sevkit.store.leases import (
    Leases,
    locked,
    open_lock,
    open_lock_of_another,
    still_at,
    try_lock,
    widen,
)
from sevkit.store.listing import list_tree, tree_digest

Published = Literal["taken", "replaced", "kept"]
"""What became of a result: nothing else was there, or it replaced other bytes, or those stayed."""

_FOLDERS = (
    *("blobs", "commits", "entries", "last", "leases", "leftovers", "locks", "partial", "pins"),
    *("tmp", "uptodate"),
)


def default_root(environment: Mapping[str, str]) -> Path:
    """`$SEVKIT_STORE`, else `$XDG_CACHE_HOME/sevkit`, else `~/.cache/sevkit`."""
    if named := environment.get("SEVKIT_STORE"):
        return Path(named).absolute()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "sevkit"


class Store:
    """A folder of blobs and entries. Safe for many threads and processes at once."""

    def __init__(self, root: Path):
        self.root = root
        try:
            with full_disk_explained(root):
                root.mkdir(parents=True, exist_ok=True)
                status = root.stat()
                sticky = bool(status.st_mode & stat.S_ISVTX)
                self._shared = bool(status.st_mode & stat.S_IWGRP) and not sticky
                for name in _FOLDERS:
                    (root / name).mkdir(exist_ok=True)
                    if self._shared:
                        widen(root / name, 0o2775)
        except OSError as error:
            raise HostError(
                f"the store {root} can't be used: {error.strerror}",
                hint="set SEVKIT_STORE to a folder that you can write to",
            ) from error
        for name in ("", *_FOLDERS):
            if not os.access(root / name, os.W_OK | os.X_OK):
                raise HostError(
                    f"the store {root} belongs to another user",
                    why=f"{root / name} is not writable",
                    hint="share it as docs/store.md says, or set SEVKIT_STORE to one of your own",
                )
        if sticky and os.geteuid() not in (0, status.st_uid):
            raise HostError(
                f"the store {root} can't be shared: its folder has the sticky bit",
                why="a user could not remove what another one made, nor lock it (proc(5), "
                "fs.protected_regular)",
                hint=f"chmod 2775 {root}",
            )
        self.leases = Leases(root, self._lock_mode)

    def personal(self, name: str) -> Path:
        """The folder `name` of the store, or where users share it this user's part of that."""
        if not self._shared:
            return self.root / name
        return self._folder(self.root / name) / str(os.geteuid())

    def _folder(self, path: Path) -> Path:
        """`path`, made where there is none, and never seen with a mode that shuts others out."""
        if path.is_dir():
            return path
        if not self._shared:
            path.mkdir(exist_ok=True)
            return path
        with self.scratch() as scratch:
            draft = scratch / "folder"
            draft.mkdir()
            widen(draft, 0o2775)
            try:
                draft.rename(path)
            except OSError:  # somebody was faster, and has put something in
                if not path.is_dir():
                    raise
        return path

    def _share(self, folder: Path) -> None:
        """Let the group of a shared store read, move and remove what is in `folder`."""
        if not self._shared:
            return
        for parent, _, names in os.walk(folder):
            widen(Path(parent), 0o2770)
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    widen(path, 0o040 | (path.stat().st_mode & 0o100) >> 3)

    def _use(self, path: Path, sign: Path) -> bool:
        """Whether `sign` is there; if so, `path` stays until this process lets go of the store."""
        name = path.relative_to(self.root).as_posix()
        if self.leases.is_held(name):
            return sign.is_file()
        with self.leases.gate():
            if not sign.is_file():
                return False
            self._hold(path)
        return True

    def _hold(self, path: Path) -> None:
        with full_disk_explained(self.root):
            self.leases.hold(path.relative_to(self.root).as_posix())
        with contextlib.suppress(OSError):  # another user's, on a disk that can't be written to
            os.utime(path)

    # --- blobs -----------------------------------------------------------------------------

    def _blob_path(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest

    def _digest_of(self, reference: str) -> str | None:
        kind, _, value = reference.partition(":")
        if kind == "blob":
            return value
        if kind == "git":
            try:
                digest = (self.root / "commits" / value).read_text().strip()
            except (FileNotFoundError, ValueError):
                return None
            return digest if re.fullmatch("[0-9a-f]{64}", digest) else None
        raise ValueError(f"{reference} does not name one file")

    def has_blob(self, reference: str) -> bool:
        """Whether the file of a `blob:` or `git:` reference is here; its bytes are not read."""
        digest = self._digest_of(reference)
        if digest is None:
            return False
        path = self._blob_path(digest)
        return self._use(path, path)

    def blob(self, reference: str) -> Path:
        """The file of a `blob:` or `git:` reference, after its bytes were hashed.

        Raises `ImageError` when it is missing or damaged; a damaged one is removed.
        """
        digest = self._digest_of(reference)
        path = self._blob_path(digest) if digest else None
        if path is None or not self._use(path, path):
            raise ImageError(f"{reference} is not in the store")
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
        """Where a file is written while it is fetched; it survives a failure, to be resumed.

        To be asked for while `lock` holds its name. What another user left is begun anew.
        """
        path = self.root / "partial" / lock_name(reference)
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            path.unlink()
        return path

    def add_blob(self, file: Path, reference: str) -> None:
        """Take over `file` (moved, not copied) as the content of `reference`.

        Raises `ImageError` when the bytes are not those that a `blob:` reference names.
        """
        digest = sha256_of(file)
        kind, _, value = reference.partition(":")
        if kind == "blob" and value != digest:
            raise ImageError(f"{file} has SHA-256 {digest}, not {value}")
        target = self._blob_path(digest)
        if file.stat().st_nlink == 1:  # else another store's too, which has seen to it
            file.chmod(0o664 if self._shared else 0o444)
        fsync(file)
        with self.leases.gate():
            self._folder(target.parent)
            file.replace(target)
            self._hold(target)
        if kind == "git":
            self._write_atomically(self.root / "commits" / value, digest + "\n")

    def _write_atomically(self, path: Path, text: str) -> None:
        with self.scratch() as scratch:
            draft = scratch / path.name
            draft.write_text(text)
            self._share(scratch)
            fsync(draft)
            with self.leases.gate():
                draft.replace(path)

    # --- local files and folders -------------------------------------------------------------

    def add_local(self, local: Local, reference: str) -> None:
        """Copy a file (`blob:`) or folder (`tree:`) of this machine into the store.

        Raises `ImageError` when it changed since the plan was made.
        """
        path = local.path
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
        rows = list_tree(path, leave_out=local.leave_out)
        if tree_digest(rows) != digest:
            raise changed
        for row in rows:
            if row["type"] == "file":
                self.add_local(Local(path / str(row["path"])), f"blob:{row['sha256']}")
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

    def remove_damaged(self, references: Iterable[str]) -> None:
        """Read all that `references` name, so that one build finds everything that is damaged."""
        for reference in references:
            kind, _, value = reference.partition(":")
            with contextlib.suppress(ImageError):
                if kind == "stage":
                    if self.has(value):
                        self.open(value)
                elif kind == "tree":
                    rows = json.loads(self.blob(f"blob:{value}").read_bytes())
                    self.remove_damaged(
                        f"blob:{row['sha256']}" for row in rows if row["type"] == "file"
                    )
                else:
                    self.blob(reference)

    # --- entries -----------------------------------------------------------------------------

    def _entry(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the result of a stage is here; its bytes are not read."""
        entry = self._entry(key)
        return self._use(entry, entry / "content.json")

    def record(self, key: str) -> dict[str, Json] | None:
        """The stage record that was hashed into `key`, as kept in key.json.

        None when it is not there, or damaged.
        """
        try:
            record: dict[str, Json] = json.loads((self._entry(key) / "key.json").read_bytes())
        except (OSError, ValueError):
            return None
        digest = hashlib.sha256(canonical_json(record).encode("utf-8", "replace")).hexdigest()
        return record if digest == key else None

    def last_key(self, recipe: str, stage: str) -> str | None:
        """The key under which the stage of that name was built last for the recipe."""
        try:
            key = (self.root / "last" / recipe / stage).read_text().strip()
        except (FileNotFoundError, ValueError):
            return None
        return key if re.fullmatch("[0-9a-f]{64}", key) else None

    def remember_last(self, recipe: str, stage: Stage) -> None:
        """Note `stage` as the one to compare with when a later one of its name is stale."""
        self._folder(self.root / "last" / recipe)
        self._write_atomically(self.root / "last" / recipe / stage.name, stage.key + "\n")

    def open(self, key: str, *, checked: bool = False) -> Path:
        """The output folder of a stage, after every byte of it was hashed.

        `checked` says that this process published it a moment ago. Raises `ImageError` when it is
        missing or damaged; a damaged entry is removed first.
        """
        entry = self._entry(key)
        self._use(entry, entry / "content.json")
        if checked:
            return entry / "data"
        try:
            expected = json.loads((entry / "content.json").read_bytes())
            found = list_tree(entry / "data")
            changed = [] if found == expected else _differing(found, expected)
        except (OSError, ValueError, TypeError, KeyError, ImageError) as error:
            self._set_aside(key)
            raise self._damaged(entry, str(error)) from error
        if found != expected:
            self._set_aside(key)
            raise self._damaged(entry, "changed: " + ", ".join(changed[:5]))
        return entry / "data"

    def _damaged(self, entry: Path, why: str) -> ImageError:
        return ImageError(
            f"a store entry was damaged: {entry}",
            why=why,
            hint="build again: the entry was removed and will be built anew",
        )

    def _set_aside(self, key: str) -> None:
        with self.scratch() as scratch, contextlib.suppress(FileNotFoundError):
            self._entry(key).rename(scratch / key)

    def publish(self, stage: Stage, data: Path) -> Published:
        """Make the folder `data` the result of `stage`, at once and for good. It is moved.

        What is there already stays where it is whole and the same, and where it is whole and
        another process uses it; else it is replaced.
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
            self._share(draft)
            settle(draft, len(rows))
            before = self._listing(stage.key) if self.has(stage.key) else None
            if before == rows:
                return "taken"
            with self.leases.alone() as users:
                if before is not None and users[entry.relative_to(self.root).as_posix()] > 1:
                    return "kept"
                self._folder(entry.parent)
                with contextlib.suppress(FileNotFoundError):
                    entry.rename(scratch / "before")
                draft.rename(entry)
                self._hold(entry)
        return "taken" if before is None else "replaced"

    def _listing(self, key: str) -> list[dict[str, Json]] | None:
        """What is in an entry, every byte of it hashed; None when any of it is damaged."""
        entry = self._entry(key)
        try:
            rows: list[dict[str, Json]] = json.loads((entry / "content.json").read_bytes())
            is_whole = self.record(key) is not None and list_tree(entry / "data") == rows
        except (OSError, ValueError, ImageError):
            return None
        return rows if is_whole else None

    def leftovers(self, kind: str) -> Path:
        """The folder in which stages of `kind` leave work for each other."""
        with self.leases.gate():
            folder = self._folder(self.root / "leftovers" / kind)
            self._hold(folder)
        for path in folder.iterdir():
            if not os.access(path, os.R_OK):  # another user's, of a narrower umask
                path.unlink(missing_ok=True)
        return folder

    # --- work in progress --------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder on the store's file system, removed at the end whatever happens."""
        folder, lock_path, lock = self._new_scratch()
        try:
            yield folder
        finally:
            if remove(folder):
                lock_path.unlink(missing_ok=True)
            os.close(lock)

    def _new_scratch(self) -> tuple[Path, Path, int]:
        """A new folder of tmp/, its lock file, and that file opened and locked."""
        while True:
            folder = self.root / "tmp" / secrets.token_hex(8)
            lock_path = folder.with_suffix(".lock")
            lock = open_lock(lock_path, self._lock_mode)
            if try_lock(lock) and still_at(lock_path, lock):  # else a sweep was faster
                try:
                    folder.mkdir()
                    if self._shared:
                        widen(folder, 0o2775)
                    return folder, lock_path, lock
                except OSError:
                    lock_path.unlink(missing_ok=True)
                    os.close(lock)
                    raise
            os.close(lock)

    def sweep(self) -> tuple[int, list[Path]]:
        """Remove what killed processes left in tmp/: how many folders, and which could not be.

        What another user's build had not yet opened to the group is left to that user's next one.
        """
        with self.leases.alone():
            pass  # which removes the leases of killed processes
        count, left = 0, []
        for folder in self._abandoned():
            count += folder.exists()
            if remove(folder):
                folder.with_suffix(".lock").unlink(missing_ok=True)
            else:
                left.append(folder)
        return count - len(left), left

    def unfinished(self) -> int:
        """How many folders of killed processes are in tmp/, for `sweep` to remove."""
        return sum(folder.exists() for folder in self._abandoned())

    def _abandoned(self) -> Iterator[Path]:
        """Each folder of tmp/ whose process is gone, locked until the next one is asked for."""
        for lock_path in (self.root / "tmp").glob("*.lock"):
            lock = open_lock_of_another(lock_path)
            if lock is None:
                continue
            try:
                if try_lock(lock) and still_at(lock_path, lock):
                    yield lock_path.with_suffix("")
            finally:
                os.close(lock)

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock `name` against every other thread and process.

        `waiting` is called again and again while somebody else holds it; it may raise.
        """
        with locked(self.root / "locks" / name, waiting, mode=self._lock_mode):
            yield

    @property
    def _lock_mode(self) -> int:
        return 0o664 if self._shared else 0o644


def lock_name(reference: str) -> str:
    """The name of the lock, and of the partial file, of what is being fetched."""
    return reference.replace(":", "-")


def _differing(found: list[dict[str, Json]], expected: list[dict[str, Json]]) -> list[str]:
    """The paths whose rows are not the same in two listings."""
    rows = {str(row["path"]): row for row in expected}
    here = {str(row["path"]): row for row in found}
    names = rows.keys() | here.keys()
    return sorted(name for name in names if rows.get(name) != here.get(name))
