# SPDX-License-Identifier: Apache-2.0
"""The tree of one git commit, as a tar archive. Takes nothing from the user's git configuration."""

import os
import subprocess
import tempfile
from pathlib import Path

from sevkit.errors import HostError, SourceError
from sevkit.sources.pins import Pin, Progress

_OPTIONS = (
    "core.hooksPath=/dev/null",
    "fetch.fsckObjects=true",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.ssh.allow=always",
    "protocol.git.allow=always",
    "protocol.file.allow=always",
    "tar.umask=0022",
)


def fetch_commit(pin: Pin, destination: Path, progress: Progress) -> None:
    """Write the tar archive of the commit's tree; every object is checked on the way.

    Raises `SourceError` when the repository does not have the commit or can't be reached.
    """
    url, commit = pin.origin["url"], pin.origin["commit"]
    progress(0, None, "git fetch")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix="git-") as name:
        repository = Path(name)
        _git(repository, url, "init", "--quiet", "--bare")
        shallow = ("fetch", "--quiet", "--depth=1", "--no-tags", url, commit)
        if not _git(repository, url, *shallow, check=False):
            _git(repository, url, "fetch", "--quiet", "--no-tags", url, "+refs/*:refs/fetched/*")
        found = _git(repository, url, "rev-parse", "--verify", f"{commit}^{{commit}}").strip()
        if found != commit:
            raise SourceError(f"{url}: the commit {commit} came as {found}")
        progress(0, None, "git archive")
        draft = repository / "archive.tar"
        _git(repository, url, "archive", "--format=tar", f"--output={draft}", commit)
        draft.replace(destination)


def _git(repository: Path, url: str, *arguments: str, check: bool = True) -> str:
    """Run git; its output, with `check` off an empty text on failure."""
    options = [word for option in _OPTIONS for word in ("-c", option)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    } | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ["git", *options, *arguments],
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError("git is missing", hint="apt-get install git") from error
    if done.returncode == 0:
        return done.stdout or "\n"
    if not check:
        return ""
    raise SourceError(
        f"{url}: git {arguments[0]} failed",
        why="\n".join(done.stderr.strip().splitlines()[-3:]),
        hint="check the url and the commit of the source in the recipe",
    )
