# SPDX-License-Identifier: Apache-2.0
"""What the verbs that start a guest take and refuse. In QEMU's place is a double."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import image_samples
import pytest
from guest_double import write_double

from sevkit.cli import run

GUEST = """
console.sendall(b"booted\\n")
if agent is None:
    sleep(0.2)
    sys.exit()
greet()
heard = hear()
if heard["method"] == "run":
    answer(heard, process=1)
    waits.append(asked("wait"))
    frame(2, " ".join(heard["params"]["argv"]).encode(), 1)
    end()
elif heard["method"] == "create":
    config = json.loads(heard["params"]["config"])
    answer(heard, process=1, tty=config["process"]["terminal"])
    answer(asked("start"))
    waits.append(asked("wait"))
    frame(2, b"terminal" if config["process"]["terminal"] else b"none", 1)
    answer(waits.pop(), status=7)
    answer(asked("stats"))
    reports()
    answer(asked("delete"))
    asked("shutdown")
"""
Sevkit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sevkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Sevkit:
    """The exit status of a verb for an image, and what it told on both streams."""
    (tmp_path / "image").mkdir()
    image = image_samples.image(tmp_path / "image")
    double = write_double(tmp_path / "double", GUEST)
    qemu = tmp_path / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 9.1.0" && exit\n'
        f'exec {double} "$@"\n'
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SEVKIT_STORE", str(tmp_path / "store"))

    def called(verb: str, *options: str, after: Sequence[str] = ()) -> tuple[int, str, str]:
        output = ["--output", str(tmp_path / "output")]
        status = run([*output, verb, "--accel", "tcg", *options, str(image), *after])
        told = capfd.readouterr()
        return status, told.out, told.err

    return called


def test_the_console_alone_is_shown_or_a_command_run(sevkit: Sevkit) -> None:
    assert sevkit("boot", "--console")[:2] == (0, "booted\n")
    assert sevkit("boot", "--console", "--until", "boot", "--timeout", "20")[:2] == (0, "booted\n")
    assert sevkit("boot", after=["id", "--console"])[:2] == (7, "id --console")
    status, _, told = sevkit("boot", "--json", after=["id"])
    assert status == 7
    assert '"exit_status": 7' in told


@pytest.mark.parametrize(
    ("options", "command", "why"),
    [
        (["--console"], ["id"], "--console takes no COMMAND and no --json"),
        (["--console", "--until", "boot"], ["id"], "--console takes no COMMAND"),
        (["--console", "--json"], [], "--console takes no COMMAND and no --json"),
        (["--until", "boot"], [], "--until and --timeout are of --console"),
        (["--timeout", "9"], [], "--until and --timeout are of --console"),
        (["--timeout", "9"], ["id"], "--until and --timeout are of --console"),
        (["--console", "--timeout", "0"], [], "--timeout: must be above 0"),
    ],
)
def test_options_that_would_do_nothing_are_a_wrong_call(
    sevkit: Sevkit, options: list[str], command: list[str], why: str
) -> None:
    status, out, told = sevkit("boot", *options, after=command)
    assert (status, out) == (2, "")
    assert why in told


def test_a_container_has_a_terminal_where_one_is_asked_for(sevkit: Sevkit, tmp_path: Path) -> None:
    after = [f"dir:{tmp_path}", "id"]
    for options, out in (([], "none"), (["-i"], "none"), (["-t"], "terminal")):
        assert sevkit("run", *options, after=after)[:2] == (7, out)
    status, _, told = sevkit("run", "-t", "-i", after=after)
    assert status == 2
    assert "-t with -i: standard input is not a terminal" in told


def test_a_guest_has_room_for_the_memory_of_its_container(sevkit: Sevkit, tmp_path: Path) -> None:
    sizes = []
    for options in ([], ["--memory", "1G"], ["--memory", "1G", "--guest-memory", "600M"]):
        status, _, told = sevkit("run", "--json", *options, after=[f"dir:{tmp_path}", "id"])
        assert status == 7
        sizes.append(json.loads(told[told.index("{") :])["memory_mib"])
    assert sizes[0] < 1024 < sizes[1]
    assert sizes[2] == 600
