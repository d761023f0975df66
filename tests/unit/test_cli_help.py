# SPDX-License-Identifier: Apache-2.0
"""What `--help` says, and that what it shows works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sevkit.cli import main
from sevkit.cli.verbs import SECTIONS

ROWS = {name: row for verbs in SECTIONS.values() for name, row in verbs.items()}
EXAMPLES = [(name, example) for name, row in ROWS.items() for example in row.examples]
FILES = ("FOLDER", "KEY", "REPORT", "manifest.json", "vcek.pem", "release.pub", "OVMF.fd")


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}".strip(), command
        if isinstance(command, click.Group):
            yield from commands(command, name)


def test_every_verb_has_a_row_and_its_summary_is_shown_whole() -> None:
    assert set(ROWS) == set(main.commands)
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    for name, row in ROWS.items():
        assert len(row.summary) <= 50
        assert re.search(rf"^  {name} +{re.escape(row.summary)}$", shown, re.M), name


@pytest.mark.parametrize(("name", "command"), list(commands(main)))
def test_every_option_says_what_it_does(name: str, command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_an_example_is_shown_and_is_a_call_that_is_understood(
    name: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = CliRunner().invoke(main, [name, "--help"]).output
    assert f"sevkit {example}" in shown
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        if file == "FOLDER" and name in ("boot", "run"):
            (tmp_path / file).mkdir()
        elif name != "vendor":
            (tmp_path / file).write_text("")
    command: click.Command = main
    words = shlex.split(example)
    context = click.Context(main, info_name="sevkit")
    while isinstance(command, click.Group):
        command, context = command.commands[words[0]], click.Context(command, parent=context)
        words = words[1:]
    command.parse_args(context, words)


def test_fetching_offers_no_flag_of_a_build() -> None:
    options = {option for one in main.commands["fetch"].params for option in one.opts}
    assert not options & {"-j", "-B"}
    assert options >= {"--json", "--ci", "--locked", "--toolchain"}


def test_the_list_keeps_its_columns_and_a_missing_image_hints_at_what_can_be_built(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipes").mkdir()
    long = "a-recipe-with-a-name-of-forty-characters"
    text = f'schema = 1\nextends = "sev-guest"\nname = "{long}"\nsummary = "of my own"\n'
    (tmp_path / "recipes" / f"{long}.toml").write_text(text)
    call = [sys.executable, "-m", "sevkit"]
    listed = subprocess.run(
        [*call, "list"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    columns = {line.index("1.0.0") for line in listed.stdout.splitlines() if "1.0.0" in line}
    assert columns == {len(long) + 2}
    for here, place in ((tmp_path, ""), (tmp_path.parent, f"-C {tmp_path.name} ")):
        for name, hint in ((long, f"build {long}"), ("nonsense", "list")):
            refused = subprocess.run(
                [*call, "-C", tmp_path, "verify", name], cwd=here, capture_output=True, check=False
            )
            assert f"try: sevkit {place}{hint}\n" in refused.stderr.decode()
    pasted = [*call, *place.split(), "list"]
    again = subprocess.run(pasted, cwd=here, capture_output=True, text=True, check=True)
    assert again.stdout == listed.stdout


def test_no_hint_is_a_guess() -> None:
    """A hint names an action; a name that was perhaps meant belongs to what is wrong."""
    for path in Path(sys.modules["sevkit"].__path__[0]).rglob("*.py"):
        found = re.search(r'hint=f?"(did you mean|one of)', path.read_text("utf-8"))
        assert found is None, path


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sevkit.cli import main; main(['--help'], standalone_mode=False);"
        "print(*(set(sys.modules) & {'pydantic', 'jinja2', 'requests', 'kconfiglib', 'tqdm',"
        " 'cryptography', 'sevsnpmeasure', 'libarchive', 'zstandard'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == ""
