# SPDX-License-Identifier: Apache-2.0
"""Pins: which file, exactly, a source stands for; and the memory of what was looked up.

An unpinned package is looked up once and then remembered, so that the same build tomorrow has the
same inputs and asks nobody. A request that pins itself (a digest, a commit) is never remembered.
"""

import hashlib
import json
import re
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sevkit.addresses import shown_address
from sevkit.canonical import Json
from sevkit.errors import SourceError
from sevkit.recipe.model import FileSource, GitSource, Source, UrlSource
from sevkit.store.leases import widen

Progress = Callable[[int, int | None, str], None]
"""Called with bytes so far, bytes in all when known, and a note."""

_SCHEMA = 2
_REFERENCE = re.compile(r"blob:[0-9a-f]{64}|git:[0-9a-f]{40}")
_PACKAGE_PARTS = ("package", "version", "path")
_ORIGINS: Mapping[str, Sequence[str]] = {
    "deb": _PACKAGE_PARTS,
    "deb-src": _PACKAGE_PARTS,
    "git": ("url", "commit"),
    "url": ("url",),
}
"""Kind of an origin → what else it must say."""
_KINDS = {"packages": "deb", "deb": "deb", "deb_src": "deb-src", "url": "url", "git": "git"}
"""What only requests of one sort have → the kind of their origins."""
_SEVERAL_FILES = ("packages", "deb_src")


class SourceGoneError(SourceError):
    """Versions that were looked up earlier have left the mirror; `names` are those of their files.

    At least one.
    """

    def __init__(self, *names: str):
        has = "has" if len(names) == 1 else "have"
        super().__init__(f"{', '.join(names)} {has} left the mirror")
        self.names = names


class NoSuiteError(SourceError):
    """No mirror of this host has the release that a request names."""


@dataclass(frozen=True)
class DebGroup:
    """Packages with all that they depend on, as on an empty system; recommendations left out."""

    packages: tuple[str, ...]
    suite: str | None = None


Request = Source | DebGroup


@dataclass(frozen=True)
class Pin:
    """One file: `reference` (``blob:<sha256>``, ``git:<commit>``) says which, `origin` where from.

    `origin` is provenance, text by text. ``kind`` is ``deb`` or ``deb-src`` with ``package``,
    ``version``, ``architecture``, ``suite`` (the release), ``archive`` and ``path`` (which of
    Debian's archives and where below its mirror; no host), ``url`` with ``url`` (mirrors, a line
    each), or ``git`` with ``url`` and ``commit``.
    """

    reference: str
    name: str
    size: int | None
    origin: Mapping[str, str]


def without_credentials(origin: Mapping[str, str]) -> dict[str, str]:
    """`origin` as it may be published: addresses without passwords and tokens."""
    return {key: shown_address(text) for key, text in origin.items()}


def url_pin(source: UrlSource) -> Pin:
    """The pin of a file by URL: the recipe has its digest."""
    name = shown_address(source.url[0]).partition("?")[0].rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        name = "download"
    origin = {"kind": "url", "url": "\n".join(source.url)}
    return Pin(f"blob:{source.sha256}", name, None, origin)


def git_pin(source: GitSource) -> Pin:
    """The pin of a commit."""
    name = shown_address(source.git).rstrip("/").rpartition("/")[2].removesuffix(".git") or "tree"
    origin = {"kind": "git", "url": source.git, "commit": source.commit}
    return Pin(f"git:{source.commit}", f"{name}-{source.commit[:12]}.tar", None, origin)


def self_pinned(request: Request) -> Sequence[Pin] | None:
    """The files that `request` itself names by digest or commit; None when somebody must be asked.

    None at all for a local file, which is read where it is.
    """
    match request:
        case UrlSource():
            return [url_pin(request)]
        case GitSource():
            return [git_pin(request)]
        case FileSource():
            return []
        case _:
            return None


@dataclass
class PinMemory:
    """What packages resolved to, one JSON file a request, in `folder`."""

    folder: Path
    observed: set[Path] = field(default_factory=set)

    def recall(self, request: Request) -> Sequence[Pin] | None:
        """What `request` resolved to, None when it was not asked yet or the record is damaged."""
        path = self._path(request)
        self.observed.add(path)
        try:
            record = json.loads(path.read_bytes())
            if record["schema"] != _SCHEMA or record["request"] != described(request):
                return None
            if record["sha256"] != _digest(record["pins"]):
                return None
            return read_pins(record["pins"], record["request"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def remember(self, request: Request, pins: Sequence[Pin]) -> None:
        """Keep what `request` resolved to; a request that pins itself needs no memory."""
        if self_pinned(request) is not None:
            return
        rows = [{**asdict(pin), "origin": dict(pin.origin)} for pin in pins]
        record = {
            "schema": _SCHEMA,
            "request": described(request),
            "pins": rows,
            "sha256": _digest(rows),
        }
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{secrets.token_hex(4)}")
        draft.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if path.parent.stat().st_mode & stat.S_IWGRP:  # a store that users share
            widen(draft, 0o664)
        draft.replace(path)

    def _path(self, request: Request) -> Path:
        text = json.dumps(described(request), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _digest(rows: object) -> str:
    """What tells that remembered pins were damaged."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def described(request: Request) -> Mapping[str, Json]:
    """What of a request decides what it resolves to, as JSON would give it back."""
    if isinstance(request, DebGroup):
        return {"packages": list(request.packages), "suite": request.suite}
    plain: dict[str, Json] = request.model_dump(mode="json", exclude={"member"})
    return plain


def read_pins(rows: Sequence[Mapping[str, Any]], request: Mapping[str, Any]) -> Sequence[Pin]:
    """The pins that plain data says a request, as `described` gives it, resolved to.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for what can be none: an origin
    that does not say enough to fetch by, another kind than was asked for, too few or too many.
    """
    pins = [_checked(Pin(**row)) for row in rows]
    sort = next((sort for sort in _KINDS if sort in request), None)
    if sort is None:
        raise ValueError(f"a request for {', '.join(request) or 'nothing'}")
    if not pins or (len(pins) > 1 and sort not in _SEVERAL_FILES):
        raise ValueError(f"{len(pins)} files for {sort} = {request[sort]}")
    for pin in pins:
        if pin.origin["kind"] != _KINDS[sort]:
            raise ValueError(f"{pin.name} for {sort} = {request[sort]}")
    return pins


def _checked(pin: Pin) -> Pin:
    """`pin`, unless it can't be one; `read_pins` says what is raised then."""
    name, origin = pin.name, pin.origin
    if not all(isinstance(text, str) for text in [name, *origin.keys(), *origin.values()]):
        raise ValueError("name and origin of a pin are texts")
    if "/" in name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError(f"a file called {name!r}")
    if not all(line.isprintable() for text in origin.values() for line in text.split("\n")):
        raise ValueError(f"{name}: its origin has characters that no address has")
    kind = origin["kind"]
    for part in _ORIGINS[kind]:
        if part not in origin:
            raise ValueError(f"{name}: an origin of kind {kind} has no {part}")
    digest = rf"git:{re.escape(origin['commit'])}" if kind == "git" else "blob:.*"
    if not _REFERENCE.fullmatch(pin.reference) or not re.fullmatch(digest, pin.reference):
        raise ValueError(f"{name}: {pin.reference} names no content of kind {kind}")
    if not (pin.size is None or type(pin.size) is int):
        raise ValueError(f"{name}: its size is {pin.size!r}")
    return pin
