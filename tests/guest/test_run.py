# SPDX-License-Identifier: Apache-2.0
"""`sevkit run` and `sevkit probe` as users type them; a real guest each time."""

import contextlib
import hashlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.boots, pytest.mark.network]

Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def archive(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox as `docker save` writes an image."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox_root, ".")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh", "-c", "echo default"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [{"Config": "c.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]
    path = tmp_path_factory.mktemp("archive") / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("c.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_the_demonstration_of_2018_in_one_command(
    sevkit: Sevkit, sev_guest: Path, archive: Path
) -> None:
    script = "whoami; dmesg | grep -i -e sev -e bounce -e 'IO TLB'"
    result = sevkit(
        "run", sev_guest, f"docker-archive:{archive}", "--", "sh", "-c", script, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("root\n")
    assert "software IO TLB" in result.stdout


def test_a_container_gets_input_variables_limits_and_says_what_happened_as_json(
    sevkit: Sevkit, sev_guest: Path, archive: Path
) -> None:
    script = (
        "cat; echo $FROM $WHO; pwd; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; exit 9"
    )
    flags = ["-i", "-e", "WHO=me", "-w", "/root", "--memory", "64M", "--pids-limit", "7", "--json"]
    result = sevkit(
        "run",
        *flags,
        sev_guest,
        f"docker-archive:{archive}:busybox:latest",
        "--",
        "sh",
        "-c",
        script,
        stdin="given\n",
        timeout=300,
    )
    assert result.returncode == 9, result.stderr
    assert result.stdout.split() == ["given", "image", "me", "/root", str(64 << 20), "7"]
    record = json.loads(result.stderr[result.stderr.index("\n{") :])
    assert (record["exit_status"], record["signal"], record["oom"]) == (9, None, False)
    assert record["cmdline"] == record["qemu"][record["qemu"].index("-append") + 1]
    manifest = json.loads((sev_guest / "manifest.json").read_text())
    assert record["cmdline"].startswith(manifest["cmdline"])
    assert all(device["access_platform"] for device in record["reports"][1]["virtio"])


def test_a_shell_on_a_terminal(sev_guest: Path, busybox_root: Path, tmp_path: Path) -> None:
    """`sevkit run -it` typed at a pseudo-terminal: size, its change, Ctrl-C, and what is left."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    termios.tcsetwinsize(slave, (30, 100))
    before = termios.tcgetattr(slave)
    seen = b""

    def sees(pattern: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 120
        while not (match := re.search(pattern.encode(), seen)):
            assert time.monotonic() < deadline, seen
            assert process.poll() is None or seen, seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(master, 4096)
            time.sleep(0.01)
        seen = seen[match.end() :]

    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sevkit",
        "run",
        "-it",
        sev_guest,
        f"dir:{busybox_root}",
    ]
    process = subprocess.Popen(
        [*command, "--", "sh"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        sees("/ # ")
        os.write(master, b"stty size; echo $TERM\r")
        sees("30 100\r\nxterm")
        termios.tcsetwinsize(slave, (50, 132))
        process.send_signal(28)  # SIGWINCH
        time.sleep(0.3)
        os.write(master, b"stty size\r")
        sees("50 132")
        os.write(master, b"sleep 1000\r")
        sees("sleep 1000\r\n")
        time.sleep(0.3)
        os.write(master, b"\x03")
        sees("/ # ")
        os.write(master, b"exit 5\r")
        assert process.wait(60) == 5
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_a_signal_to_sevkit_reaches_the_container(sev_guest: Path, busybox_root: Path) -> None:
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sevkit",
        "run",
        sev_guest,
        f"dir:{busybox_root}",
    ]
    with subprocess.Popen(
        [*command, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "caught\n"
        assert process.wait(60) == 3


def test_a_call_that_can_not_work_is_refused_before_anything_boots(
    sevkit: Sevkit, sev_guest: Path, archive: Path
) -> None:
    root = f"docker-archive:{archive}"
    for words, cause in (
        ([sev_guest], "ROOTFS is missing"),
        ([sev_guest, "busybox"], "names no root file system"),
        ([sev_guest, f"{root}:other"], "no image called 'other'"),
        ([sev_guest, "docker-archive:/no/such"], "no such file"),
        (["-u", "nobody", sev_guest, root], "no user 'nobody'"),
        (["--memory", "1", sev_guest, root], "'1' is not a size"),
        (["-it", sev_guest, root], "not a terminal"),
    ):
        result = sevkit("run", *words)
        assert result.returncode == 2, result.stderr
        assert cause in result.stderr


def test_the_probe_finds_the_page_where_nothing_is_encrypted(
    sevkit: Sevkit, sev_guest: Path
) -> None:
    result = sevkit("probe", sev_guest, "--accel", "tcg", timeout=300)
    assert result.returncode == 0, result.stderr
    assert "found in plain at 0x" in result.stdout
    assert result.stdout.endswith("this host can read the guest's memory\n")
