# SPDX-License-Identifier: Apache-2.0
"""The recipes that sevkit ships, changed in their values: JSON in, TOML for the reader."""

import json
import tomllib
from pathlib import Path
from typing import Any

from sevkit.errors import SevkitError
from sevkit.plan import requests
from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.toolchain import Toolchain

from .files import put

_ROOT = Path(__file__).parents[2]


def seeds() -> list[bytes]:
    """Each shipped recipe, its values as JSON."""
    return [
        json.dumps(tomllib.loads(path.read_text())).encode()
        for path in sorted((_ROOT / "recipes").glob("*.toml"))
    ]


def take(data: bytes, folder: Path) -> None:
    """Load a recipe among those that are shipped, and ask what it wants fetched."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    text = _toml(value) if isinstance(value, dict) else data.decode("utf-8", "replace")
    (folder / "recipes").mkdir(exist_ok=True)
    put(folder / "recipes" / "fuzz.toml", text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load("fuzz", {}, Library((folder, _ROOT)))
    except SevkitError as error:
        str(error).encode()
        raise
    recipe.model_dump_json()
    requests(recipe, Toolchain("trixie"))


def _toml(table: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in table.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return '""' if value is None else json.dumps(value).replace("NaN", "nan")
