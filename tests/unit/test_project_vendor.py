# SPDX-License-Identifier: Apache-2.0
"""What a vendored folder says of itself; that one is enough is for test_locked.py to show."""

from pathlib import Path

from recipe_samples import Project

from sevkit.project.lock import Lock
from sevkit.project.vendor import vendor
from sevkit.stage import Plan
from sevkit.store.store import Store


def test_its_command_is_locked_only_where_a_kernel_configuration_is(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
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
