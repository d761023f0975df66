# SPDX-License-Identifier: Apache-2.0
"""What `--json` says of verbs that fetch and build, with the real ones."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Sevkit = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_fetching_ends_with_its_result(sevkit: Sevkit) -> None:
    last = rows(sevkit("fetch", "sev-guest-ovmf", "--json"))[-1]
    assert (last["event"], last["recipe"], last["path"]) == ("Result", "sev-guest-ovmf", None)


def test_a_vendored_folder_is_the_result(sevkit: Sevkit, tmp_path: Path) -> None:
    folder = tmp_path / "vendored"
    last = rows(sevkit("vendor", folder, "sev-guest-ovmf", "--json"))[-1]
    assert (last["event"], last["path"]) == ("Result", str(folder))
    assert (folder / "recipes").is_dir()


def test_a_dry_run_plans_a_task_a_line_and_a_build_does_them(
    sevkit: Sevkit, tmp_path: Path
) -> None:
    target = "sev-guest-ovmf:firmware"
    sevkit("build", target, "--ci")
    idle = rows(sevkit("build", "-n", target, "--json"))
    assert [(row["event"], row["idle"]) for row in idle] == [("Result", True)]
    planned = rows(sevkit("build", "-n", "-B", target, "--json"))
    assert [row["event"] for row in planned] == ["TaskPlanned", "Result"]
    assert (planned[0]["task"], planned[0]["reason"]) == ("firmware", "asked for")
    assert sevkit("build", "-n", "--exit-code", target).returncode == 0
    stale = sevkit("build", "-n", "--exit-code", "-B", target)
    assert (stale.returncode, stale.stdout) == (4, "sev-guest-ovmf: firmware: asked for\n")
    built = rows(sevkit("--output", tmp_path, "build", "-B", target, "--json"))
    assert [row["event"] for row in built][-2:] == ["TaskFinished", "Result"]
    assert Path(built[-1]["path"]).is_dir()


def test_stages_and_updates_are_told_for_each_recipe(sevkit: Sevkit, tmp_path: Path) -> None:
    sevkit("build", "sev-guest-ovmf:firmware", "--ci")
    told = sevkit("show", "sev-guest-ovmf", "sev-guest", "--json", "--why")
    first, second = json.loads(told.stdout)
    assert (first["recipe"], second["recipe"]) == ("sev-guest-ovmf", "sev-guest")
    [firmware] = [row for row in first["stages"] if row["name"] == "firmware"]
    assert (firmware["built"], firmware["why"], len(firmware["key"])) == (True, [], 64)
    headings = sevkit("show", "sev-guest-ovmf", "sev-guest").stdout.splitlines()
    assert [line for line in headings if line.endswith(":")] == ["sev-guest-ovmf:", "sev-guest:"]
    environment = {"SEVKIT_STORE": str(tmp_path)}
    updated = sevkit("update", "sev-guest-ovmf", "--json", env=environment)
    assert json.loads(updated.stdout) == [{"recipe": "sev-guest-ovmf", "changes": []}]
