# SPDX-License-Identifier: Apache-2.0
"""Whose tools a build uses, and that every stage's key knows it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from test_plan import REPOSITORY, fake_pins

from sevkit import plan as planning
from sevkit.errors import RecipeError
from sevkit.plan import make_kconfig_plan, make_plan, requests
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.sources import DebGroup, Pin
from sevkit.stage import Plan
from sevkit.toolchain import CHECKS, HOST, Toolchain, package_of, packages, toolchain, tools_of

TRIXIE = Toolchain("trixie")
UNCONFINED = Toolchain(None, confined=False)


def planned(tools: Toolchain, monkeypatch: pytest.MonkeyPatch, *, host: str = "1.0") -> Plan:
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} {host}")
    recipe = load("sev-guest", {}, Library.of(REPOSITORY))
    pins = fake_pins(requests(recipe, tools))
    if tools.suite is not None:
        pins["debs:toolchain"] = [
            Pin(f"blob:{number:064x}", f"{name}.deb", 1, {"package": name, "version": "1-2"})
            for number, name in enumerate(packages(), 1000)
        ]
    return make_plan(recipe, Library.of(REPOSITORY), pins, tools)


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def test_the_options_mean_what_they_say() -> None:
    assert toolchain("host", "bwrap") == HOST
    assert toolchain("host", "none") == UNCONFINED
    assert toolchain("debian:trixie", "bwrap") == TRIXIE
    assert (TRIXIE.name, TRIXIE.sandbox) == ("debian:trixie", "bwrap")


@pytest.mark.parametrize(
    ("name", "sandbox", "words"),
    [
        ("trixie", "bwrap", "no toolchain 'trixie'"),
        ("debian:", "bwrap", "no toolchain 'debian:'"),
        ("debian:../x", "bwrap", "no toolchain"),
        ("debian:trixie", "none", "needs the sandbox"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, sandbox: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        toolchain(name, sandbox)


def test_a_toolchain_is_asked_for_as_packages_of_its_suite() -> None:
    recipe = load("sev-guest", {}, Library.of(REPOSITORY))
    group = requests(recipe, TRIXIE)["debs:toolchain"]
    assert isinstance(group, DebGroup)
    assert group.suite == "trixie"
    assert {"gcc", "make", "nasm", "libelf-dev", "python3"} <= set(group.packages)
    assert "debs:toolchain" not in requests(recipe)


def test_every_tool_of_every_stage_is_in_the_toolchain() -> None:
    kinds = {"agent", "edk2", "edk2_tools", "initramfs", "kconfig_tree", "kernel"}
    for kind in sorted(kinds):
        assert tools_of(kind), kind
        for tool, package in tools_of(kind).items():
            assert package in packages()
            assert package_of(tool) == package
    stages = Path(planning.__file__).parent / "stages"
    with_tools = {path.stem for path in stages.glob("*.py") if "\nTOOLS = " in path.read_text()}
    assert with_tools == kinds | set(CHECKS)


def test_what_only_judges_takes_the_host_s_programs_with_a_toolchain_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proof = planned(TRIXIE, monkeypatch).stage("firmware-proof")
    assert proof.kind in CHECKS
    assert "toolchain" not in proof.inputs
    assert not set(tools_of(proof.kind).values()) & set(packages())


def test_what_compiles_is_keyed_by_the_toolchain_and_no_more_by_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, packaged = planned(HOST, monkeypatch), planned(TRIXIE, monkeypatch)
    differ = {name for name, key in keys(host).items() if keys(packaged)[name] != key}
    made = {"agent", "initramfs", "kernel", "firmware-tools", "firmware", "image"}
    assert differ == made | {"firmware-proof"}
    for name in ("agent", "kernel", "firmware-tools", "firmware"):
        assert packaged.stage(name).inputs["toolchain"] == packaged.stage("toolchain").reference
    assert packaged.stage("image").params["toolchain"] == {
        "gcc": "gcc 1-2 (debian:trixie)",
        "ld": "binutils 1-2 (debian:trixie)",
    }
    assert keys(planned(TRIXIE, monkeypatch, host="2.0")) == keys(packaged)
    assert keys(planned(HOST, monkeypatch, host="2.0")) != keys(host)


def test_what_was_built_unconfined_is_never_taken_for_what_was_confined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confined, open_ = planned(HOST, monkeypatch), planned(UNCONFINED, monkeypatch)
    same = {name for name, key in keys(confined).items() if keys(open_)[name] == key}
    assert same == {"sysroot", "agent-sysroot"}
    build = open_.stage("image").params["build"]
    assert isinstance(build, Mapping)
    stated = {key: build[key] for key in ("variables", "toolchain", "sandbox")}
    assert stated == {
        "variables": {"kernel_series": "6.12"},
        "toolchain": "host",
        "sandbox": "none",
    }


def test_questions_about_the_kernel_are_asked_with_the_toolchain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "tool_version", lambda name: "1.0")
    recipe = load("sev-guest", {}, Library.of(REPOSITORY))
    pins = fake_pins(requests(recipe, TRIXIE))
    plan = make_kconfig_plan(recipe, Library.of(REPOSITORY), pins, TRIXIE)
    assert [stage.name for stage in plan.stages] == ["toolchain", "kconfig-tree"]
    assert "toolchain" in plan.stages[-1].inputs
