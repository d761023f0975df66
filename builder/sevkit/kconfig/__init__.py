# SPDX-License-Identifier: Apache-2.0
"""Kernel configuration: what fragments ask for, what the kernel made of it, and why.

    fragment.py   fragments, and many of them merged: symbol, value, strength, reason, place
    dotconfig.py  the final `.config`, and what in it is not as the fragments want it
    chance.py     what no two builds would have the same
    model.py      the Kconfig files: made into a `.config`, and asked about symbols
    words.py      why a symbol has its value: dependencies, selects, choices, ranges, fragments
    inside.py     the part of the model that runs in a process of its own

Nothing here changes this process's environment, which Kconfig files are sensitive to.
"""

from sevkit.kconfig.chance import drawn_at_random
from sevkit.kconfig.dotconfig import Lost, check, defined_symbols, read_config, values_of
from sevkit.kconfig.fragment import Demand, Fragment, Merged, merge, parse_fragment
from sevkit.kconfig.model import MAKE_VARIABLES, Model, configure, take_locked, version_of
from sevkit.kconfig.words import as_fragment, lost_symbols, why

__all__ = [
    "MAKE_VARIABLES",
    "Demand",
    "Fragment",
    "Lost",
    "Merged",
    "Model",
    "as_fragment",
    "check",
    "configure",
    "defined_symbols",
    "drawn_at_random",
    "lost_symbols",
    "merge",
    "parse_fragment",
    "read_config",
    "take_locked",
    "values_of",
    "version_of",
    "why",
]
