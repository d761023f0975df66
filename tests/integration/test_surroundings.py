# SPDX-License-Identifier: Apache-2.0
"""Hosts that lack something: user namespaces (docs/reproducible.md)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = "sev-guest-ovmf:agent"

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


def build(tmp_path: Path, *words: str, namespaces: bool) -> subprocess.CompletedProcess[str]:
    """Build in a user namespace that allows no other one inside, as many containers do."""
    forbid = "" if namespaces else "echo 0 > /proc/sys/user/max_user_namespaces; "
    sevkit = [sys.executable, "-m", "sevkit", "--output", str(tmp_path / "output")]
    return subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c", forbid + 'exec "$@"', "sh"),
            *(*sevkit, "build", TARGET, "--ci", "-B", *words),
        ],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_user_namespaces_a_build_needs_to_be_told_and_says_so(tmp_path: Path) -> None:
    there = build(tmp_path, namespaces=True)
    assert there.returncode == 0, there.stderr
    assert "--sandbox=none" not in there.stderr
    refused = build(tmp_path, namespaces=False)
    assert refused.returncode == 3
    assert "bwrap can't confine a command on this host" in refused.stderr
    assert "--sandbox=none" in refused.stderr
    told = build(tmp_path, "--sandbox=none", namespaces=False)
    assert told.returncode == 0, told.stderr
    assert "build steps can read this host and its network" in told.stderr
    kept = [run.stdout.split(": ")[-1].strip() for run in (there, told)]
    assert kept[0] != kept[1]
    agents = [(Path(place) / "agent").read_bytes() for place in kept]
    assert agents[0] == agents[1]
