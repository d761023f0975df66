# SPDX-License-Identifier: Apache-2.0
"""Commits taken from real git repositories on this machine."""

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.errors import SourceError
from sevkit.recipe.model import GitSource
from sevkit.sources import Apt, fetch, resolve

Git = Callable[..., str]


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
