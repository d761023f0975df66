# SPDX-License-Identifier: Apache-2.0
"""What pydantic found wrong with a recipe, in the words of someone who writes TOML.

Knows which keys and values there are; never where a key was written.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sevkit.addresses import shown_address
from sevkit.recipe.library import nearest
from sevkit.recipe.model import SOURCE_KINDS, Dotted, Recipe
from sevkit.recipe.values import FORMS

_TYPES = {
    "string_type": "must be text in quotes",
    "path_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "mapping_type": "must be a table",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}
_SHOWN_CHARACTERS = 60


def explained(rows: Iterable[Any], data: Any) -> Iterator[tuple[Dotted, str]]:
    """For each error of pydantic (`ValidationError.errors()`): where, and what is wrong."""
    kept = list(rows)
    for row in kept:
        at = _location(row["loc"])
        if row["type"] == "contradiction":
            for inner, what in row["ctx"]["found"]:
                yield (*at, *inner), what
        elif not (row["type"] == "too_short" and _is_from_below(row, kept)):
            yield at, _words(row, at, data)


def _location(loc: tuple[int | str, ...]) -> Dotted:
    at = tuple(str(part) for part in loc if part != "[key]")
    if at[:1] == ("sources",) and len(at) > 2 and at[2] in SOURCE_KINDS:
        return (*at[:2], *at[3:])  # pydantic names the kind of source on the way
    return at


def _is_from_below(row: Any, rows: Iterable[Any]) -> bool:
    """Whether a list seems too short because its elements are wrong."""
    loc = row["loc"]
    return any(len(r["loc"]) > len(loc) and r["loc"][: len(loc)] == loc for r in rows)


def _words(row: Any, at: Dotted, data: Any) -> str:
    value = shown(row["input"])
    if row["type"] in _TYPES:
        return f"{_TYPES[row['type']]}, not {value}"
    say = _SENTENCES.get(row["type"])
    return say(row, at, data) if say else f"{value} is wrong: {row['msg']}"


def _unknown_key(row: Any, at: Dotted, data: Any) -> str:
    if len(at) == 3 and at[0] == "sources" and at[2] in SOURCE_KINDS:
        return f"a source is either {_source_kind(data, at[1])} or {at[2]}, not both"
    return f"there is no such key{nearest(at[-1], keys_at(at[:-1], data))}"


def _no_choice(row: Any, at: Dotted, data: Any) -> str:
    allowed = row["ctx"]["expected"].replace(" or ", ", ").split(", ")
    near = nearest(str(row["input"]), [name.strip("'") for name in allowed])
    return f"{shown(row['input'])} is not possible{near}"


def _no_kind(row: Any, at: Dotted, data: Any) -> str:
    if not isinstance(row["input"], dict):
        return f"must be a table, not {shown(row['input'])}"
    near = [nearest(key, SOURCE_KINDS) for key in row["input"]]
    guess = next((text for text in near if "did you mean" in text), "")
    return f"has none of {', '.join(SOURCE_KINDS)}{guess}"


def _out_of_range(row: Any, at: Dotted, data: Any) -> str:
    return f"{shown(row['input'])} must be {row['msg'].removeprefix('Input should be ')}"


_SENTENCES: Mapping[str, Callable[[Any, Dotted, Any], str]] = {
    "missing": lambda row, at, data: "is missing",
    "extra_forbidden": _unknown_key,
    "literal_error": _no_choice,
    "union_tag_not_found": _no_kind,
    "value_error": lambda row, at, data: f"{shown(row['input'])} {row['ctx']['error']}",
    "string_pattern_mismatch": lambda row, at, data: (
        f"{shown(row['input'])} is not {FORMS[row['ctx']['pattern']]}"
    ),
    "string_too_long": lambda row, at, data: (
        f"is longer than {row['ctx']['max_length']} characters"
    ),
    "too_short": lambda row, at, data: "must not be empty",
    "too_long": lambda row, at, data: f"has more than {row['ctx']['max_length']} elements",
    "greater_than": _out_of_range,
    "greater_than_equal": _out_of_range,
    "less_than": _out_of_range,
    "less_than_equal": _out_of_range,
}


def shown(value: Any) -> str:
    """A value as in TOML, without passwords; a long one cut, a table or a list only named."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = shown_address(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _source_kind(data: Any, name: str) -> str:
    return next((kind for kind in SOURCE_KINDS if kind in data["sources"][name]), "deb")


def keys_at(at: Dotted, data: Any) -> list[str]:
    """The keys that the table at `at` may have."""
    model: Any = Recipe
    if at[:1] == ("sources",) and len(at) == 2:
        model = SOURCE_KINDS[_source_kind(data, at[1])]
    elif at:
        model = Recipe.model_fields[at[0]].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    fields: Mapping[str, Any] = model.model_fields
    keys = [info.alias or name for name, info in fields.items()]
    return [*keys, "extends"] if model is Recipe else keys
