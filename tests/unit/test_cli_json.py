# SPDX-License-Identifier: Apache-2.0
"""With `--json` a program reads stdout: every line an event, and the last one says how it ended."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]
Events = Callable[..., tuple[int, Rows, str]]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    return tmp_path


@pytest.fixture
def events(sevkit: Sevkit, project: Path) -> Events:
    """Runs a verb; gives its status, its events, and what it said on stderr."""

    def run(*words: str) -> tuple[int, Rows, str]:
        environment = {"SEVKIT_STORE": str(project / "store")}
        done = sevkit("-C", project, *words, "--json", cwd=project, env=environment)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, rows, done.stderr

    return run


@pytest.mark.parametrize("verb", [("build",), ("build", "-n"), ("fetch",), ("vendor", "folder")])
def test_an_error_before_the_build_is_an_event_too(events: Events, verb: tuple[str, ...]) -> None:
    status, rows, said = events(*verb, "no-such-recipe")
    assert status == 2
    assert [row["event"] for row in rows] == ["BuildFailed"]
    assert rows[0]["exit_code"] == 2
    assert "no-such-recipe" in rows[0]["what"]
    assert said.startswith("sevkit: error: ")


def test_a_variable_that_is_set_twice_and_a_store_that_is_a_file_are_events(
    events: Events, project: Path
) -> None:
    status, rows, _ = events("build", "a=1", "a=2")
    assert (status, rows[-1]["what"]) == (2, "a is set twice, to '1' and to '2'")
    shutil.rmtree(project / "store", ignore_errors=True)
    (project / "store").write_text("")
    status, rows, _ = events("build")
    assert (status, rows[-1]["event"], rows[-1]["exit_code"]) == (3, "BuildFailed", 3)
    assert "can't be used" in rows[-1]["what"]
