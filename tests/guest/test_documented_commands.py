# SPDX-License-Identifier: Apache-2.0
"""Every command that README.md and docs/ci.md show does what it says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.boots, pytest.mark.network]

REPOSITORY = Path(__file__).resolve().parents[2]
RUN_ELSEWHERE = {"make test": "this is it", "make bench": "figures", "make check": "make test"}


def commands(document: str) -> Iterator[str]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        for line in block.splitlines():
            command = line.partition("  #")[0].strip()
            if command and command not in RUN_ELSEWHERE:
                yield command


@pytest.mark.parametrize("command", [*commands("README.md"), *commands("docs/ci.md")])
def test_a_documented_command_works(command: str, sev_guest: Path) -> None:
    assert re.match(r"(sevkit|make) ", command), f"nobody runs this: {command}"
    place = Path(sys.executable).parent
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
