# SPDX-License-Identifier: Apache-2.0
"""What a shell completes, and the log of a step."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_plan import a_plan

from sevkit.cli.words import STAGES
from sevkit.exports import FORMATS

Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text("")
    (tmp_path / "output" / "mine" / "1.0").mkdir(parents=True)
    (tmp_path / "output" / "mine" / "latest").symlink_to("1.0")
    logs = tmp_path / "output" / ".log"
    logs.mkdir()
    for age, (name, text) in enumerate(
        [("console", "Linux\x1b[2J\n"), ("kernel-0123456789ab", "old\n"), ("kernel-ba", "new\n")]
    ):
        (logs / f"{name}.log").write_text(text)
        os.utime(logs / f"{name}.log", (1000 + age, 1000 + age))
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last of `words`; each row is a type and a word."""
    environment = {
        **os.environ,
        "_SEVKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["sevkit", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from sevkit.cli import run; run([])"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("build", "mi"), ["mine"]),
        (("build", "mine:k"), ["mine:kernel"]),
        (("build", "mine", ":", "ke"), ["kernel"]),
        (("check", "sev-guest-d"), ["sev-guest-debian-amdsev", "sev-guest-debug"]),
        (("boot", "m"), ["mine"]),
        (("verify", "./ou"), ["./ou"]),
        (("diff", "mine", "mi"), ["mine"]),
        (("export", "mine", "qemu"), ["qemu", "qemu-config"]),
        (("export", "mine", "s"), ["slsa"]),
        (("log", ""), ["console", "kernel"]),
        (("ins",), ["install"]),
    ],
)
def test_a_shell_completes(project: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(project, *words) == offered


def test_the_stages_that_are_offered_are_those_that_every_image_has() -> None:
    for recipe in ("sev-guest", "sev-guest-ovmf"):
        assert set(STAGES) <= {stage.name for stage in a_plan(recipe).stages}


def test_help_of_export_and_its_refusal_name_every_format(sevkit: Sevkit) -> None:
    shown, refused = sevkit("export", "--help").stdout, sevkit("export", "x", "nonsense")
    assert refused.returncode == 2
    for name, form in FORMATS.items():
        assert name in refused.stderr
        assert form.summary in " ".join(shown.split())


def test_the_newest_log_of_a_stage_is_shown_with_control_characters_spelled_out(
    sevkit: Sevkit, project: Path
) -> None:
    assert sevkit("log", cwd=project).stdout == "new\n"
    assert sevkit("log", "kernel", cwd=project).stdout == "new\n"
    shown = sevkit("log", "console", cwd=project)
    assert (shown.stdout, shown.stderr) == ("Linux\\x1b[2J\n", "output/.log/console.log:\n")
    where = sevkit("log", "kernel", "--path", cwd=project).stdout
    assert where == f"{project}/output/.log/kernel-ba.log\n"


def test_a_log_that_is_not_there_names_those_that_are(sevkit: Sevkit, project: Path) -> None:
    missing = sevkit("log", "firmware", cwd=project)
    assert missing.returncode == 2
    assert "there are logs of console, kernel" in missing.stderr
    none = sevkit("--output", project / "empty", "log", cwd=project)
    assert (none.returncode, "there is no log in" in none.stderr) == (2, True)
