# SPDX-License-Identifier: Apache-2.0
"""The manual page is whole, and groff has nothing to say against it."""

import re
import shutil
import subprocess

import click
import pytest
from click.testing import CliRunner
from documented import REPOSITORY

from sevkit.cli import main
from sevkit.cli.manual import EXIT_STATUSES


@pytest.fixture(scope="module")
def page() -> str:
    return CliRunner().invoke(main, ["man"]).output


def test_every_verb_and_option_is_in_the_manual_page(page: str) -> None:
    plain = page.replace("\\-", "-")
    for name, command in main.commands.items():
        assert re.search(rf'^\.SS "sevkit {name}\b', plain, re.M), name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[-1] in plain, f"{name} {option.opts}"
    assert page.isascii()


def test_groff_formats_it_without_a_warning(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    call = ["groff", "-man", "-Tutf8", "-ww"]
    done = subprocess.run(call, input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    plain = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "sevkit boot sev-guest --rootfs FOLDER -- sh -c 'exit 7'" in plain
    assert "[COMMAND…]" in plain
    broken = subprocess.run(
        call, input=f"{page}.nosuch\n", capture_output=True, text=True, check=True
    )
    assert "nosuch" in broken.stderr


def test_the_page_on_ci_has_the_same_exit_statuses() -> None:
    text = (REPOSITORY / "docs" / "ci.md").read_text("utf-8")
    for status, meaning in EXIT_STATUSES.items():
        assert f"| {status} | {meaning} |" in text
