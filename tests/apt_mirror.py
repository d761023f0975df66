# SPDX-License-Identifier: Apache-2.0
"""A Debian mirror of a test's own on the loopback interface, with small packages."""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_SUITE = "bookworm"


class _Served(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        del self.headers["If-Modified-Since"]  # lists change more than once a second
        super().do_GET()


class AptMirror:
    """What apt finds with `environment`: the packages that `add` brings, until they `leave`."""

    def __init__(self, folder: Path, address: str):
        self._debian = folder / "debian"
        self._trees = folder / "trees"
        configuration, sources = folder / "apt.conf", folder / "sources.list"
        sources.write_text(f"deb [trusted=yes] {address}/debian {_SUITE} main\n")
        configuration.write_text(
            f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n'
            'Acquire::Retries "0";\nAcquire::http::Proxy "DIRECT";\n'
        )
        self.environment: Mapping[str, str] = {"APT_CONFIG": str(configuration)}
        self._pool = self._debian / "pool"
        self._pool.mkdir(parents=True)
        self._list()

    def add(self, package: str, version: str, files: Mapping[str, bytes] | None = None) -> None:
        """Have a version of `package` with `files` (path → content) besides what is there.

        The same again has the same bytes.
        """
        tree = self._trees / f"{package}_{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {package}\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: A <a@example.org>\nDescription: of a test\n"
        )
        for name, content in (files or {}).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, self._pool],
            env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
            check=True,
            capture_output=True,
        )
        self._list()

    def leave(self, package: str, version: str) -> None:
        """Have that version no more."""
        (self._pool / f"{package}_{version}_amd64.deb").unlink()
        shutil.rmtree(self._trees / f"{package}_{version}")
        self._list()

    def move(self, package: str, old: str, new: str) -> None:
        """Have version `new` of `package` in the place of `old`."""
        self.leave(package, old)
        self.add(package, new)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nothing of the mirror answers."""
        away = self._debian.rename(self._debian.with_name("away"))
        try:
            yield
        finally:
            away.rename(self._debian)

    def _list(self) -> None:
        lists = self._debian / "dists" / _SUITE / "main" / "binary-amd64"
        lists.mkdir(parents=True, exist_ok=True)
        stanzas = []
        for deb in sorted(self._pool.glob("*.deb")):
            control = subprocess.check_output(["dpkg-deb", "--field", deb], text=True)
            data = deb.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            place = f"Filename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n"
            stanzas.append(control + place)
        text = "\n".join(stanzas).encode()
        (lists / "Packages").write_bytes(text)
        (lists.parents[1] / "Release").write_text(
            f"Origin: Debian\nSuite: {_SUITE}\nCodename: {_SUITE}\n"
            "Architectures: amd64\nComponents: main\n"
            "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(text).hexdigest()} {len(text)} main/binary-amd64/Packages\n"
        )


@contextlib.contextmanager
def apt_mirror(folder: Path) -> Iterator[AptMirror]:
    """A mirror that is served from `folder` meanwhile."""
    folder.mkdir()
    handler = functools.partial(_Served, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield AptMirror(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
