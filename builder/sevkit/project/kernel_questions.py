# SPDX-License-Identifier: Apache-2.0
"""Questions about a recipe's kernel configuration, answered without a build.

Asked of the small tree that the stage `kconfig-tree` keeps, in a scratch folder; nothing here ends
up in an image. The kernel stage asks the same questions again of the whole tree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit import kconfig
from sevkit.sandbox import SandboxRunner
from sevkit.stages.kernel import check_config, merged_config


@dataclass(frozen=True)
class KernelQuestions:
    """A configured tree: what the recipe's fragments make of the kernel's Kconfig files."""

    tree: Path
    config: Path
    merged: kconfig.Merged
    run: SandboxRunner

    @classmethod
    def of(
        cls,
        tree: Path,
        fragments: Mapping[str, Path],
        params: Mapping[str, object],
        run: SandboxRunner,
    ) -> "KernelQuestions":
        """Configure `tree` with `fragments`; the result goes to the runner's work folder."""
        merged = merged_config(params, fragments)
        return cls(tree, kconfig.configure(tree, merged, run.work, run), merged, run)

    def check(self) -> list[str]:
        """The wanted symbols that are absent. Raises `RecipeError` explaining all lost ones."""
        return check_config(self.tree, self.config, self.merged, self.run)

    def why(self, symbol: str) -> str:
        """All about one symbol, for people. Raises `RecipeError` when there is none."""
        return kconfig.why(symbol, self.merged, self._model())

    def edit(self) -> str | None:
        """Let the user edit in menus; what changed as a fragment, None when nothing did."""
        before = self.config.read_bytes()
        make: list[str | Path] = [
            "make",
            "-C",
            self.tree,
            f"O={self.config.parent}",
            *kconfig.MAKE_VARIABLES,
        ]
        self.run.interactively([*make, "menuconfig"], cwd=self.run.work, reading=[self.tree])
        if self.config.read_bytes() == before:
            return None
        needed = self._model().needed(self.merged)
        return kconfig.as_fragment(needed, self.merged, "chosen in menuconfig") if needed else None

    def _model(self) -> kconfig.Model:
        return kconfig.Model(self.tree, self.config, self.run.work, self.run)
