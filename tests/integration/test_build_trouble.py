# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around a build: disks, neighbours, missing tools. The firmware stage serves,
being real and quick."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_lab import damage, leaked

REPOSITORY = Path(__file__).resolve().parents[2]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]
TARGET = "sev-guest-ovmf:firmware"


@pytest.fixture(scope="module")
def fetched(sevkit: Sevkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the sources of the firmware stage and no results."""
    store = tmp_path_factory.mktemp("fetched") / "store"
    built = sevkit("build", TARGET, "--ci", env={"SEVKIT_STORE": str(store)})
    assert built.returncode == 0, built.stderr
    shutil.rmtree(store / "entries")
    return store


@pytest.fixture
def store(fetched: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(fetched, tmp_path / "store"))


def on_a_disk_of(size: str, store: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Build with the store on a file system of that size, without being root."""
    disk = tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {disk} && cp -r {store}/pins {disk}/ && "
        f"exec {sys.executable} -m sevkit --output {tmp_path}/output build {TARGET} --ci"
    )
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "SEVKIT_STORE": str(disk)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_is_one_clear_error(store: Path, tmp_path: Path) -> None:
    full = on_a_disk_of("5m", store, tmp_path)
    assert full.returncode == 3
    assert "no space left on the disk" in full.stderr
    assert "Traceback" not in full.stderr
    roomy = on_a_disk_of("200m", store, tmp_path)
    assert roomy.returncode == 0, roomy.stderr


def test_missing_tools_are_all_named_at_once(sevkit: Sevkit, store: Path, tmp_path: Path) -> None:
    """On a host where these files are hidden: under each of them lies something not executable."""
    hidden = ["/usr/bin/flex", "/usr/bin/bison", "/usr/bin/strip", "/usr/include/gelf.h"]
    hide = [word for path in hidden[:3] for word in ("--ro-bind", "/dev/null", path)]
    hide += ["--tmpfs", "/usr/include"]
    command = [sys.executable, "-m", "sevkit", "--output", tmp_path / "o", "build", "--ci"]
    result = subprocess.run(
        ["bwrap", "--dev-bind", "/", "/", *hide, *command, "sev-guest"],
        cwd=REPOSITORY,
        env={**os.environ, "SEVKIT_STORE": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    for package in ("flex", "bison", "binutils", "libelf-dev"):
        assert f"(package {package})" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "o" / "sev-guest").exists()
    environment = {"SEVKIT_STORE": str(store)}
    good = sevkit("--output", tmp_path / "o", "build", TARGET, "--ci", env=environment)
    assert good.returncode == 0, good.stderr


def test_a_flipped_byte_in_the_store_is_found_and_the_next_build_mends_it(
    sevkit: Sevkit, store: Path, tmp_path: Path
) -> None:
    environment = {"SEVKIT_STORE": str(store)}
    [deb] = [path for path in (store / "blobs").glob("*/*") if path.stat().st_size > 1 << 20]
    content = bytearray(deb.read_bytes())
    content[len(content) // 2] ^= 1
    deb.chmod(0o644)
    deb.write_bytes(content)
    flipped = sevkit("--output", tmp_path / "o", "build", TARGET, "--ci", env=environment)
    assert flipped.returncode == 1
    assert "damaged" in flipped.stderr
    again = sevkit("--output", tmp_path / "o", "build", TARGET, "--ci", env=environment)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("sandbox", ["bwrap", "none"])
def test_that_steps_are_not_confined_is_said_also_when_there_are_none_to_run(
    sevkit: Sevkit, store: Path, sandbox: str
) -> None:
    environment = {"SEVKIT_STORE": str(store)}
    words = ["build", TARGET, "--ci", f"--sandbox={sandbox}"]
    for outcome in ("built", "up to date", "up to date", "up to date"):
        done = sevkit(*words, env=environment)
        assert done.stdout.startswith(outcome), done.stderr
        assert ("build steps can read this host" in done.stderr) == (sandbox == "none")


def start(store: Path, tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "sevkit", "--output", tmp_path / "o", "build", *words, "--ci"],
        cwd=REPOSITORY,
        env={**os.environ, "SEVKIT_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_builds_of_one_recipe_at_once_both_succeed(store: Path, tmp_path: Path) -> None:
    builds = [start(store, tmp_path, TARGET) for _ in range(2)]
    for process in builds:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert len(list((store / "entries").glob("*/*/content.json"))) == 1


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_half_made(
    sevkit: Sevkit, store: Path, tmp_path: Path, blow: signal.Signals
) -> None:
    environment = {"SEVKIT_STORE": str(store)}
    there = sevkit("fetch", "sev-guest", "--ci", env=environment)
    assert there.returncode == 0, there.stderr
    process = start(store, tmp_path, "sev-guest:kernel", "--offline")
    _wait_for(lambda: list((store / "tmp").glob("*/work")) or process.poll() is not None)
    time.sleep(1)
    process.send_signal(blow)
    _, said = process.communicate(timeout=60)
    if blow is not signal.SIGKILL:
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert list((store / "tmp").iterdir()) == []
    assert not list((store / "entries").glob("*/*"))
    assert [*leaked(tmp_path), *damage(tmp_path)] == []
    good = sevkit("--output", tmp_path / "o", "build", TARGET, "--ci", env=environment)
    assert good.returncode == 0, good.stderr
    assert list((store / "tmp").iterdir()) == []


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
