# SPDX-License-Identifier: Apache-2.0
"""What the verbs that start a guest take and refuse. In QEMU's place is a double."""

import os
from collections.abc import Callable
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
"""
Boot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Boot:
    """The exit status of `boot IMAGE`, and what it told on both streams."""
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

    def called(*words: str, command: tuple[str, ...] = ()) -> tuple[int, str, str]:
        output = ["--output", str(tmp_path / "output")]
        status = run([*output, "boot", "--accel", "tcg", *words, str(image), *command])
        told = capfd.readouterr()
        return status, told.out, told.err

    return called


def test_the_console_alone_is_shown_or_a_command_run(boot: Boot) -> None:
    assert boot("--console")[:2] == (0, "booted\n")
    assert boot("--console", "--until", "boot", "--timeout", "20")[:2] == (0, "booted\n")
    assert boot(command=("id", "--console"))[:2] == (7, "id --console")
    status, _, told = boot("--json", command=("id",))
    assert status == 7
    assert '"exit_status": 7' in told


@pytest.mark.parametrize(
    ("words", "command", "why"),
    [
        (["--console"], ("id",), "--console takes no COMMAND and no --json"),
        (["--console", "--until", "boot"], ("id",), "--console takes no COMMAND"),
        (["--console", "--json"], (), "--console takes no COMMAND and no --json"),
        (["--until", "boot"], (), "--until and --timeout are of --console"),
        (["--timeout", "9"], (), "--until and --timeout are of --console"),
        (["--timeout", "9"], ("id",), "--until and --timeout are of --console"),
        (["--console", "--timeout", "0"], (), "--timeout: must be above 0"),
    ],
)
def test_options_that_would_do_nothing_are_a_wrong_call(
    boot: Boot, words: list[str], command: tuple[str, ...], why: str
) -> None:
    status, out, told = boot(*words, command=command)
    assert (status, out) == (2, "")
    assert why in told
