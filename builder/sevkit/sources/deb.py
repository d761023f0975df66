# SPDX-License-Identifier: Apache-2.0
"""Debian packages, through an apt of our own that learns mirrors and keys from the host's.

The private state (lists, caches, an empty dpkg status; apt.conf(5) Dir::*) lives in one folder a
suite. The host's own state is never written, no root is needed, and nothing is ever installed.
What a signed index says of a package (version, SHA-256, size) makes its pin.
"""

import contextlib
import difflib
import fcntl
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sevkit.errors import HostError, SourceError
from sevkit.recipe import DebSource, DebSourcePackage, FileSource, GitSource, UrlSource
from sevkit.sources.pins import DebGroup, Pin, Progress, SourceGoneError

_HELPER = Path("/usr/lib/apt/apt-helper")
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
)
_DISTRIBUTIONS = ("Debian", "Ubuntu")
_FIELDS = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "CREATED_BY")
_URI_LINE = re.compile(r"^'(\S+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.M)
_MISSING = re.compile(
    r"Unable to locate package|No packages found|Unable to find a source package"
    r"|has no installation candidate|Can't find|Couldn't find any package"
)
_POLL_SECONDS = 0.2
_TRIES = 3


@dataclass(frozen=True)
class _Row:
    """A file that apt would fetch."""

    uri: str
    name: str
    size: int
    sha256: str


class Apt:
    """The private apt. Safe for many threads and processes at once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._updated: set[str | None] = set()
        self._seen: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def resolve(self, request: object) -> Sequence[Pin]:
        """The packages that `request` stands for, from an index read anew.

        Raises `SourceError` naming similar packages when there is none, `HostError` without apt.
        """
        match request:
            case DebGroup(packages, suite):
                rows = self._ask(suite, ["install", "--yes", *packages], packages)
            case DebSource(deb=name, suite=suite, version=version):
                rows = self._ask(suite, ["download", _versioned(name, version)], [name])
            case DebSourcePackage(deb_src=name, suite=suite, version=version):
                wanted = ["source", "--download-only", _versioned(name, version)]
                rows = self._ask(suite, wanted, [name])
                tarballs = [row for row in rows if ".tar." in row.name and row.name[-4:] != ".asc"]
                full = next((row for row in tarballs if ".debian.tar." in row.name), tarballs[0])
                found = re.sub(r"(\.debian)?\.tar\.\w+$", "", full.name).partition("_")[2]
                return [_source_pin(row, name, found, suite) for row in tarballs]
            case UrlSource() | GitSource() | FileSource() | _:
                raise ValueError(f"{request} is no package")
        return [self._pin(row, suite) for row in sorted(rows, key=lambda row: row.name)]

    def fetch(self, pin: Pin, destination: Path, progress: Progress) -> None:
        """Write the package that `pin` names to `destination`.

        Raises `SourceGoneError` when the mirror has this version no more.
        """
        suite = pin.origin.get("suite") or None
        digest = pin.reference.partition(":")[2]
        wanted = self._request_for(pin)
        with self._state(suite) as state:
            row = self._seen.get(digest) or self._find(state, wanted, digest)
            if row is None and suite not in self._updated:
                self._update(state, suite)
                row = self._find(state, wanted, digest)
            if row is None:
                raise SourceGoneError(f"{pin.name} has left the mirror", hint="sevkit update")
            options = state.options
        self._download(row, pin, destination, progress, options)

    def _request_for(self, pin: Pin) -> list[str]:
        if pin.origin["kind"] == "deb-src":
            name = _versioned(pin.origin["package"], pin.origin["version"])
            return ["source", "--download-only", name]
        return ["download", _versioned(pin.origin["package"], pin.origin["version"])]

    def _find(self, state: "_State", wanted: Sequence[str], digest: str) -> _Row | None:
        rows, _ = state.list_uris(wanted)
        return next((row for row in rows if row.sha256 == digest), None)

    def _download(
        self,
        row: _Row,
        pin: Pin,
        destination: Path,
        progress: Progress,
        options: Sequence[str],
    ) -> None:
        said = ""
        for _ in range(_TRIES):
            process = subprocess.Popen(
                [_HELPER, *options, "download-file", row.uri, destination, f"SHA256:{row.sha256}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=_environment(),
            )
            with process:
                try:
                    while process.poll() is None:
                        done = destination.stat().st_size if destination.exists() else 0
                        progress(done, row.size, "")
                        time.sleep(_POLL_SECONDS)
                    assert process.stderr is not None
                    said = process.stderr.read()
                finally:
                    process.kill()
            if process.returncode == 0 and destination.exists():
                progress(row.size, row.size, "")
                return
            if "404" in said:
                raise SourceGoneError(f"{pin.name} has left the mirror", hint="sevkit update")
        raise SourceError(
            f"{pin.name} could not be fetched",
            why=_words_of_apt(said),
            hint="check this host's network and apt configuration",
        )

    def _ask(self, suite: str | None, wanted: Sequence[str], names: Sequence[str]) -> list[_Row]:
        with self._state(suite) as state:
            if suite not in self._updated:
                self._update(state, suite)
            rows, said = state.list_uris(wanted)
            if rows:
                self._seen |= {row.sha256: row for row in rows}
                return rows
            if _MISSING.search(said) or "not found" in said:
                raise self._unknown(state, names, suite, said)
        raise SourceError(f"apt can't say what {' '.join(names)} is", why=_words_of_apt(said))

    def _unknown(
        self, state: "_State", names: Sequence[str], suite: str | None, said: str
    ) -> SourceError:
        known = state.run(["apt-cache"], ["pkgnames"])[0].split()
        absent = [name for name in names if name not in known]
        where = suite or "the suites that this host uses"
        if not absent:
            return SourceError(f"{' '.join(names)}: not in {where}", why=_words_of_apt(said))
        close = difflib.get_close_matches(absent[0], known, n=3, cutoff=0.6)
        return SourceError(
            f"there is no package {', '.join(absent)} in {where}",
            hint=f"did you mean {' or '.join(close)}?" if close else "",
        )

    def _update(self, state: "_State", suite: str | None) -> None:
        output, status = state.run(["apt-get"], ["update"])
        if status != 0 or re.search(r"^(Err|E):", output, re.M):
            raise SourceError(
                "the package lists could not be fetched",
                why=_words_of_apt(output),
                hint="check this host's network and apt configuration",
            )
        self._updated.add(suite)

    @contextlib.contextmanager
    def _state(self, suite: str | None) -> Iterator["_State"]:
        """The private state for a suite, held against other threads and processes."""
        if shutil.which("apt-get") is None or not _HELPER.exists():
            raise HostError(
                "apt is missing, through which Debian packages are fetched",
                hint="on another distribution use url sources instead of deb",
            )
        folder = self._folder / (suite or "host")
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock, (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield _State(folder, _sources_list(suite))

    def _pin(self, row: _Row, suite: str | None) -> Pin:
        package, version, rest = unquote(row.name).split("_", 2)
        origin = {
            "kind": "deb",
            "package": package,
            "version": version,
            "architecture": rest.removesuffix(".deb"),
            "path": _below_mirror(row.uri),
        }
        if suite is not None:
            origin["suite"] = suite
        return Pin(f"blob:{row.sha256}", row.name, row.size, origin)


class _State:
    """One private apt state: a folder, and the options that make apt use it and nothing else."""

    def __init__(self, folder: Path, sources: str):
        self._folder = folder
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        listing = folder / "etc" / "sources.list"
        if not listing.exists() or listing.read_text(encoding="utf-8") != sources:
            listing.write_text(sources, encoding="utf-8")
        settings = {
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Cache::archives": folder / "cache" / "archives",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::SourceList": listing,
            "Dir::Etc::SourceParts": "/dev/null",
            "APT::Sandbox::User": "",
            "APT::Update::Post-Invoke": "",
            "APT::Update::Post-Invoke-Success": "",
            "APT::Install-Recommends": "false",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::Retries": "3",
        }
        self.options = [w for name, value in settings.items() for w in ("-o", f"{name}={value}")]

    def run(self, command: Sequence[str], arguments: Sequence[str]) -> tuple[str, int]:
        """What an apt command says, on both its streams, and its status."""
        done = subprocess.run(
            [*command, *self.options, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
            check=False,
        )
        return done.stdout, done.returncode

    def list_uris(self, wanted: Sequence[str]) -> tuple[list[_Row], str]:
        """The files that `apt-get WANTED` would fetch, and apt's own words."""
        said, _ = self.run(["apt-get"], ["--print-uris", *wanted])
        rows = [
            _Row(uri, name, int(size), digest)
            for uri, name, size, digest in _URI_LINE.findall(said)
        ]
        return rows, said


def _sources_list(suite: str | None) -> str:
    """The host's own distribution in one-line style (sources.list(5)), for another suite if asked.

    Third-party repositories are left out. Raises `HostError` when none is configured.
    """
    form = "|".join(f"$({name})" for name in _FIELDS)
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", form],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        ).stdout
    except FileNotFoundError as error:
        raise HostError("apt-get is missing", hint="use url sources instead of deb") from error
    rows = [line.split("|") for line in sorted(set(listed.splitlines()))]
    rows = [row for row in rows if len(row) == len(_FIELDS) and row[4] == "Packages"]
    entries = [(uri, release, component) for uri, release, component, origin, _ in rows
               if origin in _DISTRIBUTIONS or _looks_official(uri)]  # fmt: skip
    bases = {release for _, release, _ in entries if "-" not in release}
    if not bases:
        raise HostError(
            "this host's apt has no Debian mirror configured",
            hint="add one to /etc/apt/sources.list.d and run apt-get update",
        )
    keys = ",".join(path for path in _KEYRINGS if Path(path).exists())
    options = f" [signed-by={keys}]" if keys else ""
    lines = []
    for uri, release, component in entries:
        base, dash, pocket = release.partition("-")
        if suite is not None and suite not in bases:
            if suite in ("sid", "unstable", "experimental") and dash:
                continue
            base = suite if base in bases else base
        elif suite is not None and base != suite:
            continue
        place = f"{uri} {base}{dash}{pocket} {component}"
        lines += [f"{kind}{options} {place}" for kind in ("deb", "deb-src")]
    return "\n".join([*lines, ""])


def _looks_official(uri: str) -> bool:
    return uri.rstrip("/").rpartition("/")[2] in ("debian", "debian-security", "ubuntu")


def _environment() -> Mapping[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _versioned(name: str, version: str | None) -> str:
    return f"{name}={version}" if version else name


def _source_pin(row: _Row, package: str, version: str, suite: str | None) -> Pin:
    place = _below_mirror(row.uri)
    origin = {"kind": "deb-src", "package": package, "version": version, "path": place}
    if suite is not None:
        origin["suite"] = suite
    return Pin(f"blob:{row.sha256}", row.name, row.size, origin)


def _below_mirror(uri: str) -> str:
    """The part of a package's address that is the same on every mirror."""
    return unquote("pool/" + uri.partition("/pool/")[2])


def _words_of_apt(said: str) -> str:
    lines = [line for line in said.splitlines() if re.match(r"(E|Err|W)[ :]", line)]
    return "\n".join((lines or said.strip().splitlines())[-4:])
