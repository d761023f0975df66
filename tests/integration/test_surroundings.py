# SPDX-License-Identifier: Apache-2.0
"""Hosts that lack something: user namespaces (docs/reproducible.md)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = "sev-guest-ovmf"
TARGET = f"{RECIPE}:agent"

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


def run(tmp_path: Path, *words: str, namespaces: bool) -> subprocess.CompletedProcess[str]:
    """Run sevkit in a user namespace that allows no other one inside, as many containers do."""
    forbid = "" if namespaces else "echo 0 > /proc/sys/user/max_user_namespaces; "
    sevkit = [sys.executable, "-m", "sevkit", "--output", str(tmp_path / "output")]
    return subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c", forbid + 'exec "$@"', "sh"),
            *(*sevkit, *words),
        ],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_user_namespaces_a_build_needs_to_be_told_and_says_so(tmp_path: Path) -> None:
    build = ("build", TARGET, "--ci", "-B")
    there = run(tmp_path, *build, namespaces=True)
    assert there.returncode == 0, there.stderr
    assert "--sandbox=none" not in there.stderr
    refused = run(tmp_path, *build, namespaces=False)
    assert refused.returncode == 3
    assert "bwrap can't confine a command on this host" in refused.stderr
    assert "--sandbox=none" in refused.stderr
    told = run(tmp_path, *build, "--sandbox=none", namespaces=False)
    assert told.returncode == 0, told.stderr
    assert "build steps can read this host and its network" in told.stderr
    kept = [answer.stdout.split(": ")[-1].strip() for answer in (there, told)]
    assert kept[0] != kept[1]
    agents = [(Path(place) / "agent").read_bytes() for place in kept]
    assert agents[0] == agents[1]


def test_a_lock_is_written_and_held_without_user_namespaces_too(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in ("recipes", "kernel-configs", "patches", "agent"):
        shutil.copytree(REPOSITORY / folder, project / folder)
    here = ("-C", str(project))
    for verb in (("lock", RECIPE), ("kconfig", "why", "SWIOTLB", RECIPE), ("check", RECIPE)):
        refused = run(tmp_path, *here, *verb, namespaces=False)
        assert refused.returncode == 3, refused.stderr
        assert "bwrap can't confine a command on this host" in refused.stderr
        assert "--sandbox=none" in refused.stderr
        told = run(tmp_path, *here, *verb, "--sandbox=none", namespaces=False)
        assert told.returncode == 0, told.stderr
    for sandbox in ("none", "bwrap"):
        planned = ("build", RECIPE, "-n", "--locked", f"--sandbox={sandbox}")
        held = run(tmp_path, *here, *planned, namespaces=False)
        assert held.returncode == 0, held.stderr
    fragment = project / "kernel-configs" / "hardening.config"
    fragment.write_text(fragment.read_text() + "\n")
    moved_on = run(tmp_path, *here, *planned, namespaces=False)
    assert moved_on.returncode == 2
    assert "the kernel configuration is locked for something else" in moved_on.stderr
