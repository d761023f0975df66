# SPDX-License-Identifier: Apache-2.0
"""The initramfs: agent, listed binaries with all that they need, the recipe's files; one archive.

Owns what is in the guest's root at boot and the account of it. Everything comes from the agent, the
package sysroot or the recipe, never from the host. There is no ld.so.cache: a loader without one
searches its few default folders, which costs a handful of failed opens at each start, and a cache
would be one more file that can disagree with the libraries beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sevkit.canonical import Json
from sevkit.errors import BuildError
from sevkit.rootfs import cpio
from sevkit.rootfs.compress import METHODS, compress, compressor
from sevkit.rootfs.contents import Package, PathType, Row, account, check_budget
from sevkit.rootfs.elf import Elf, is_elf
from sevkit.rootfs.loader import Closure, FolderTree, closure, follow, resolve, verify
from sevkit.stage import Planner, Runner, Stage

VERSION = 2

TOOLS = {"lz4": "lz4", "xz": "xz-utils"}

INIT = "/init"
RELEASE = "/etc/sevkit-release"
_FILES = "files"
_SKELETON: Sequence[cpio.Entry] = (
    cpio.Directory(path="/dev"),
    cpio.Directory(path="/etc"),
    cpio.Directory(path="/proc", mode=0o555),
    cpio.Directory(path="/run"),
    cpio.Directory(path="/sys", mode=0o555),
    cpio.Directory(path="/tmp", mode=0o1777),
    cpio.Node(path="/dev/console", kind="char", major=5, minor=1, mode=0o600),
    cpio.Node(path="/dev/null", kind="char", major=1, minor=3, mode=0o666),
)


def plan_initramfs(planner: Planner) -> Stage:
    """Agent, sysroot, the recipe's files, and how they are packed.

    Without packages of its own the agent's sysroot serves, so that a compiled agent finds its
    libc.
    """
    recipe, part = planner.recipe, planner.recipe.initramfs
    inputs = {"agent": planner.stage("agent")}
    if part.debs:
        inputs["sysroot"] = planner.stage("sysroot")
    elif recipe.agent.path is not None:
        inputs["sysroot"] = planner.stage("agent-sysroot")
    executable = []
    for guest, path in part.files.items():
        inputs[_FILES + guest] = planner.local(path)
        if path.is_file() and path.stat().st_mode & 0o100:
            executable.append(guest)
    params: dict[str, Json] = {
        "name": recipe.name,
        "version": recipe.version,
        "variant": "debug" if recipe.debug else "production",
        "binaries": list(part.binaries),
        "executable": sorted(executable),
        "compression": part.compression,
        "level": METHODS[part.compression].level if part.level is None else part.level,
        "compressor": compressor(part.compression, planner.tool),
        "max_size": part.max_size,
    }
    return Stage("initramfs", "initramfs", VERSION, params, inputs)


def build_initramfs(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``initramfs``, ``contents.json`` and ``initramfs.json``.

    Raises `BuildError` when something that a binary needs is not there, a path is not accounted
    for, the archive is over its budget, or what was written would not run when read back.
    """
    params: Mapping[str, Any] = stage.params
    sources = _Sources(inputs, params)
    run.progress(0, 4, "collecting")
    needed = sources.closure(params["binaries"])
    entries = sources.entries(needed)
    archive = run.work / "initramfs.cpio"
    with archive.open("wb", buffering=1 << 20) as stream:
        written = cpio.write(entries, stream)
    contents = account(
        sources.rows(entries, needed, written),
        sources.packages,
        archive_bytes=written.archive_bytes,
        max_bytes=params["max_size"],
        absent=needed.absent,
    )
    check_budget(contents)
    run.progress(1, 4, "checking")
    verify(ArchiveTree(cpio.read(archive)))
    run.progress(2, 4, "compressing")
    packed = run.work / "packed"
    compress(
        params["compression"],
        params["level"],
        archive,
        packed,
        threads=run.jobs,
        run=lambda argv: run(argv, cwd=run.work),
    )
    facts = {
        "compression": params["compression"],
        "level": params["level"],
        "compressor": params["compressor"],
        "size": packed.stat().st_size,
        "sha256": _sha256(packed),
        "archive_size": written.archive_bytes,
        "archive_sha256": _sha256(archive),
        "paths": len(contents["paths"]),
    }
    packed.rename(out / "initramfs")
    _write_json(out / "contents.json", contents)
    _write_json(out / "initramfs.json", facts)
    run.progress(4, 4)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArchiveTree:
    """The entries of an archive as a root file system; implements `rootfs.loader.ListedTree`."""

    def __init__(self, entries: Iterable[cpio.Entry]):
        self._links: dict[str, str] = {}
        self._files: dict[str, cpio.File] = {}
        for entry in entries:
            if isinstance(entry, cpio.Symlink):
                self._links[entry.path] = entry.target
            elif isinstance(entry, cpio.File):
                self._files.update(dict.fromkeys((entry.path, *entry.links), entry))

    def readlink(self, path: str) -> str | None:
        """The target of a symbolic link."""
        return self._links.get(path)

    def is_file(self, path: str) -> bool:
        """Whether `path` is a regular file."""
        return path in self._files

    def is_executable(self, path: str) -> bool:
        """Whether a regular file may be run."""
        return bool(self._files[path].mode & 0o100)

    def read(self, path: str) -> memoryview:
        """The content of a regular file."""
        data = self._files[path].data
        return memoryview(data.read_bytes() if isinstance(data, Path) else data)

    def files(self) -> Sequence[str]:
        """The paths of all regular files, sorted."""
        return sorted(self._files)


class _Sources:
    """What the stage was given, as one root file system that knows whose everything is."""

    def __init__(self, inputs: Mapping[str, Path], params: Mapping[str, Any]):
        self._params = params
        sysroot = inputs.get("sysroot")
        index: dict[str, Any] = {"packages": {}, "paths": {}, "hard_links": []}
        if sysroot is not None:
            index = json.loads((sysroot / "packages.json").read_bytes())
        self.packages = {name: Package(**row) for name, row in index["packages"].items()}
        self._owners: Mapping[str, str] = index["paths"]
        self._hard_links: list[list[str]] = index["hard_links"]
        self._agent: Mapping[str, Any] = json.loads((inputs["agent"] / "agent.json").read_bytes())
        folder = None if sysroot is None else sysroot / "root"
        self._bare = FolderTree(folder, {})
        self._links: dict[str, tuple[str, ...]] = {}  # on the way to the recipe's files
        self._recipe_files: dict[str, Path] = {}
        self._folders: set[str] = set()
        self._executable: set[str] = set()
        for role, path in sorted(inputs.items()):
            if role.startswith(f"{_FILES}/"):
                self._add_recipe_files(role.removeprefix(_FILES), path)
        laid_over = {**self._recipe_files, INIT: inputs["agent"] / "agent"}
        self._tree = FolderTree(folder, laid_over)

    def _add_recipe_files(self, guest: str, path: Path) -> None:
        if not path.is_dir():
            self._add_recipe_file(guest, path, executable=guest in self._params["executable"])
            return
        self._folders.add(self._settled(guest))
        for one in sorted(path.rglob("*")):
            asked = f"{guest}/{one.relative_to(path).as_posix()}"
            if one.is_dir() and not one.is_symlink():
                self._folders.add(self._settled(asked))
            else:
                mode = one.stat(follow_symlinks=False).st_mode
                self._add_recipe_file(asked, one, executable=bool(mode & 0o100))

    def _add_recipe_file(self, asked: str, path: Path, *, executable: bool) -> None:
        parent, _, name = asked.rpartition("/")
        real = f"{self._settled(parent).rstrip('/')}/{name}"
        if real in (INIT, RELEASE) or real in self._recipe_files:
            raise BuildError(f"initramfs.files: {asked} is made by something else already")
        self._recipe_files[real] = path
        if executable:
            self._executable.add(real)

    def _settled(self, folder: str) -> str:
        """`folder` without the sysroot's symbolic links, which go into the image then."""
        place = follow(self._bare, folder)
        if place is None:
            raise BuildError(f"initramfs.files: {folder} leads into a loop of symbolic links")
        self._links.update(dict.fromkeys(place.symlinks, (folder,)))
        return place.real

    # --- what is needed ----------------------------------------------------------------------

    def closure(self, binaries: Sequence[str]) -> Closure:
        """The agent, the binaries, the recipe's files, and all that any of them needs."""
        for path in binaries:
            place = resolve(self._tree, path)
            if place is None:
                raise self._no_binary(path)
            if self._is_program(place.real) and not self._is_executable(place.real):
                raise BuildError(f"initramfs.binaries: {path} is not executable")
        files = [path for path in sorted(self._recipe_files) if self._tree.is_file(path)]
        run = [path for path in files if path in self._executable or not self._is_script(path)]
        try:
            needed = closure(self._tree, [INIT, *binaries, *run])
        except BuildError as error:
            hint = error.hint.replace("the package", "the Debian package")
            raise BuildError(
                f"the initramfs is not whole: {error.what}",
                why=error.why,
                hint=f"{hint} to initramfs.debs" if "package that holds" in hint else hint,
            ) from error
        return Closure(
            {**{path: (path,) for path in files}, **needed.files},
            {**self._links, **needed.symlinks},
            needed.absent,
        )

    def _is_script(self, path: str) -> bool:
        return bytes(self._tree.read(path)[:2]) == b"#!"

    def _is_program(self, path: str) -> bool:
        """Whether the kernel is to run it; a library is only mapped."""
        data = self._tree.read(path)
        return self._is_script(path) or (is_elf(data) and Elf(data, path).interpreter is not None)

    def _no_binary(self, path: str) -> BuildError:
        name = path.rpartition("/")[2]
        near = [known for known in self._owners if known.rpartition("/")[2] == name]
        near += [known for known in self._owners if known.startswith("/usr/") and name in known]
        near = [known for known in dict.fromkeys(near) if "bin/" in known][:3]
        guess = f": did you mean {' or '.join(near)}?" if near else ""
        return BuildError(
            f"initramfs.binaries: no package of initramfs.debs holds {path}{guess}",
            why="packages are unpacked, not installed: a link that only a maintainer script makes "
            "(update-alternatives, say) is not there",
            hint="" if near else "add its package to debs",
        )

    # --- what goes in ------------------------------------------------------------------------

    def entries(self, needed: Closure) -> list[cpio.Entry]:
        """The archive's entries, every directory among them."""
        entries: list[cpio.Entry] = list(_SKELETON)
        entries.append(cpio.File(path=RELEASE, data=self._release().encode()))
        linked: set[str] = set()
        for group in self._hard_links:
            names = [path for path in group if path in needed.files and self._owner(path)]
            if len(names) > 1:
                entries.append(self._file(names[0], tuple(names[1:])))
                linked.update(names)
        entries += [self._file(path, ()) for path in needed.files if path not in linked]
        links = {*needed.symlinks, *(p for p in self._recipe_files if self._tree.readlink(p))}
        for link in links:
            entries.append(cpio.Symlink(path=link, target=self._tree.readlink(link) or ""))
        present = {path for entry in entries for path in _names(entry)}
        folders = {parent for path in present for parent in _parents(path)}
        folders |= self._folders | {up for path in self._folders for up in _parents(path)}
        return [*entries, *(cpio.Directory(path=folder) for folder in folders - present - {"/"})]

    def _owner(self, path: str) -> str | None:
        if path == INIT or path in self._recipe_files:
            return None
        return self._owners.get(path)

    def _file(self, path: str, links: tuple[str, ...]) -> cpio.File:
        place = self._tree.place(path)
        assert place is not None
        mode = 0o755 if self._is_executable(path) else 0o644
        return cpio.File(path=path, data=place, mode=mode, links=links)

    def _is_executable(self, path: str) -> bool:
        place = self._tree.place(path)
        if path == INIT or path in self._recipe_files or place is None:
            return path == INIT or path in self._executable
        return bool(place.stat().st_mode & 0o100)

    def _release(self) -> str:
        """The text of /etc/sevkit-release, in the form of os-release(5)."""
        params = self._params
        fields = {
            "NAME": params["name"],
            "VERSION": params["version"],
            "VARIANT": params["variant"],
        }
        quoted = {key: value.translate(_SHELL_QUOTES) for key, value in fields.items()}
        return "".join(f'{key}="{value}"\n' for key, value in quoted.items())

    # --- the account -------------------------------------------------------------------------

    def rows(
        self, entries: Sequence[cpio.Entry], needed: Closure, written: cpio.Written
    ) -> Iterator[Row]:
        """A row of the account for every path of the archive."""
        paths = sorted(path for entry in entries for path in _names(entry))
        skeleton = {entry.path for entry in _SKELETON}
        for entry in entries:
            for path in _names(entry):
                fields = self._origin(path)
                if path in skeleton or path == RELEASE:
                    chain: tuple[str, ...] = ("every guest",)
                elif isinstance(entry, cpio.Directory):
                    inside = next((p for p in paths if p.startswith(f"{path}/")), None)
                    chain = (path,) if inside is None else (f"{path} holds {inside}",)
                    fields = {"origin": "recipe" if path in self._folders else "sevkit"}
                else:
                    chain = needed.files.get(path) or needed.symlinks.get(path) or (path,)
                yield Row(
                    path=path,
                    type=_type(entry),
                    mode=f"{cpio.entry_mode(entry):04o}",
                    chain=chain,
                    size=written.sizes.get(path),
                    sha256=written.digests.get(path),
                    target=entry.target if isinstance(entry, cpio.Symlink) else None,
                    device=_device(entry),
                    same_as=None if path == entry.path else entry.path,
                    **fields,
                )

    def _origin(self, path: str) -> dict[str, Any]:
        if path == INIT:
            return {"origin": "agent", "licence": self._agent["licence"]}
        if path in self._recipe_files:
            return {"origin": "recipe"}
        if path == RELEASE or path in {entry.path for entry in _SKELETON}:
            return {"origin": "sevkit"}
        if path in self._owners:
            package = self.packages[self._owners[path]]
            return {
                "origin": "package",
                "package": package.name,
                "version": package.version,
                "licence": package.licence,
            }
        merged = self._tree.readlink(path)
        return {"origin": "sevkit" if merged == f"usr{path}" else None}


_SHELL_QUOTES = str.maketrans({char: f"\\{char}" for char in '\\"$`'} | {"\n": " "})


def _names(entry: cpio.Entry) -> tuple[str, ...]:
    return (entry.path, *entry.links) if isinstance(entry, cpio.File) else (entry.path,)


def _parents(path: str) -> Iterator[str]:
    parent = path.rpartition("/")[0]
    while parent:
        yield parent
        parent = parent.rpartition("/")[0]


def _type(entry: cpio.Entry) -> PathType:
    if isinstance(entry, cpio.Node):
        return entry.kind
    if isinstance(entry, cpio.Directory):
        return "directory"
    return "symlink" if isinstance(entry, cpio.Symlink) else "file"


def _device(entry: cpio.Entry) -> str | None:
    if isinstance(entry, cpio.Node) and entry.kind in ("char", "block"):
        return f"{entry.major}:{entry.minor}"
    return None
