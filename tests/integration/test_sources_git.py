# SPDX-License-Identifier: Apache-2.0
"""Commits taken from real git repositories on this machine."""

import contextlib
import os
import resource
import socket
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevkit.errors import SourceError
from sevkit.recipe.model import GitSource
from sevkit.sources import Apt, commands, fetch, resolve
from sevkit.sources import git as module

Git = Callable[..., str]
Talk = Callable[[socket.socket], None]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in a repository with two commits, a tag and attributes that archives obey."""
    repository = tmp_path / "repository"
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "A"), ("EMAIL", "a@example"), ("DATE", "1700000000 +0000"))
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=repository,
            env={"PATH": os.environ["PATH"], **identity, "GIT_CONFIG_GLOBAL": "/dev/null"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    repository.mkdir()
    run("init", "--quiet", "--initial-branch=main")
    (repository / "file").write_text("first\n")
    (repository / "tool").write_text("#!/bin/sh\n")
    (repository / "tool").chmod(0o755)
    (repository / "link").symlink_to("file")
    (repository / "ignored").write_text("not in archives\n")
    (repository / "filled").write_text("$Format:%d$\n")
    (repository / ".gitattributes").write_text("ignored export-ignore\nfilled export-subst\n")
    run("add", "--all")
    run("commit", "--quiet", "-m", "first")
    (repository / "file").write_text("second\n")
    run("commit", "--quiet", "-a", "-m", "second")
    run("tag", "v2")
    return run


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., dict[str, bytes | str]]:
    def run(commit: str, url: str = "") -> dict[str, bytes | str]:
        url = url or f"file://{tmp_path}/repository"
        [pin] = resolve(GitSource(git=url, commit=commit), Apt(tmp_path / "apt"))
        assert pin.reference == f"git:{commit}"
        place = tmp_path / "results" / "out.tar"
        fetch(pin, place, lambda *told: None, Apt(tmp_path / "apt"))
        with tarfile.open(place) as archive:
            return {
                member.name: member.linkname or archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
            }

    return run


def test_the_tree_of_a_commit_is_taken_whole(git: Git, take: Callable[..., object]) -> None:
    tree = {
        ".gitattributes": b"ignored export-ignore\nfilled export-subst\n",
        "filled": b"$Format:%d$\n",
        "ignored": b"not in archives\n",
        "link": "file",
        "tool": b"#!/bin/sh\n",
    }
    assert take(git("rev-parse", "HEAD")) == {**tree, "file": b"second\n"}
    assert take(git("rev-parse", "HEAD~")) == {**tree, "file": b"first\n"}


def test_the_archive_is_the_same_whatever_the_users_configuration(
    git: Git,
    take: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = git("rev-parse", "HEAD")
    take(commit)
    first = (tmp_path / "results" / "out.tar").read_bytes()
    config = tmp_path / "gitconfig"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
        (hooks / name).chmod(0o755)
    config.write_text(
        f"[core]\n hooksPath = {hooks}\n autocrlf = true\n[tar]\n umask = 0077\n"
        '[url "file:///nonexistent/"]\n insteadOf = "file://"\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(config.read_text())
    git("branch", "another")
    take(commit)
    assert (tmp_path / "results" / "out.tar").read_bytes() == first
    assert not (tmp_path / "hooked").exists()


def test_a_commit_that_is_not_there_is_named(
    git: Git, take: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=f"has no commit {'1' * 40}"):
        take("1" * 40)
    blob = git("rev-parse", "HEAD:file")
    with pytest.raises(SourceError):
        take(blob)
    with pytest.raises(SourceError, match="git fetch failed") as caught:
        take("1" * 40, f"file://{tmp_path}/nowhere")
    assert "nowhere" in caught.value.why
    assert list((tmp_path / "results").iterdir()) == []
    assert take(git("rev-parse", "HEAD"))


def test_a_server_that_gives_no_single_commit_is_asked_for_everything(
    git: Git, take: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    """A folder served by http without git's help ("dumb") can't do a shallow fetch."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    git("update-server-info")
    handler = functools.partial(Quiet, directory=str(tmp_path / "repository"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/.git"
            assert take(git("rev-parse", "HEAD~"), url)["file"] == b"first\n"
            with pytest.raises(SourceError, match="has no commit"):
                take("1" * 40, url)
        finally:
            server.shutdown()
            thread.join()


def test_damaged_objects_are_refused(git: Git, take: Callable[..., object], tmp_path: Path) -> None:
    commit = git("rev-parse", "HEAD")
    assert take(commit)
    blob = git("rev-parse", "HEAD:file")
    path = tmp_path / "repository" / ".git" / "objects" / blob[:2] / blob[2:]
    other = git("rev-parse", "HEAD~:file")
    path.chmod(0o644)
    path.write_bytes(
        (tmp_path / "repository" / ".git" / "objects" / other[:2] / other[2:]).read_bytes()
    )
    with pytest.raises(SourceError):
        take(commit)


def test_an_interrupted_fetch_leaves_nothing(git: Git, tmp_path: Path) -> None:
    source = GitSource(git=f"file://{tmp_path}/repository", commit=git("rev-parse", "HEAD"))
    [pin] = resolve(source, Apt(tmp_path / "apt"))

    def stop(done: int, total: int | None, note: str) -> None:
        if note == "git fetch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(pin, tmp_path / "results" / "out.tar", stop, Apt(tmp_path / "apt"))
    assert list((tmp_path / "results").iterdir()) == []


COMMIT = "1" * 40
ABLE = "side-band-64k shallow allow-tip-sha1-in-want allow-reachable-sha1-in-want"
HELLO = f"{COMMIT} HEAD\0{ABLE}\n".encode()


def packet(content: bytes) -> bytes:
    """As gitprotocol-common(5) has it."""
    return b"%04x%s" % (len(content) + 4, content)


def says_nothing(client: socket.socket) -> None:
    """Waits until the other side has hung up."""
    while client.recv(1 << 16):
        pass


def names_references(client: socket.socket) -> None:
    client.sendall(packet(HELLO))
    while True:
        name = os.urandom(99).hex()
        client.sendall(packet(f"{COMMIT} refs/heads/{name}\n".encode()) * 99)


def _up_to_the_pack(client: socket.socket) -> None:
    client.sendall(packet(HELLO) + b"0000")
    client.recv(1 << 16)
    client.sendall(packet(f"shallow {COMMIT}".encode()) + b"0000")
    client.recv(1 << 16)
    client.sendall(packet(b"NAK\n"))


def talks(client: socket.socket) -> None:
    _up_to_the_pack(client)
    while True:
        client.sendall(packet(b"\2" + b"x" * 60_000 + b"\n"))


def is_still_there(client: socket.socket) -> None:
    _up_to_the_pack(client)
    while True:
        client.sendall(packet(b"\1") * 100)


def drips(client: socket.socket, seconds: float = 0.05) -> None:
    """A pack of one object of 2^41 bytes."""
    _up_to_the_pack(client)
    client.sendall(packet(b"\1PACK\0\0\0\2\0\0\0\1\xb0" + b"\x80" * 4 + b"\x10"))
    content = zlib.compressobj(0)
    size = 60_000 if not seconds else 1
    while True:
        piece = content.compress(os.urandom(size)) + content.flush(zlib.Z_SYNC_FLUSH)
        client.sendall(packet(b"\1" + piece))
        time.sleep(seconds)


def never_ends(client: socket.socket) -> None:
    drips(client, 0)


@contextlib.contextmanager
def serving(talk: Talk) -> Iterator[str]:
    """The address of a git server that treats everybody so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        client.recv(1 << 16)
                        talk(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"git://127.0.0.1:{listener.getsockname()[1]}/tree"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (says_nothing, "sends less than 1024 bytes a second"),
        (is_still_there, "sends less than 1024 bytes a second"),
        (drips, "sends less than 1024 bytes a second"),
        (never_ends, "has more than the 4194304 bytes allowed"),
        (talks, "git says more than"),
        (names_references, "git fetch failed"),
    ],
)
def test_a_server_that_never_comes_to_an_end_is_left(
    talk: Talk,
    why: str,
    git: Git,
    take: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as impatient, serving(talk) as url:
        if "a second" in why:
            impatient.setattr(commands, "_SLOW_SECONDS", 1)
        impatient.setattr(module, "LIMIT_BYTES", 4 << 20)
        impatient.setattr(commands, "_DATA_BYTES", 64 << 20)
        with pytest.raises(SourceError) as caught:
            take(COMMIT, url)
    assert why in str(caught.value)
    assert list((tmp_path / "results").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 64 << 20
    assert take(git("rev-parse", "HEAD"))


@pytest.mark.parametrize("scheme", ["http", "git", "ssh"])
def test_a_password_is_in_no_message(scheme: str, take: Callable[..., object]) -> None:
    with pytest.raises(SourceError, match="git fetch failed") as caught:
        take(COMMIT, f"{scheme}://ci:s3cret@127.0.0.1:9/tree")
    assert f"{scheme}://{'ci@' if scheme == 'ssh' else ''}127.0.0.1:9/tree" in caught.value.what
    assert "s3cret" not in str(caught.value)


def test_a_commit_whose_tree_is_too_large_is_refused(
    git: Git, take: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little to send, for trees may be named more than once."""
    small = git("rev-parse", "HEAD")
    blob = git("rev-parse", "HEAD:file")
    tree = _tree(tmp_path, *(f"100644 blob {blob}\t{name}" for name in "0123456789"))
    for _ in range(3):
        tree = _tree(tmp_path, *(f"040000 tree {tree}\t{name}" for name in "0123456789"))
    bomb = git("commit-tree", "-m", "bomb", tree)
    git("branch", "bomb", bomb)
    monkeypatch.setattr(module, "LIMIT_BYTES", 1 << 20)
    with pytest.raises(SourceError, match="has more than the 1048576 bytes allowed"):
        take(bomb)
    assert take(small)


def _tree(folder: Path, *rows: str) -> str:
    done = subprocess.run(
        ["git", "mktree"],
        cwd=folder / "repository",
        input="\n".join(rows) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
