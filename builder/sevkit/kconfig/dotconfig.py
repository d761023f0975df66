# SPDX-License-Identifier: Apache-2.0
"""The final `.config`: its values, and which of them are not what the fragments demand.

The check compares values, not lines, and does not depend on their order. It finds that a symbol
is lost; why is the model's to say.
"""

import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit.errors import BuildError
from sevkit.kconfig.fragment import Demand, Merged, same_value
from sevkit.within import file_within

_SET = re.compile(r'^CONFIG_(\w+)=([ymn]|-?\d+|0[xX][0-9a-fA-F]+|"(?:[^"\\]|\\.)*")$')
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")
_DEFINITION = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*(?:#.*)?$", re.M)
_WITHOUT_KCONFIG = {("Documentation",), ("tools",), ("include",), ("scripts", "kconfig")}


@dataclass(frozen=True)
class Lost:
    """A demand that the final configuration does not meet; `found` is the value there.

    `exists` is False when no Kconfig file defines the symbol.
    """

    demand: Demand
    found: str
    exists: bool


def read_config(path: Path) -> dict[str, str]:
    """The values in a `.config`; see `values_of`."""
    return values_of(path.read_text(encoding="utf-8", errors="replace"), str(path))


def values_of(text: str, name: str = ".config") -> dict[str, str]:
    """Symbol → value (``y``, ``m``, ``n``, number, quoted string) of a `.config`'s text.

    Raises `BuildError` for a line that is not one, or a symbol that is there twice.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        unset = _UNSET.match(line)
        if not line or (line.startswith("#") and not unset):
            continue
        match = unset or _SET.match(line)
        if match is None or match[1] in values:
            reason = "there twice" if match else "no configuration line"
            raise BuildError(f"{name}:{number}: {reason}: {line}")
        values[match[1]] = "n" if unset else match[2]
    return values


def check(merged: Merged, values: Mapping[str, str], defined: Collection[str]) -> list[Lost]:
    """Every demand that `values` do not meet, in the order of the fragments.

    A demand of strength ``wanted`` is among them, for the caller to judge. A forbidden symbol
    that `defined` does not hold is lost too: a misspelt name must not pass as an absent one.
    """
    lost: list[Lost] = []
    for demand in merged.demands.values():
        found = values.get(demand.symbol, "n")
        exists = demand.symbol in defined
        misspelt = not exists and demand.strength == "forbidden"
        if misspelt or not same_value(found, demand.value):
            lost.append(Lost(demand, found, exists))
    return lost


def defined_symbols(tree: Path, arch: str = "x86") -> frozenset[str]:
    """The names of all symbols that the Kconfig files of a kernel tree define for `arch`."""
    names: set[str] = set()
    for folder, folder_names, file_names in os.walk(tree):
        inside = Path(folder).relative_to(tree).parts
        if inside == ("arch",):
            folder_names[:] = [arch]
        elif inside in _WITHOUT_KCONFIG:
            folder_names.clear()
        for name in file_names:
            if name.startswith("Kconfig"):
                path = Path(folder, name)
                if not stat.S_ISREG(path.lstat().st_mode):
                    file_within(tree, path)
                text = path.read_text(encoding="utf-8", errors="replace")
                names.update(_DEFINITION.findall(text))
    return frozenset(names)
