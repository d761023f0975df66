# SPDX-License-Identifier: Apache-2.0
"""`sevkit boot` with a real image in a real QEMU: output, status, signals, and guests that die."""

import hashlib
import io
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sevkit.errors import ImageError
from sevkit.guest.session import Asked, Session

pytestmark = pytest.mark.boots

Boot = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def in_guest(
    sevkit: Callable[..., subprocess.CompletedProcess[str]], sev_guest: Path, busybox_root: Path
) -> Boot:
    """Runs a command in a guest of the default image whose root is the busybox tree."""

    def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
        arguments = ["boot", sev_guest, "--rootfs", busybox_root, "--", *command]
        return sevkit(*arguments, timeout=300, **options)

    return run


@pytest.fixture
def ready(sev_guest: Path, tmp_path: Path) -> Callable[[str], Session]:
    """The default image with more on its command line, ready to boot."""

    def of_image(cmdline: str = "") -> Session:
        return Session.of_image(
            sev_guest,
            Asked(more_cmdline=cmdline),
            cache=tmp_path / "cache",
            log=tmp_path / "console.log",
        )

    return of_image


@pytest.fixture
def session(ready: Callable[[str], Session]) -> Session:
    """The default image, ready to boot."""
    return ready("")


def boot_with(session: Session, **limits: float) -> None:
    """Boot with other limits of time."""
    setting = replace(session.setting, limits=replace(session.setting.limits, **limits))
    replace(session, setting=setting).run([], stdout=io.BytesIO().write, stderr=io.BytesIO().write)


def test_the_command_is_root(in_guest: Boot) -> None:
    result = in_guest("whoami")
    assert (result.returncode, result.stdout) == (0, "root\n"), result.stderr


def test_the_status_and_both_streams_of_the_command_come_back_apart(in_guest: Boot) -> None:
    result = in_guest("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout) == (7, "out\n")
    assert "err\n" in result.stderr


def test_a_command_ended_by_a_signal_has_the_status_of_a_shell(in_guest: Boot) -> None:
    assert in_guest("sh", "-c", "kill -9 $$").returncode == 137


def test_a_command_that_is_not_there_has_status_127(in_guest: Boot) -> None:
    result = in_guest("no-such-command")
    assert result.returncode == 127
    assert "no-such-command: not found" in result.stderr


def test_input_and_large_output_arrive_unharmed(in_guest: Boot) -> None:
    text = "".join(f"line {number}\n" for number in range(300_000))
    result = in_guest("cat", stdin=text)
    assert result.returncode == 0, result.stderr
    assert hashlib.sha256(result.stdout.encode()).digest() == hashlib.sha256(text.encode()).digest()


def test_what_the_command_writes_does_not_reach_the_shared_folder(
    in_guest: Boot, busybox_root: Path
) -> None:
    before = sorted(path.name for path in busybox_root.rglob("*"))
    result = in_guest("sh", "-c", "echo x > /made && cat /made && rm -r /etc && ls /")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("x\n")
    assert "etc" not in result.stdout.split()
    assert sorted(path.name for path in busybox_root.rglob("*")) == before


def test_the_report_is_told_as_json(
    sevkit: Callable[..., subprocess.CompletedProcess[str]], sev_guest: Path
) -> None:
    result = sevkit("boot", sev_guest, "--json", timeout=300)
    assert result.returncode == 0, result.stderr
    [report] = json.loads(result.stdout)["reports"]
    assert report["root_fstype"] == "rootfs"
    assert all(device["access_platform"] for device in report["virtio"])


def test_a_guest_that_powers_off_under_its_command_is_an_error(in_guest: Boot) -> None:
    result = in_guest("sh", "-c", "echo before; poweroff -f")
    assert result.returncode == 1
    assert result.stdout == "before\n"
    assert "the guest powered off when it owed the command's end" in result.stderr


def test_a_kernel_that_panics_is_an_error_with_the_end_of_its_console(
    ready: Callable[[str], Session],
) -> None:
    with pytest.raises(ImageError, match="the guest's kernel panicked") as caught:
        boot_with(ready("rdinit=/no/such/init"))
    assert "Kernel panic - not syncing: " in caught.value.why.splitlines()[0]
    assert "the end of its console:" in caught.value.why
    assert caught.value.log is not None
    assert b"Kernel panic" in caught.value.log.read_bytes()


def test_a_panic_that_waits_for_somebody_is_not_waited_for(
    ready: Callable[[str], Session],
) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match="the guest's kernel panicked"):
        boot_with(ready("rdinit=/no/such/init panic=0"), hello=200)
    assert time.monotonic() - started < 150


def test_a_guest_that_stays_silent_is_an_error(session: Session) -> None:
    assert session.spec.initramfs is not None
    with pytest.raises(ImageError, match="failed to give its greeting within 1 s") as caught:
        boot_with(session, hello=1)
    assert caught.value.log is not None


def test_the_report_comes_soon(session: Session, record_property: Callable[..., None]) -> None:
    outcome = session.run([], stdout=io.BytesIO().write, stderr=io.BytesIO().write)
    record_property("seconds_to_report", round(outcome.seconds_to_report, 2))
    assert outcome.seconds_to_report < session.setting.limits.hello / 2
    assert len(outcome.reports) == 1
