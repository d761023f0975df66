# SPDX-License-Identifier: Apache-2.0
"""docs/ci.md shows a packager the way: its commands, then its debian/rules, are run.

Without --locked, for which tests/integration/test_locked.py compiles a kernel of its own.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, read

from sevkit.image.manifest import load, verify
from sevkit.store.store import default_root

pytestmark = pytest.mark.network


def test_the_rules_of_the_page_make_a_package(sev_guest: Path, tmp_path: Path) -> None:
    [page] = [page for page in PAGES if page.name == "ci.md"]
    rules = re.search(r"```make\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert rules is not None
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / "rules").write_text(rules[1].replace(" --locked", ""))
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "sev-guest").symlink_to(sev_guest.parent)
    here = Path(__file__).name
    [vendor, install, man] = [
        one.line for one in read(page).commands if one.run_by and one.run_by[0].endswith(here)
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}

    def run(*words: str) -> None:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for line in (vendor, install, man):
        run("sh", "-c", line)
    assert "SEVKIT" in (tmp_path / "debian" / "sevkit.1").read_text()
    assert verify(tmp_path / "debian/tmp/usr/share/sevkit/sev-guest/latest") == []

    make = shlex.split("make -f debian/rules override_dh_auto_")
    store = f"SEVKIT_STORE={default_root(os.environ)}"  # where all of it is built
    for step in ("build", "test", "install"):
        run(*make[:-1], f"{make[-1]}{step}", store)
    latest = tmp_path / "debian/sev-guest/usr/share/sevkit/sev-guest/latest"
    assert verify(latest) == []
    assert load(latest).files == load(sev_guest).files
    run(*make[:-1], f"{make[-1]}clean")
    assert not (tmp_path / "debian" / "output").exists()
    assert (latest / "vmlinuz").exists()
