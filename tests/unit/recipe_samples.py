# SPDX-License-Identifier: Apache-2.0
"""A folder with recipes of a test's own, and the short way to load them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sevkit.errors import RecipeError
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.recipe.model import Recipe

BASE = """\
schema = 1
name = "base"
version = "1.0.0"

[vars]
series = "6.12"

[sources.linux]
deb = "linux-source-{{ series }}"

[sources.ovmf]
deb = "ovmf"

[kernel]
source = "linux"
configs = ["one", "two"]
cmdline = ["console=ttyS0"]

[agent]
source = "ovmf"
member = "bin/agent"

[initramfs]
max_size = "14 MiB"

[firmware]
source = "ovmf"
"""
"""A whole recipe, right as it is."""

CHILD = 'schema = 1\nextends = "base"\nname = "child"\n'
"""The start of a recipe that extends it; what a test adds begins on line 4."""


class Project:
    """A project folder without anything built in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.built_in = folder / "built-in"
        self.library = Library((folder, self.built_in))
        for name in ("one", "two", "three"):
            self.write(f"kernel-configs/{name}.config", "CONFIG_PCI=y\n")
        self.write("patches/linux-6.12/series", "")
        self.recipe("base", BASE)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def recipe(self, name: str, content: str | bytes) -> Path:
        return self.write(f"recipes/{name}.toml", content)

    def load(self, name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
        return load(name, overrides or {}, self.library)

    def child(self, text: str) -> Recipe:
        """The recipe that extends the base with `text`."""
        self.recipe("child", CHILD + text)
        return self.load("child")

    def refusal(self, text: str) -> str:
        """What is said of the child with `text`, without the folder and without the first line
        when there is more than one problem."""
        with pytest.raises(RecipeError) as caught:
            self.child(text)
        return self.said(caught.value)

    def refused(self, name: str, overrides: Mapping[str, str] | None = None) -> str:
        """What is said of the recipe `name`."""
        with pytest.raises(RecipeError) as caught:
            self.load(name, overrides)
        return self.said(caught.value)

    def said(self, error: RecipeError) -> str:
        assert error.exit_code == 2
        text = error.why if " problems" in error.what else str(error)
        return text.replace(f"{self.folder}/recipes/", "").replace(f"{self.folder}/", "")
