# SPDX-License-Identifier: Apache-2.0
"""Where recipes, fragments, patch series and agents are found: the project's own, then built-in.

A wheel carries the built-in ones in `sevkit/data/`; in a checkout they are the folders beside
`builder/`. The project is the folder that the user names or stands in; folders above it are never
searched, as make does not either. A vendored project brings its built-in ones along, in
`built-in/`, and needs none of this sevkit's. Finds files and never reads them.
"""

import difflib
import os
import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from sevkit.errors import RecipeError

BUILT_IN = "built-in"
"""The folder of a vendored project that stands before what is built into this sevkit."""

_PACKAGE = Path(__file__).resolve().parents[1]
_COMPARED = 500
_OFFERED = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def built_in_root() -> Path:
    """The folder that holds the built-in recipes/, kernel-configs/, patches/ and agent/."""
    packed = _PACKAGE / "data"
    return packed if packed.is_dir() else _PACKAGE.parents[1]


class Library:
    """Folders to look in, the first one first; and every path that was looked for or found.

    Each of `roots` holds any of ``recipes/<name>.toml``, ``kernel-configs/<name>.config``,
    ``patches/<name>/series`` and folders of agents.
    """

    def __init__(self, roots: tuple[Path, ...]):
        self.roots = roots
        self._observed: set[Path] = set()

    @classmethod
    def of(cls, project: Path) -> "Library":
        """The library of someone who works in the folder `project`."""
        vendored = project.resolve() / BUILT_IN
        brought = [vendored] if is_there(vendored, folder=True) else []
        library = cls(tuple(dict.fromkeys([project.resolve(), *brought, built_in_root()])))
        library.observe([vendored])
        return library

    @property
    def observed(self) -> Set[Path]:
        """Every path that an answer of this library, or a plan of what is in it, rests on."""
        return self._observed

    def observe(self, paths: Iterable[Path]) -> None:
        """Note `paths` as such, there or not."""
        self._observed.update(paths)

    def recipe(self, name: str) -> Path:
        """The file of a recipe: a path, or a name among recipes/. Raises `RecipeError`.

        What holds a slash or ends in .toml is a path, relative to the working directory.
        """
        if _is_path(name):
            return self._seen(Path(name).absolute())
        return self._find("recipe", "recipes", name, ".toml", self.roots)

    def parent(self, name: str, child: Path) -> Path:
        """The file that the recipe in `child` means by ``extends = name``. Raises `RecipeError`.

        A path is relative to `child`. A recipe that extends its own name means the one that it
        stands before: a project's ``sev-guest`` extends the built-in one.
        """
        if _is_path(name):
            return self._seen(Path(os.path.normpath(child.parent / name)))
        roots = self.roots
        for number, root in enumerate(self.roots):
            if child == root / "recipes" / f"{name}.toml":
                roots = self.roots[number + 1 :]
        return self._find("recipe", "recipes", name, ".toml", roots)

    def recipes(self) -> list[str]:
        """The names of all recipes."""
        return self._names("recipes", ".toml", self.roots)

    def fragment(self, name: str) -> Path:
        """The file of a kernel config fragment. Raises `RecipeError`."""
        return self._find("kernel config fragment", "kernel-configs", name, ".config", self.roots)

    def fragments(self) -> list[str]:
        """The names of all fragments."""
        return self._names("kernel-configs", ".config", self.roots)

    def patches(self, name: str) -> Path:
        """The folder of a patch series, the one that holds `series`. Raises `RecipeError`."""
        return self._find("patch series", "patches", name, "/series", self.roots).parent

    def series(self) -> list[str]:
        """The names of all patch series."""
        return self._names("patches", "/series", self.roots)

    def agent(self, written: Path, beside: Path) -> Path:
        """The folder of an agent's sources: relative to `beside`, the project, or built in.

        Where there is none, the place `beside`: whoever reads it says that nothing is there.
        """
        for root in (beside, *self.roots):
            path = self._seen(root / written)
            if is_there(path, folder=True):
                return path
        return beside / written

    def _seen(self, path: Path) -> Path:
        self.observe([path])
        return path

    def _find(self, what: str, folder: str, name: str, ending: str, roots: Sequence[Path]) -> Path:
        if _NAME.fullmatch(name):
            for root in roots:
                path = self._seen(root / folder / f"{name}{ending}")
                if is_there(path, folder=False):
                    return path
        else:
            roots = self.roots
        raise RecipeError(
            f"there is no {what} {name!r}{nearest(name, self._names(folder, ending, roots))}",
            why="looked in " + ", ".join(str(root / folder) for root in roots) if roots else "",
        )

    def _names(self, folder: str, ending: str, roots: Sequence[Path]) -> list[str]:
        names: set[str] = set()
        for root in roots:
            for path in self._seen(root / folder).glob(f"*{ending}"):
                name = path.parent.name if ending == "/series" else path.name[: -len(ending)]
                if _NAME.fullmatch(name):
                    names.add(name)
        return sorted(names)


def is_there(path: Path, *, folder: bool | None = None) -> bool:
    """Whether there is such a path, one that can be looked at; with `folder`, of that kind."""
    try:
        return path.exists() if folder is None else path.exists() and path.is_dir() is folder
    except (OSError, ValueError):
        return False


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence on a name that does not exist: the nearest there is, else all.

    Nothing near is looked for among very many names, and only the first of many are listed.
    """
    known = sorted(set(names))
    same = [other for other in known if other.casefold() == name.casefold()]
    compared = known if len(known) <= _COMPARED else []
    close = same or difflib.get_close_matches(name[:100], compared, n=1, cutoff=0.6)
    if close:
        return f": did you mean '{close[0]}'?"
    more = f" and {len(known) - _OFFERED} more" if len(known) > _OFFERED else ""
    return f": one of {', '.join(known[:_OFFERED])}{more}" if known else ""


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".toml")
