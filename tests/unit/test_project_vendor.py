# SPDX-License-Identifier: Apache-2.0
"""A vendored folder plans the image of its project, or is refused; test_locked.py builds in one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from recipe_samples import Project as Samples

from sevkit import plan as planning
from sevkit.engine import Settings
from sevkit.events import Event
from sevkit.project.lock import Lock
from sevkit.project.project import Project
from sevkit.project.vendor import vendor
from sevkit.stage import Plan
from sevkit.store.store import Store

RECIPE = """\
schema = 1
name = "mini"
version = "1"
[vars]
packing = "zstd"
level = "1"
[sources]
linux = { file = "../files/linux.tar" }
agent = { file = "../files/agent" }
fw = { file = "../files/fw" }
[kernel]
source = "linux"
configs = ["base"]
cmdline = ["console=ttyS0"]
[agent]
source = "agent"
[initramfs]
max_size = "14 MiB"
compression = "{{ packing }}"
[firmware]
source = "fw"
[launch]
modes = ["sev"]
"""


def heard(_: Event) -> None:
    pass


class Vendoring:
    """A project whose recipe takes local files alone, and folders that are made of it."""

    def __init__(self, folder: Path):
        self.above = folder
        self.folder = folder / "project"
        self.to = folder / "vendored"
        for name in ("linux.tar", "agent", "fw"):
            self.write(f"files/{name}", name)
        self.write("recipes/mini.toml", RECIPE)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def project(self, folder: Path) -> Project:
        return Project(folder, folder / "out", self.above / "store", heard)

    def plan(self, folder: Path, name: str, **variables: str) -> Plan:
        project = self.project(folder)
        return project.plan(project.recipe(name, variables))

    def vendor(self, name: str = "mini", **variables: str) -> int:
        project = self.project(self.folder)
        recipe = project.recipe(name, variables)
        project.fetch(recipe, Settings(1, self.above / "logs"))
        plan, lock = project.plan(recipe), project.whole_lock(recipe)
        return vendor(recipe, plan, lock, project.library, project.store, self.to)

    def files(self) -> Sequence[str]:
        paths = (path for path in self.to.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.to).as_posix() for path in paths)


@pytest.fixture
def vendoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vendoring:
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 1.0")
    return Vendoring(tmp_path)


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def test_what_can_be_run_in_the_project_can_be_run_in_the_folder(vendoring: Vendoring) -> None:
    """It is part of an initramfs, and so of its key."""
    vendoring.write("files/tool", "#!/bin/sh\n").chmod(0o700)
    vendoring.write("files/data", "none to run\n").chmod(0o600)
    vendoring.write("files/tree/build", "a file that is called as a folder of products\n")
    vendoring.write("files/tree/run", "#!/bin/sh\n").chmod(0o711)
    files = '"/bin/tool" = "../files/tool"\n"/etc/data" = "../files/data"\n'
    files += '"/usr/tree" = "../files/tree"\n'
    vendoring.write("recipes/mini.toml", f"{RECIPE}[initramfs.files]\n{files}")
    vendoring.vendor()
    modes = {
        name: (vendoring.to / "files" / name).stat().st_mode & 0o777
        for name in ("tool", "data", "tree/run", "tree/build")
    }
    assert modes == {"tool": 0o755, "data": 0o644, "tree/run": 0o755, "tree/build": 0o644}
    planned = keys(vendoring.plan(vendoring.to, "mini"))
    assert planned == keys(vendoring.plan(vendoring.folder, "mini"))


def test_its_command_is_locked_only_where_a_kernel_configuration_is(tmp_path: Path) -> None:
    project = Samples(tmp_path / "project")
    recipe = project.load("base")
    plan = Plan(recipe, (), {}, {})
    store = Store(tmp_path / "store")
    unlocked = Lock(tmp_path / "project" / "recipes" / "base.lock", "base")
    config = b"CONFIG_64BIT=y\n"
    locked = unlocked.with_config("d" * 64, "6.12", config, "host", {})
    locked.write({"base-6.12.config": config})
    said = {}
    for name, lock in (("locked", locked), ("unlocked", unlocked)):
        assert vendor(recipe, plan, lock, project.library, store, tmp_path / name) == 0
        said[name] = (tmp_path / name / "README.md").read_text()
    assert "build base --locked --offline" in said["locked"]
    assert "build base --offline" in said["unlocked"]
    assert (tmp_path / "locked" / "recipes" / "base-6.12.config").read_bytes() == config
