# SPDX-License-Identifier: Apache-2.0
"""Fragments of a kernel configuration: each symbol with the value it must have, and the reason.

The text is what scripts/kconfig/merge_config.sh of the kernel takes, with meaning in its comments:

    # Encrypted memory.                   the reason of the symbols directly below
    CONFIG_AMD_MEM_ENCRYPT=y              required

    # A page shared by the host is a page it can read.
    # CONFIG_KSM is not set               forbidden

    # wanted: since 6.7. Reports.         may be missing or lost in some versions
    CONFIG_TSM_REPORTS=y

    # override: this image is for debugging.      may contradict an earlier fragment
    CONFIG_DEBUG_FS=y

This module never reads Kconfig files and never decides what the kernel makes of a fragment.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sevkit.errors import RecipeError

Strength = Literal["required", "forbidden", "wanted"]

_SET = re.compile(r"^CONFIG_(\w+)=(.*)$")
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")
_LOOKS_UNSET = re.compile(r"^#\s*CONFIG_\w+\s*(=|is\b)")
_VALUE = re.compile(r'[ym]|-?\d+|0[xX][0-9a-fA-F]+|"(?:[^"\\]|\\.)*"')
_MARK = re.compile(r"^(wanted|override):\s*(.*)$", re.S)


@dataclass(frozen=True)
class Demand:
    """What one line of a fragment asks for; `value` is as in `.config`, ``n`` for "is not set"."""

    symbol: str
    value: str
    strength: Strength
    overrides: bool
    reason: str
    fragment: str
    line: int

    @property
    def where(self) -> str:
        """The fragment and line, or what stands for them."""
        return f"{self.fragment}:{self.line}" if self.line else self.fragment

    @property
    def text(self) -> str:
        """The line as it stands in a fragment."""
        if self.value == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.value}"


@dataclass(frozen=True)
class Fragment:
    """A named list of demands, each symbol once."""

    name: str
    demands: tuple[Demand, ...]

    @classmethod
    def of_reason(cls, reason: str, values: Mapping[str, str]) -> "Fragment":
        """What a recipe implies (`reason` is ``initramfs.compression = zstd``, say)."""
        return cls(
            reason,
            tuple(
                Demand(
                    symbol,
                    value,
                    "forbidden" if value == "n" else "required",
                    False,
                    reason,
                    reason,
                    0,
                )
                for symbol, value in values.items()
            ),
        )


@dataclass(frozen=True)
class Merged:
    """Many fragments as one; the later wins."""

    demands: Mapping[str, Demand]
    overridden: Mapping[str, tuple[Demand, ...]]
    """Symbol → the demands that a later fragment replaced by another value, first to last."""

    @property
    def text(self) -> str:
        """The file for KCONFIG_ALLCONFIG: each symbol once."""
        return "".join(f"{demand.text}\n" for demand in self.demands.values())


def parse_fragment(path: Path, name: str = "") -> Fragment:
    """The fragment in `path`; `name` (default: the path) stands for it in messages.

    Raises `RecipeError` naming every problem with its line.
    """
    shown = name or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown}: byte {error.start} is not UTF-8 text") from error
    problems: list[str] = []
    demands: dict[str, Demand] = {}
    comment: list[str] = []
    closed = False
    for number, line in enumerate(map(str.rstrip, text.split("\n")), 1):
        asked = _asked(line, f"{shown}:{number}", problems)
        if asked is None:
            if closed or not line.startswith("#"):
                comment, closed = [], False
            if line.startswith("#"):
                comment.append(line.lstrip("#").strip())
            continue
        closed = True
        symbol, value = asked
        strength, overrides, reason = _meaning(comment, value)
        if not reason:
            problems.append(
                f"{shown}:{number}: CONFIG_{symbol} has no reason in a comment above it"
            )
        if symbol in demands:
            first = demands[symbol].line
            problems.append(f"{shown}:{number}: CONFIG_{symbol} is in line {first} already")
        demands[symbol] = Demand(symbol, value, strength, overrides, reason, shown, number)
    if problems:
        raise RecipeError.of_problems(f"fragment {shown}", problems)
    return Fragment(shown, tuple(demands.values()))


def _asked(line: str, where: str, problems: list[str]) -> tuple[str, str] | None:
    """The symbol and value of a line; None for a comment, an empty line or a problem."""
    if match := _UNSET.match(line):
        return match[1], "n"
    if match := _SET.match(line):
        symbol, value = match[1], match[2]
        if value == "n":
            problems.append(f"{where}: write '# CONFIG_{symbol} is not set' instead of =n")
        elif not _VALUE.fullmatch(value):
            problems.append(f'{where}: CONFIG_{symbol}: {value!r} is no y, m, number or "string"')
        else:
            return symbol, value
        return None
    if _LOOKS_UNSET.match(line):
        problems.append(f"{where}: a comment that looks like a symbol: {line}")
    elif line and not line.startswith("#"):
        problems.append(f"{where}: neither CONFIG_NAME=value nor a comment: {line}")
    return None


def _meaning(comment: Sequence[str], value: str) -> tuple[Strength, bool, str]:
    words = [line for line in comment if line and not line.startswith("SPDX-")]
    text = " ".join(words)
    strength: Strength = "forbidden" if value == "n" else "required"
    overrides = False
    while match := _MARK.match(text):
        if match[1] == "wanted":
            strength = "wanted"
        else:
            overrides = True
        text = match[2]
    return strength, overrides, text


def merge(fragments: Iterable[Fragment]) -> Merged:
    """`fragments` as one, where a later one wins.

    Raises `RecipeError` when a later fragment contradicts what an earlier one requires or forbids,
    unless its reason starts with ``override:``.
    """
    demands: dict[str, Demand] = {}
    overridden: dict[str, tuple[Demand, ...]] = {}
    problems: list[str] = []
    for fragment in fragments:
        for demand in fragment.demands:
            earlier = demands.pop(demand.symbol, None)
            if earlier is not None and not same_value(earlier.value, demand.value):
                if earlier.strength != "wanted" and not demand.overrides:
                    problems.append(
                        f"{demand.where}: '{demand.text}' contradicts {earlier.where}: "
                        f"'{earlier.text}' ({earlier.reason})"
                    )
                overridden[demand.symbol] = (*overridden.get(demand.symbol, ()), earlier)
            elif earlier is not None and demand.strength == "wanted":
                demands[demand.symbol] = earlier
                continue
            demands[demand.symbol] = demand
    if problems:
        raise RecipeError.of_problems(
            "the kernel's configuration",
            problems,
            hint="start the later one's reason with 'override:' if that is meant",
        )
    return Merged(demands, overridden)


def same_value(one: str, other: str) -> bool:
    """Whether two values as in `.config` are equal: strings unescaped, numbers as numbers."""
    return _plain(one) == _plain(other)


def _plain(value: str) -> str | int:
    if value.startswith('"'):
        return "text " + re.sub(r"\\(.)", r"\1", value[1:-1])
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", value):
        return int(value, 16)
    return value
