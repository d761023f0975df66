# SPDX-License-Identifier: Apache-2.0
"""The plans of the shipped recipes, pinned: a change of what a key covers is a decision."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sevkit import plan as planning
from sevkit.canonical import Json
from sevkit.plan import make_kconfig_plan, make_plan, requests
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.sources import Pin
from sevkit.stage import Plan, changes
from sevkit.store.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"


def fake_pins(names: Mapping[str, object]) -> dict[str, Sequence[Pin]]:
    """One file for each request, with a digest that says which."""
    return {
        name: [Pin(f"blob:{number:064x}", f"{number}.deb", 1, {"kind": "deb", "package": "p"})]
        for number, name in enumerate(sorted(names))
    }


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 1.0")


def a_plan(name: str, project: Path = REPOSITORY, **overrides: str) -> Plan:
    library = Library.of(project)
    recipe = load(name, overrides, library)
    return make_plan(recipe, library, fake_pins(requests(recipe)))


def readable(plan: Plan) -> list[dict[str, Json]]:
    """The records, with local content and other stages by name instead of by digest."""
    names = {stage.reference: f"stage {stage.name}" for stage in plan.stages}
    for reference, local in plan.local.items():
        names[reference] = f"local {local.path.relative_to(REPOSITORY)}"
    text = json.dumps([{"name": stage.name, **stage.record()} for stage in plan.stages])
    for reference, name in names.items():
        text = text.replace(reference, name)
    rows: list[dict[str, Json]] = json.loads(text)
    return rows


@pytest.mark.parametrize("name", ["sev-guest", "sev-guest-builtin"])
@pytest.mark.usefixtures("tools")
def test_the_plan_of_a_shipped_recipe_is_as_it_was(name: str) -> None:
    golden = GOLDEN / f"plan-{name}.json"
    assert readable(a_plan(name)) == json.loads(golden.read_text(encoding="utf-8")), (
        f"what {name} is built from has changed; if that is meant, write the new plan to {golden}"
    )


@pytest.mark.usefixtures("tools")
def test_keys_depend_on_no_path_and_no_order_of_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = a_plan("sev-guest")
    monkeypatch.chdir(tmp_path)
    there = a_plan("sev-guest", tmp_path)
    assert [stage.key for stage in here.stages] == [stage.key for stage in there.stages]
    assert not re.search(re.escape(str(REPOSITORY)), json.dumps([s.record() for s in here.stages]))


@pytest.mark.usefixtures("tools")
def test_stages_come_after_what_they_need() -> None:
    for name in ("sev-guest", "sev-guest-builtin"):
        seen: set[str] = set()
        for stage in a_plan(name).stages:
            needed = {value for value in stage.inputs.values() if value.startswith("stage:")}
            assert needed <= seen
            seen.add(stage.reference)


@pytest.mark.usefixtures("tools")
def test_kernel_and_initramfs_wait_for_each_other_only_when_built_in() -> None:
    separate, builtin = a_plan("sev-guest"), a_plan("sev-guest-builtin")
    assert separate.stage("initramfs").reference not in separate.stage("kernel").inputs.values()
    assert builtin.stage("initramfs").reference in builtin.stage("kernel").inputs.values()


@pytest.mark.usefixtures("tools")
def test_another_kernel_series_changes_the_kernel_and_not_the_rest() -> None:
    new, old = a_plan("sev-guest"), a_plan("sev-guest", kernel_series="6.1")
    same = {s.name for s in new.stages if s.key == old.stage(s.name).key}
    ours = {"agent-sysroot", "sysroot", "agent", "initramfs"}
    assert same == ours | {"firmware-tools", "firmware", "firmware-proof"}


@pytest.mark.usefixtures("tools")
def test_the_tree_for_questions_does_not_depend_on_fragments() -> None:
    library = Library.of(REPOSITORY)
    recipe = load("sev-guest", {}, library)
    plan = make_kconfig_plan(recipe, library, fake_pins(requests(recipe)))
    [stage] = plan.stages
    assert not [role for role in stage.inputs if role.startswith("config/")]


def test_changes_between_two_records_are_told_by_path() -> None:
    old: dict[str, Json] = {"params": {"a": 1, "b": [1, 2]}, "inputs": {"x": "one"}}
    new: dict[str, Json] = {"params": {"a": 2, "b": [1]}, "inputs": {"x": "one", "y": "two"}}
    assert changes(old, new, str) == [
        "inputs.y: new, two",
        "params.a: 1 → 2",
        "params.b.1: gone, was 2",
    ]


def folder_with(place: Path, *paths: str) -> None:
    for path in paths:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(path)


@pytest.mark.usefixtures("tools")
def test_of_a_folder_only_what_nobody_wrote_is_left_out_and_only_at_its_top(tmp_path: Path) -> None:
    project = tmp_path / "project"
    folder_with(project / "linux", ".git/HEAD", "Makefile", "tools/build/Makefile", "build/x")
    folder_with(project / "app", ".git/HEAD", "build/index.js", "lib/__pycache__/a.pyc")
    folder_with(project / "agent", ".git", "build/main.o", "__pycache__/a.pyc", "main.c")
    folder_with(project / "agent", "gen/build/table.h", "gen/__pycache__/a.pyc")
    (project / "recipes").mkdir()
    (project / "recipes" / "own.toml").write_text(
        'schema = 1\nextends = "sev-guest"\nname = "own"\n'
        '[sources.tree]\nfile = "../linux"\n[kernel]\nsource = "tree"\n'
        '[initramfs]\nfiles = { "/opt/app" = "../app" }\n'
        '[agent]\npath = "../agent"\nbinary = "init"\n'
    )
    plan = a_plan("own", project)
    store = Store(tmp_path / "store")

    def taken(stage: str, role: str) -> set[str]:
        reference = plan.stage(stage).inputs[role]
        store.add_local(plan.local[reference], reference)
        store.lay_out(reference, tmp_path / stage)
        files = (path for path in (tmp_path / stage).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / stage)) for path in files}

    assert taken("kernel", "source") == {"Makefile", "tools/build/Makefile", "build/x"}
    assert taken("initramfs", "files/opt/app") == {
        *(".git/HEAD", "build/index.js", "lib/__pycache__/a.pyc")
    }
    assert taken("agent", "folder") == {"main.c", "gen/build/table.h", "gen/__pycache__/a.pyc"}
    sources = json.dumps(plan.stage("image").params["sources"])
    assert plan.stage("agent").inputs["folder"] in sources
    assert plan.stage("kernel").inputs["source"] in sources

    folder_with(project / "agent", "build/more.o")
    folder_with(project / "linux", ".git/ORIG_HEAD")
    assert a_plan("own", project).stage("image").key == plan.stage("image").key
    folder_with(project / "app", "build/more.js")
    assert a_plan("own", project).stage("initramfs").key != plan.stage("initramfs").key
    agent = project / "agent"
    shutil.rmtree(agent / "build")
    (agent / "build").write_text("#!/bin/sh\n")
    assert a_plan("own", project).stage("agent").key != plan.stage("agent").key, "a file is written"


@pytest.mark.usefixtures("tools")
def test_no_password_of_a_source_reaches_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.toml").write_text(
        'schema = 1\nextends = "sev-guest"\nname = "own"\n'
        f'[sources.mine]\nurl = "https://me:secret@a.example/agent"\nsha256 = "{"1" * 64}"\n'
        '[agent]\nsource = "mine"\n'
    )
    library = Library.of(tmp_path)
    recipe = load("own", {}, library)
    pins = fake_pins(requests(recipe))
    origin = {"kind": "url", "url": "https://me:secret@a.example/agent"}
    pin = Pin(f"blob:{'1' * 64}", "agent", None, origin)
    plan = make_plan(recipe, library, {**pins, "mine": [pin]})
    records = json.dumps([stage.record() for stage in plan.stages])
    assert "https://a.example/agent" in records
    assert "secret" not in records
    assert plan.pins[pin.reference].origin == origin
