# SPDX-License-Identifier: Apache-2.0
"""`sevkit run` and `sevkit probe` as users type them; a real guest each time."""

import contextlib
import gzip
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

from sevkit.errors import ImageError
from sevkit.guest.container import run_container
from sevkit.guest.running import Streams
from sevkit.guest.session import Session
from sevkit.guest.workload import prepare
from sevkit.oci.config import Overrides

pytestmark = [pytest.mark.boots, pytest.mark.network]

REPOSITORY = Path(__file__).resolve().parents[2]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]


def image_parts(root: Path) -> tuple[bytes, bytes]:
    """The configuration and the layer of an image of one folder."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, ".")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh", "-c", "echo default"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    return json.dumps(config).encode(), layer.getvalue()


@pytest.fixture(scope="module")
def archive(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox as `docker save` writes an image."""
    config, layer = image_parts(busybox_root)
    manifest = [{"Config": "c.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]
    path = tmp_path_factory.mktemp("archive") / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("c.json", config),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def layout(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox as an OCI layout, as skopeo writes one."""
    folder = tmp_path_factory.mktemp("layout")
    (folder / "blobs" / "sha256").mkdir(parents=True)

    def blob(data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}"}

    config, layer = image_parts(busybox_root)
    manifest = {"config": blob(config), "layers": [blob(gzip.compress(layer))]}
    entry = {
        **blob(json.dumps(manifest).encode()),
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (folder / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return folder


@pytest.fixture
def documented(
    sev_guest: Path, archive: Path, layout: Path, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a command in a folder that has what docs/containers.md speaks of."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "sev-guest").symlink_to(sev_guest.parent)
    (tmp_path / "busybox.tar").symlink_to(archive)
    (tmp_path / "busybox").symlink_to(layout)

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def commands() -> list[str]:
    text = (REPOSITORY / "docs" / "containers.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    return [line.partition("  #")[0].strip() for line in lines]


SAID = ("root\n", "uid=0(root) gid=0(root)", "found in plain at 0x")


@pytest.mark.parametrize(("command", "said"), list(zip(commands(), SAID, strict=True)), ids=SAID)
def test_a_documented_command_works(
    documented: Callable[[str], subprocess.CompletedProcess[str]], command: str, said: str
) -> None:
    """The demonstration of 2018 is the first of them."""
    result = documented(command)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    if "--json" in command:
        record = json.loads(result.stderr[result.stderr.index("\n{") :])
        assert record["stats"]["memory"]["limit"] in (64 << 20, None)
    if "dmesg" in command:
        assert "virtio: the DMA API for every device, through bounce buffers" in result.stdout


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


def test_a_sealed_guest_runs_what_its_image_says_and_nothing_else(
    sevkit: Sevkit, sev_guest: Path, archive: Path
) -> None:
    place = [sev_guest, f"docker-archive:{archive}"]
    result = sevkit("run", "--sealed", "--json", *place, timeout=300)
    assert (result.returncode, result.stdout) == (0, "default\n"), result.stderr
    record = json.loads(result.stderr[result.stderr.index("\n{") :])
    assert "dm-mod.create=" in record["cmdline"]
    assert record["cmdline"].endswith(" sevkit.sealed")
    assert record["reports"][0]["sealed"] is True
    for more in (["-e", "A=1", *place], [*place, "--", "id"]):
        refused = sevkit("run", "--sealed", *more)
        assert refused.returncode == 2
        assert "the image alone says what runs" in refused.stderr


def test_one_changed_byte_of_a_workload_is_refused_by_the_guest(
    sev_guest: Path, archive: Path, tmp_path: Path
) -> None:
    """The good image runs in the tests above; here a byte of its busybox differs."""
    wishes = Overrides(argv=["cat", "/bin/busybox"])
    with prepare(f"docker-archive:{archive}", wishes) as workload:
        assert workload.image is not None
        data = bytearray(workload.image.read_bytes())
        place = data.index(b"BusyBox is copyrighted")
        data[place] ^= 1
        workload.image.write_bytes(data)
        session = Session.of_image(sev_guest, workload.asked(), cache=tmp_path)
        with pytest.raises(ImageError, match="kernel panicked") as caught:
            run_container(session, Streams(), config=workload.config)
    assert "dm-verity device corrupted" in caught.value.why


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
