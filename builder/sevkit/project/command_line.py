# SPDX-License-Identifier: Apache-2.0
"""Commands of sevkit in messages, to be pasted by the user where the user stands."""

import os
import shlex
from pathlib import Path


def command_line(folder: Path, output: Path | None, *words: str) -> str:
    """The command line that has `words` done for the project in `folder`, from where we stand.

    `output` is named too where it is not the project's own; None where it does not matter.
    """
    project = folder.resolve()
    options = [] if project == Path.cwd() else ["-C", _near(project)]
    if output is not None and output.resolve() != (project / "output").resolve():
        options += ["--output", _near(output.resolve())]
    return shlex.join(["sevkit", *options, *words])


def _near(path: Path) -> str:
    """The shorter of the ways to `path`: from here, and from the root."""
    return min(os.path.relpath(path), str(path), key=len)
