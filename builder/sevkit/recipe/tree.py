# SPDX-License-Identifier: Apache-2.0
"""A recipe file as a tree whose every value remembers the file and line that wrote it.

Reads and merges; knows no field of a recipe but those that are replaced whole.
"""

import datetime
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevkit.errors import RecipeError
from sevkit.recipe.model import Dotted
from sevkit.recipe.toml_lines import key_lines

INHERITED = "..."
"""In a list: what the recipe that this one extends has there."""

_FILE_BYTES = 256 << 10
_DOTS_IN_A_LINE = 200
_DEPTH = 8
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_QUOTES_MISSING = (float, datetime.date, datetime.time)

Complain = Callable[["Node", Dotted, str], None]


@dataclass
class Node:
    """A value, and where it was written. A bad one was complained of already."""

    value: Any
    path: Path
    line: int
    is_bad: bool = False

    @property
    def table(self) -> dict[str, "Node"]:
        """The children of a table; nothing for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list["Node"]:
        """The elements of a list; nothing for any other value."""
        return self.value if isinstance(self.value, list) else []

    @property
    def text(self) -> str | None:
        """The value of a text; None for any other value."""
        return self.value if isinstance(self.value, str) else None

    def find(self, at: Dotted) -> "Node":
        """What is at `at`, or the innermost table or list around it that is there."""
        node = self
        for part in at:
            if part in node.table:
                node = node.table[part]
            elif part.isdecimal() and int(part) < len(node.items):
                node = node.items[int(part)]
            else:
                break
        return node

    def get(self, *at: str) -> "Node | None":
        """What is at `at`, if it is there."""
        node = self
        for part in at:
            if part not in node.table:
                return None
            node = node.table[part]
        return node

    def plain(self) -> Any:
        """The values without their places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        if isinstance(self.value, _QUOTES_MISSING):
            return None  # JSON has no such value; it was complained of
        return self.value


def read_tree(path: Path) -> Node:
    """The content of the file `path`. Raises `RecipeError` when it can't be read as TOML."""
    text = _text(path)
    try:
        data = tomllib.loads(text)
        if _depth(data) > _DEPTH:
            raise RecipeError(f"{path}: tables or lists nested more than {_DEPTH} deep")
        lines = key_lines(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line = place[1] if place and place[1] else text.rstrip("\n").count("\n") + 1
        what = _PLACE.sub("", str(error))
        raise RecipeError(f"{path}:{line}: not TOML: {what[:1].lower()}{what[1:]}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: tables or lists nested more than {_DEPTH} deep") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise RecipeError(f"{path}: not TOML: {error}") from error
    if not data:
        raise RecipeError(f"{path} is empty: a recipe says schema, name and what it extends")
    return _node(data, (), lines, Node(None, path, 1))


def merged(old: Node | None, new: Node, at: Dotted, complain: Complain) -> Node:
    """`new` over `old`: tables key by key, everything else replaced.

    An element "..." of a list stands for the elements of the list in `old`.
    """
    if isinstance(new.value, dict):
        keep = old is not None and isinstance(old.value, dict) and not _is_whole(at)
        table = dict(old.table) if old is not None and keep else {}
        for key, node in new.table.items():
            table[key] = merged(table.get(key), node, (*at, key), complain)
        return Node(table, new.path, new.line)
    if isinstance(new.value, list):
        items: list[Node] = []
        for number, node in enumerate(new.items):
            if node.value != INHERITED:
                items.append(merged(None, node, (*at, str(number)), complain))
            elif old is not None and isinstance(old.value, list):
                items += old.items
            else:
                why = " (this table is replaced whole)" if _is_whole(at[:-1]) else ""
                complain(node, (*at, str(number)), f'"..." has nothing to stand for{why}')
        return Node(items, new.path, new.line)
    return new


def dotted(at: Dotted) -> str:
    """`at` as one would write it in TOML, with the number of a list's element in brackets."""
    text = ""
    for number, part in enumerate(at):
        if part.isdecimal() and at[:number] not in ((), ("sources",), ("vars",)):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            shown = part if bare else '"' + part.replace('"', '\\"') + '"'
            text += f".{shown}" if text else shown
    return text


def needs_quotes(value: object) -> bool:
    """Whether `value` is of a TOML type that no field of a recipe has."""
    return isinstance(value, _QUOTES_MISSING)


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - says why, unlike is_file()
            what = "a folder" if path.is_dir() else "no regular file"
            raise RecipeError(f"{path} is {what}: a recipe is a TOML file")
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
        if len(content) > _FILE_BYTES:
            raise RecipeError(f"{path} is larger than {_FILE_BYTES >> 10} KiB: it is no recipe")
        text = content.decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not TOML: this is not UTF-8") from error
    except ValueError as error:
        raise RecipeError(f"{str(path)!r} is no path: {error}") from error
    for number, line_text in enumerate(text.split("\n"), 1):
        if line_text.count(".") > _DOTS_IN_A_LINE:
            # tomllib takes quadratic time for one key of very many parts
            raise RecipeError(f"{path}:{number}: more than {_DOTS_IN_A_LINE} dots in one line")
    return text


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return deepest


def _node(value: Any, at: Dotted, lines: Mapping[Dotted, int], outer: Node) -> Node:
    node = Node(value, outer.path, lines.get(at, outer.line))
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise RecipeError(f"{node.path}:{node.line}: {dotted(at)}: a number of more than 64 bits")
    if isinstance(value, dict):
        node.value = {key: _node(inner, (*at, key), lines, node) for key, inner in value.items()}
    elif isinstance(value, list):
        node.value = [
            _node(inner, (*at, str(number)), lines, node) for number, inner in enumerate(value)
        ]
    return node


def _is_whole(at: Dotted) -> bool:
    """Whether a table is replaced as a whole: its keys only make sense together."""
    return at in (("agent",), ("firmware",)) or (len(at) == 2 and at[0] == "sources")
