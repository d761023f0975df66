# SPDX-License-Identifier: Apache-2.0
"""What the tests of the agent share."""

import subprocess
from pathlib import Path

import pytest

AGENT_DIR = Path(__file__).parents[2] / "agent"


@pytest.fixture(scope="session")
def agent_check_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make check` has compiled and run the agent's own tests."""
    out = tmp_path_factory.mktemp("agent")
    made = subprocess.run(
        ["make", "-j2", "-C", AGENT_DIR, "check", f"O={out}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return out / "check"
