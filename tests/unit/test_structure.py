# SPDX-License-Identifier: Apache-2.0
"""Who may import whom. A new arrow here is a decision about the architecture."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "builder"
CRAFTS = {
    "archive",
    "compress",
    "contents",
    "copyright",
    "cpio",
    "elf",
    "firmware_modules",
    "firmware_verifier",
    "hash_table",
    "kconfig",
    "loader",
    "measure",
    "ovmf",
    "patches",
    "printable",
    "within",
}
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "sevkit"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nobody_imports_the_command_line(path: Path) -> None:
    if "cli" not in path.parts and name_of(path) != "sevkit.__main__":
        assert not {name for name in imports(path) if name.startswith("sevkit.cli")}


@pytest.mark.parametrize("craft", sorted(CRAFTS))
def test_a_craft_knows_nothing_of_ours_but_errors_and_other_crafts(craft: str) -> None:
    path = SOURCE / "sevkit" / f"{craft}.py"
    paths = [path] if path.exists() else sorted((SOURCE / "sevkit" / craft).glob("*.py"))
    assert paths
    allowed = {"sevkit.errors", *(f"sevkit.{name}" for name in CRAFTS)}
    for module in paths:
        assert {".".join(name.split(".")[:2]) for name in imports(module)} <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if "stages" in p.parts], ids=name_of)
def test_a_stage_knows_nothing_of_store_engine_or_other_stages(path: Path) -> None:
    forbidden = {"sevkit.store", "sevkit.engine", "sevkit.project", "sevkit.plan"}
    assert not imports(path) & forbidden


def test_only_sources_reach_for_the_network() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if "sources" not in path.parts:
            assert "import requests" not in text, path
            assert "import socket" not in text or "guest" in path.parts, path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if "cli" in path.parts or name_of(path) in ("sevkit.__main__", "sevkit.listeners"):
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
