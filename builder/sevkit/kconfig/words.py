# SPDX-License-Identifier: Apache-2.0
"""Why a symbol has its value, in words: the Kconfig files' reasons and the fragments' wishes.

Every reason names what a person can change: a symbol with its value, a fragment with its line.
This module decides nothing; what the values are is in `.config`.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sevkit.errors import RecipeError
from sevkit.kconfig.dotconfig import Lost
from sevkit.kconfig.fragment import Demand, Merged
from sevkit.kconfig.model import Facts, Model, version_of

_LEVELS = {"n": 0, "m": 1, "y": 2}
_KINDS = {
    "bool": re.compile("[yn]"),
    "tristate": re.compile("[ymn]"),
    "int": re.compile(r"-?\d+|n"),
    "hex": re.compile(r"0[xX][0-9a-fA-F]+|n"),
    "string": re.compile(r'".*"|n', re.S),
}


def why(symbol: str, merged: Merged, model: Model) -> str:
    """All about `symbol`, for people: its value, where it comes from, what it would take.

    Raises `RecipeError` naming similar symbols when there is none of this name.
    """
    symbol = symbol.removeprefix("CONFIG_")
    facts, names = model.facts_and_names([symbol])
    found = facts[symbol]
    if found is None:
        nearest = _nearest(symbol, names)
        guess = f": did you mean {nearest}?" if nearest else ""
        raise RecipeError(f"linux {version_of(model.tree)} has no symbol CONFIG_{symbol}{guess}")
    return "\n".join(_told(found, merged))


def lost_symbols(lost: Sequence[Lost], merged: Merged, model: Model) -> list[str]:
    """One explanation, of one or more lines, for each of `lost`."""
    facts, names = model.facts_and_names(item.demand.symbol for item in lost)
    version = version_of(model.tree)
    explanations = []
    for item in lost:
        demand, found = item.demand, facts[item.demand.symbol]
        if found is None:
            nearest = _nearest(demand.symbol, names)
            reasons = [f"linux {version} has no such symbol"]
            reasons += [f"did you mean {nearest}?"] if nearest else []
            reasons += ["(start its reason with 'wanted:' if only some versions have it)"]
        else:
            reasons = _reasons(demand, found, merged)
        state = "can't be checked" if found is None else f"is lost, it is {found['value'] or 'n'}"
        explanations.append("\n    ".join([f"{demand.where}: '{demand.text}' {state}", *reasons]))
    return explanations


def _reasons(demand: Demand, facts: Facts, merged: Merged) -> list[str]:
    if not _KINDS.get(facts["type"], re.compile("")).fullmatch(demand.value):
        return [f"it is of type {facts['type']}"]
    found, wanted = facts["value"], demand.value
    if found in _LEVELS and wanted in _LEVELS and _LEVELS[found] > _LEVELS[wanted]:
        return _why_on(facts, merged)
    unmet = _unmet(facts, _LEVELS.get(wanted, 1), merged)
    if unmet:
        return unmet
    return [_why_not_taken(facts, merged)]


def _why_not_taken(facts: Facts, merged: Merged) -> str:
    if not any(place["prompt"] for place in facts["places"]):
        return _only_selected(facts)
    choice = facts["choice"]
    if choice and choice["selection"] not in (None, facts["name"]):
        taken = _with_demand(choice["selection"], "y", merged)
        where = f"{choice['file']}:{choice['line']}"
        return f"only one of the choice '{choice['prompt']}' ({where}) can be y: {taken}"
    if facts["range"]:
        low, high = facts["range"]
        return f"it must be from {low} to {high}"
    return "the kernel's configurator did not take the value; its warnings are in the log"


def _why_on(facts: Facts, merged: Merged) -> list[str]:
    selectors = [source for source in facts["selected_by"] if source["value"]]
    if selectors:
        return [
            f"selected by {_with_demand(source['symbol'], '', merged)}"
            + (f", as {source['if']}" if source["if"] else "")
            for source in selectors
        ]
    choice = facts["choice"]
    if choice and choice["selection"] == facts["name"]:
        where = f"{choice['file']}:{choice['line']}"
        return [
            f"the choice '{choice['prompt']}' ({where}) takes it: ask for another of its members"
        ]
    reason = "it has no prompt in this configuration"
    if facts["defaults"]:
        reason += f", and its default is {_default(facts)}"
    return [reason]


def _default(facts: Facts) -> str:
    default = facts["defaults"][0]
    return str(default["value"]) + ("" if default["if"] == "y" else f" if {default['if']}")


def _unmet(facts: Facts, level: int, merged: Merged) -> list[str]:
    """The sub-expressions that keep the symbol's prompt away, where fewest do."""
    asked = [place["asked_if"] for place in facts["places"] if place["prompt"]]
    options = [
        [part for part in parts if part["value"] < level] for parts in asked or [facts["depends"]]
    ]
    return [_needs(part, merged) for part in min(options, key=len)]


def _needs(part: Mapping[str, Any], merged: Merged) -> str:
    values = "; ".join(_with_demand(name, value, merged) for name, value in part["symbols"].items())
    return f"needs {part['text']}: {values}" if values else f"needs {part['text']}"


def _with_demand(name: str, value: str, merged: Merged) -> str:
    """``PCI is n (base.config:7 forbids it)``."""
    shown = f"{name} is {value}" if value else name
    demand = merged.demands.get(name)
    if demand is None:
        return shown
    verb = "forbids it" if demand.value == "n" else f"asks for {demand.value}"
    return f"{shown} ({demand.where} {verb})"


def _only_selected(facts: Facts) -> str:
    names = sorted({source["symbol"] for source in facts["selected_by"]})
    if not names:
        return "it has no prompt: no fragment can set it"
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"it has no prompt: only what selects it turns it on: {listed}"


def _nearest(symbol: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(symbol, names, n=3, cutoff=0.7)
    return " or ".join(f"CONFIG_{match}" for match in matches)


def _told(facts: Facts, merged: Merged) -> list[str]:
    name, value = facts["name"], facts["value"]
    lines = [f"CONFIG_{name} is {value or 'not set'} ({facts['type']})"]
    for place in facts["places"]:
        path = " → ".join([*place["menus"], place["prompt"]]) if place["prompt"] else "no prompt"
        lines.append(f"  defined      {place['file']}:{place['line']}: {path}")
    lines += [f"  depends on   {_state(part)}" for part in facts["depends"]]
    lines += _sources_told("selected by", facts["selected_by"])
    lines += _sources_told("implied by", facts["implied_by"])
    if facts["defaults"]:
        lines.append(f"  default      {_default(facts)}")
    if facts["choice"]:
        choice = facts["choice"]
        lines.append(
            f"  choice       '{choice['prompt']}' ({choice['file']}:{choice['line']}) "
            f"takes {choice['selection']}"
        )
    if facts["range"]:
        lines.append(f"  range        {facts['range'][0]} to {facts['range'][1]}")
    for earlier in merged.overridden.get(name, ()):
        lines.append(f"  overridden   {earlier.where}: {earlier.text}: {earlier.reason}")
    demand = merged.demands.get(name)
    if demand is None:
        lines.append("  fragments    none names it")
    else:
        lines.append(f"  {demand.strength:<12} {demand.where}: {demand.text}: {demand.reason}")
    if value in ("n", ""):
        lines += [f"  to enable    {step}" for step in _to_enable(facts, merged)]
    return lines


def _state(part: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name}={value}" for name, value in part["symbols"].items())
    return f"{part['text']}: {'met' if part['value'] else 'not met'} ({values})"


def _sources_told(title: str, sources: Sequence[Mapping[str, Any]]) -> list[str]:
    active = [source for source in sources if source["value"]]
    lines = [
        f"  {title:<12} {source['symbol']}" + (f" if {source['if']}" if source["if"] else "")
        for source in active
    ]
    if len(sources) > len(active):
        names = sorted({source["symbol"] for source in sources if not source["value"]})
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        lines.append(f"  {title:<12} not now: {', '.join(names[:6])}{more}")
    return lines


def _to_enable(facts: Facts, merged: Merged) -> list[str]:
    steps = _unmet(facts, 1, merged)
    if not any(place["prompt"] for place in facts["places"]):
        steps.append(_only_selected(facts))
    else:
        steps.append(f"CONFIG_{facts['name']}=… in a fragment")
    return steps


def as_fragment(needed: Mapping[str, str], merged: Merged, reason: str) -> str:
    """`needed` (see `Model.needed`) as a fragment's text, every symbol with `reason`."""
    lines = ["# SPDX-License-Identifier: Apache-2.0"]
    for symbol, value in sorted(needed.items()):
        mark = "override: " if symbol in merged.demands else ""
        text = f"# CONFIG_{symbol} is not set" if value == "n" else f"CONFIG_{symbol}={value}"
        lines += ["", f"# {mark}{reason}", text]
    return "\n".join([*lines, ""])
