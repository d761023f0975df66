# SPDX-License-Identifier: Apache-2.0
"""Where things are found, which comes first, and what is said when nothing is."""

from pathlib import Path

import pytest

from sevkit.errors import RecipeError
from sevkit.recipe.library import Library, built_in_root, nearest

REPOSITORY = Path(__file__).resolve().parents[2]


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """A project and what is built in, with one name in both."""
    for root in ("project", "built-in"):
        write(tmp_path / root / "recipes" / "both.toml")
        write(tmp_path / root / "recipes" / f"{root}.toml")
        write(tmp_path / root / "kernel-configs" / "both.config")
        write(tmp_path / root / "kernel-configs" / f"{root}.config")
        write(tmp_path / root / "patches" / "both" / "series")
        write(tmp_path / root / "patches" / f"linux-{root}" / "series")
    (tmp_path / "built-in" / "patches" / "no-series").mkdir()
    return Library((tmp_path / "project", tmp_path / "built-in"))


def test_the_projects_own_comes_first(library: Library) -> None:
    project, built_in = library.roots
    assert library.recipe("both") == project / "recipes" / "both.toml"
    assert library.recipe("built-in") == built_in / "recipes" / "built-in.toml"
    assert library.fragment("both") == project / "kernel-configs" / "both.config"
    assert library.fragment("built-in") == built_in / "kernel-configs" / "built-in.config"
    assert library.patches("both") == project / "patches" / "both"
    assert library.patches("linux-built-in") == built_in / "patches" / "linux-built-in"


def test_names_of_both_are_listed_once_and_in_order(library: Library) -> None:
    write(library.roots[0] / "recipes" / ".hidden.toml")
    write(library.roots[0] / "recipes" / "notes.md")
    assert library.recipes() == ["both", "built-in", "project"]
    assert library.fragments() == ["both", "built-in", "project"]
    assert library.series() == ["both", "linux-built-in", "linux-project"]


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("recipe", "projekt", "there is no recipe 'projekt': did you mean 'project'?"),
        ("recipe", "BOTH", "there is no recipe 'BOTH': did you mean 'both'?"),
        ("recipe", "xyzzy", "there is no recipe 'xyzzy': one of both, built-in, project"),
        ("fragment", "bosh", "there is no kernel config fragment 'bosh': did you mean 'both'?"),
        ("patches", "linux-projec", "there is no patch series 'linux-projec': did you mean"),
        ("patches", "no-series", "there is no patch series 'no-series'"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest_and_where_was_looked(
    kind: str, name: str, what: str, library: Library
) -> None:
    with pytest.raises(RecipeError) as caught:
        getattr(library, kind)(name)
    assert caught.value.what.startswith(what)
    for root in library.roots:
        assert str(root) in caught.value.why


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../both", "a/../both", "/both", "a\0b", "x" * 999]
)
def test_a_name_never_leads_out_of_the_library(name: str, library: Library) -> None:
    write(library.roots[0] / "both.config")
    write(library.roots[0] / "series")
    for find in (library.fragment, library.patches):
        with pytest.raises(RecipeError, match="there is no"):
            find(name)


def test_a_folder_in_the_place_of_a_file_is_passed_over(library: Library) -> None:
    (library.roots[0] / "recipes" / "built-in.toml").mkdir()
    assert library.recipe("built-in") == library.roots[1] / "recipes" / "built-in.toml"


def test_what_looks_like_a_path_is_one(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert library.recipe("both.toml") == tmp_path / "both.toml"
    assert library.recipe("./project/recipes/both.toml").samefile(library.recipe("both"))
    child = library.recipe("both")
    assert library.parent("project.toml", child) == child.parent / "project.toml"
    assert library.parent("../x/y.toml", child) == tmp_path / "project" / "x" / "y.toml"


def test_a_recipe_that_extends_its_own_name_means_the_next_one(library: Library) -> None:
    project, built_in = library.roots
    child = project / "recipes" / "both.toml"
    assert library.parent("both", child) == built_in / "recipes" / "both.toml"
    assert library.parent("project", child) == project / "recipes" / "project.toml"
    with pytest.raises(RecipeError, match="there is no recipe 'both'"):
        library.parent("both", built_in / "recipes" / "both.toml")


def test_an_agent_is_looked_for_beside_the_recipe_then_in_the_project(
    library: Library, tmp_path: Path
) -> None:
    beside = tmp_path / "project" / "recipes"
    for place in (tmp_path / "built-in", tmp_path / "project", beside):
        (place / "agent").mkdir()
        assert library.agent(Path("agent"), beside) == place / "agent"
    assert library.agent(tmp_path / "built-in" / "agent", beside) == tmp_path / "built-in" / "agent"
    assert library.agent(Path("none"), beside) == beside / "none"


def test_every_place_that_was_looked_at_is_remembered(library: Library) -> None:
    """So that a file which appears there later is noticed."""
    library.recipe("built-in")
    assert library.roots[0] / "recipes" / "built-in.toml" in library.observed
    library.recipes()
    assert library.roots[0] / "recipes" in library.observed


def test_what_is_built_in_is_found_from_any_folder(tmp_path: Path) -> None:
    library = Library.of(tmp_path)
    assert library.roots == (tmp_path.resolve(), built_in_root())
    assert {"sev-guest", "sev-guest-builtin"} <= set(library.recipes())
    assert {"base", "sev", "virtio-dma", "container", "hardening"} <= set(library.fragments())
    assert {"linux-6.1", "linux-6.12"} <= set(library.series())
    assert (library.agent(Path("agent"), tmp_path) / "Makefile").is_file()


def test_what_a_vendored_project_brings_along_stands_before_what_is_built_in(
    tmp_path: Path,
) -> None:
    brought = tmp_path.resolve() / "built-in"
    assert brought in Library.of(tmp_path).observed
    assert Library.of(tmp_path).recipe("sev-guest").is_relative_to(built_in_root())
    own = write(tmp_path / "recipes" / "sev-guest.toml")
    parent = write(brought / "recipes" / "sev-guest.toml")
    library = Library.of(tmp_path)
    assert library.roots == (tmp_path.resolve(), brought, built_in_root())
    assert library.recipe("sev-guest") == own
    assert library.parent("sev-guest", own) == parent
    assert library.parent("sev-guest", parent).is_relative_to(built_in_root())


def test_in_a_checkout_the_project_is_what_is_built_in() -> None:
    assert Library.of(REPOSITORY).roots == (REPOSITORY,)


def test_folders_above_the_project_are_not_searched(library: Library) -> None:
    below = library.roots[0] / "recipes"
    with pytest.raises(RecipeError):
        Library((below,)).recipe("both")


def test_a_project_without_any_folder_has_no_names(tmp_path: Path) -> None:
    library = Library((tmp_path / "none",))
    assert (library.recipes(), library.fragments(), library.series()) == ([], [], [])
    with pytest.raises(RecipeError) as caught:
        library.recipe("x")
    assert caught.value.what == "there is no recipe 'x'"


def test_the_nearest_name_is_offered_or_all_are() -> None:
    assert nearest("lnux", ["linux", "ovmf"]) == ": did you mean 'linux'?"
    assert nearest("xyz", ["b", "a"]) == ": one of a, b"
    assert nearest("xyz", []) == ""


def test_of_many_names_some_are_listed_and_of_very_many_none_is_compared() -> None:
    some = [f"n{number:04}" for number in range(31)]
    assert nearest("xyz", some[:30]).endswith(", n0029")
    assert nearest("xyz", some).endswith(", n0029 and 1 more")
    many = [f"n{number:04}" for number in range(501)]
    assert nearest("n0001x", many[:500]) == ": did you mean 'n0001'?"
    assert nearest("n0001x", many).endswith(" and 471 more")
    assert nearest("N0001", many) == ": did you mean 'n0001'?"
