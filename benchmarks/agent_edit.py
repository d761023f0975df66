# SPDX-License-Identifier: Apache-2.0
"""From an edited agent to a new image: the time beyond what the C compiler takes for the agent.

Works on a copy of the project. Needs a built sev-guest. Usage: python benchmarks/agent_edit.py
"""

import shutil
import statistics
import tempfile
from pathlib import Path

from measure import REPOSITORY, SEVKIT, seconds

ROUNDS = 5


def main() -> None:
    """Print both times and their difference."""
    with tempfile.TemporaryDirectory(prefix="sevkit-bench-") as name:
        project = Path(name)
        for folder in ("recipes", "kernel-configs", "patches", "agent"):
            shutil.copytree(REPOSITORY / folder, project / folder)
        source = next((project / "agent").rglob("main.c"))
        command = [*SEVKIT, "-C", str(project), "build", "sev-guest"]
        seconds(command)
        whole, compiler = [], []
        for number in range(ROUNDS):
            source.write_text(f"{source.read_text()}\n/* edit {number} {name} */\n")
            whole.append(seconds(command))
            output = project / f"agent-{number}"
            compiler.append(seconds(["make", "-C", project / "agent", f"O={output}"]))
    ours, peer = statistics.median(whole), statistics.median(compiler)
    print(f"agent edit → image {ours:.2f} s, of it the C compiler {peer:.2f} s:", end=" ")
    print(f"{ours - peer:.2f} s beyond (at most 3)")


if __name__ == "__main__":
    main()
