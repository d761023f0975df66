# SPDX-License-Identifier: Apache-2.0
"""Which Debian mirrors this host is configured with, and how it trusts them (sources.list(5)).

Reads the host's configuration and never changes it. Repositories of others are left out.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sevkit.errors import HostError

_DISTRIBUTIONS = ("Debian", "Ubuntu")
_OFFICIAL_FOLDERS = ("debian", "debian-security", "ubuntu")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_POCKETS = ("security", "updates")
_UNRELEASED = ("sid", "unstable", "experimental")
_OURS = (
    "types",
    "uris",
    "suites",
    "components",
    "enabled",
    "architectures",
    "languages",
    "targets",
)
_SHORT = {"arch": "architectures", "lang": "languages", "target": "targets"}


@dataclass(frozen=True)
class Mirror:
    """One suite of one repository; `options` are the other fields of its deb822 stanza."""

    uri: str
    suite: str
    components: str
    options: Mapping[str, str]

    @property
    def base(self) -> str:
        """The release that a suite belongs to: ``trixie`` of ``trixie-security``."""
        return self.suite.partition("-")[0]

    @property
    def pocket(self) -> str:
        """``security`` of ``trixie-security``; empty for the release itself."""
        return self.suite.partition("-")[2]

    @property
    def archive(self) -> str:
        """Which of Debian's archives it mirrors, whatever the host: ``debian-security``, say."""
        return urlsplit(self.uri).path.rstrip("/").rpartition("/")[2]

    def stanza(self, kind: str) -> str:
        """Its deb822 stanza, for packages (``deb``) or source packages (``deb-src``)."""
        fields = {
            "Types": kind,
            "URIs": self.uri,
            "Suites": self.suite,
            "Components": self.components,
            "Targets": "Sources" if kind == "deb-src" else "Packages",
            **self.options,
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def host_mirrors() -> Sequence[Mirror]:
    """The mirrors of the host's own distribution. Raises `HostError` when there is none."""
    origins = _origins()
    found = [
        mirror
        for path in _source_files()
        for mirror in _read(path)
        if _is_debian(mirror, origins.get((mirror.uri.rstrip("/"), mirror.suite), ""))
    ]
    if not any(mirror.pocket == "" for mirror in found):
        raise HostError(
            "this host's apt has no Debian mirror configured",
            hint="add one to /etc/apt/sources.list.d and run apt-get update",
        )
    return found


def mirrors_of(suite: str, host: Sequence[Mirror]) -> Sequence[Mirror]:
    """Where `suite` is found: as the host has it configured, or on the same mirrors.

    A suite that is an addition to another (``trixie-backports``) comes with that one.
    """
    base, _, pocket = suite.partition("-")
    own: Sequence[Mirror] = [mirror for mirror in host if mirror.base == base]
    if not own:
        pockets = ("",) if base in _UNRELEASED else ("", *_POCKETS)
        own = _moved([mirror for mirror in host if mirror.pocket in pockets], base)
    if pocket and all(mirror.suite != suite for mirror in own):
        own = [*own, *(replace(mirror, suite=suite) for mirror in own if mirror.pocket == "")]
    return own


def _moved(mirrors: Sequence[Mirror], base: str) -> Sequence[Mirror]:
    """The same places with another release, whose keys the distribution's keyring has."""
    moved = {}
    for mirror in mirrors:
        options = dict(mirror.options)
        if "Signed-By" in options and _KEYRING.exists():
            named = [word for word in re.split(r"[,\s]+", options["Signed-By"]) if word[:1] == "/"]
            options["Signed-By"] = " ".join(dict.fromkeys([*named, str(_KEYRING)]))
        suite = f"{base}-{mirror.pocket}" if mirror.pocket else base
        moved[mirror.uri, suite] = replace(mirror, suite=suite, options=options)
    return list(moved.values())


def _is_debian(mirror: Mirror, origin: str) -> bool:
    if origin:
        return origin in _DISTRIBUTIONS
    return mirror.archive in _OFFICIAL_FOLDERS  # no list fetched yet, as in a new container


def _origins() -> Mapping[tuple[str, str], str]:
    """Who signs each repository, from the lists that the host has: (URI, suite) → origin."""
    answer = _apt("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(ORIGIN)")
    rows = [line.split("|") for line in answer.splitlines()]
    return {
        (row[0].rstrip("/"), row[1]): row[2]
        for row in rows
        if len(row) == 3 and not row[2].startswith("$")
    }


def _source_files() -> Iterator[Path]:
    answer = _apt(
        "apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"
    )
    places = dict(word.split("=", 1) for word in shlex.split(answer))
    listing, parts = Path(places.get("LIST", "")), Path(places.get("PARTS", ""))
    if listing.is_file():
        yield listing
    if parts.is_dir():
        yield from sorted(path for path in parts.iterdir() if path.suffix in (".list", ".sources"))


def _apt(*command: str) -> str:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError as error:
        raise HostError(
            "apt is missing, through which Debian packages are fetched",
            hint="on another distribution use url sources instead of deb",
        ) from error


def _read(path: Path) -> Iterator[Mirror]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # apt would not read it either
    for fields in _stanzas(text) if path.suffix == ".sources" else _lines(text):
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        if not set(fields.get("types", "").split()) & {"deb", "deb-src"}:
            continue
        options = {
            "-".join(word.capitalize() for word in name.split("-")): value
            for name, value in fields.items()
            if name not in _OURS
        }
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                if not suite.endswith("/"):
                    components = fields.get("components", "")
                    yield Mirror(_expanded(uri), suite, components, options)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Fields of deb822 stanzas, names in lower case; a value of several lines keeps them."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        found = re.findall(r"^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.M)
        yield {name.lower(): value.strip() for name, value in found}


def _lines(text: str) -> Iterator[dict[str, str]]:
    """The one-line style as the same fields."""
    form = re.compile(r"^\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#\n]*)", re.M)
    for kind, options, uri, suite, components in form.findall(text):
        pairs = [word.partition("=") for word in options.split()]
        fields = {_SHORT.get(name.lower(), name.lower()): value for name, _, value in pairs}
        fields = {name: value.replace(",", " ") for name, value in fields.items()}
        yield {
            **fields,
            "types": kind,
            "uris": uri,
            "suites": suite,
            "components": components.strip(),
        }


def _expanded(uri: str) -> str:
    """The first mirror of a list of mirrors (apt-transport-mirror(1)); any other URI as it is."""
    if not uri.startswith("mirror+file:"):
        return uri
    path = Path(unquote(urlsplit(uri.removeprefix("mirror+")).path))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return uri
    return next((line.split()[0] for line in lines if line.strip() and line[0] != "#"), uri)
