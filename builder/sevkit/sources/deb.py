# SPDX-License-Identifier: Apache-2.0
"""Debian packages, through an apt of our own that learns mirrors and keys from the host's.

The private state (lists, caches, an empty dpkg status; apt.conf(5) Dir::*) lives in one folder a
suite. The host's own state is never written, no root is needed, and nothing is ever installed.
What a signed index says of a package (version, SHA-256, size) makes its pin; the pin also has the
path below the mirror, so that fetching asks no index.
"""

import contextlib
import difflib
import fcntl
import functools
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from sevkit.addresses import shown_address
from sevkit.canonical import sha256_of
from sevkit.disk import write_whole
from sevkit.errors import HostError, SourceError
from sevkit.recipe.model import DebSource, DebSourcePackage, Source
from sevkit.sources.commands import Intake, bytes_at, run_watched
from sevkit.sources.mirrors import Mirror, host_mirrors, mirrors_of
from sevkit.sources.pins import DebGroup, NoSuiteError, Pin, Progress, SourceGoneError

_HELPER = Path("/usr/lib/apt/apt-helper")
_URI_LINE = re.compile(r"^'(\S+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.M)
_TELLING = re.compile(r"^(E|Err|W)[ :]|\b(Depends|PreDepends|Conflicts|Breaks): ")
_GONE = re.compile(r"\b404\b +Not Found|\bFile not found\b")
_NO_SUITE = re.compile(r"^E: The repository .* does not have a Release file", re.M)
_TRIES = 2
_LIMIT_BYTES = 8 << 30
"""Of the package lists of a suite, and of a file whose size no index has told."""
_HINT = "check this host's network and apt configuration"

_CONFIGURATION = """\
#clear APT::Update;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Default-Release "{suite}";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::ForceHash "SHA256";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::SourceList "{folder}/mirrors.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/status";
"""
"""Read after the host's own apt.conf, whose proxies, credentials and checks so stay in force.

Its update hooks are cleared: those of container images delete what the host has in its cache.
"""


@dataclass(frozen=True)
class _Row:
    """A file that apt would fetch."""

    uri: str
    name: str
    size: int
    sha256: str


class Apt:
    """The private apt below `folder`. Safe for many threads and processes at once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._updated: set[Path] = set()
        self._lock = threading.Lock()

    def resolve(self, request: Source | DebGroup) -> Sequence[Pin]:
        """The packages that `request` stands for, from an index read anew, sorted by name.

        A group comes with all that it depends on, as on an empty system. Raises `SourceError`
        naming similar packages when there is none, `HostError` without apt.
        """
        match request:
            case DebGroup(packages, suite):
                with self._state(suite, "deb") as state:
                    rows = state.ask(["install", "--yes", *packages], packages)
                    return state.pins(rows)
            case DebSource(deb=name, suite=suite, version=version):
                with self._state(suite, "deb") as state:
                    return state.pins(state.ask(["download", _exactly(name, version)], [name]))
            case DebSourcePackage(deb_src=name, suite=suite, version=version):
                with self._state(suite, "deb-src") as state:
                    wanted = ["source", "--download-only", _exactly(name, version)]
                    return state.source_pins(state.ask(wanted, [name]), name)
            case _:
                raise ValueError(f"{request} is no package")

    def fetch(self, pin: Pin, destination: Path, progress: Progress) -> None:
        """Write the package that `pin` names to `destination`, going on from what is there.

        Raises `SourceGoneError` when no mirror has this version any more, `SourceError` when none
        can be reached or the bytes are not those of the signed index.
        """
        wanted = pin.reference.partition(":")[2]
        if destination.exists() and sha256_of(destination) == wanted:
            return
        troubles = []
        for uri in self._addresses(pin):
            trouble = self._download(uri, wanted, pin.size, destination, progress)
            if trouble is None:
                return
            troubles.append(trouble)
        if all(_GONE.search(trouble) for trouble in troubles):
            raise SourceGoneError(pin.name)
        reached = [trouble for trouble in troubles if not _GONE.search(trouble)]
        why = _words_of_apt(reached[0])
        raise SourceError(f"{pin.name} could not be fetched", why=why, hint=_HINT)

    def _addresses(self, pin: Pin) -> Sequence[str]:
        """Where the file may be, the most likely place first."""
        archive, path = pin.origin.get("archive"), quote(pin.origin["path"], safe="/")
        mirrors = sorted(self._host, key=lambda mirror: mirror.archive != archive)
        return list(dict.fromkeys(f"{mirror.uri.rstrip('/')}/{path}" for mirror in mirrors))

    def _download(
        self, uri: str, wanted: str, size: int | None, destination: Path, progress: Progress
    ) -> str | None:
        """Have apt bring one file; None when it is there and right, else what apt said."""
        limit_bytes = _LIMIT_BYTES if size is None else size
        said = ""
        for _ in range(_TRIES):
            intake = Intake(
                uri,
                limit_bytes,
                lambda: bytes_at(destination),
                lambda received: progress(received, size, ""),
            )
            try:
                _, said = run_watched(
                    [
                        _HELPER,
                        *_State(self._folder / "fetch", [], "deb", "").options,
                        *("download-file", uri, destination, f"SHA256:{wanted}"),
                    ],
                    _environment(),
                    intake,
                )
            except SourceError as error:
                said = error.what
                if bytes_at(destination) <= limit_bytes:
                    break
                destination.unlink(missing_ok=True)  # it may have been too large before
                continue
            if destination.exists() and sha256_of(destination) == wanted:
                return None
            failed = destination.with_name(f"{destination.name}.FAILED")
            if not failed.exists() and "Hash Sum mismatch" not in said:
                break  # apt tried several times itself
            failed.unlink(missing_ok=True)
            destination.unlink(missing_ok=True)
        return said or "the mirror sent other bytes than the signed index promises"

    @functools.cached_property
    def _host(self) -> Sequence[Mirror]:
        if not _HELPER.exists():
            raise HostError(
                "apt is missing, through which Debian packages are fetched",
                hint="on another distribution use url sources instead of deb",
            )
        return host_mirrors()

    @contextlib.contextmanager
    def _state(self, suite: str | None, kind: str) -> Iterator["_State"]:
        """The private state of a suite, up to date, held against other threads and processes."""
        mirrors = self._host if suite is None else mirrors_of(suite, self._host)
        folder = self._folder / f"{suite or 'host'}{kind.removeprefix('deb')}"
        preferred = suite if suite and "-" in suite else ""
        state = _State(folder, mirrors, kind, preferred)
        with self._lock, (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder not in self._updated:
                state.update()
                self._updated.add(folder)
            yield state


class _State:
    """One private apt state: a folder, and the options that make apt use it and nothing else."""

    def __init__(self, folder: Path, mirrors: Sequence[Mirror], kind: str, preferred: str):
        self._mirrors = mirrors
        self._lists = folder / "lists"
        self.options = ["-c", str(folder / "apt.conf")]
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _write(folder / "status", "")
        stanzas = "\n".join(mirror.stanza(kind) for mirror in mirrors)
        _write(folder / "mirrors.sources", stanzas)
        absolute = folder.resolve()
        _write(folder / "apt.conf", _CONFIGURATION.format(folder=absolute, suite=preferred))

    def update(self) -> None:
        """Fetch the lists anew. Raises `SourceError`."""
        intake = Intake("the mirror", _LIMIT_BYTES, lambda: bytes_at(self._lists))
        try:
            status, output = run_watched(
                ["apt-get", *self.options, "update"], _environment(), intake
            )
        except SourceError as error:
            unfinished = sorted(path.name for path in (self._lists / "partial").iterdir())
            raise SourceError(
                "the package lists could not be fetched",
                why="\n".join([error.what, *(f"unfinished: {name}" for name in unfinished)]),
                hint=_HINT,
            ) from error
        if _NO_SUITE.search(output):
            raise NoSuiteError(
                f"no mirror of this host has {self._suites()}",
                why=_words_of_apt(output),
                hint="check the suite",
            )
        if status != 0 or re.search(r"^(Err|E):", output, re.M):
            raise SourceError(
                "the package lists could not be fetched", why=_words_of_apt(output), hint=_HINT
            )

    def ask(self, wanted: Sequence[str], names: Sequence[str]) -> Sequence[_Row]:
        """The files that `apt-get WANTED` would fetch. Raises `SourceError`."""
        output, status = self._run("apt-get", "--print-uris", *wanted)
        rows = [
            _Row(uri, name, int(size), digest)
            for uri, name, size, digest in _URI_LINE.findall(output)
        ]
        if status == 0 and rows:
            return rows
        raise self._unknown(names, "source" in wanted[:1], output)

    def pins(self, rows: Sequence[_Row]) -> list[Pin]:
        """The pins of binary packages, sorted by name."""
        pins = []
        for row in sorted(rows, key=lambda row: row.name):
            package, version, rest = unquote(row.name).removesuffix(".deb").split("_", 2)
            origin = {"kind": "deb", "package": package, "version": version, "architecture": rest}
            pins.append(self._pin(row, origin))
        return pins

    def source_pins(self, rows: Sequence[_Row], name: str) -> list[Pin]:
        """The pins of a source package's tarballs; signatures and the description are left out."""
        described = next((row.sha256 for row in rows if row.name.endswith(".dsc")), None)
        records, _ = self._run("apt-cache", "showsrc", "--only-source", name)
        for record in records.split("\n\n"):
            if described is None or described in record:
                found = dict(re.findall(r"^(Package|Version): (\S+)$", record, re.M))
                break
        else:
            raise SourceError(f"apt does not describe the source package {name}")
        origin = {
            "kind": "deb-src",
            "package": found.get("Package", name),
            "version": found.get("Version", ""),
            "architecture": "source",
        }
        tarballs = [row for row in rows if re.search(r"\.tar\.[a-z0-9]+$", row.name)]
        return [self._pin(row, origin) for row in sorted(tarballs, key=lambda row: row.name)]

    def _pin(self, row: _Row, origin: Mapping[str, str]) -> Pin:
        place = {}
        for mirror in self._mirrors:
            start = mirror.uri.rstrip("/") + "/"
            if row.uri.startswith(start):
                place = {"archive": mirror.archive, "path": unquote(row.uri.removeprefix(start))}
        if not place:
            place = {"path": "pool/" + unquote(row.uri.partition("/pool/")[2])}
        bases = {mirror.base for mirror in self._mirrors}
        if len(bases) == 1:
            place["suite"] = bases.pop()
        return Pin(f"blob:{row.sha256}", row.name, row.size, {**origin, **place})

    def _unknown(self, names: Sequence[str], is_source: bool, said: str) -> SourceError:
        """Why apt has no answer: a name that is not there, a version, or what it says itself."""
        where = self._suites()
        known = self._names(is_source)
        absent = [name for name in names if name not in known]
        if absent:
            close = difflib.get_close_matches(absent[0], sorted(known), n=3, cutoff=0.6)
            kind = "source package" if is_source else "package"
            guess = f": did you mean {' or '.join(close)}?" if close else ""
            return SourceError(f"there is no {kind} {', '.join(absent)} in {where}{guess}")
        return SourceError(
            f"{' '.join(names)} can't be had from {where}",
            why=_words_of_apt(said),
            hint=self._versions(names) if "ersion" in said else "",
        )

    def _suites(self) -> str:
        return ", ".join(dict.fromkeys(mirror.suite for mirror in self._mirrors))

    def _names(self, is_source: bool) -> set[str]:
        if not is_source:
            return set(self._run("apt-cache", "pkgnames")[0].split())
        index = self._run(
            "apt-get", "indextargets", "--format", "$(FILENAME)", "Created-By: Sources"
        )
        found: set[str] = set()
        for path in index[0].split():
            text, _ = self._run(str(_HELPER), "cat-file", path)
            found |= set(re.findall(r"^Package: (\S+)$", text, re.M))
        return found

    def _versions(self, names: Sequence[str]) -> str:
        rows = [row.split("|") for row in self._run("apt-cache", "madison", *names)[0].splitlines()]
        versions = dict.fromkeys(row[1].strip() for row in rows if len(row) == 3)
        return f"there is {', '.join(versions)}" if versions else ""

    def _run(self, command: str, *arguments: str) -> tuple[str, int]:
        """What an apt command that asks no server says, on both its streams, and its status."""
        done = subprocess.run(
            [command, *self.options, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
            check=False,
        )
        return done.stdout, done.returncode


def _write(path: Path, text: str) -> None:
    """Write a small file at once, unless it says so already; others may be reading it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text.encode())


def _environment() -> Mapping[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _exactly(name: str, version: str | None) -> str:
    return f"{name}={version}" if version else name


def _words_of_apt(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if _TELLING.search(line)]
    return shown_address("\n".join((lines or said.strip().splitlines())[-4:]))
