# SPDX-License-Identifier: Apache-2.0
"""Every command that README.md and the pages of docs/ show does what it says.

tests/documented.py tells authors of pages what is run where.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from documented import PAGES, REPOSITORY, Command, Page, read

pytestmark = [pytest.mark.boots, pytest.mark.network]

RUN_ELSEWHERE = {"make test", "make bench", "make check", "make format", "make fuzz"}
"""What runs this test, what it runs beside, and what measures."""

READ = {page.name: page for page in map(read, PAGES)}
COMMANDS = [
    command
    for page in READ.values()
    for command in page.commands
    if command.run_by is None and command.excuse is None and command.line not in RUN_ELSEWHERE
]


@pytest.fixture(scope="session")
def folder_of(
    tmp_path_factory: pytest.TempPathFactory, busybox_root: Path, sev_guest: Path
) -> Callable[[Page], Path]:
    """The folder that a reader of a page works in; the same one for all commands of the page."""
    made: dict[str, Path] = {}

    def folder(page: Page) -> Path:
        if page.name not in made:
            place = made[page.name] = tmp_path_factory.mktemp(page.name.removesuffix(".md"))
            (place / "recipes").mkdir()
            for name, text in page.recipes.items():
                (place / "recipes" / name).write_text(text, encoding="utf-8")
            (place / "rootfs").symlink_to(busybox_root)
            (place / "output").mkdir()
            (place / "output" / "sev-guest").symlink_to(sev_guest.parent)
        return made[page.name]

    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}: {one.line}")
def test_a_documented_command_works(command: Command, folder_of: Callable[[Page], Path]) -> None:
    folder = folder_of(READ[command.page])
    result = subprocess.run(
        ["sh", "-c", command.line],
        cwd=REPOSITORY if command.line.startswith("make ") else folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == command.status, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() or command.status or ">" in command.line


def test_the_readers_are_fuzzed_as_the_page_says() -> None:
    command = ["make", "fuzz", "RUNS=2"]
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^all of \d+: \d+ runs, 0 crashes", result.stdout, re.M)
