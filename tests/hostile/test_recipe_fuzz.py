# SPDX-License-Identifier: Apache-2.0
"""Whatever the file holds, there is a recipe or one error that names the file."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from recipe_samples import BASE, CHILD, Project

from sevkit.errors import RecipeError
from sevkit.recipe.model import Recipe

SEEDS = [
    BASE,
    CHILD,
    CHILD + '[vars]\na = "{{ series }}"\n[initramfs.files]\n"/etc/x" = "base.toml"\n',
    CHILD + 'agent = { path = ".", binary = "b" }\nkernel = { configs = ["..."] }\n',
]
FRAGMENTS = st.sampled_from(
    [
        *("[", "]", "{", "}", "{{", "}}", "{%", "=", ".", ",", '"', "'", '"""', "\n", "\\", "#"),
        *("[vars]", "[kernel]", "sources.x", 'deb = "x"', "extends", "1", "true", "nan", "..."),
        *("\r\n", "\r", "\ufeff", "\u2028", "é", "0x" + "f" * 40, "1e999", "[[kernel]]", "files"),
    ]
)
SCALARS = st.sampled_from(
    [
        *('"x"', '""', "0", "-1", "true", "nan", "1.5", "1979-05-27", "[]", "{}", '["..."]'),
        *("[[1]]", "[{}]", "{ a = 1 }", "[nan]", "[true]", str(1 << 63), str(1 << 64)),
        *('"{{ y }}"', '"{{ series }}"', '"{{ self }}"', '"/a"', f'"{"z" * 5000}"', '"\\u0000"'),
    ]
)
KEYS = st.sampled_from(
    [
        *("schema", "extends", "name", "version", "summary", "debug", "vars", "vars.series"),
        *("vars.y", "sources", "sources.linux", "sources.linux.deb", "sources.x.file"),
        *("sources.x.git", "sources.'[key]'", "kernel", "kernel.source", "kernel.patches"),
        *("kernel.configs", "kernel.cmdline", "agent", "agent.path", "agent.source"),
        *("agent.member", "initramfs", "initramfs.files", "initramfs.files.'/a'"),
        *("initramfs.max_size", "initramfs.level", "initramfs.debs", "firmware"),
        *("firmware.source", "launch", "launch.vcpus", "launch.modes", "nonsense", "'..'"),
    ]
)
MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def check(project: Project, content: str | bytes) -> None:
    """A recipe or one error; an error names the file and can be printed."""
    path = project.recipe("fuzz", content)
    result = outcome(project)
    if isinstance(result, RecipeError):
        assert str(path.parent) in str(result)
        assert str(result).encode()
    else:
        assert result.model_dump_json()
        assert hash(result) == hash(outcome(project))


def outcome(project: Project) -> Recipe | RecipeError:
    try:
        return project.load("fuzz")
    except RecipeError as error:
        return error


@MANY
@given(content=st.binary(max_size=200))
@example(content=b"\xef\xbb\xbfschema = 1")
def test_any_bytes_give_a_recipe_or_an_error(content: bytes, project: Project) -> None:
    check(project, content)


@MANY
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 20), FRAGMENTS | st.text(max_size=4))
    ),
)
def test_any_damage_to_a_recipe_gives_a_recipe_or_an_error(
    seed: str, edits: list[tuple[int, int, str]], project: Project
) -> None:
    for at, length, fragment in edits:
        seed = seed[:at] + fragment + seed[at + length :]
    check(project, seed.encode("utf-8", "surrogatepass"))


@MANY
@given(pairs=st.lists(st.tuples(KEYS, SCALARS), max_size=6, unique_by=lambda pair: pair[0]))
@example(pairs=[("schema", "nan")])
@example(pairs=[("extends", "1979-05-27")])
def test_any_values_of_any_types_give_a_recipe_or_an_error(
    pairs: list[tuple[str, str]], project: Project
) -> None:
    said = {key for key, _ in pairs}
    head = "".join(line for line in CHILD.splitlines(True) if line.split()[0] not in said)
    check(project, head + "".join(f"{key} = {value}\n" for key, value in pairs))


def test_what_the_property_tests_start_from_is_right(project: Project) -> None:
    for seed in SEEDS:
        check(project, seed)
        assert project.load("fuzz").name in ("base", "child")
