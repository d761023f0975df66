# SPDX-License-Identifier: Apache-2.0
"""Files by http from servers that break off, lie, stall, redirect and recover."""

import contextlib
import gzip
import hashlib
import ipaddress
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sevkit.errors import SourceError
from sevkit.recipe.model import UrlSource
from sevkit.sources import Apt, Pin, fetch, resolve
from sevkit.sources import url as module

CONTENT = random.Random(1).randbytes(300_000)
WRONG = random.Random(2).randbytes(300_000)
PACKED = gzip.compress(bytes(8 << 20))
BOMB = gzip.compress(bytes(256 << 20), compresslevel=1)


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the behaviour of its first path component."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.server.credentials.append(self.headers.get("Authorization"))
        name = self.path.split("/")[1] if self.path.startswith("/") else "proxied"
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"answer_{name}")()

    def log_message(self, *arguments: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    @property
    def attempt(self) -> int:
        """1 for the first request of this path."""
        return sum(path == self.path for path, _ in self.server.requests)

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_range(self, content: bytes, upto: int | None = None) -> None:
        """Serve `content` or the rest of it, breaking off before the byte `upto`."""
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(content):
            self.send(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:upto])

    def answer_good(self) -> None:
        self.send_range(CONTENT)

    def answer_proxied(self) -> None:
        self.send_range(CONTENT)

    def answer_wrong(self) -> None:
        self.send_range(WRONG)

    def answer_pieces(self) -> None:
        self.send_range(CONTENT, 100_000 * self.attempt)

    def answer_norange(self) -> None:
        if self.attempt == 1:
            self.send_range(CONTENT, 100_000)
        else:
            self.send(200, CONTENT)

    def answer_otherrange(self) -> None:
        if self.attempt == 2:
            self.send(206, CONTENT[5:], Content_Range=f"bytes 5-299999/{len(CONTENT)}")
        elif self.attempt == 1:
            self.send_range(CONTENT, 100_000)
        else:
            self.send(200, CONTENT)

    def answer_unasked(self) -> None:
        self.send(206, CONTENT[:9], Content_Range=f"bytes 0-8/{len(CONTENT)}")

    def answer_truncated(self) -> None:
        self.send_range(CONTENT, 100_000)

    def answer_stalls(self) -> None:
        self.send_range(CONTENT, 150_000)
        self.server.hold.wait(10)

    def answer_stallsonce(self) -> None:
        if self.attempt == 1:
            self.answer_stalls()
        else:
            self.send_range(CONTENT)

    def answer_longer(self) -> None:
        self.send(200, CONTENT, Content_Length=str(len(CONTENT) + 1000))

    def answer_shorter(self) -> None:
        self.send(200, CONTENT, Content_Length=str(len(CONTENT) - 1000))

    def answer_absurd(self) -> None:
        self.send(200, CONTENT, Content_Length=str(1 << 62))

    def answer_endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def answer_busy(self) -> None:
        if self.attempt <= 2:
            self.send(503)
        else:
            self.send_range(CONTENT)

    def answer_alwaysbusy(self) -> None:
        self.send(503)

    def answer_missing(self) -> None:
        self.send(404)

    def answer_moved(self) -> None:
        self.send(302, Location="/good/file")

    def answer_movedbomb(self) -> None:
        self.send(302, BOMB, Location="/good/file", Content_Encoding="gzip")

    def answer_movedendless(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/good/file")
        self.end_headers()
        while not self.server.hold.is_set():
            self.wfile.write(bytes(1 << 16))

    def answer_tofile(self) -> None:
        self.send(302, Location="file:///etc/hostname")

    def answer_toftp(self) -> None:
        self.send(302, Location="ftp://ci:s3cret@a.example/" + "x" * 300)

    def answer_loop(self) -> None:
        self.send(302, Location=self.path + "x")

    def answer_drips(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for byte in CONTENT:
            self.wfile.write(bytes([byte]))
            if self.server.hold.wait(0.05):
                return

    def answer_dripsonce(self) -> None:
        if self.attempt == 1:
            self.answer_drips()
        else:
            self.send_range(CONTENT)

    def answer_patient(self) -> None:
        """Takes twice the time in which nothing at all would be too little."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for start in range(0, len(CONTENT), 15_000):
            self.wfile.write(CONTENT[start : start + 15_000])
            self.server.hold.wait(0.05)

    def drip(self, *pieces: bytes, seconds: float = 0.02) -> None:
        """Send the pieces, and the last one again and again."""
        for piece in pieces:
            self.wfile.write(piece)
        while not self.server.hold.wait(seconds):
            self.wfile.write(pieces[-1])

    def answer_dripstatus(self) -> None:
        self.drip(b"HTTP/1.1 200 O", b"K")

    def answer_dripheader(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX: ", b"x")

    def answer_continues(self) -> None:
        self.drip(b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0.001)

    def answer_trailers(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n0\r\n"
        self.drip(head, b"X: x\r\n" * 100, seconds=0.001)

    def answer_dripsredirects(self) -> None:
        self.server.hold.wait(0.2)
        self.send(302, Location=self.path + "x")

    def answer_dripsuntold(self) -> None:
        """A file of unknown length, which a cut connection would end."""
        self.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x")

    def answer_resets(self) -> None:
        linger = struct.pack("ii", 1, 0)  # socket(7): close sends RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def answer_headers(self) -> None:
        self.send(200, CONTENT, X_Much="x" * (1 << 20))

    def answer_manyheaders(self) -> None:
        self.send(200, CONTENT, **{f"X_{number}": "x" for number in range(5000)})

    def answer_packed(self) -> None:
        self.send(200, PACKED, Content_Encoding="gzip")

    def answer_elsewhere(self) -> None:
        self.send(302, Location=f"http://localhost:{self.server.server_port}/good/file")

    def send_raw(self, head: bytes) -> None:
        self.wfile.write(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n")

    def answer_nobracket(self) -> None:
        self.send_raw(b"302 Found\r\nLocation: http://[::1")

    def answer_nounicode(self) -> None:
        self.send_raw(b"302 Found\r\nLocation: http://127.0.0.1/\xff\xfe")

    def answer_movedunicode(self) -> None:
        self.send_raw("302 Found\r\nLocation: /good/é".encode())

    def answer_longhost(self) -> None:
        self.send_raw(b"302 Found\r\nLocation: http://" + b"h" * 300 + b"/")

    def answer_foldedplace(self) -> None:
        self.send_raw(b"302 Found\r\nLocation: ftp://a\r\n b\r\n\x1b[2J c")

    def answer_manydigits(self) -> None:
        self.send_raw(b"200 OK\r\nContent-Length: " + b"9" * 5000)

    def answer_longreason(self) -> None:
        self.send_raw(b"404 " + b"no\x0b" * 10000)

    def answer_garbage(self) -> None:
        self.wfile.write(b"this is no http\r\n\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.credentials: list[str | None] = []
        self.hold = threading.Event()

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/file"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(module, "_SLOW_SECONDS", 5)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.hold.set()
        running.shutdown()
        thread.join()


Get = Callable[..., bytes]


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Get:
    """Fetch from mirrors of these behaviours; what is at the destination in the end."""

    def run(*behaviours: str, content: bytes = CONTENT) -> bytes:
        urls = [server.url(behaviour) for behaviour in behaviours]
        fetch(pin_of(urls, content), tmp_path / "out", lambda *told: None, Apt(tmp_path / "apt"))
        return (tmp_path / "out").read_bytes()

    return run


def pin_of(urls: list[str], content: bytes = CONTENT) -> Pin:
    digest = hashlib.sha256(content).hexdigest()
    source = UrlSource.model_validate({"url": urls, "sha256": digest})
    [pin] = resolve(source, Apt(Path("/nonexistent")))
    assert pin.reference == f"blob:{digest}"
    return pin


@pytest.mark.parametrize(
    ("behaviour", "tries"),
    [
        ("good", 1),
        ("pieces", 3),
        ("norange", 2),
        ("otherrange", 3),
        ("stallsonce", 2),
        ("busy", 3),
        ("moved", 1),
    ],
)
def test_a_file_arrives_in_spite_of_the_server(
    behaviour: str, tries: int, get: Get, server: Server
) -> None:
    assert get(behaviour) == CONTENT
    assert sum(path.startswith(f"/{behaviour}/") for path, _ in server.requests) == tries


def test_a_redirection_may_be_written_in_utf_8(get: Get, server: Server) -> None:
    assert get("movedunicode") == CONTENT
    assert server.requests[-1][0] == "/good/%C3%A9"


@pytest.mark.parametrize("behaviour", ["movedbomb", "movedendless"])
def test_what_comes_with_a_redirection_is_not_read(behaviour: str, get: Get) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        assert get(behaviour) == CONTENT
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_a_broken_transfer_goes_on_where_it_broke_off(get: Get, server: Server) -> None:
    get("pieces")
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("wrong", f"its SHA-256 is {hashlib.sha256(WRONG).hexdigest()}, not "),
        ("shorter", "its SHA-256 is "),
        ("truncated", "broke off"),
        ("longer", "broke off"),
        ("stalls", "does not answer in time"),
        ("absurd", "more than the 8589934592 allowed"),
        ("alwaysbusy", "answers 503"),
        ("missing", "answers 404 Not Found"),
        ("tofile", "redirects to file:///etc/hostname, which is not http"),
        ("loop", "redirects more than 5 times"),
        ("unasked", "a part of the file that nobody asked for"),
        ("garbage", ""),
        ("nobracket", "an answer that makes no sense"),
        ("nounicode", "an answer that makes no sense"),
        ("longhost", "an answer that makes no sense"),
        ("foldedplace", "redirects to ftp://a b"),
        ("manydigits", "says its length in 5000 digits"),
        ("longreason", "answers 404 no no no"),
        ("resets", "reset"),
        ("headers", ""),
        ("manyheaders", ""),
        ("packed", "its SHA-256 is "),
    ],
)
def test_a_server_that_can_not_be_used_is_named_with_the_reason_and_the_next_one_asked(
    behaviour: str, why: str, get: Get, server: Server
) -> None:
    with pytest.raises(SourceError) as caught:
        get(behaviour)
    assert f"{server.url(behaviour)}: " in caught.value.why
    assert why in caught.value.why
    assert len(caught.value.why.splitlines()) == 1
    assert len(caught.value.why) < 400
    assert "Traceback" not in str(caught.value)
    assert get(behaviour, "good") == CONTENT


@pytest.mark.parametrize(
    "behaviour",
    ["drips", "dripstatus", "dripheader", "continues", "trailers", "dripsuntold", "dripsredirects"],
)
def test_a_server_that_keeps_busy_without_sending_the_file_is_left(
    behaviour: str, get: Get, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.5)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with pytest.raises(SourceError) as caught:
        get(behaviour)
    assert "sends less than 1024 bytes a second (2 tries)" in caught.value.why
    assert get(behaviour, "good") == CONTENT
    assert get("dripsonce") == CONTENT


def test_a_slow_server_that_keeps_sending_is_waited_for(
    get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.5)
    assert get("patient") == CONTENT


def test_a_proxy_and_tls_are_watched_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.5)
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(Handler, "answer_proxied", Handler.answer_dripheader)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in ("http://mirror.invalid/some/file", f"https://127.0.0.1:{port}/"):
            monkeypatch.setattr(module, "_READ_SECONDS", 30)
            monkeypatch.setattr(module, "_CONNECT_SECONDS", 30)
            with pytest.raises(SourceError) as caught:
                module.fetch_url(pin_of([url]), tmp_path / "out", lambda *told: None)
            assert "sends less than 1024 bytes a second" in caught.value.why


def test_all_mirrors_are_named_when_none_has_the_file(get: Get, server: Server) -> None:
    with pytest.raises(SourceError) as caught:
        get("missing", "wrong")
    missing, wrong = caught.value.why.splitlines()
    assert missing.startswith(server.url("missing"))
    assert wrong.startswith(server.url("wrong"))
    assert hashlib.sha256(CONTENT).hexdigest() in wrong


def test_an_endless_file_ends_at_the_limit(server: Server, tmp_path: Path) -> None:
    pin = pin_of([server.url("endless")])
    with pytest.raises(SourceError, match="could not be fetched") as caught:
        module.fetch_url(pin, tmp_path / "out", lambda *told: None, limit_bytes=1 << 20)
    assert "sends more than the 1048576 bytes allowed" in caught.value.why
    assert not (tmp_path / "out").exists()
    good = pin_of([server.url("good")])
    module.fetch_url(good, tmp_path / "out", lambda *told: None, limit_bytes=1 << 20)


@pytest.mark.parametrize("left", [WRONG[:1000], WRONG, WRONG + WRONG], ids=["part", "all", "more"])
def test_what_another_file_left_behind_is_started_over(
    left: bytes, get: Get, tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(left)
    assert get("good") == CONTENT


def test_a_complete_file_asks_nobody(get: Get, server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(CONTENT)
    assert get("missing") == CONTENT
    assert server.requests == []


def test_a_second_mirror_goes_on_with_what_the_first_one_brought(get: Get, server: Server) -> None:
    assert get("truncated", "good") == CONTENT
    assert server.requests[-1] == ("/good/file", "bytes=100000-")


def test_a_host_that_refuses_or_does_not_exist_is_said_in_words(
    tmp_path: Path, server: Server
) -> None:
    server.server_close()
    for url, why in (
        (server.url("good"), "refuses the connection"),
        ("http://no-such-host.invalid/file", "name can't be resolved"),
    ):
        with pytest.raises(SourceError) as caught:
            module.fetch_url(pin_of([url]), tmp_path / "out", lambda *told: None)
        assert why in caught.value.why


def test_a_password_is_for_its_own_host_alone(server: Server, tmp_path: Path) -> None:
    """`localhost` is another host than `127.0.0.1` to whoever keeps passwords apart."""
    for behaviour, told in (("good", 1), ("elsewhere", 1)):
        server.credentials.clear()
        url = server.url(behaviour).replace("//", "//user:secret@")
        module.fetch_url(pin_of([url]), tmp_path / behaviour, lambda *told: None)
        assert sum(given is not None for given in server.credentials) == told
    assert server.credentials[-1] is None


@pytest.mark.parametrize("behaviour", ["missing", "toftp"])
def test_a_password_is_in_no_message(behaviour: str, server: Server, tmp_path: Path) -> None:
    url = server.url(behaviour).replace("//", "//ci:s3cret@")
    with pytest.raises(SourceError) as caught:
        module.fetch_url(pin_of([url]), tmp_path / "out", lambda *told: None)
    assert caught.value.why.startswith(f"{server.url(behaviour)}: ")
    assert "s3cret" not in str(caught.value)


def certificate(folder: Path, name: str, days: tuple[int, int]) -> Path:
    """A key and a certificate of its own for an address, valid between two days from today."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    first, last = (datetime.now(UTC) + timedelta(days=day) for day in days)
    made = x509.CertificateBuilder(who, who, key.public_key(), 1, first, last)
    made = made.add_extension(names, critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path = folder / "certificate.pem"
    path.write_bytes(private + public)
    return path


@contextlib.contextmanager
def with_tls(certificate: Path) -> Iterator[str]:
    """The address of a file on a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server() as safe:
        safe.socket = context.wrap_socket(safe.socket, server_side=True)
        thread = threading.Thread(target=safe.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield safe.url("good").replace("http:", "https:")
        finally:
            safe.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "days", "trusted", "why"),
    [
        ("127.0.0.1", (-2, 2), True, ""),
        ("127.0.0.1", (-2, 2), False, "its certificate is not trusted"),
        ("127.0.0.2", (-2, 2), True, "its certificate is another host's"),
        ("127.0.0.1", (-2, -1), True, "its certificate has expired"),
        ("127.0.0.1", (1, 2), True, "its certificate is not trusted"),
    ],
    ids=["good", "untrusted", "of another host", "expired", "not yet valid"],
)
def test_a_certificate_must_be_trusted_of_this_host_and_of_today(
    name: str,
    days: tuple[int, int],
    trusted: bool,
    why: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = certificate(tmp_path, name, days)
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with with_tls(file) as url:
        pin = pin_of([url])
        if not why:
            module.fetch_url(pin, tmp_path / "out", lambda *told: None)
            return
        with pytest.raises(SourceError) as caught:
            module.fetch_url(pin, tmp_path / "out", lambda *told: None)
    assert why in caught.value.why
    assert not (tmp_path / "out").exists()


def test_a_server_without_tls_is_said_to_have_none(server: Server, tmp_path: Path) -> None:
    url = server.url("good")
    with pytest.raises(SourceError) as caught:
        module.fetch_url(
            pin_of([url.replace("http:", "https:")]), tmp_path / "out", lambda *told: None
        )
    assert "does not speak TLS" in caught.value.why
    module.fetch_url(pin_of([url]), tmp_path / "out", lambda *told: None)


def test_the_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    url = "http://mirror.invalid/some/file"
    module.fetch_url(pin_of([url]), tmp_path / "out", lambda *told: None)
    assert server.requests == [(url, None)]


def test_progress_tells_bytes_and_the_total(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    pin = pin_of([server.url("pieces")])
    module.fetch_url(pin, tmp_path / "out", lambda done, total, note: told.append((done, total)))
    assert told == sorted(told)
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_redirection_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def answer(location: str) -> requests.Response:
        response = requests.Response()
        response.status_code, response.headers["Location"] = 302, location
        response.raw = contextlib.closing(open("/dev/null", "rb")).__enter__()  # noqa: PTH123, SIM115
        return response

    session = requests.Session()
    answers = iter([answer("http://plain.invalid/")])
    monkeypatch.setattr(session, "get", lambda *words, **named: next(answers))
    with pytest.raises(module._RefusedError, match="redirects from https"):
        module._follow(session, "https://safe.invalid/", {})
