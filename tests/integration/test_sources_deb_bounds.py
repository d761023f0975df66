# SPDX-License-Identifier: Apache-2.0
"""The real apt of this host, and a mirror on this machine that never comes to an end."""

import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sevkit.errors import SourceError
from sevkit.recipe.model import DebSource
from sevkit.sources import Apt, Pin, commands, deb, fetch, resolve
from sevkit.sources.mirrors import Mirror

CONTENT = bytes(range(256)) * 80
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PACKAGES = f"""\
Package: small
Version: 1
Architecture: amd64
Filename: pool/small.deb
Size: {len(CONTENT)}
SHA256: {DIGEST}
"""
SMALL = Pin(
    f"blob:{DIGEST}",
    "small_1_amd64.deb",
    len(CONTENT),
    {
        "kind": "deb",
        "package": "small",
        "version": "1",
        "architecture": "amd64",
        "archive": "debian",
        "path": "pool/small.deb",
        "suite": "mini",
    },
)
Serve = Callable[..., Apt]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = "" if "binary-all" in self.path else self.path.rpartition("/")[2]
        if name in self.server.endless:
            self.send_pieces(bytes(1 << 16), 0)
        elif name in self.server.dripping:
            self.send_pieces(b"x", 0.05)
        else:
            files = {"Packages": PACKAGES.encode(), "small.deb": CONTENT}
            self.send_response(200 if name in files else 404)
            self.send_header("Content-Length", str(len(files.get(name, b""))))
            self.end_headers()
            self.wfile.write(files.get(name, b""))

    def send_pieces(self, piece: bytes, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while not self.server.over.wait(seconds):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        except OSError:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endless: str, dripping: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endless = endless.split()
        self.dripping = dripping.split()
        self.over = threading.Event()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes an apt whose mirrors answer so, each with one suite of one package."""
    monkeypatch.setattr(commands, "_SLOW_SECONDS", 2)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def run(endless: str = "", dripping: str = "", *, mirrors: int = 1) -> Apt:
        made = [Server(endless, dripping), *(Server("", "") for _ in range(mirrors - 1))]
        for server in made:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.extend(made)
        addresses = [f"http://ci:s3cret@127.0.0.1:{one.server_port}/debian" for one in made]
        found = [Mirror(place, "mini", "main", {"Trusted": "yes"}) for place in addresses]
        monkeypatch.setattr(deb, "host_mirrors", lambda: found)
        return Apt(tmp_path / f"apt-{len(servers)}")

    yield run
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


def get(pin: Pin, folder: Path, apt: Apt) -> bytes:
    fetch(pin, folder / "partial" / "file", lambda *told: None, apt)
    return (folder / "partial" / "file").read_bytes()


def nothing_runs(folder: Path) -> bool:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return str(folder) not in listed.stdout


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"endless": "small.deb"}, f"has more than the {len(CONTENT)} bytes allowed"),
        ({"dripping": "small.deb"}, "sends less than 1024 bytes a second"),
    ],
)
def test_a_package_that_never_ends_is_left(
    behaviour: dict[str, str], why: str, serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"^small_1_amd64\.deb could not be fetched") as caught:
        get(SMALL, tmp_path, serve(**behaviour))
    assert why in caught.value.why
    assert "/debian/pool/small.deb" in caught.value.why
    assert "s3cret" not in str(caught.value)
    assert "network and apt configuration" in caught.value.hint
    assert sum(path.stat().st_size for path in (tmp_path / "partial").iterdir()) <= len(CONTENT)
    assert nothing_runs(tmp_path)
    assert get(SMALL, tmp_path, serve()) == CONTENT


def test_another_mirror_is_asked_for_what_one_never_ends(serve: Serve, tmp_path: Path) -> None:
    assert get(SMALL, tmp_path, serve("small.deb", mirrors=2)) == CONTENT


def test_more_than_the_package_that_is_here_already_does_no_harm(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "file").write_bytes(CONTENT + b"x")
    assert get(SMALL, tmp_path, serve()) == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "file"),
    [
        ({"dripping": "InRelease"}, "mini_InRelease"),
        ({"dripping": "Packages"}, "binary-amd64_Packages"),
    ],
)
def test_package_lists_that_never_end_are_left(
    behaviour: dict[str, str], file: str, serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="package lists could not be fetched") as caught:
        resolve(DebSource(deb="small"), serve(**behaviour))
    assert "sends less than 1024 bytes a second" in caught.value.why
    assert file in caught.value.why
    assert "network and apt configuration" in caught.value.hint
    assert nothing_runs(tmp_path)
    assert resolve(DebSource(deb="small"), serve()) == [SMALL]


def test_package_lists_that_would_fill_the_disk_are_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deb, "_LIMIT_BYTES", 1 << 20)
    assert resolve(DebSource(deb="small"), serve()) == [SMALL]
    with pytest.raises(SourceError, match="package lists could not be fetched") as caught:
        resolve(DebSource(deb="small"), serve("Packages"))
    assert "has more than the 1048576 bytes allowed" in caught.value.why
