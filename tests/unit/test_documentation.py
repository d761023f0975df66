# SPDX-License-Identifier: Apache-2.0
"""Every command in README.md and docs/ is run by a test, or says why it can't be."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
from documented import PAGES, REPOSITORY, Page, read, verb

from sevkit.cli import main
from sevkit.exports import FORMATS

TARGETS = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Page:
    return read(request.param)


def test_commands_stand_in_blocks_that_are_run(page: Page) -> None:
    assert not page.stray, "fence these with ```sh, see tests/documented.py"


def test_a_command_that_the_page_does_not_run_names_a_test_that_exists(page: Page) -> None:
    for command in page.commands:
        if command.run_by is not None:
            file, test = command.run_by
            text = (REPOSITORY / file).read_text("utf-8")
            tree = ast.parse(text)
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in names, f"{page.name}: {command.line}: {file} has no {test}"
            assert page.name in text or command.line in text, f"{file} does not read {page.name}"


def test_the_commands_exist(page: Page) -> None:
    for line in [*(one.line for one in page.commands if one.is_ours), *page.inline]:
        if line.startswith("sevkit"):
            name = verb(line)
            assert name in {None, "VERB", *main.commands}, f"{page.name}: {line}"
        elif line.startswith("make ") and (target := re.match(r"make ([a-z]+)", line)):
            assert target[1] in TARGETS, f"{page.name}: {line}"


def test_calls_in_a_job_of_the_page_on_ci_are_understood() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text("utf-8")
    [job] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    calls = re.findall(r"(?<![\w./])sevkit ((?:[\w-]+ )[^)\n]*)", job)
    assert {call.split()[0] for call in calls} == {"build", "cache-key", "gc", "verify"}
    for call in calls:
        name, *words = shlex.split(call)
        command = main.commands[name]
        command.parse_args(click.Context(command, info_name=name), words)


def test_the_readme_is_a_page_and_names_every_export_format() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("sevkit export sev-guest")]
    assert set(FORMATS) <= set(re.findall(r"[\w-]+", line))
    assert len(text.splitlines()) <= 100


def test_a_page_s_commands_are_found_with_their_status_and_their_excuse(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "Text with `sevkit list` in it.\n\n"
        "```sh\nsevkit build a  # quick\nsevkit boot a -- sh -c 'exit 7'  # exits 7\n```\n\n"
        "<!-- not run: needs hardware -->\n```sh\nsevkit boot b\n```\n\n"
        "<!-- run by tests/unit/test_documentation.py::test_x -->\n"
        "```sh\nsevkit run \\\n c\n```\n\n"
        '```toml\n# recipes/a.toml\nname = "a"\n```\n\n```\n$ sevkit hidden\n```\n'
    )
    page = read(tmp_path / "page.md")
    first, second, third, fourth = page.commands
    assert (first.line, first.status, first.excuse, first.run_by) == (
        "sevkit build a",
        0,
        None,
        None,
    )
    assert (second.line, second.status) == ("sevkit boot a -- sh -c 'exit 7'", 7)
    assert (third.line, third.excuse) == ("sevkit boot b", "needs hardware")
    assert fourth.line.split() == ["sevkit", "run", "c"]
    assert fourth.run_by == ("tests/unit/test_documentation.py", "test_x")
    assert page.recipes == {"a.toml": '# recipes/a.toml\nname = "a"\n'}
    assert (page.inline, page.stray) == (("sevkit list",), ("sevkit hidden",))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("sevkit -C folder build x", "build"),
        ("sevkit --help", None),
        ("sevkit --output out boot x -- sh -c 'a b'", "boot"),
    ],
)
def test_the_verb_of_a_command_is_found_behind_global_flags(line: str, name: str | None) -> None:
    assert verb(line) == name
