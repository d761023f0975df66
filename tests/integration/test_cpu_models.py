# SPDX-License-Identifier: Apache-2.0
"""The CPU models whose signatures are measured are those that QEMU starts."""

import json
import shutil
import subprocess

import pytest
from launch_digests import MODELS

QEMU = "qemu-system-x86_64"
CHANNEL = ("-qmp", "stdio")


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU}")
def test_qemu_says_the_same_family_model_and_stepping() -> None:
    commands = [
        {"execute": "qmp_capabilities"},
        *(
            {
                "execute": "query-cpu-model-expansion",
                "id": name,
                "arguments": {"type": "full", "model": {"name": name}},
            }
            for name in MODELS
        ),
        {"execute": "quit"},
    ]
    answers = subprocess.run(
        [QEMU, "-S", "-nodefaults", "-display", "none", "-machine", "none,accel=tcg", *CHANNEL],
        input="\n".join(map(json.dumps, commands)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    found = {}
    for answer in map(json.loads, answers):
        if "id" in answer and "return" in answer:
            props = answer["return"]["model"]["props"]
            found[answer["id"]] = (props["family"], props["model"], props["stepping"])
    assert {"EPYC", "EPYC-Rome", "EPYC-Milan"} <= found.keys()
    assert found == {name: MODELS[name] for name in found}
