# SPDX-License-Identifier: Apache-2.0
"""A clock 400 days ahead, for sevkit and for every command of its build steps.

    python tests/another_clock.py ARGUMENTS     as python -m sevkit ARGUMENTS

The sandbox gives commands a fixed environment, so that a variable around sevkit reaches none of
them; here libfaketime(1) is put into that environment.
"""

import contextlib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import cast

import pytest

from sevkit import sandbox
from sevkit.__main__ import main

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
CLOCK = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": "+400d", "FAKETIME_DONT_RESET": "1"}


def need_libfaketime() -> None:
    """Skips where it is missing: a comparison without it would show less than it says."""
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is missing, which make setup installs: no clock was changed")


@contextlib.contextmanager
def another_clock() -> Iterator[None]:
    """Have the build steps that this process runs live 400 days later."""
    need_libfaketime()
    environment = cast("MutableMapping[str, str]", sandbox.ENVIRONMENT)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in CLOCK.items():
            patched.setitem(environment, name, value)
        yield


if __name__ == "__main__":
    with another_clock():
        main()
