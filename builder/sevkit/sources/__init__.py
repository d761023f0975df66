# SPDX-License-Identifier: Apache-2.0
"""Where things come from. The only part of sevkit that reaches for the network.

    pins.py   what a source resolves to, and the memory of it
    deb.py    Debian packages through a private apt state, from the mirrors of mirrors.py
    url.py    files by http, with resume, retries and mirrors
    git.py    the tree of one commit

Resolving says which file it must be (a digest, or a commit); fetching brings it and checks that.
"""

from collections.abc import Sequence
from pathlib import Path

from sevkit.recipe.model import Source
from sevkit.sources.deb import Apt
from sevkit.sources.git import fetch_commit
from sevkit.sources.pins import (
    DebGroup,
    NoSuiteError,
    Pin,
    PinMemory,
    Progress,
    Request,
    SourceGoneError,
    self_pinned,
)
from sevkit.sources.url import fetch_url

__all__ = [
    "Apt",
    "DebGroup",
    "NoSuiteError",
    "Pin",
    "PinMemory",
    "Request",
    "SourceGoneError",
    "fetch",
    "resolve",
    "self_pinned",
]


def resolve(request: Source | DebGroup, apt: Apt) -> Sequence[Pin]:
    """The files that a source or a group of packages stands for.

    Only packages ask somebody. Raises `SourceError` for what can't be found.
    """
    pins = self_pinned(request)
    return apt.resolve(request) if pins is None else pins


def fetch(pin: Pin, destination: Path, progress: Progress, apt: Apt) -> None:
    """Write the file that `pin` names to `destination`; go on from what is there of it already.

    Raises `SourceError` when it can't be had or is not what the pin says.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    match pin.origin["kind"]:
        case "url":
            fetch_url(pin, destination, progress)
        case "git":
            fetch_commit(pin, destination, progress)
        case _:
            apt.fetch(pin, destination, progress)
