# SPDX-License-Identifier: Apache-2.0
"""How a command of a build step is run, for those who need to run one and need not know where."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Run(Protocol):
    """Runs commands, each in the sandbox of its step; `sevkit.sandbox.SandboxRunner` is one."""

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        reading: Sequence[Path] = (),
    ) -> None:
        """Run a command in the sandbox: no network, fixed environment, output to the log.

        `env` adds to the fixed environment (`sevkit.sandbox.ENVIRONMENT`). `on_line` sees each line
        of output, one of more than 64 KiB in pieces. The stage's inputs and `work` are visible
        under their own paths; `reading` makes more paths visible, read-only.

        Raises `BuildError` with the command, the status and the last lines that matter, also when
        the stage's log grows too large.
        """
