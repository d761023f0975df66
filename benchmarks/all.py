# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other; the long one, a whole build, last."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "noop.py",
    "agent_edit.py",
    "initramfs_assembly.py",
    "boot.py",
    "containers.py",
    "firmware.py",
    "sandbox.py",
    "build.py",
)


def main() -> None:
    """Run each and go on after one that can't."""
    failed = [name for name in SCRIPTS if run(name) != 0]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run(name: str) -> int:
    """Run one; its status."""
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, HERE / name], check=False).returncode


if __name__ == "__main__":
    main()
