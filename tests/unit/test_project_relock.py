# SPDX-License-Identifier: Apache-2.0
"""A recipe locked again and again: what stays in its lock, and what is said to have changed."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sevkit import plan as planning
from sevkit.engine import Settings
from sevkit.events import Event, Notice
from sevkit.project import project as projects
from sevkit.project.lock import Lock
from sevkit.project.project import Project
from sevkit.recipe.model import DebSource
from sevkit.sources import Apt, DebGroup, Pin, Request

RECIPE = """\
schema = 1
name = "mini"
version = "1.0.0"
[vars]
series = "6.12"
suite = "bookworm"
[sources]
linux = { deb = "linux-{{ series }}", member = "linux.tar" }
agent = { deb = "agent", member = "bin/agent" }
[kernel]
source = "linux"
configs = ["mini"]
[agent]
source = "agent"
[initramfs]
max_size = "14 MiB"
debs = ["aa", "bb", "cc"]
suite = "{{ suite }}"
[firmware]
source = "agent"
"""


class Mini:
    """A project whose packages have the version `version`, and whose kernel needs no build."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.version = "1"
        self.notices: list[str] = []
        self.config = folder / "config"
        for name, text in (
            ("config", "CONFIG_PCI=y\n"),
            ("kernel-configs/mini.config", "# Why.\nCONFIG_PCI=y\n"),
            ("recipes/mini.toml", RECIPE),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def edit(self, old: str, new: str) -> None:
        path = self.folder / "recipes" / "mini.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def heard(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.text)

    def lock(self, *, update: bool = False, **values: str) -> list[str]:
        """Lock with these variables; what is said to have changed."""
        project = Project(self.folder, self.folder / "out", self.folder / "store", self.heard)
        settings = Settings(jobs=1, logs=self.folder / "logs")
        return project.write_lock(project.recipe("mini", values), settings, update=update)

    def locked(self) -> list[str]:
        """A word for each request that is locked."""
        project = Project(self.folder, self.folder / "out", self.folder / "store", self.heard)
        lock = project.lock(project.recipe("mini", {}))
        assert lock is not None
        return sorted(
            str(row.request.get("deb"))
            if "deb" in row.request
            else f"{row.request['suite']}: {' '.join(row.request['packages'])}"
            for row in lock.requests
        )

    def resolve(self, request: Request, _apt: Apt) -> Sequence[Pin]:
        assert isinstance(request, DebSource | DebGroup)
        names = request.packages if isinstance(request, DebGroup) else (request.deb,)
        return [
            Pin(
                f"blob:{self.version * 64}",
                f"{name}_{self.version}.deb",
                1,
                {"kind": "deb", "package": name, "version": self.version, "path": f"pool/{name}"},
            )
            for name in names
        ]

    @contextlib.contextmanager
    def questions(self, *_: object) -> Iterator[object]:
        yield SimpleNamespace(check=lambda: [], config=self.config, tree=self.folder)


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mini:
    made = Mini(tmp_path)
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 1.0")
    monkeypatch.setattr(projects, "resolve", made.resolve)
    monkeypatch.setattr(projects, "version_of", lambda tree: "6.12.1")
    monkeypatch.setattr(Project, "_make_ready", lambda *_: None)
    monkeypatch.setattr(Project, "_questions", made.questions)
    return made


@pytest.mark.parametrize("update", [False, True])
def test_what_the_recipe_asks_for_no_more_goes_and_is_told(mini: Mini, update: bool) -> None:
    mini.lock()
    assert mini.locked() == ["agent", "bookworm: aa bb cc", "linux-6.12"]
    assert mini.lock(update=update) == []
    mini.edit('"aa", "bb", "cc"', '"aa"')
    assert mini.lock(update=update) == [
        "debs:initramfs: bb_1.deb is out",
        "debs:initramfs: cc_1.deb is out",
    ]
    assert mini.locked() == ["agent", "bookworm: aa", "linux-6.12"]


def test_what_another_choice_that_is_locked_asks_for_stays(mini: Mini) -> None:
    """Also where one configuration stands for both choices, as with `suite`."""
    mini.lock()
    mini.lock(series="6.1")
    mini.lock(suite="trixie")
    groups = ["bookworm: aa bb cc", "trixie: aa bb cc"]
    assert mini.locked() == ["agent", *groups[:1], "linux-6.1", "linux-6.12", *groups[1:]]
    mini.version = "2"
    said = mini.lock(suite="trixie", update=True)
    assert "debs:initramfs: aa_1.deb is out" in said
    assert "debs:initramfs: aa_2.deb is in" in said
    assert mini.lock() == []
    mini.edit('"aa", "bb", "cc"', '"bb"')
    mini.lock()
    assert mini.locked() == ["agent", "bookworm: bb", "linux-6.1", "linux-6.12"]
    mini.lock(suite="trixie")
    assert mini.locked() == ["agent", "bookworm: bb", "linux-6.1", "linux-6.12", "trixie: bb"]


def test_a_variable_that_is_no_more_keeps_nothing_alive(mini: Mini) -> None:
    mini.lock()
    mini.edit('series = "6.12"\n', "")
    mini.edit("{{ series }}", "6.6")
    said = mini.lock()
    assert "linux: linux-6.12_1.deb is out" in said
    assert mini.locked() == ["agent", "bookworm: aa bb cc", "linux-6.6"]


def test_where_a_locked_choice_can_not_be_read_all_stays_and_that_is_told(mini: Mini) -> None:
    mini.lock()
    mini.lock(suite="trixie")
    mini.edit('"mini"]', "\"{{ 'mini' if suite == 'bookworm' else 'none' }}\"]")
    mini.edit('"aa", "bb", "cc"', '"aa"')
    mini.notices.clear()
    assert mini.lock() == ["debs:initramfs: aa_1.deb is in"]
    assert "bookworm: aa bb cc" in mini.locked()
    [said] = mini.notices[-1:]
    assert "mini.lock keeps all that it has" in said
    assert "suite=trixie" in said
    assert "there is no kernel config fragment 'none'" in said


def test_a_lock_without_any_configuration_is_one_of_nothing_else(mini: Mini) -> None:
    mini.lock()
    path = mini.folder / "recipes" / "mini.lock"
    other = DebSource(deb="other")
    Lock(path, "mini").with_pins("linux", other, [*mini.resolve(other, Apt(mini.folder))]).write({})
    assert "linux: other_1.deb is out" in mini.lock()
