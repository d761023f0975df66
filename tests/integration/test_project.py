# SPDX-License-Identifier: Apache-2.0
"""Builds of recipes that take nothing from Debian: from a server, git, files beside them."""

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from firmware_samples import firmware
from test_plan import REPOSITORY

from sevkit.project.lock import Lock
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.sources import self_pinned

Sevkit = Callable[..., subprocess.CompletedProcess[str]]
AGENT = b"#!/bin/sh\necho of a recipe's own\n"
FIRMWARE = bytes(firmware())

RECIPE = """\
schema = 1
name = "own"
version = "1.0.0"
[sources]
linux = {linux}
agent = {agent}
fw = {fw}
[kernel]
source = "linux"
configs = ["base"]
cmdline = ["console=ttyS0"]
[agent]
source = "agent"
[initramfs]
max_size = "14 MiB"
[firmware]
source = "fw"
[launch]
modes = ["sev"]
"""


class Project:
    """A project folder, a folder that a server on the loopback interface has, and a store."""

    def __init__(self, folder: Path, sevkit: Sevkit, address: str):
        self.folder = folder / "project"
        self.served = folder / "served"
        self.store = folder / "store"
        self.address = address
        self._sevkit = sevkit
        (self.folder / "recipes").mkdir(parents=True)

    def write(self, name: str, content: bytes) -> str:
        """A file of the project, as a source of it is written."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f'{{ file = "../{name}" }}'

    def serve(self, name: str, content: bytes) -> str:
        """A file of the server, as a source of it is written."""
        path = self.served / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return f'{{ url = "{self.address}/{name}", sha256 = "{digest}" }}'

    def commit(self, name: str) -> str:
        """A commit of a git repository in the project, as a source of it is written."""
        repository = self.folder / name
        repository.mkdir()

        def git(*words: str) -> str:
            identity = ("-c", "user.name=A", "-c", "user.email=a@example")
            argv = ["git", *identity, *words]
            return subprocess.check_output(argv, cwd=repository, text=True).strip()

        git("init", "--quiet")
        (repository / "Makefile").write_text("all:\n")
        git("add", "--all")
        git("commit", "--quiet", "-m", "first")
        return f'{{ git = "file://{repository}", commit = "{git("rev-parse", "HEAD")}" }}'

    def recipe(self, **sources: str) -> None:
        (self.folder / "recipes" / "own.toml").write_text(RECIPE.format(**sources))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._sevkit("-C", self.folder, *words, env={"SEVKIT_STORE": str(self.store)})

    def pasted(self, line: str) -> subprocess.CompletedProcess[str]:
        return self._sevkit(*shlex.split(line), env={"SEVKIT_STORE": str(self.store)})

    def done(self, *words: str) -> str:
        """What a command that must succeed says."""
        result = self.run(*words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def project(tmp_path: Path, sevkit: Sevkit, server: ThreadingHTTPServer) -> Project:
    return Project(tmp_path, sevkit, f"http://127.0.0.1:{server.server_port}")


def test_what_names_its_own_digest_or_commit_is_fetched_and_then_built_offline(
    project: Project,
) -> None:
    linux, agent = project.commit("linux"), project.serve("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.serve("fw", FIRMWARE))
    early = project.run("build", "own:agent", "--offline", "--ci")
    assert early.returncode == 1
    assert "agent is not in the store, and the build is offline" in early.stderr
    assert "3 fetched" in project.done("fetch", "own", "--ci")
    shutil.rmtree(project.served)
    shutil.rmtree(project.folder / "linux")
    said = [
        project.done("build", f"own:{one}", "--offline", "--ci") for one in ("agent", "firmware")
    ]
    assert "kernel: never built" in project.done("build", "own", "--offline", "-n")
    assert "looking up" not in "".join(said)
    assert list((project.store / "pins").iterdir()) == []


@pytest.mark.parametrize("verb", [("fetch", "own"), ("vendor", "copy", "own")])
def test_offline_is_offline_for_every_verb_that_fetches(
    verb: tuple[str, ...], project: Project, tmp_path: Path
) -> None:
    served = project.serve("linux-6.tar", b"no kernel")
    linux = served if "vendor" in verb else project.commit("linux")
    agent, fw = project.serve("agent", AGENT), project.serve("fw", FIRMWARE)
    project.recipe(linux=linux, agent=agent, fw=fw)
    words = [str(tmp_path / word) if word == "copy" else word for word in verb]
    refused = project.run(*words, "--offline", "--ci", "-k")
    assert refused.returncode == 1
    for name in ("agent", "fw", "linux-"):
        assert f"  {name}" in refused.stderr
    assert refused.stderr.count("is not in the store, and the build is offline") == 3
    hint = re.search("try: sevkit (.* fetch own)\n", refused.stderr)
    assert hint is not None
    fetched = project.pasted(hint[1])
    assert fetched.returncode == 0, fetched.stderr
    assert "3 fetched" in fetched.stdout + fetched.stderr
    shutil.rmtree(project.served)
    shutil.rmtree(project.folder / "linux", ignore_errors=True)
    project.done(*words, "--offline", "--ci")


def test_verbs_that_only_plan_can_be_told_to_ask_nobody(project: Project) -> None:
    agent, fw = project.write("agent", AGENT), project.write("files/fw", FIRMWARE)
    linux = '{ deb = "linux-source-6.12", member = "linux.tar" }'
    project.recipe(linux=linux, agent=agent, fw=fw)
    for verb in (("show", "own"), ("check", "own"), ("kconfig", "why", "PCI", "own")):
        refused = project.run(*verb, "--offline")
        assert refused.returncode == 1
        assert "linux was never looked up, and the build is offline" in refused.stderr
    project.recipe(linux=project.write("files/linux.tar", b"no kernel"), agent=agent, fw=fw)
    assert "kernel" in project.done("show", "own", "--offline")


def test_what_needs_no_store_asks_for_none(project: Project) -> None:
    agent, fw = project.write("agent", AGENT), project.write("files/fw", FIRMWARE)
    linux = '{ deb = "linux-source-6.12", member = "linux.tar" }'
    project.recipe(linux=linux, agent=agent, fw=fw)
    project.store = Path("/proc/no-store")
    assert "own" in project.done("list")
    assert "own: correct" in project.done("check", "own", "--no-kernel")
    project.done("cache-key", "own")
    refused = project.run("build", "own:agent")
    assert refused.returncode == 3
    assert "the store /proc/no-store can't be used" in refused.stderr


def test_a_vendored_folder_has_the_recipes_that_a_recipe_extends(
    project: Project, tmp_path: Path
) -> None:
    linux, agent = project.serve("linux.tar", b"no kernel"), project.serve("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.write("files/fw", FIRMWARE))
    child = b'schema = 1\nextends = "%s"\nname = "%s"\n'
    project.write("recipes/child.toml", child % (b"own", b"child"))
    own = project.folder / "recipes" / "own.toml"
    project.write("other/own.toml", own.read_bytes())
    own.write_bytes(child % (b"../other/own.toml", b"own"))
    project.done("vendor", str(tmp_path / "copy"), "child", "--ci")
    shutil.rmtree(project.folder)
    shutil.rmtree(project.served)
    shutil.rmtree(project.store)
    project.folder = tmp_path / "copy"
    files = {str(path.relative_to(project.folder)) for path in project.folder.rglob("*own.toml")}
    assert files == {"recipes/own.toml", "other/own.toml"}
    assert "0 fetched" in project.done("fetch", "child", "--offline", "--ci")
    for stage in ("agent", "firmware"):
        project.done("build", f"child:{stage}", "--offline", "--ci")


def test_two_addresses_that_end_alike_are_two_sources(project: Project) -> None:
    agent, fw = project.serve("a/v1.bin", AGENT), project.serve("b/v1.bin", FIRMWARE)
    project.recipe(linux=project.write("files/linux.tar", b"no kernel"), agent=agent, fw=fw)
    assert "2 fetched" in project.done("fetch", "own", "--ci")
    shutil.rmtree(project.store)
    for stage in ("agent", "firmware"):
        said = project.done("build", f"own:{stage}", "--ci")
        assert "fetch v1.bin (" in said


def test_keep_going_goes_on_with_the_next_target_and_tells_every_failure(project: Project) -> None:
    linux, agent = project.write("files/linux.tar", b"no kernel"), project.write("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.write("files/fw", b"no firmware"))
    words = ("build", "own:firmware", "nobody", "own:agent", "--ci")
    stopped = project.run(*words)
    assert stopped.returncode == 1
    assert "nobody" not in stopped.stderr
    for _ in range(2):
        going = project.run(*words, "-k")
        assert going.returncode == 1
        assert "2 of 3 targets failed" in going.stderr
        assert "there is no recipe 'nobody'" in going.stderr
        assert going.stderr.index("\n  fw") < going.stderr.index("nobody")
        assert re.search(r"^(built in .* s|up to date): \S*/entries/", going.stdout, re.M)
    dry = project.run("build", "nobody", "own:firmware", "nowhere", "-k", "-n")
    assert dry.returncode == 2
    assert dry.stdout == "own: firmware: never built\n"
    assert project.run("build", "own:agent", "nobody", "-k").returncode == 2
    assert project.run("build", "own:agent", "-k").returncode == 0


def test_local_files_are_built_offline_with_an_empty_store(project: Project) -> None:
    linux, agent = project.write("files/linux.tar", b"no kernel"), project.write("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.write("files/fw", FIRMWARE))
    said = project.done("build", "own:agent", "--offline", "--ci")
    said += project.done("build", "own:firmware", "--ci")
    assert "looking up" not in said
    assert "0 fetched" in project.done("fetch", "own", "--ci")
    assert list((project.store / "pins").iterdir()) == []


def test_a_cache_key_follows_local_files_and_not_where_the_checkout_lies(
    project: Project, tmp_path: Path
) -> None:
    linux, agent = project.write("files/linux.tar", b"no kernel"), project.write("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.write("files/fw", FIRMWARE))
    said = project.done("cache-key", "own", "--files")
    assert "  file      files/fw blob:" in said
    assert "unpinned" not in said
    project.folder = project.folder.rename(tmp_path / "elsewhere")
    assert project.done("cache-key", "own", "--files") == said
    project.write("files/fw", FIRMWARE + b"x")
    assert project.done("cache-key", "own", "--files") != said


def test_a_build_with_nothing_to_do_is_answered_from_the_record_wherever_options_stand(
    project: Project, tmp_path: Path
) -> None:
    """With every other module hidden there is nothing but the record to answer from."""
    linux, agent = project.write("files/linux.tar", b"no kernel"), project.write("agent", AGENT)
    project.recipe(linux=linux, agent=agent, fw=project.write("files/fw", FIRMWARE))
    time.sleep(0.05)
    words = ("--output", str(tmp_path / "out"), "build", "own:agent")
    for _ in range(2):
        said = project.done(*words)
    assert said.startswith("up to date: ")
    alone = "import sys; sys.modules['sevkit.cli'] = None; from sevkit.__main__ import main; main()"

    def answer(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", alone, *map(str, words)],
            env={**os.environ, "SEVKIT_STORE": str(project.store)},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    known = answer("-C", project.folder, *words)
    assert (known.returncode, known.stdout) == (0, said)
    assert answer("-C", project.folder, *words, "kernel_series=6.1").returncode == 1


def test_a_lock_brings_in_nothing_but_what_the_recipe_names(project: Project) -> None:
    """Neither another file of the server, nor a repository outside of the project."""
    project.serve("other", b"#!/bin/sh\necho evil\n")
    agent = project.serve("agent", AGENT)
    linux = project.commit("linux")
    project.recipe(linux=linux, agent=agent, fw=project.write("fw", FIRMWARE))
    recipe = load("own", {}, Library.of(project.folder))
    path = project.folder / "recipes" / "own.lock"
    good = Lock(path, "own")
    for name in ("linux", "agent"):
        good = good.with_pins(name, recipe.sources[name], self_pinned(recipe.sources[name]) or ())
    [pin] = good.pins(recipe.sources["agent"]) or ()
    other = hashlib.sha256((project.served / "other").read_bytes()).hexdigest()
    other_place = {**pin.origin, "url": f"{project.address}/other"}
    for changed in (
        replace(pin, reference=f"blob:{other}", origin=other_place),
        replace(pin, origin={**pin.origin, "url": f"file://{project.served}/agent"}),
    ):
        good.with_pins("agent", recipe.sources["agent"], [changed]).write({})
        for words in (["build", "own:agent"], ["fetch", "own"]):
            refused = project.run(*words, "--ci")
            assert refused.returncode == 2
            assert "own.lock locks agent to something else than the recipe names" in refused.stderr
    good.write({})
    assert "agent: built" in project.done("build", "own:agent", "--ci")
