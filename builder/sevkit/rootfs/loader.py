# SPDX-License-Identifier: Apache-2.0
"""What a guest's dynamic loader would load, found in its root file system without running it.

Follows ld.so(8) of glibc, its search order included. Every path is one of the guest's: symbolic
links, absolute ones too, lead to other places of the same root and never out of it. The host's
libraries, its ld.so.cache and its environment are never looked at; nor is the guest's
/etc/ld.so.conf, which is read by ldconfig only, or an ld.so.cache, which these images don't have.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple, Protocol

from sevkit.errors import BuildError
from sevkit.rootfs.elf import X86_64, Dlopen, Elf, Platform, Symbol, is_elf

_MOST_SYMLINKS = 40  # the kernel's MAXSYMLINKS
_MOST_INTERPRETERS = 4  # the kernel's limit for scripts that start scripts
_OS_ABIS = (0, 3)  # System V, GNU
_MULTIARCH = {X86_64: "x86_64-linux-gnu", Platform(64, True, 183): "aarch64-linux-gnu"}
_PLATFORM_WORDS = {X86_64: "x86_64", Platform(64, True, 183): "aarch64"}
_LIBRARY_DIRS = re.compile(rb"(?:/[!-.0-~][!-~]{0,100}/\0){2,}")
_MOST_PROBLEMS = 20


class Tree(Protocol):
    """A root file system seen from inside."""

    def readlink(self, path: str) -> str | None:
        """The target, if `path` (whose parents are no links) is a symbolic link."""

    def is_file(self, path: str) -> bool:
        """Whether `path` (whose parents are no links) is a regular file."""

    def read(self, path: str) -> memoryview:
        """The content of a regular file."""


class ListedTree(Tree, Protocol):
    """A root file system that can name its files."""

    def files(self) -> Sequence[str]:
        """The paths of all regular files, sorted."""

    def is_executable(self, path: str) -> bool:
        """Whether a regular file may be run."""


class FolderTree:
    """A folder of this machine as a root file system, with files and links laid over it.

    `laid_over` maps paths of the guest to where on this machine the file or link is.
    """

    def __init__(self, folder: Path | None, laid_over: Mapping[str, Path]):
        self._folder = folder
        self._laid_over = laid_over

    def place(self, path: str) -> Path | None:
        """Where on this machine the file at `path` (whose parents are no links) would be."""
        place = self._place(path)
        return None if place is None else Path(place)

    def _place(self, path: str) -> str | None:
        if path in self._laid_over:
            return os.fspath(self._laid_over[path])
        return None if self._folder is None else os.fspath(self._folder) + path

    def readlink(self, path: str) -> str | None:
        """See `Tree`."""
        place = self._place(path)
        try:
            return None if place is None else os.readlink(place)  # noqa: PTH115
        except (OSError, ValueError):  # ValueError: a name with NUL in it
            return None

    def is_file(self, path: str) -> bool:
        """See `Tree`."""
        place = self._place(path)
        try:
            return place is not None and stat.S_ISREG(os.lstat(place).st_mode)
        except (OSError, ValueError):
            return False

    def read(self, path: str) -> memoryview:
        """See `Tree`. Raises `BuildError` when the file can't be read."""
        place = self._place(path)
        try:
            if place is None:
                raise FileNotFoundError(2, "no such file")
            with open(place, "rb") as file:  # noqa: PTH123
                if os.fstat(file.fileno()).st_size == 0:
                    return memoryview(b"")
                return memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
        except OSError as error:
            raise BuildError(f"{path} can't be read: {error.strerror}") from error


class Place(NamedTuple):
    """Where a path leads."""

    real: str
    symlinks: tuple[str, ...]
    """The symbolic links on the way, the first one first."""


def resolve(tree: Tree, path: str) -> Place | None:
    """The regular file that `path` leads to within `tree`; None if there is none."""
    place = follow(tree, path)
    return place if place is not None and tree.is_file(place.real) else None


def follow(tree: Tree, path: str) -> Place | None:
    """`path` without symbolic links, whether anything is there or not; None for a loop of links.

    As in the guest, ``..`` of the root is the root.
    """
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    passed: list[str] = []
    while pending:
        part = pending.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = "/" + "/".join([*done, part])
        target = tree.readlink(here)
        if target is None:
            done.append(part)
            continue
        if len(passed) >= _MOST_SYMLINKS:
            return None
        passed.append(here)
        if target.startswith("/"):
            done = []
        pending += [step for step in reversed(target.split("/")) if step not in ("", ".")]
    return Place("/" + "/".join(done), tuple(dict.fromkeys(passed)))


@dataclass(frozen=True)
class Closure:
    """Everything that some programs need to be there."""

    files: Mapping[str, tuple[str, ...]]
    """Path of each regular file → the shortest chain that leads to it, its root first."""
    symlinks: Mapping[str, tuple[str, ...]]
    """Path of each symbolic link on the way → the chain of the file that it leads to."""
    absent: Sequence[str]
    """What is recommended but not there, a line each."""


@dataclass
class _Object:
    """A file as it is mapped into a process."""

    place: Place
    elf: Elf
    chain: tuple[str, ...]
    loaded_by: "_Object | None"


@dataclass
class _Process:
    """The objects of one program, in the order of the loader's search."""

    main: _Object
    dirs: tuple[str, ...] = ()
    objects: list[_Object] = field(default_factory=list)
    by_name: dict[str, _Object] = field(default_factory=dict)

    def add(self, loaded: _Object, name: str) -> None:
        self.objects.append(loaded)
        for known_as in (name, loaded.place.real, loaded.elf.soname):
            if known_as is not None:
                self.by_name.setdefault(known_as, loaded)


def closure(tree: Tree, roots: Sequence[str], platform: Platform = X86_64) -> Closure:
    """What `roots` (programs, libraries, scripts, or files of any other kind) need in `tree`.

    Needed: the interpreter of a program or script, every DT_NEEDED library, and of what a
    `.note.dlopen` announces the *required* and, where `tree` has them, the *recommended*
    libraries; *suggested* ones are left out (name them as roots).

    Raises `BuildError` for a root that is not there or is for another platform, a library that
    is missing or there only for another platform, and a malformed ELF file; the error names the
    chain that leads to it.
    """
    search = _Search(tree, platform)
    files: dict[str, tuple[str, ...]] = {}
    symlinks: dict[str, tuple[str, ...]] = {}
    for root in roots:
        for loaded_place, steps in search.needs_of(root):
            if len(steps) < len(files.get(loaded_place.real, (*steps, ""))):
                files[loaded_place.real] = steps
            for link in loaded_place.symlinks:
                if len(steps) < len(symlinks.get(link, (*steps, ""))):
                    symlinks[link] = steps
    return Closure(files, symlinks, sorted(search.absent))


def verify(tree: ListedTree, platform: Platform = X86_64) -> None:
    """Check that every ELF file and script of an archive finds all it needs inside it.

    That is `closure` of each of them, and for each program: that the libraries it would be run
    with define every symbol version that one of them needs of another (weak ones aside), and every
    symbol that is bound by a relocation and not weak; and that its interpreter may be executed.
    Raises `BuildError` that names each lack.
    """
    search = _Search(tree, platform)
    problems: dict[str, None] = {}
    programs: list[str] = []
    others: list[str] = []
    for path in tree.files():
        data = tree.read(path)
        if bytes(data[:2]) == b"#!":
            if tree.is_executable(path):
                programs.append(path)
        elif is_elf(data):
            (programs if search.elf(path).interpreter else others).append(path)
    reached: set[str] = set()
    for path in [*programs, *others]:
        if path in reached:
            continue
        try:
            reached.update(place.real for place, _ in search.needs_of(path))
            problems.update(dict.fromkeys(search.unbound(path)))
            problems.update(dict.fromkeys(_unstartable(tree, path, search)))
        except BuildError as error:
            problems[f"{error.what}; {error.why}".rstrip("; ")] = None
    if problems:
        shown = list(problems)[:_MOST_PROBLEMS]
        more = len(problems) - len(shown)
        raise BuildError(
            "the initramfs would not run: what its files need is not all in it",
            why="\n".join([*shown, *([f"and {more} more"] if more else [])]),
        )


def _unstartable(tree: ListedTree, path: str, search: "_Search") -> Iterator[str]:
    """The kernel runs an interpreter only if it is executable, where a loader only maps files."""
    data = tree.read(path)
    interpreter = search.elf(path).interpreter if is_elf(data) else _script_interpreter(data)
    place = resolve(tree, interpreter) if interpreter else None
    if place is not None and not tree.is_executable(place.real):
        yield f"{path} is started by {place.real}, which is not executable"


class _Search:
    """Answers questions about one tree; every file is read once."""

    def __init__(self, tree: Tree, platform: Platform):
        self._tree = tree
        self._platform = platform
        self._elves: dict[str, Elf] = {}
        self._default_dirs: dict[str | None, tuple[str, ...]] = {}
        self._processes: dict[str, _Process] = {}
        self.absent: set[str] = set()

    def elf(self, path: str) -> Elf:
        if path not in self._elves:
            self._elves[path] = Elf(self._tree.read(path), path)
        return self._elves[path]

    # --- what a file needs -------------------------------------------------------------------

    def needs_of(self, root: str) -> Iterator[tuple[Place, tuple[str, ...]]]:
        """The root and all that it needs, each with the chain that leads to it."""
        steps: tuple[str, ...] = ()
        asked, asking = root, ""
        for _ in range(_MOST_INTERPRETERS + 1):
            place = resolve(self._tree, asked)
            if place is None:
                missing = f"{asking} needs {asked}" if asking else f"{asked} was asked for"
                raise BuildError(
                    f"{missing}, which is not there", hint="add the package that holds it"
                )
            steps = (*steps, asked if not asking else _step(f"#!{asked}", asked, place))
            yield place, steps
            data = self._tree.read(place.real)
            interpreter = _script_interpreter(data)
            if interpreter is None:
                break
            asked, asking = interpreter, asked
        else:
            raise BuildError(f"{root}: its interpreters are scripts that need one another")
        if is_elf(data) and self.elf(place.real).is_program_or_library:
            process = self._process(place, asked, steps)
            for loaded in process.objects[1:]:
                yield loaded.place, loaded.chain

    def _process(self, place: Place, name: str, steps: tuple[str, ...]) -> _Process:
        elf = self.elf(place.real)
        if elf.platform != self._platform:
            raise BuildError(
                f"{name} is for {elf.platform}, but the image is for {self._platform}",
                hint="take it from a package of the image's architecture",
            )
        process = _Process(_Object(place, elf, steps, None))
        process.add(process.main, place.real)
        self._processes[place.real] = process
        interpreter = None
        if elf.interpreter is not None:
            interpreter = self._load(process, elf.interpreter, process.main)
        process.dirs = self._dirs_of(interpreter.place.real if interpreter else None)
        needed = deque(process.objects)
        announced: deque[_Object] = deque()
        while needed or announced:
            if needed:
                loaded = needed.popleft()
                announced.append(loaded)
                new = [self._load(process, name, loaded) for name in loaded.elf.needed]
            else:
                loaded = announced.popleft()
                new = [self._open(process, note, loaded) for note in loaded.elf.dlopens]
            needed.extend(found for found in new if found is not None)
        return process

    def _load(self, process: _Process, name: str, loader: _Object) -> _Object | None:
        """Map the library `name`; None when its file is mapped already."""
        if name in process.by_name:
            return None
        place, rejected = self._find(process, name, loader)
        if place is None:
            raise self._lack(loader, name, rejected)
        return self._map(process, name, loader, place)

    def _open(self, process: _Process, note: Dlopen, loader: _Object) -> _Object | None:
        """Map what `note` announces; None when it is mapped already, or is to be left out."""
        if note.priority == "suggested" or process.by_name.keys() & set(note.sonames):
            return None
        passed_over: list[str] = []
        for name in note.sonames:
            place, rejected = self._find(process, name, loader)
            if place is not None:
                return self._map(process, name, loader, place, how="dlopen ")
            passed_over += rejected
        wanted = " or ".join(note.sonames)
        if note.priority == "required":
            raise self._lack(loader, f"{wanted} (by dlopen)", passed_over)
        self.absent.add(f"{loader.place.real} recommends {wanted}")
        return None

    def _map(
        self, process: _Process, name: str, loader: _Object, place: Place, *, how: str = ""
    ) -> _Object | None:
        elf = self.elf(place.real)
        known = process.by_name.get(place.real)
        if known is not None and known.place == place:
            process.by_name[name] = known
            return None
        steps = (*loader.chain, _step(how + name, name, place))
        loaded = _Object(place, elf, steps, loader)
        process.add(loaded, name)
        return loaded

    def _lack(self, loader: _Object, name: str, rejected: Sequence[str]) -> BuildError:
        way = " → ".join(step.partition(" → ")[0] for step in loader.chain)
        return BuildError(
            f"{loader.place.real} needs {name}, which is not there",
            why="\n".join([*([f"by way of {way}"] if len(loader.chain) > 1 else []), *rejected]),
            hint="add the package that holds it",
        )

    # --- where a loader looks ----------------------------------------------------------------

    def _find(
        self, process: _Process, name: str, loader: _Object
    ) -> tuple[Place | None, list[str]]:
        """The file that the loader would take for `name`, and those it would pass over."""
        rejected: list[str] = []
        if "/" in name:
            candidates = [self._expand(process, name, loader)]
        else:
            folders = [*self._said_dirs(process, loader), *process.dirs]
            candidates = [f"{folder}/{name}" for folder in dict.fromkeys(folders)]
        for path in candidates:
            place = resolve(self._tree, path)
            if place is None:
                continue
            if not is_elf(self._tree.read(place.real)):
                raise BuildError(f"{loader.place.real} needs {name}, but {path} is not an ELF file")
            elf = self.elf(place.real)
            if elf.platform != self._platform:
                rejected.append(f"{path} is for {elf.platform}, not {self._platform}")
            elif elf.os_abi not in _OS_ABIS:
                rejected.append(f"{path} is for OS ABI {elf.os_abi}, not Linux")
            else:
                return place, rejected
        return None, rejected

    def _said_dirs(self, process: _Process, loader: _Object) -> Iterator[str]:
        """RPATH of the object and of those that loaded it, unless it has a RUNPATH; RUNPATH."""
        if not loader.elf.runpath:
            step: _Object | None = loader
            while step is not None:
                yield from (self._expand(process, folder, step) for folder in step.elf.rpath)
                step = step.loaded_by
        yield from (self._expand(process, folder, loader) for folder in loader.elf.runpath)

    def _expand(self, process: _Process, text: str, loaded: _Object) -> str:
        """`text` with the dynamic string tokens of ld.so(8) replaced."""
        values = {
            "ORIGIN": loaded.place.real.rpartition("/")[0] or "/",
            "LIB": process.dirs[0].strip("/") if process.dirs else "lib",
            "PLATFORM": _PLATFORM_WORDS.get(self._platform, ""),
        }
        for word, value in values.items():
            text = text.replace(f"${{{word}}}", value).replace(f"${word}", value)
        return text

    def _dirs_of(self, interpreter: str | None) -> tuple[str, ...]:
        """The folders that the tree's own loader searches when nothing else is said.

        glibc's loader has them in it as NUL-terminated paths in a row; musl's has a text of its
        own; without a loader Debian's are taken.
        """
        if interpreter not in self._default_dirs:
            multiarch = _MULTIARCH.get(self._platform)
            found = [f"/lib/{multiarch}", f"/usr/lib/{multiarch}"] if multiarch else []
            found += ["/lib", "/usr/lib"]
            if interpreter is not None and interpreter.rpartition("/")[2].startswith("ld-musl"):
                found = ["/lib", "/usr/local/lib", "/usr/lib"]
            elif interpreter is not None:
                built_in = _LIBRARY_DIRS.search(bytes(self._tree.read(interpreter)))
                if built_in:
                    parts = built_in.group().decode("ascii").split("\0")
                    found = [part.rstrip("/") for part in parts if part]
            self._default_dirs[interpreter] = tuple(found)
        return self._default_dirs[interpreter]

    # --- whether it would bind ---------------------------------------------------------------

    def unbound(self, path: str) -> list[str]:
        """The versions and symbols that a program at `path` would lack when it starts."""
        process = self._processes.get(path)
        if process is None:
            return []
        problems = []
        by_name = {name: loaded.elf for name, loaded in process.by_name.items()}
        for loaded in process.objects:
            for library, version, weak in loaded.elf.needed_versions.values():
                provider = by_name.get(library)
                if provider is None or weak or not provider.defined_versions:
                    continue
                if version not in provider.defined_versions.values():
                    problems.append(
                        f"{loaded.place.real} needs version {version} of {library}, "
                        f"but {provider.name} does not define it"
                    )
        if process.objects[0].elf.interpreter is not None and not problems:
            problems += self._unbound_symbols(process)
        return problems

    def _unbound_symbols(self, process: _Process) -> list[str]:
        names: set[str] = set()
        versioned: set[Symbol] = set()
        unversioned: set[str] = set()
        for loaded in process.objects:
            versioned |= loaded.elf.exports
            names |= {symbol.name for symbol in loaded.elf.exports}
            if not loaded.elf.defined_versions:
                unversioned |= {symbol.name for symbol in loaded.elf.exports}
        return [
            f"{loaded.place.real} needs the symbol {symbol}, which nothing that is loaded defines"
            for loaded in process.objects
            for symbol in sorted(loaded.elf.imports - versioned, key=str)
            if symbol.name not in (names if symbol.version is None else unversioned)
        ]


def _step(asked: str, path: str, place: Place) -> str:
    return asked if path == place.real else f"{asked} → {place.real}"


def _script_interpreter(data: memoryview) -> str | None:
    if bytes(data[:2]) != b"#!":
        return None
    line = bytes(data[2:256]).partition(b"\n")[0].split()
    return line[0].decode("utf-8", "surrogateescape") if line else None
