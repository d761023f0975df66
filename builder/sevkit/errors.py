# SPDX-License-Identifier: Apache-2.0
"""The one family of errors that a user may see: what failed, why, and what to do about it.

Each class stands for the person who can mend it, and so carries the exit code; there is no
class per message. This module never prints.
"""

from collections.abc import Sequence
from pathlib import Path

from sevkit.printable import printable

INTERRUPTED = 130
"""The exit code of what the user stopped: 128 and SIGINT, as shells count."""


class SevkitError(Exception):
    """A failure that is explained to the user instead of shown as a traceback.

    `what` is one line without a full stop. `why` gives the place and the cause, one or more
    lines. `hint` is a command or an edit that mends it; empty where there is none.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", hint: str = "", log: Path | None = None):
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.log = log

    @classmethod
    def of_several(cls, errors: Sequence["SevkitError"], what: str) -> "SevkitError":
        """The one error that there is, or one that tells `what` and all of them.

        It has the exit code that all of them have, else 1.
        """
        if len(errors) == 1:
            return errors[0]
        whole = cls(what, why="\n".join(str(error) for error in errors))
        codes = {error.exit_code for error in errors}
        whole.exit_code = codes.pop() if len(codes) == 1 else cls.exit_code
        return whole

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  {line}" for line in self.why.splitlines()]
        if self.hint:
            lines.append(f"  try: {self.hint}")
        if self.log:
            lines.append(f"  log: {self.log}")
        return "\n".join(printable(line) for line in lines)


class RecipeError(SevkitError):
    """The recipe, a fragment, a patch series or the call is wrong: its author mends it."""

    exit_code = 2

    @classmethod
    def of_problems(cls, subject: str, problems: Sequence[str], hint: str = "") -> "RecipeError":
        """One error for all `problems`, each a line `file:line: dotted.key: …`."""
        if len(problems) == 1:
            return cls(problems[0], hint=hint)
        return cls(f"{subject} has {len(problems)} problems", why="\n".join(problems), hint=hint)


class SourceError(SevkitError):
    """Something fetched is missing, unreachable or not what was promised."""


class BuildError(SevkitError):
    """A build step failed."""


class HostError(SevkitError):
    """This host lacks a tool or a capability."""

    exit_code = 3


class ImageError(SevkitError):
    """A published image or a store entry is damaged, incomplete or cannot do what is asked."""
