# SPDX-License-Identifier: Apache-2.0
"""Commands in messages: they mean the same project wherever the user stands."""

import shlex
from pathlib import Path

import pytest

from sevkit.project.command_line import command_line
from sevkit.project.project import Project
from sevkit.toolchain import toolchain


@pytest.mark.parametrize(
    ("here", "project", "options"),
    [
        ("a", "a", []),
        ("a", "a/b/c", ["-C", "b/c"]),
        ("a", "a/it's b", ["-C", "it's b"]),
        ("a/b", "a", ["-C", ".."]),
        ("a/b", "a/c", ["-C", "../c"]),
        ("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/" * 3, "a", None),
    ],
)
def test_a_command_names_the_project_unless_the_user_stands_in_it(
    here: str,
    project: str,
    options: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (here, project):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    words = shlex.split(command_line(tmp_path / project, None, "list"))
    expected = ["-C", str(tmp_path / project)] if options is None else options
    assert words == ["sevkit", *expected, "list"]
    if expected:
        assert Path(expected[1]).resolve() == tmp_path / project


def test_a_link_and_dots_lead_to_the_same_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "project").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/project")
    monkeypatch.chdir(tmp_path)
    for folder in ("link", "link/../project"):
        words = shlex.split(command_line(tmp_path / folder, None, "list"))
        assert words == ["sevkit", "-C", "deep/project", "list"]
    monkeypatch.chdir("link")
    assert command_line(tmp_path / "link", None, "list") == "sevkit list"


def test_an_output_folder_is_named_where_it_is_another_and_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(tmp_path, tmp_path / "output", "list") == "sevkit list"
    assert command_line(tmp_path, tmp_path / "out", "list") == "sevkit --output out list"
    assert command_line(tmp_path, None, "list") == "sevkit list"


def test_a_command_for_a_recipe_says_all_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tools = tmp_path / "project", toolchain("debian:trixie", "bwrap")
    places = (folder, folder / "output", tmp_path / "store")
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "mini.toml").write_text(
        'schema = 1\nextends = "sev-guest"\nname = "mini"\n[vars]\nword = "a"\n'
    )
    project = Project(*places, lambda event: None, tools)
    plain = Project(*places, lambda event: None)
    monkeypatch.chdir(tmp_path)
    asked = "mini 'word=a b' --update --toolchain debian:trixie"
    recipe = project.recipe("mini", {"word": "a b"})
    assert project.command("lock", recipe, "--update") == f"sevkit -C project lock {asked}"
    assert plain.command("lock", plain.recipe("mini", {})) == "sevkit -C project lock mini"
    monkeypatch.chdir(folder)
    assert project.command("lock", recipe, "--update") == f"sevkit lock {asked}"
