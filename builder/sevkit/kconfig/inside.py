# SPDX-License-Identifier: Apache-2.0
"""Reads a kernel's Kconfig files and answers questions about symbols, in a process of its own.

Started by `model.py` as a plain script, in the sandbox: kconfiglib takes its settings from the
environment and runs the compiler, neither of which may happen in a process with other threads.
Imports nothing of ours, so that it needs no more of the host than one file of kconfiglib.

    python -I -S inside.py KCONFIGLIB.PY REQUEST.JSON ANSWER.JSON
"""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Keywords that are younger than kconfiglib 14.1: `modules` on its own line (Linux 5.18) is what
# `option modules` was; `transitional` (6.18) says nothing about values.
_NEWER = (
    (re.compile(r"^([ \t]+)modules[ \t]*$", re.M), r"\1option modules"),
    (re.compile(r"^[ \t]+transitional[ \t]*$", re.M), ""),
)


def load_kconfiglib(path: str) -> ModuleType:
    """The module in the file `path`."""
    spec = importlib.util.spec_from_file_location("kconfiglib", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kconfiglib"] = module
    spec.loader.exec_module(module)
    return module


class Questions:
    """One set of Kconfig files with one `.config` loaded."""

    def __init__(self, kconfiglib: Any, top: str, config: str):
        class Kconfig(kconfiglib.Kconfig):  # type: ignore[misc]
            def _open(self, name: str, mode: str) -> Any:
                if mode != "r":
                    return super()._open(name, mode)
                text = Path(name).read_text(encoding="utf-8")
                for pattern, replacement in _NEWER:
                    text = pattern.sub(replacement, text)
                return io.StringIO(text)

        self.lib = kconfiglib
        self.tree = Kconfig(top, warn=False)
        self.tree.load_config(config)

    def names(self) -> list[str]:
        """All defined symbols."""
        return [symbol.name for symbol in self.tree.unique_defined_syms]

    def values(self) -> dict[str, str]:
        """Every symbol that would be written to `.config`, with its value."""
        return {
            symbol.name: self._value(symbol)
            for symbol in self.tree.unique_defined_syms
            if symbol.config_string
        }

    def facts(self, name: str) -> dict[str, Any] | None:
        """All that is known about a symbol; None when nothing defines it."""
        symbol = self.tree.syms.get(name)
        if symbol is None or not symbol.nodes:
            return None
        return {
            "name": name,
            "type": self.lib.TYPE_TO_STR[symbol.orig_type],
            "value": self._value(symbol),
            "visible": symbol.visibility,
            "places": [self._place(node) for node in symbol.nodes],
            "depends": self._parts(symbol.direct_dep),
            "selected_by": self._sources(symbol.rev_dep),
            "implied_by": self._sources(symbol.weak_rev_dep),
            "defaults": [
                {"value": self.lib.expr_str(value), "if": self.lib.expr_str(condition)}
                for value, condition in symbol.defaults
                if self.lib.expr_value(condition)
            ],
            "range": next(
                (
                    [low.str_value, high.str_value]
                    for low, high, condition in symbol.ranges
                    if self.lib.expr_value(condition)
                ),
                None,
            ),
            "choice": self._choice(symbol),
        }

    def needed(self, demanded: dict[str, str]) -> dict[str, str]:
        """What must be added to `demanded` so that `allnoconfig` gives the loaded values."""
        return {
            symbol.name: self._value(symbol)
            for symbol in list(self.tree.unique_defined_syms)
            if self._is_needed(symbol, demanded.get(symbol.name))
        }

    def _is_needed(self, symbol: Any, demanded: str | None) -> bool:
        value = self._value(symbol)
        if demanded is not None:
            return demanded != value and (symbol.visibility > 0 or symbol.config_string != "")
        if symbol.visibility == 0 or not symbol.config_string:
            return False
        if symbol.orig_type in (self.lib.BOOL, self.lib.TRISTATE):
            if symbol.choice is not None and symbol.choice.tri_value == 2:
                return value == "y" and symbol is not self._default_of(symbol.choice)
            return bool(symbol.tri_value > self.lib.expr_value(symbol.rev_dep))
        chosen = symbol.user_value
        symbol.unset_value()
        by_default = self._value(symbol)
        if chosen is not None:
            symbol.set_value(chosen)
        return by_default != value

    def _default_of(self, choice: Any) -> Any:
        chosen = choice.user_selection
        choice.unset_value()
        by_default = choice.selection
        if chosen is not None:
            chosen.set_value(2)
        return by_default

    def _value(self, symbol: Any) -> str:
        value: str = symbol.str_value
        return f'"{self.lib.escape(value)}"' if symbol.orig_type == self.lib.STRING else value

    def _place(self, node: Any) -> dict[str, Any]:
        prompt, condition = node.prompt or (None, self.tree.y)
        menus, parent = [], node.parent
        while parent is not None and parent is not self.tree.top_node:
            if parent.prompt:
                menus.append(parent.prompt[0])
            parent = parent.parent
        return {
            "file": node.filename,
            "line": node.linenr,
            "prompt": prompt,
            "menus": menus[::-1],
            "asked_if": self._parts(condition),
        }

    def _parts(self, expression: Any) -> list[dict[str, Any]]:
        """The sub-expressions that must all hold, each with its value and its symbols' values."""
        parts = []
        for part in self.lib.split_expr(expression, self.lib.AND):
            if part is self.tree.y:
                continue
            symbols = {
                item.name: self._value(item)
                for item in sorted(
                    (s for s in self.lib.expr_items(part) if isinstance(s, self.lib.Symbol)),
                    key=lambda item: str(item.name),
                )
                if not item.is_constant
            }
            text = self.lib.expr_str(part)
            entry = {"text": text, "value": self.lib.expr_value(part), "symbols": symbols}
            if entry not in parts:
                parts.append(entry)
        return parts

    def _sources(self, expression: Any) -> list[dict[str, Any]]:
        """Who selects or implies: the symbol, the rest of its condition, and its effect now."""
        found = []
        for part in self.lib.split_expr(expression, self.lib.OR):
            if part is self.tree.n:
                continue
            first, *conditions = self.lib.split_expr(part, self.lib.AND)
            found.append(
                {
                    "symbol": getattr(first, "name", None) or self.lib.expr_str(first),
                    "if": " && ".join(
                        self.lib.expr_str(condition)
                        for condition in conditions
                        if condition is not self.tree.y
                    ),
                    "value": self.lib.expr_value(part),
                }
            )
        return found

    def _choice(self, symbol: Any) -> dict[str, Any] | None:
        choice = symbol.choice
        if choice is None:
            return None
        node = choice.nodes[0]
        return {
            "prompt": node.prompt[0] if node.prompt else "",
            "file": node.filename,
            "line": node.linenr,
            "selection": choice.selection.name if choice.selection else None,
            "members": [member.name for member in choice.syms],
        }


def main(kconfiglib_path: str, request_path: str, answer_path: str) -> None:
    """Answer the request: ``facts`` of symbols, ``names``, ``values``, ``needed``."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    kconfiglib = load_kconfiglib(kconfiglib_path)
    answer: dict[str, Any] = {}
    try:
        questions = Questions(kconfiglib, request["top"], request["config"])
    except kconfiglib.KconfigError as error:
        answer["error"] = str(error).strip()
    else:
        answer["facts"] = {name: questions.facts(name) for name in request.get("facts", [])}
        if request.get("names"):
            answer["names"] = questions.names()
        if request.get("values"):
            answer["values"] = questions.values()
        if "needed" in request:
            answer["needed"] = questions.needed(request["needed"])
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
