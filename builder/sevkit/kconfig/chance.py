# SPDX-License-Identifier: Apache-2.0
"""Options that put something drawn at random into each build: no two kernels would be the same.

They are refused rather than tamed: a key or seed that is fixed for everybody protects nothing.
Source: Documentation/kbuild/reproducible-builds.rst of the kernel.
"""

from collections.abc import Iterator, Mapping

_DRAWN: Mapping[str, str] = {
    "MODULE_SIG": "makes a key to sign modules with, and puts its certificate into the kernel",
    "IMA_APPRAISE_MODSIG": "makes a key to sign modules with, and puts its certificate into the "
    "kernel",
    "RANDSTRUCT": "orders the members of structures by a seed that is drawn at each build",
    "GCC_PLUGIN_RANDSTRUCT": "orders the members of structures by a seed that is drawn at each "
    "build",
    "GCC_PLUGIN_LATENT_ENTROPY": "puts random numbers into the code at each build",
}
"""Symbol → what it draws."""


def drawn_at_random(values: Mapping[str, str]) -> Iterator[str]:
    """Why a kernel with this configuration would differ from build to build, a line a symbol."""
    for symbol, what in _DRAWN.items():
        if values.get(symbol) == "y":
            yield f"CONFIG_{symbol} {what}: the same inputs would give other bytes"
