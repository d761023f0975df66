# SPDX-License-Identifier: Apache-2.0
"""Who may import whom. A new arrow here is a decision about the architecture.

A part is a module or a folder directly in the package.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "builder"
CRAFTS = {
    "addresses",
    "archive",
    "canonical",
    "command",
    "firmware",
    "kconfig",
    "measure",
    "opening",
    "patches",
    "printable",
    "rootfs",
    "within",
}
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE / "sevkit").with_suffix("").parts[0]


def nodes(tree: ast.AST, *, of_types: bool) -> Iterator[ast.AST]:
    """Every node; without `of_types` none of what is there for type checkers alone."""
    for child in ast.iter_child_nodes(tree):
        typing_alone = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if of_types or not typing_alone:
            yield child
            yield from nodes(child, of_types=of_types)


def parts_imported(path: Path, *, of_types: bool = True) -> set[str]:
    """The parts of the package, other than its own, that a module imports."""
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), of_types=of_types):
        if isinstance(node, ast.ImportFrom) and node.module == "sevkit":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").removeprefix("sevkit.").split(".")[:1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("sevkit.").split(".")[0] for alias in node.names}
    return found & set(map(part_of, MODULES)) - {part_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nobody_imports_the_command_line(path: Path) -> None:
    if name_of(path) != "sevkit.__main__":
        assert "cli" not in parts_imported(path)


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) in CRAFTS], ids=name_of)
def test_a_craft_knows_nothing_of_ours_but_errors_and_other_crafts(path: Path) -> None:
    assert parts_imported(path) <= {"errors", *CRAFTS}


def test_every_craft_is_there() -> None:
    assert set(map(part_of, MODULES)) >= CRAFTS


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "stages"], ids=name_of)
def test_a_stage_knows_nothing_of_store_engine_or_plan(path: Path) -> None:
    assert not parts_imported(path) & {"store", "engine", "project", "plan"}


def test_the_parts_import_each_other_in_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in MODULES:
        arrows.setdefault(part_of(path), set()).update(parts_imported(path, of_types=False))
    assert arrows["engine"] >= {"store", "sandbox"}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(arrows)


def test_only_sources_reach_for_the_network() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if part_of(path) != "sources":
            assert not re.search(r"^\s*import requests", text, re.M), path
            assert "import socket" not in text or part_of(path) == "guest", path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_a_program_s_own_module_prints_or_exits(path: Path) -> None:
    if part_of(path) in ("cli", "__main__", "supervisor"):  # each a program of its own
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_stays_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 550
