# SPDX-License-Identifier: Apache-2.0
"""The kernel's own Kconfig files: made into a `.config`, and asked about their symbols.

The `.config` is made by the kernel's own configurator. Questions go to `inside.py`, which reads the
Kconfig files in the sandbox; it never decides a value.
"""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevkit.command import Run
from sevkit.errors import BuildError, HostError
from sevkit.kconfig.dotconfig import read_config
from sevkit.kconfig.fragment import Merged
from sevkit.within import file_within, place_within

MAKE_VARIABLES = (
    "ARCH=x86_64",
    "LOCALVERSION=",
    "PAHOLE=not-used",
    "RUSTC=not-used",
    "BINDGEN=not-used",
)
"""What every `make` of the kernel gets. Optional tools are named away, as their mere presence on a
host would change the configuration."""

_ENVIRONMENT = {
    "ARCH": "x86_64",
    "SRCARCH": "x86",
    "SUBARCH": "x86",
    "AR": "ar",
    "BINDGEN": "not-used",
    "CC": "gcc",
    "CLANG_FLAGS": "",
    "LD": "ld",
    "NM": "nm",
    "OBJCOPY": "objcopy",
    "PAHOLE": "not-used",
    "PYTHON3": "python3",
    "RUSTC": "not-used",
    "RUSTC_VERSION_TEXT": "",
}
_REQUEST, _ANSWER = "kconfig-request.json", "kconfig-answer.json"
Facts = Mapping[str, Any]


def version_of(tree: Path) -> str:
    """The version of a kernel tree, as its Makefile says (``6.12.117``).

    Raises `BuildError` when it is no kernel tree.
    """
    try:
        makefile = file_within(tree, "Makefile")
        lines = makefile.read_text(encoding="utf-8", errors="replace").splitlines()[:10]
    except (OSError, BuildError) as error:
        raise BuildError("the kernel's source has no Makefile: it is no kernel tree") from error
    parts = dict(re.findall(r"^([A-Z]+) *= *(\S*)$", "\n".join(lines), re.M))
    if not {"VERSION", "PATCHLEVEL", "SUBLEVEL"} <= parts.keys():
        raise BuildError("the Makefile of the kernel's source names no version")
    extra = parts.get("EXTRAVERSION", "")
    return f"{parts['VERSION']}.{parts['PATCHLEVEL']}.{parts['SUBLEVEL']}{extra}"


def configure(tree: Path, merged: Merged, folder: Path, run: Run) -> Path:
    """Make the `.config` that `merged` gives, everything else off; returns its path.

    `folder` gets `.config` and the configurator: `tree` itself, or another folder that leaves
    `tree` untouched.
    """
    demanded = place_within(folder, "demanded.config")
    demanded.write_text(merged.text, encoding="utf-8")
    command: list[str | Path] = ["make", "-C", tree, *MAKE_VARIABLES]
    if folder != tree:
        command.append(f"O={folder}")
    run([*command, f"KCONFIG_ALLCONFIG={demanded}", "allnoconfig"], cwd=folder, reading=[tree])
    demanded.unlink(missing_ok=True)
    return file_within(folder, ".config")


def take_locked(tree: Path, config: Path, run: Run) -> Path:
    """Make `config` the `.config` of `tree`, and return its path.

    Raises `BuildError` when this tree or this compiler would change a symbol of it.
    """
    shutil.copyfile(config, place_within(tree, ".config"))
    run(["make", "-C", tree, *MAKE_VARIABLES, "olddefconfig"], cwd=tree)
    place = file_within(tree, ".config")
    wanted, found = read_config(config), read_config(place)
    changed = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    if changed:
        lines = [
            f"{name}: {wanted.get(name, 'absent')} → {found.get(name, 'absent')}"
            for name in sorted(changed)[:10]
        ]
        more = [f"and {len(changed) - 10} more"] if len(changed) > 10 else []
        raise BuildError(
            "the locked kernel configuration does not fit this source and compiler",
            why="\n".join([*lines, *more]),
            hint="lock it anew, then see what changed in the configuration beside the recipe",
        )
    return place


@dataclass(frozen=True)
class Model:
    """The Kconfig files of `tree` with the `.config` that they gave; `work` is a scratch folder."""

    tree: Path
    config: Path
    work: Path
    run: Run

    def facts(self, names: Iterable[str]) -> dict[str, Facts | None]:
        """What is known about symbols; None for one that nothing defines. See `inside.py`."""
        answer: dict[str, Facts | None] = self._ask({"facts": sorted(set(names))})["facts"]
        return answer

    def facts_and_names(self, names: Iterable[str]) -> tuple[dict[str, Facts | None], list[str]]:
        """The same, and the names of all defined symbols."""
        answer = self._ask({"facts": sorted(set(names)), "names": True})
        return answer["facts"], answer["names"]

    def values(self) -> dict[str, str]:
        """The values that the model gives: those of `.config`, or the model is wrong."""
        answer: dict[str, str] = self._ask({"values": True})["values"]
        return answer

    def needed(self, merged: Merged) -> dict[str, str]:
        """Symbol → value: what fragments must add to `merged` to arrive at this `.config`."""
        demanded = {name: demand.value for name, demand in merged.demands.items()}
        answer: dict[str, str] = self._ask({"needed": demanded})["needed"]
        return answer

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        spec = importlib.util.find_spec("kconfiglib")
        if spec is None or spec.origin is None:
            raise HostError("the Python package kconfiglib is missing", hint="reinstall sevkit")
        asked, answered = (place_within(self.work, name) for name in (_REQUEST, _ANSWER))
        settings = {"top": "Kconfig", "config": str(self.config)}
        asked.write_text(json.dumps({**settings, **request}), encoding="utf-8")
        script = Path(__file__).with_name("inside.py")
        reading = [self.tree, self.config, script, Path(spec.origin).parent]
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            reading.append(Path(sys.base_prefix))
        version = version_of(self.tree)
        self.run(
            [Path(sys.executable).resolve(), "-I", "-S", script, spec.origin, asked, answered],
            cwd=self.work,
            env={
                **_ENVIRONMENT,
                "srctree": str(self.tree),
                "KERNELVERSION": version,
                "CC_VERSION_TEXT": self._compiler(),
            },
            reading=reading,
        )
        try:
            answer = json.loads(file_within(self.work, _ANSWER).read_bytes())
            if not isinstance(answer, dict) or not ("error" in answer or request.keys() & answer):
                raise ValueError("what they run spoilt the answer")
        except (ValueError, RecursionError) as error:
            raise _unreadable(version, str(error)) from error
        if "error" in answer:
            raise _unreadable(version, str(answer["error"]))
        return answer

    def _compiler(self) -> str:
        text = self.config.read_text(encoding="utf-8", errors="replace")
        match = re.search(r'^CONFIG_CC_VERSION_TEXT="(.*)"$', text, re.M)
        return match[1] if match else ""


def _unreadable(version: str, why: str) -> BuildError:
    return BuildError(f"the Kconfig files of linux {version} can't be read", why=why)
