# SPDX-License-Identifier: Apache-2.0
"""A recipe from someone else: its templates reach nothing, its names lead nowhere."""

import time
from pathlib import Path

import pytest
from recipe_samples import Project

from sevkit.errors import RecipeError
from sevkit.recipe.template import Templates

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''['__class__'] }}",
    "{{ a|map(attribute='__class__')|list }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__ }}",
    "{{ joiner }}",
    "{{ namespace(x=1) }}",
    "{{ config }}",
    "{{ request }}",
    "{{ '%s'|format(a) }}",
    "{{ '{0.__class__}'.format(a) }}",
    "{{ a|xmlattr }}",
    "{{ a|pprint }}",
    "{{ a|tojson }}",
    "{{ dict(a=1) }}",
    "{{ range(9999999999) }}",
    "{{ 'x' * 9999999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ a|center(9999999999) }}",
    "{{ a|indent(9999999999) }}",
    "{% for x in a %}{{ x }}{% endfor %}",
    "{% set x = a %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{% call a() %}{% endcall %}",
    "{% filter upper %}x{% endfilter %}",
    "{{ a is callable }}",
    "{{ [a, a] }}",
    "{{ {'a': a} }}",
    "{{ (a, a)|first }}",
    "{{ a|default(self) }}",
    "{{ a|replace('', a)|replace('', a)|replace('', a)|replace('', a) }}" * 9,
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_template_that_reaches_for_more_than_text_is_refused_at_once(text: str) -> None:
    templates = Templates({"a": "x" * 100}, {})
    started = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        templates.render(text)
    assert time.perf_counter() - started < 2
    assert "root:" not in str(caught.value)
    assert templates.render("{{ a|upper }}") == "X" * 100


@pytest.mark.parametrize(
    ("evil", "good"),
    [
        ('[sources.x]\ndeb = "aa"\nmember = "../b"\n', '[sources.x]\ndeb = "aa"\nmember = "b"\n'),
        ('[initramfs.files]\n"/../x" = "base.toml"\n', '[initramfs.files]\n"/x" = "base.toml"\n'),
        ('version = "../x"\n', 'version = "1.2"\n'),
        ('kernel = { configs = ["../one"] }\n', 'kernel = { configs = ["one"] }\n'),
        ('kernel = { cmdline = ["a\\nb"] }\n', 'kernel = { cmdline = ["a"] }\n'),
        (
            f'[sources.x]\nurl = "file:///etc/shadow"\nsha256 = "{"0" * 64}"\n',
            f'[sources.x]\nurl = "https://example.org/a"\nsha256 = "{"0" * 64}"\n',
        ),
        (
            f'[sources.x]\ngit = "ext::sh -c x"\ncommit = "{"0" * 40}"\n',
            f'[sources.x]\ngit = "https://example.org/a"\ncommit = "{"0" * 40}"\n',
        ),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    evil: str, good: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = Project(tmp_path_factory.mktemp("project"))
    with pytest.raises(RecipeError, match=r"child\.toml:"):
        project.child(evil)
    assert project.child(good).name == "child"


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "a\\nb", "/a", "-a", ""])
def test_a_recipe_can_not_be_called_by_a_path(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = Project(tmp_path_factory.mktemp("project"))
    project.recipe("evil", f'schema = 1\nextends = "base"\nname = "{name}"\n')
    with pytest.raises(RecipeError, match=r"evil\.toml:3: name"):
        project.load("evil")
    assert project.child("").name == "child"


@pytest.mark.parametrize(
    "written",
    [
        '[initramfs.files]\n"/x" = "{}"\n',
        '[sources.x]\nfile = "{}"\n',
        'agent = {{ path = "{}", binary = "b" }}\n',
    ],
)
def test_a_recipe_takes_nothing_from_outside_of_the_project(
    written: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By its own path, by `..`, or through a link; what is inside is taken, through a link too."""
    project = Project(tmp_path)
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    inside = project.folder / "inside"
    inside.mkdir()
    (inside / "file").write_text("no secret")
    is_folder = "path" in written
    secret = outside if is_folder else outside / "secret"
    (inside / "way-out").symlink_to(secret)
    (inside / "way-in").symlink_to(inside if is_folder else inside / "file")
    climb = "../" * len(project.folder.parts) + "../.."
    for path in (str(secret), f"{climb}{secret}", "../inside/way-out"):
        with pytest.raises(RecipeError) as caught:
            project.child(written.format(path))
        assert "lies outside of the project" in str(caught.value)
    for path in ("../inside" if is_folder else "../inside/file", "../inside/way-in"):
        project.child(written.format(path))


def test_a_git_repository_of_this_machine_must_lie_in_the_project(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A private one would else be in what a recipe of somebody else's gives."""
    project = Project(tmp_path)
    outside = tmp_path_factory.mktemp("private")
    (project.folder / "größe").mkdir()
    (project.folder / "way-out").symlink_to(outside)
    written = '[sources.x]\ngit = "file://{}"\ncommit = "' + "0" * 40 + '"\n'
    hidden = str(outside).replace("private", "p%72ivate")
    climb = f"{project.folder}/../{outside.name}"
    for path in (outside, climb, f"{project.folder}/way-out", hidden, f"{outside}/.git", "a/b"):
        with pytest.raises(RecipeError) as caught:
            project.child(written.format(path))
        assert "sources.x.git: " in str(caught.value)
        assert "lies outside of the project" in str(caught.value)
    assert project.child(written.format(project.folder / "größe")).name == "child"
