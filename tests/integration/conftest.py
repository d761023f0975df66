# SPDX-License-Identifier: Apache-2.0
"""What the tests of the agent share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_host import Agent, Host, serving

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


@pytest.fixture
def agent(agent_check_dir: Path, tmp_path: Path) -> Iterator[Agent]:
    """An agent that has said hello to its owner."""
    with serving(agent_check_dir / "serve", tmp_path) as agent:
        assert agent.owner.event()["event"] == "hello"
        yield agent


@pytest.fixture
def host(agent: Agent) -> Host:
    return agent.owner
