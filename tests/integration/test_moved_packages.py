# SPDX-License-Identifier: Apache-2.0
"""Packages that leave their mirror or are replaced there: what each verb makes of it."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apt_mirror import AptMirror, apt_mirror

from sevkit.plan import requests
from sevkit.project.lock import Lock
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.recipe.model import DebSource
from sevkit.sources import Pin

Answer = subprocess.CompletedProcess[str]
Sevkit = Callable[..., Answer]

RECIPE = """\
schema = 1
name = "mini"
version = "1.0.0"
[sources]
linux = { file = "../linux.tar" }
agentx = { deb = "agentx", member = "usr/bin/agentx" }
fw = { deb = "fw", member = "fw.bin" }
[kernel]
source = "linux"
configs = ["mini"]
cmdline = ["console=ttyS0"]
[agent]
source = "agentx"
[initramfs]
max_size = "14 MiB"
debs = ["aa", "bb"]
[firmware]
source = "fw"
[launch]
modes = ["sev"]
"""
PACKAGES = ("aa", "agentx", "bb", "fw")


class Mini:
    """A project with one recipe, whose packages are on `mirror`, and a store of its own."""

    def __init__(self, folder: Path, sevkit: Sevkit, mirror: AptMirror):
        self.folder = folder / "project"
        self.mirror = mirror
        self._sevkit = sevkit
        self._environment = {**mirror.environment, "SEVKIT_STORE": str(folder / "store")}
        self.pins = folder / "store" / "pins"
        for name, text in (
            ("linux.tar", "no kernel"),
            ("kernel-configs/mini.config", "# Why.\nCONFIG_PCI=y\n"),
            ("recipes/mini.toml", RECIPE),
        ):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def edit(self, old: str, new: str, name: str = "recipes/mini.toml") -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def run(self, *words: str) -> Answer:
        return self._sevkit("-C", self.folder, *words, env=self._environment)

    @property
    def lock_command(self) -> str:
        """What locks the recipe for one who stands where the tests run."""
        return f"sevkit -C {self.folder} lock mini"

    def done(self, *words: str) -> str:
        """What a command that must succeed says."""
        answer = self.run(*words)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def refused(self, *words: str, status: int = 1) -> str:
        """What a command that must fail says."""
        answer = self.run(*words)
        assert answer.returncode == status, answer.stdout + answer.stderr
        return answer.stderr

    def lock(self) -> None:
        """Lock what was looked up, without the kernel configuration that only a kernel has."""
        recipe = load("mini", {}, Library.of(self.folder))
        records = [json.loads(path.read_text()) for path in self.pins.iterdir()]
        lock = Lock(self.folder / "recipes" / "mini.lock", "mini")
        for name, request in requests(recipe).items():
            package = request.deb if isinstance(request, DebSource) else "aa"
            for record in records:
                pins = [Pin(**row) for row in record["pins"]]
                if package in [pin.origin["package"] for pin in pins]:
                    lock = lock.with_pins(name, request, pins)
        lock.write({})


@pytest.fixture
def mini(tmp_path: Path, sevkit: Sevkit) -> Iterator[Mini]:
    with apt_mirror(tmp_path / "mirror") as mirror:
        for package in PACKAGES:
            mirror.add(package, "1")
        yield Mini(tmp_path, sevkit, mirror)


def test_remembered_packages_that_have_left_the_mirror_are_looked_up_anew(mini: Mini) -> None:
    assert "to build" in mini.done("show", "mini")
    for package in PACKAGES:
        mini.mirror.move(package, "1", "2")
    said = mini.done("fetch", "mini", "--ci")
    assert "left the mirror; looking for what replaced" in said
    assert "4 fetched" in said
    assert "0 fetched" in mini.done("fetch", "mini", "--offline", "--ci")


@pytest.mark.parametrize("gone", [("fw",), PACKAGES])
def test_locked_packages_that_have_left_the_mirror_are_told_with_what_is_there_now(
    gone: tuple[str, ...], mini: Mini
) -> None:
    mini.done("show", "mini")
    mini.lock()
    for package in gone:
        mini.mirror.move(package, "1", "2")
    said = mini.refused("fetch", "mini", "--ci", "-k")
    for package in PACKAGES:
        assert (f"{package}_2_amd64.deb" in said) == (package in gone)
    assert "locked and " in said
    assert "left the mirror" in said
    assert said.rstrip().endswith(f"try: {mini.lock_command} --update")
    (mini.folder / "recipes" / "mini.lock").unlink()
    assert f"{len(gone)} fetched" in mini.done("fetch", "mini", "--ci")


def test_a_locked_version_of_the_recipes_own_is_told_with_what_to_mend(mini: Mini) -> None:
    own = 'agentx = { deb = "agentx", version = "1"'
    mini.edit('agentx = { deb = "agentx"', own)
    mini.done("show", "mini")
    mini.lock()
    for package in ("agentx", "fw"):
        mini.mirror.move(package, "1", "2")
    both = mini.refused("fetch", "mini", "--ci", "-k")
    assert "agentx_1_amd64.deb, fw_1_amd64.deb are locked and have left the mirror" in both
    assert "there is agentx_2_amd64.deb, fw_2_amd64.deb" in both
    mend = f"try: mend sources.agentx.version of mini, then {mini.lock_command}"
    assert both.rstrip().endswith(f"{mend} --update")
    mini.mirror.add("fw", "1")
    said = mini.refused("fetch", "mini", "--ci")
    assert "agentx_1_amd64.deb is locked and has left the mirror" in said
    assert "there is agentx_2_amd64.deb" in said
    assert said.rstrip().endswith(mend)
    mini.edit(own, own.replace("1", "2"))
    (mini.folder / "recipes" / "mini.lock").unlink()
    mini.done("fetch", "mini", "--ci")


@pytest.mark.parametrize("verb", [("update",), ("lock", "--update")])
def test_a_new_look_up_that_fails_leaves_what_was_looked_up_before(
    verb: tuple[str, ...], mini: Mini
) -> None:
    offline = ("show", "mini", "--offline")
    mini.done("fetch", "mini", "--ci")
    before = mini.done(*offline)
    for package in ("aa", "agentx"):
        mini.mirror.move(package, "1", "2")
    mini.mirror.leave("fw", "1")
    assert "there is no package fw" in mini.refused(*verb, "mini")
    assert mini.done(*offline) == before
    with mini.mirror.down():
        mini.refused(*verb, "mini")
        assert mini.done(*offline) == before
    mini.mirror.add("fw", "2")
    said = mini.done("update", "mini")
    assert "agentx: agentx_1_amd64.deb is out" in said
    assert "fw: fw_2_amd64.deb is in" in said
    assert mini.done(*offline) != before


def test_what_replaced_a_package_is_remembered_only_with_all_others(mini: Mini) -> None:
    mini.done("show", "mini")
    before = mini.done("show", "mini", "--offline")
    mini.mirror.move("agentx", "1", "2")
    mini.mirror.leave("fw", "1")
    said = mini.refused("fetch", "mini", "--ci")
    assert "looking for what replaced" in said
    assert "there is no package fw" in said
    assert mini.done("show", "mini", "--offline") == before


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("recipes/mini.toml", ', member = "fw.bin"', "", "a package is no firmware image"),
        ("kernel-configs/mini.config", "CONFIG_PCI=y", "nonsense", "mini.config:2"),
    ],
)
def test_a_recipe_that_no_plan_can_be_made_of_is_not_correct(
    name: str, old: str, new: str, words: str, mini: Mini
) -> None:
    check = ("check", "--no-kernel", "mini")
    with mini.mirror.down():
        assert mini.done(*check) == "mini: correct\n"
        assert not mini.pins.exists()
        mini.edit(old, new, name)
        assert words in mini.refused(*check, status=2)
    assert words in mini.refused("build", "-n", "mini", status=2)


def test_a_check_reads_the_lock(mini: Mini) -> None:
    check = ("check", "--no-kernel", "mini")
    mini.done("show", "mini")
    mini.lock()
    with mini.mirror.down():
        assert mini.done(*check) == "mini: correct\n"
        mini.edit('"aa", "bb"', '"aa"')
        said = mini.done(*check)
        assert "debs:initramfs is not in mini.lock" in said
        assert "debs:initramfs is not locked as" in mini.refused(*check, "--locked", status=2)
        mini.edit('"schema": 1', '"schema": 0', "recipes/mini.lock")
        assert "mini.lock can't be used" in mini.refused(*check, status=2)


def test_a_package_that_is_not_there_is_told_with_the_place_that_names_it(mini: Mini) -> None:
    mini.mirror.leave("fw", "1")
    told = "sources.fw of mini: there is no package fw in bookworm"
    assert told in mini.refused("show", "mini")
    mini.edit('deb = "fw"', 'deb = "aa"')
    mini.mirror.leave("bb", "1")
    told = "initramfs.debs of mini: there is no package bb in bookworm"
    assert told in mini.refused("show", "mini")


def test_questions_about_the_kernel_look_up_the_kernel_alone(mini: Mini) -> None:
    mini.mirror.add("linux-source", "1", {"linux.tar": b"no kernel"})
    file = '{ file = "../linux.tar" }'
    mini.edit(file, '{ deb = "linux-source", member = "linux.tar" }')
    mini.mirror.leave("fw", "1")
    for verb in (("kconfig", "why", "PCI", "mini"), ("check", "mini")):
        said = mini.refused(*verb)
        assert "can't be read as an archive" in said
        assert "fw" not in said
    [pins] = mini.pins.iterdir()
    assert "linux-source" in pins.read_text()
    assert "sources.fw of mini" in mini.refused("show", "mini")
