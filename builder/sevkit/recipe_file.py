# SPDX-License-Identifier: Apache-2.0
"""From recipe files to a `Recipe`: read, extend, render, validate; all problems told together.

Merging: tables merge key by key, but `agent`, `firmware` and each of `sources` are replaced whole;
lists are replaced, and an element "..." stands for the inherited ones.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sevkit.errors import RecipeError
from sevkit.library import Library, nearest
from sevkit.recipe import (
    SOURCE_KINDS,
    DebSource,
    DebSourcePackage,
    FileSource,
    GitSource,
    Recipe,
    UrlSource,
)
from sevkit.template import Templates
from sevkit.toml_lines import key_lines

Dotted = tuple[str, ...]

_FILE_BYTES = 1 << 20
_DEPTH = 16
_MODELS: Mapping[str, type[BaseModel]] = {
    "deb": DebSource,
    "deb-src": DebSourcePackage,
    "url": UrlSource,
    "git": GitSource,
    "file": FileSource,
}


def load(name: str, overrides: Mapping[str, str], library: Library) -> Recipe:
    """The recipe `name` (or in the file `name`) with the variables `overrides`.

    Raises `RecipeError` with every problem: its file, line, dotted key, and what to write instead.
    """
    draft = _Draft(library)
    draft.read(name)
    draft.override(overrides)
    draft.render()
    draft.locate_files()
    return draft.validate()


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of what a recipe may say once templates are rendered."""
    made = Recipe.model_json_schema(by_alias=True)
    made["properties"]["extends"] = {
        "type": "string",
        "description": "The recipe that this one builds on; what is not said here is taken from it",
    }
    made["required"] = ["schema"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:sevkit:recipe:1",
        **made,
    }


@dataclass
class _Draft:
    """Merged data, and the file and line that wrote each key."""

    library: Library
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Dotted, tuple[Path, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failed: set[Dotted] = field(default_factory=set)
    path: Path = field(default_factory=Path)

    # --- reading and merging -----------------------------------------------------------------

    def read(self, name: str) -> None:
        """Read the recipe and its parents, and merge them."""
        chain: list[tuple[Path, dict[str, Any], dict[Dotted, int]]] = []
        path = self.path = self.library.recipe(name)
        while True:
            if any(path == known for known, _, _ in chain):
                loop = " → ".join(known.name for known, _, _ in chain)
                raise RecipeError(
                    f"{path}: extends: the recipes extend each other: {loop} → {path.name}"
                )
            if len(chain) == _DEPTH:
                raise RecipeError(f"{self.path}: extends: more than {_DEPTH} recipes deep")
            self.library.observed.add(path)
            data, lines = _parse(path)
            chain.append((path, data, lines))
            parent = data.pop("extends", None)
            if parent is None:
                break
            if not isinstance(parent, str):
                raise RecipeError(f"{path}:{lines[('extends',)]}: extends: must be a recipe's name")
            try:
                path = self._parent(path, parent)
            except RecipeError as error:
                where = f"{path}:{lines[('extends',)]}: extends"
                raise RecipeError(
                    f"{where}: {error.what}", why=error.why, hint=error.hint
                ) from None
        for path, data, lines in reversed(chain):
            self._merge(data, path, lines)

    def _parent(self, path: Path, name: str) -> Path:
        if "/" in name or name.endswith(".toml"):
            return (path.parent / name).resolve()
        return self.library.recipe(name)

    def _merge(self, data: dict[str, Any], path: Path, lines: Mapping[Dotted, int]) -> None:
        self._merge_table(self.data, data, ())
        self.places |= {dotted: (path, line) for dotted, line in lines.items()}

    def _merge_table(self, old: dict[str, Any], new: Mapping[str, Any], at: Dotted) -> None:
        for key, value in new.items():
            here = (*at, key)
            before = old.get(key)
            if isinstance(value, dict) and isinstance(before, dict) and not _is_whole(here):
                self._merge_table(before, value, here)
                continue
            for dotted in [d for d in self.places if d[: len(here)] == here]:
                del self.places[dotted]
            old[key] = _spliced(before, value)

    # --- variables and templates -------------------------------------------------------------

    def override(self, overrides: Mapping[str, str]) -> None:
        """Set variables from the command line. Unknown ones are a problem of the call."""
        known = self.data.get("vars", {})
        for name, value in overrides.items():
            if not isinstance(known, dict) or name not in known:
                raise RecipeError(
                    f"{self.path.name} has no variable '{name}'",
                    hint=nearest(name, known if isinstance(known, dict) else ()),
                )
            known[name] = value

    def render(self) -> None:
        """Render every string; `vars` first, which may use each other."""
        variables = self.data.get("vars", {})
        if isinstance(variables, dict):
            templates = Templates({k: v for k, v in variables.items() if isinstance(v, str)})
            self.data = self._rendered(self.data, (), templates)

    def _rendered(self, value: Any, at: Dotted, templates: Templates) -> Any:
        if isinstance(value, str):
            try:
                if at[:1] == ("vars",) and len(at) == 2:
                    return templates.variable(at[1])
                return templates.render(value)
            except RecipeError as error:
                self._problem(at, error.what, error.hint)
                self.failed.add(at)
                return value
        if isinstance(value, dict):
            return {k: self._rendered(v, (*at, k), templates) for k, v in value.items()}
        if isinstance(value, list):
            return [self._rendered(v, (*at, str(i)), templates) for i, v in enumerate(value)]
        return value

    # --- files -------------------------------------------------------------------------------

    def locate_files(self) -> None:
        """Make the paths of local files absolute: relative to the file that wrote them."""
        for at, table, key in self._paths():
            written = Path(table[key])
            beside = self._place(at)[0].parent
            if at == ("agent", "path"):
                found = self.library.agent(written, beside)
            else:
                found = beside / written
            if not found.exists():
                self._problem(at, f"there is no {found}")
            table[key] = str(found)

    def _paths(self) -> Iterator[tuple[Dotted, dict[str, Any], str]]:
        def strings(table: Any, at: Dotted) -> Iterator[tuple[Dotted, dict[str, Any], str]]:
            if isinstance(table, dict):
                for key, value in table.items():
                    if isinstance(value, str):
                        yield (*at, key), table, key

        agent = self.data.get("agent")
        if isinstance(agent, dict) and isinstance(agent.get("path"), str):
            yield ("agent", "path"), agent, "path"
        sources = self.data.get("sources")
        for name, source in sources.items() if isinstance(sources, dict) else ():
            if isinstance(source, dict) and isinstance(source.get("file"), str):
                yield ("sources", name, "file"), source, "file"
        initramfs = self.data.get("initramfs")
        if isinstance(initramfs, dict):
            yield from strings(initramfs.get("files"), ("initramfs", "files"))

    # --- validation --------------------------------------------------------------------------

    def validate(self) -> Recipe:
        """The recipe. Raises `RecipeError` with all problems."""
        recipe = None
        try:
            recipe = Recipe.model_validate_json(json.dumps(self.data, default=str))
        except ValidationError as error:
            rows = error.errors(include_url=False)
            for row in rows:
                inner = any(len(r["loc"]) > len(row["loc"]) for r in _below(row, rows))
                if not (row["type"] == "too_short" and inner):
                    self._explain(row)
        if recipe is not None:
            for at, what in recipe.contradictions():
                self._problem(at, what)
        self._check_names()
        if self.problems or recipe is None:
            raise RecipeError.of_problems(str(self.path), list(dict.fromkeys(self.problems)))
        return recipe

    def _check_names(self) -> None:
        """That sources, fragments and series which are named exist."""
        sources = self.data.get("sources")
        for part in ("kernel", "agent", "firmware"):
            name = _get(self.data, part, "source")
            if isinstance(name, str) and isinstance(sources, dict) and name not in sources:
                what = f"no source is called '{name}'"
                self._problem((part, "source"), what, nearest(name, sources))
        configs = _get(self.data, "kernel", "configs")
        for number, name in enumerate(configs if isinstance(configs, list) else []):
            self._check_name(("kernel", "configs", str(number)), name, self.library.fragment)
        self._check_name(
            ("kernel", "patches"), _get(self.data, "kernel", "patches"), self.library.patches
        )

    def _check_name(self, at: Dotted, name: Any, find: Any) -> None:
        if isinstance(name, str) and name:
            try:
                find(name)
            except RecipeError as error:
                self._problem(at, error.what, error.hint)

    def _explain(self, row: Any) -> None:
        at = tuple(str(part) for part in row["loc"])
        if at[:1] == ("sources",) and len(at) > 3 and at[2] in SOURCE_KINDS:
            at = (*at[:2], *at[3:])
        value = row["input"]
        match row["type"]:
            case "missing":
                self._problem(at, "is missing")
            case "extra_forbidden":
                self._problem(at, "there is no such key", nearest(at[-1], self._keys(at[:-1])))
            case "literal_error":
                allowed = row["ctx"]["expected"].replace(" or ", ", ").split(", ")
                names = [name.strip("'") for name in allowed]
                self._problem(at, f"{value!r} is not possible", nearest(str(value), names))
            case "union_tag_not_found":
                self._problem(at, f"says nowhere where it comes from: {', '.join(SOURCE_KINDS)}")
            case "value_error":
                self._problem(at, f"{value!r} {row['ctx']['error']}")
            case "string_pattern_mismatch":
                self._problem(at, f"{value!r} does not have the form {row['ctx']['pattern']}")
            case _:
                self._problem(at, f"{row['msg'][0].lower()}{row['msg'][1:]}, not {value!r}")

    def _keys(self, at: Dotted) -> list[str]:
        model: Any = Recipe
        if at[:1] == ("sources",) and len(at) == 2:
            source = _get(self.data, *at)
            model = _MODELS[next((kind for kind in SOURCE_KINDS if kind in source), "deb")]
        elif at:
            model = Recipe.model_fields[at[0]].annotation if at[0] in Recipe.model_fields else None
        fields: Mapping[str, Any] = getattr(model, "model_fields", {})
        keys = [info.alias or name for name, info in fields.items()]
        return [*keys, "extends"] if model is Recipe else keys

    # --- places ------------------------------------------------------------------------------

    def _place(self, at: Dotted) -> tuple[Path, int]:
        for length in range(len(at), 0, -1):
            if at[:length] in self.places:
                return self.places[at[:length]]
        return self.path, 1

    def _problem(self, at: Dotted, what: str, hint: str = "") -> None:
        if at in self.failed:
            return  # what follows from a template that did not render
        path, line = self._place(at)
        ending = f": {hint}" if hint else ""
        self.problems.append(f"{path}:{line}: {'.'.join(at)}: {what}{ending}")


def _parse(path: Path) -> tuple[dict[str, Any], dict[Dotted, int]]:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
        if len(content) > _FILE_BYTES:
            raise RecipeError(f"{path} is larger than 1 MiB: it is no recipe")
        text = content.decode("utf-8")
        return tomllib.loads(text), key_lines(text.replace("\r\n", "\n"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: this is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply") from error


def _is_whole(at: Dotted) -> bool:
    return at in (("agent",), ("firmware",)) or (len(at) == 2 and at[0] == "sources")


def _spliced(before: Any, value: Any) -> Any:
    """`value`, with the inherited list in the place of an element "..."."""
    if not isinstance(value, list) or "..." not in value:
        return value
    inherited = before if isinstance(before, list) else []
    return [item for element in value for item in (inherited if element == "..." else [element])]


def _below(row: Any, rows: Iterable[Any]) -> Iterator[Any]:
    """The errors inside of what `row` is about."""
    loc = row["loc"]
    return (other for other in rows if other["loc"][: len(loc)] == loc)


def _get(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
