# SPDX-License-Identifier: Apache-2.0
"""Where recipes, fragments, patch series and agents are found: the project's own, then built-in.

A wheel carries the built-in ones in `sevkit/data/`; in a checkout they are the folders beside
`builder/`. Finds files and never reads them.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sevkit.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent


def built_in_root() -> Path:
    """The folder that holds the built-in recipes/, kernel-configs/, patches/ and agent/."""
    packed = _PACKAGE / "data"
    return packed if packed.is_dir() else _PACKAGE.parents[1]


@dataclass(frozen=True)
class Library:
    """Folders to look in, the first one first; and every path that was looked for or found."""

    roots: tuple[Path, ...]
    observed: set[Path] = field(default_factory=set, compare=False)

    @classmethod
    def of(cls, project: Path) -> "Library":
        """The library of someone who works in the folder `project`."""
        return cls(tuple(dict.fromkeys([project.resolve(), built_in_root()])))

    def recipe(self, name: str) -> Path:
        """The file of a recipe: a path, or a name among recipes/. Raises `RecipeError`."""
        if "/" in name or name.endswith(".toml"):
            path = Path(name).absolute()
            self.observed.add(path)
            return path
        return self._find("recipe", "recipes", name, ".toml")

    def recipes(self) -> list[str]:
        """The names of all recipes."""
        return self._names("recipes", ".toml")

    def fragment(self, name: str) -> Path:
        """The file of a kernel config fragment. Raises `RecipeError`."""
        return self._find("kernel config fragment", "kernel-configs", name, ".config")

    def fragments(self) -> list[str]:
        """The names of all fragments."""
        return self._names("kernel-configs", ".config")

    def patches(self, name: str) -> Path:
        """The folder of a patch series, the one that holds `series`. Raises `RecipeError`."""
        return self._find("patch series", "patches", name, "/series").parent

    def series(self) -> list[str]:
        """The names of all patch series."""
        return self._names("patches", "/series")

    def agent(self, written: Path, beside: Path) -> Path:
        """The folder of an agent's sources: relative to `beside`, the project, or built in."""
        for root in (beside, *self.roots):
            path = root / written
            self.observed.add(path)
            if path.is_dir():
                return path
        return beside / written

    def _find(self, what: str, folder: str, name: str, ending: str) -> Path:
        for root in self.roots:
            path = root / folder / f"{name}{ending}"
            self.observed.add(path)
            if path.exists():
                return path
        raise RecipeError(
            f"there is no {what} '{name}'",
            why="looked in " + ", ".join(str(root / folder) for root in self.roots),
            hint=nearest(name, self._names(folder, ending)),
        )

    def _names(self, folder: str, ending: str) -> list[str]:
        names: set[str] = set()
        for root in self.roots:
            self.observed.add(root / folder)
            for path in (root / folder).glob(f"*{ending}"):
                names.add(path.parent.name if ending == "/series" else path.name[: -len(ending)])
        return sorted(names)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a name that does not exist: the nearest one, else all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(known)}" if known else ""
