# SPDX-License-Identifier: Apache-2.0
"""From recipe files to a `Recipe`: read, extend, render, validate; all problems told together.

Merging: tables merge key by key, but `agent`, `firmware` and each of `sources` are replaced whole;
lists are replaced, and an element "..." stands for the inherited ones. A name is not inherited.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from pydantic import ValidationError

from sevkit.errors import RecipeError
from sevkit.printable import printable
from sevkit.recipe.library import Library, is_there, nearest
from sevkit.recipe.model import LIST_LENGTH, Dotted, Recipe
from sevkit.recipe.problems import explained, shown
from sevkit.recipe.schema import schema
from sevkit.recipe.template import BrokenVariableError, Templates
from sevkit.recipe.tree import Node, dotted, merged, needs_quotes, read_tree

__all__ = ["files_of", "load", "schema"]

_CHAIN = 16
_SCHEMA = 1
_SHOWN_PROBLEMS = 99
_LOCAL_GIT = "file://"
_TAKERS = ("kernel", "agent", "firmware")


def load(name: str, overrides: Mapping[str, str], library: Library) -> Recipe:
    """The recipe `name` (or in the file `name`) with the variables `overrides`.

    Raises `RecipeError` with every problem: its file, line, dotted key, and what to write instead.
    """
    draft = _Draft(library, name)
    draft.set_variables(overrides)
    draft.locate_files()
    return draft.validate()


def files_of(name: str, library: Library) -> Sequence[Path]:
    """The file of the recipe `name`, the one that it extends, and so on. Raises `RecipeError`."""
    return tuple(_Draft(library, name).files)


class _Draft:
    """The merged tree of a recipe and what was found wrong with it so far."""

    def __init__(self, library: Library, name: str):
        self._library = library
        self._problems: list[tuple[int, int, str]] = []
        self.files: list[Path] = []
        self._path = library.recipe(name)
        self._root = self._merged(self._read_chain())

    # --- reading and extending -----------------------------------------------------------------

    def _read_chain(self) -> list[Node]:
        """The file itself, the one that it extends, and so on."""
        path, chain = self._path, list[Node]()
        while True:
            self.files.append(path)
            root = read_tree(path)
            chain.append(root)
            self._check_schema(root)
            said = root.table.pop("extends", None)
            if said is None:
                return chain
            where = f"{said.path}:{said.line}: extends: "
            if said.text is None:
                raise RecipeError(f"{where}must be the name of a recipe, in quotes")
            try:
                path = self._library.parent(said.text, path)
            except RecipeError as error:
                raise RecipeError(printable(f"{where}{error.what}"), why=error.why) from None
            if path in self.files:
                loop = [*self.files[self.files.index(path) :], path]
                names = " → ".join(file.name for file in loop)
                raise RecipeError(f"{where}recipes extend each other in a loop: {names}")
            if not is_there(path):
                raise RecipeError(printable(f"{where}there is no {path}"))
            if len(chain) == _CHAIN:
                raise RecipeError(f"{where}more than {_CHAIN} recipes extend each other")

    def _check_schema(self, root: Node) -> None:
        said = root.table.get("schema")
        if said is None:
            self._problem(root, ("schema",), "is missing: write schema = 1")
        elif type(said.value) is not int or said.value != _SCHEMA:
            self._problem(said, ("schema",), f"this sevkit reads recipes of schema = {_SCHEMA}")
        root.table["schema"] = Node(_SCHEMA, root.path, said.line if said else 1)

    def _merged(self, chain: list[Node]) -> Node:
        for parent in chain[1:]:
            parent.table.pop("name", None)
        result = Node({}, self._path, 1)
        for root in reversed(chain):
            result = merged(result, root, (), self._problem)
        return result

    # --- variables and templates -----------------------------------------------------------------

    def set_variables(self, given: Mapping[str, str]) -> None:
        """Render every text, with the variables of the recipe and those `given` instead.

        Raises `RecipeError` when one that is given is none of the recipe's.
        """
        known = self._root.get("vars") or Node({}, self._path, 1)
        for name, value in given.items():
            if name not in known.table:
                near = nearest(name, known.table) or ": it has none"
                raise RecipeError(f"{self._path.name} has no variable {name!r}{near}")
            if not value.isprintable():
                raise RecipeError(f"{name}={value!r}: must be printable characters")
        templates = Templates({name: node.text for name, node in known.table.items()}, given)
        for name, node in known.table.items():
            if name in templates.values:
                node.value = templates.values[name]
            elif isinstance(templates.errors.get(name), BrokenVariableError):
                node.is_bad = True
            elif name in templates.errors:
                self._problem(node, ("vars", name), templates.errors[name].what)
            else:
                self._problem(
                    node, ("vars", name), f"must be text in quotes, not {shown(node.value)}"
                )
        self._render(self._root, (), templates)

    def _render(self, node: Node, at: Dotted, templates: Templates) -> None:
        if at == ("vars",):
            return
        for key, inner in node.table.items():
            self._render(inner, (*at, key), templates)
        for number, inner in enumerate(node.items):
            self._render(inner, (*at, str(number)), templates)
        if node.text is not None:
            try:
                node.value = templates.render(node.text)
            except BrokenVariableError:
                node.is_bad = True
            except RecipeError as error:
                self._problem(node, at, error.what)
        elif needs_quotes(node.value):
            self._problem(node, at, f"{node.value} is neither text in quotes nor a whole number")

    # --- files -----------------------------------------------------------------------------------

    def locate_files(self) -> None:
        """Make the paths of local files absolute: relative to the file that wrote them."""
        for at, node in self._local_files():
            if not node.text:
                continue
            beside = node.path.parent
            if at == ("agent", "path"):
                found = self._library.agent(Path(node.text), beside)
                self._expect(node, at, found, is_there(found, folder=True), "no folder")
            else:
                found = beside / node.text
                self._library.observe([found])
                self._expect(node, at, found, is_there(found), "no")
            node.value = str(_plain(found) if is_there(found) else found)
        for name, source in (self._root.get("sources") or self._root).table.items():
            git = source.table.get("git")
            if git is None or git.text is None or not git.text.startswith(_LOCAL_GIT):
                continue
            said = git.text.removeprefix(_LOCAL_GIT)
            for place in (Path(said), Path(unquote(said))):  # git decodes it
                if not place.is_absolute() or not self._is_the_projects(place, git.path):
                    self._problem(git, ("sources", name, "git"), _outside(place))

    def _local_files(self) -> Iterator[tuple[Dotted, Node]]:
        agent = self._root.get("agent", "path")
        if agent is not None:
            yield ("agent", "path"), agent
        for name, source in (self._root.get("sources") or self._root).table.items():
            if "file" in source.table:
                yield ("sources", name, "file"), source.table["file"]
        files = self._root.get("initramfs", "files")
        for guest, node in files.table.items() if files is not None else ():
            yield ("initramfs", "files", guest), node

    def _expect(self, node: Node, at: Dotted, path: Path, found: bool, none: str) -> None:
        if not found:
            self._problem(node, at, f"there is {none} {path}")
        elif not self._is_the_projects(path, node.path):
            self._problem(node, at, _outside(path))

    def _is_the_projects(self, path: Path, written_in: Path) -> bool:
        """Whether `path`, its links followed, is below a project's folder or beside the recipe."""
        own = written_in.parent
        homes = (*self._library.roots, own.parent if own.name == "recipes" else own)
        place = path.resolve()
        return any(place.is_relative_to(home.resolve()) for home in homes)

    # --- validation ------------------------------------------------------------------------------

    def validate(self) -> Recipe:
        """The recipe. Raises `RecipeError` with all problems."""
        recipe = None
        data = self._root.plain()
        try:
            recipe = Recipe.model_validate_json(json.dumps(data))
        except ValidationError as error:
            for at, what in explained(error.errors(include_url=False), data):
                self._problem(self._root.find(at), at, what)
        self._check_names()
        if self._problems or recipe is None:
            lines = list(dict.fromkeys(line for _, _, line in sorted(self._problems)))
            if len(lines) > _SHOWN_PROBLEMS:
                shown_lines = [*lines[:_SHOWN_PROBLEMS], "…"]
                what = f"{self._path} has {len(lines)} problems"
                raise RecipeError(what, why="\n".join(shown_lines))
            raise RecipeError.of_problems(str(self._path), lines)
        return recipe

    def _check_names(self) -> None:
        """That sources, fragments and series which are named exist, and that no path is empty."""
        sources = self._root.get("sources")
        named: list[tuple[Dotted, Node | None]] = []
        named += [((part, "source"), self._root.get(part, "source")) for part in _TAKERS]
        submodules = self._root.get("firmware", "submodules")
        for path, filled in submodules.table.items() if submodules else ():
            named.append((("firmware", "submodules", path), filled))
        for at, node in named:
            if node is None or node.text is None or sources is None or not sources.table:
                continue
            if node.text not in sources.table:
                near = nearest(node.text, sources.table)
                self._problem(node, at, f"no source is called '{node.text}'{near}")
            elif "deb-src" in sources.table[node.text].table and not self._takes_files(at):
                self._problem(
                    node,
                    at,
                    f"{node.text} is a source package, which is several files, and one is taken "
                    "here: name a binary package with deb, or one file with url",
                )
        configs = self._root.get("kernel", "configs")
        for number, node in enumerate(configs.items[:LIST_LENGTH] if configs else ()):
            self._check_name(node, ("kernel", "configs", str(number)), self._library.fragment)
        for part in ("kernel", "firmware"):
            series = self._root.get(part, "patches")
            if series is not None and series.text:
                self._check_name(series, (part, "patches"), self._library.patches)
        for at, node in self._local_files():
            if node.text == "":
                self._problem(node, at, "must not be empty")

    def _takes_files(self, at: Dotted) -> bool:
        """Whether what names its source at `at` is made of all the files of that source."""
        return at[0] == "firmware" and self._root.get("firmware", "platform") is not None

    def _check_name(self, node: Node, at: Dotted, find: Callable[[str], Path]) -> None:
        if node.text is not None:
            try:
                find(node.text)
            except RecipeError as error:
                self._problem(node, at, error.what)

    def _problem(self, node: Node, at: Dotted, what: str) -> None:
        """Note what is wrong; not if it only follows from what was wrong with the same value."""
        if node.is_bad:
            return
        node.is_bad = not isinstance(node.value, (dict, list))
        line = printable(f"{node.path}:{node.line}: {dotted(at)}: {what}")
        self._problems.append((self.files.index(node.path), node.line, line))


def _plain(path: Path) -> Path:
    """`path` without "..", unless a link on the way makes that another place."""
    plain = Path(os.path.normpath(path))
    return plain if plain.resolve() == path.resolve() else path


def _outside(path: Path) -> str:
    return (
        f"{path} lies outside of the project, and a recipe takes nothing from there: "
        "copy it in, or name a folder that holds both with -C"
    )
