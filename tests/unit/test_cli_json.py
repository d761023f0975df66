# SPDX-License-Identifier: Apache-2.0
"""With `--json` a program reads stdout: every line an event, and the last one says how it ended."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from image_samples import image as sample_image

REPOSITORY = Path(__file__).resolve().parents[2]
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


def answer(sevkit: Sevkit, project: Path, *words: str | Path, status: int = 0) -> Any:
    """The one JSON document that a verb prints."""
    environment = {"SEVKIT_STORE": str(project / "store")}
    done = sevkit("-C", project, *words, "--json", cwd=project, env=environment)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_recipes_are_listed_with_their_newest_image_or_what_is_wrong(
    sevkit: Sevkit, project: Path
) -> None:
    (project / "recipes" / "broken.toml").write_text("schema = 1\n")
    image = project / "output" / "sev-guest" / "1.0-0123456789ab"
    image.mkdir(parents=True)
    (image.parent / "latest").symlink_to(image.name)
    rows = {row["name"]: row for row in answer(sevkit, project, "list")}
    assert rows["sev-guest"]["latest"] == str(image)
    assert (rows["sev-guest"]["version"], rows["sev-guest"]["broken"]) == ("1.0.0", None)
    assert rows["broken"]["broken"]
    assert rows["sev-guest-lean"]["latest"] is None


def test_checks_and_cache_keys_have_a_row_for_each_recipe(sevkit: Sevkit, project: Path) -> None:
    names = ("sev-guest", "sev-guest-lean")
    checked = answer(sevkit, project, "check", "--no-kernel", *names)
    assert checked == [{"recipe": name, "correct": True, "absent": []} for name in names]
    first, second = answer(sevkit, project, "cache-key", *names)
    assert (first["recipe"], first["inputs"]) == ("sev-guest", [])
    assert first["key"] != second["key"]
    [row] = answer(sevkit, project, "cache-key", "--files")
    assert {"kind", "what"} == set(row["inputs"][0])


def test_collecting_says_what_went_and_what_is_left(sevkit: Sevkit, project: Path) -> None:
    told = answer(sevkit, project, "gc", "-n")
    assert (told["removed"], told["counts"], told["left_bytes"]) == (False, {}, 0)


def test_what_differs_in_an_image_and_who_signed_it(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    image = Path(shutil.copytree(sample_image(tmp_path / "bench"), tmp_path / "image"))
    good = answer(sevkit, project, "verify", image)
    assert good == {"image": str(image), "differences": [], "signature": None}
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    unsigned = answer(sevkit, project, "verify", image, "--key", f"{key}.pub", status=4)
    assert "is not signed" in unsigned["differences"][0]
    sevkit("sign", image, "--key", key)
    assert answer(sevkit, project, "verify", image, "--key", f"{key}.pub")["signature"]
    (image / "vmlinuz").chmod(0o644)
    (image / "vmlinuz").write_bytes(b"x")
    assert answer(sevkit, project, "verify", image, status=4)["differences"]


def test_an_exit_code_without_a_dry_run_is_refused(events: Events) -> None:
    status, rows, _ = events("build", "--exit-code")
    assert (status, rows[-1]["hint"]) == (2, "give -n too")


def test_keys_are_the_same_under_every_locale(
    sevkit: Sevkit, project: Path, latin_1: Mapping[str, str]
) -> None:
    shutil.copytree(REPOSITORY / "agent", project / "agent")
    (project / "agent" / "café.h").touch()
    answers = []
    for environment in ({"LC_ALL": "C.UTF-8"}, latin_1):
        done = sevkit("-C", project, "cache-key", "sev-guest", "--json", env=environment)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    (project / "agent" / "café.h").rename(project / "agent" / os.fsdecode(b"caf\xe9.h"))
    for environment in ({"LC_ALL": "C.UTF-8"}, latin_1):
        done = sevkit("-C", project, "cache-key", "sev-guest", env=environment)
        assert done.returncode == 1
        assert "agent/caf\\xe9.h: the name 'caf\\xe9.h' is not UTF-8" in done.stderr
