# SPDX-License-Identifier: Apache-2.0
"""The tree of one git commit, as a tar archive. Takes nothing from the user's git configuration.

The archive holds the tree as it is: no file is left out or filled in for git-archive's attributes
(export-ignore, export-subst), and submodules are empty folders. Nothing ever prompts: ssh uses
the user's keys and agent, http the user's netrc.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit.addresses import shown_address
from sevkit.errors import HostError, SourceError
from sevkit.sources.commands import Intake, bytes_at, run_watched
from sevkit.sources.pins import Pin, Progress

LIMIT_BYTES = 8 << 30
_OPTIONS = (
    "core.hooksPath=/dev/null",
    "fetch.fsckObjects=true",
    "fetch.unpackLimit=1",
    "gc.auto=0",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.ssh.allow=always",
    "protocol.git.allow=always",
    "protocol.file.allow=always",
    "tar.umask=0022",
)
_SURROUNDINGS = {
    "GIT_ASKPASS": "true",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_WHOLE_TREE = "* -export-ignore -export-subst\n"
_REFUSALS = ("unadvertised object", "does not support shallow")
_ABSENT = "not our ref"
_HINT = "check the url and the commit of the source in the recipe, and the network"


def fetch_commit(pin: Pin, destination: Path, progress: Progress) -> None:
    """Write the tar archive of the commit's tree; every object is checked on the way.

    Raises `SourceError` when the repository does not have the commit or can't be reached, sends
    nothing for a minute, or more than 8 GiB.
    """
    url, commit = pin.origin["url"], pin.origin["commit"]
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix="git-") as name:
        git = _Git(Path(name), url, progress)
        git.run("init", "--quiet", "--bare", "--template=", "--initial-branch=none")
        (git.folder / "info").mkdir()
        (git.folder / "info" / "attributes").write_text(_WHOLE_TREE)
        git.fetch(commit)
        git.run("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        draft = git.folder / "archive.tar"
        git.run("archive", "--format=tar", f"--output={draft.name}", commit)
        draft.replace(destination)
    size = destination.stat().st_size
    progress(size, size, "")


@dataclass(frozen=True)
class _Git:
    """A repository of our own that takes from `url`."""

    folder: Path
    url: str
    progress: Progress

    def fetch(self, commit: str) -> None:
        """Have `commit` and its tree here: it alone or, where the server refuses, everything."""
        status, said = self._try("fetch", "--quiet", "--depth=1", "--no-tags", self.url, commit)
        if status == 0:
            return
        if any(word in said for word in _REFUSALS):
            self.run("fetch", "--quiet", "--no-tags", self.url, "+refs/*:refs/fetched/*")
            status, _ = self._try("cat-file", "-e", f"{commit}^{{commit}}")
            absent = status != 0
        elif _ABSENT in said:
            absent = True
        else:
            raise self._failed("fetch", said)
        if absent:
            raise SourceError(
                f"{shown_address(self.url)} has no commit {commit}",
                hint="check the commit of the source in the recipe",
            )

    def run(self, *arguments: str) -> None:
        """Run git. Raises `SourceError` with git's own words."""
        status, said = self._try(*arguments)
        if status != 0:
            raise self._failed(arguments[0], said)

    def _try(self, *arguments: str) -> tuple[int, str]:
        options = [word for option in _OPTIONS for word in ("-c", option)]
        intake = Intake(
            shown_address(self.url),
            LIMIT_BYTES,
            lambda: bytes_at(self.folder),
            lambda received: self.progress(received, None, f"git {arguments[0]}"),
            hint=_HINT,
        )
        try:
            return run_watched(
                ["git", *options, *arguments], _environment(), intake, cwd=self.folder
            )
        except FileNotFoundError as error:
            raise HostError("git is missing", hint="apt-get install git") from error

    def _failed(self, verb: str, said: str) -> SourceError:
        lines = [line for line in said.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
        shown = shown_address(self.url)
        why = shown_address("\n".join((telling or lines)[:3]))
        why = why.replace(_user_of(self.url), _user_of(shown))  # ssh leaves out the scheme
        return SourceError(f"{shown}: git {verb} failed", why=why, hint=_HINT)


def _user_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[0]


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, **_SURROUNDINGS}
