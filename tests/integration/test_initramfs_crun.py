# SPDX-License-Identifier: Apache-2.0
"""The default initramfs, from Debian's own packages: the agent, crun, and what they need."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from test_initramfs import Workshop, a_recipe, rows_of

from sevkit.rootfs.contents import why

pytestmark = pytest.mark.network

AGENT = Path(__file__).parents[2] / "agent"


def downloaded(folder: Path, *names: str) -> list[Path]:
    """The packages `names` and all that they depend on, as apt would install them on nothing."""
    command = ["apt-get", "--simulate", "install", "--no-install-recommends"]
    command += ["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1", *names]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    packages = {line.split()[1] for line in listed.splitlines() if line.startswith("Inst ")}
    folder.mkdir()
    folder.chmod(0o777)  # apt downloads as its own user
    subprocess.run(["apt-get", "download", "-q", *sorted(packages)], cwd=folder, check=True)
    return sorted(folder.glob("*.deb"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("crun")
    debs = {
        "initramfs": downloaded(place / "debs", "crun"),
        "agent": downloaded(place / "agent-debs", "libc6-dev"),
    }
    (place / "work").mkdir()
    recipe = a_recipe(
        agent={"path": AGENT, "binary": "sevkit-agent"},
        debs=("crun",),
        binaries=("/usr/bin/crun",),
        level=10,
    )
    return Workshop(place / "work", debs).all(recipe)


def test_agent_crun_and_libraries_fit_in_14_mib(built: Path) -> None:
    facts = json.loads((built / "initramfs.json").read_bytes())
    assert 3 << 20 < facts["archive_size"] <= 14 << 20
    rows = rows_of(built)
    assert {"/init", "/usr/bin/crun"} <= rows.keys()
    assert rows["/usr/bin/crun"]["licence"].startswith("GPL-2.0-or-later")


def test_why_answers_for_every_path(built: Path) -> None:
    contents = json.loads((built / "contents.json").read_bytes())
    for row in contents["paths"]:
        assert why(contents, row["path"])[0].startswith(row["path"])
    chain = why(contents, "/lib/x86_64-linux-gnu/libc.so.6")
    assert any("package  libc6" in line for line in chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot is for root")
def test_crun_runs_with_nothing_but_the_archive(built: Path, tmp_path: Path) -> None:
    command = f"zstd -dc '{built}/initramfs' | cpio --quiet -id"
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    # crun starts itself again from a sealed copy, through /proc
    inside = f"mount -t proc proc '{tmp_path}/proc' && chroot '{tmp_path}' /usr/bin/crun --version"
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", inside], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("crun version")
