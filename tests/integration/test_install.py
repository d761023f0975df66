# SPDX-License-Identifier: Apache-2.0
"""sevkit from a wheel, in a folder of its own: what pip and pipx install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels"]
    subprocess.run([*pip, *build, REPOSITORY], check=True)
    [wheel] = (folder / "wheels").glob("sevkit-*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", folder / "site", wheel]
    subprocess.run([*pip, *install], check=True)
    return folder / "site"


def sevkit(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sevkit", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_sevkit_has_its_recipes_fragments_patches_and_agent(
    installed: Path, tmp_path: Path
) -> None:
    where = "import sevkit; print(sevkit.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in found.stdout
    listed = sevkit(installed, tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert "sev-guest " in listed.stdout
    checked = sevkit(installed, tmp_path, "check", "--no-kernel", "sev-guest", "sev-guest-builtin")
    assert checked.returncode == 0, checked.stderr


def test_a_projects_own_recipe_comes_before_the_built_in_one(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipes").mkdir()
    own = 'schema = 1\nextends = "sev-guest"\nname = "mine"\nsummary = "a recipe of my own"\n'
    (tmp_path / "recipes" / "mine.toml").write_text(own)
    listed = sevkit(installed, tmp_path, "list")
    assert "a recipe of my own" in listed.stdout
    assert "sev-guest " in listed.stdout
