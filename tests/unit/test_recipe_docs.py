# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/recipes.md are true: they load, and the error is the one shown."""

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from sevkit.errors import RecipeError
from sevkit.recipe.file import load, schema
from sevkit.recipe.library import Library
from sevkit.recipe.model import SOURCE_KINDS, Recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
EXAMPLES = {
    match[1]: match[0] for match in re.finditer(r"# recipes/(\S+)\.toml\n.*?(?=```)", PAGE, re.S)
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with all examples, and the files that they name."""
    for folder in ("recipes", "kernel-configs"):
        (tmp_path / folder).mkdir()
    for name, text in EXAMPLES.items():
        (tmp_path / "recipes" / f"{name}.toml").write_text(text, encoding="utf-8")
    for name in ("motd", "OVMF.fd"):
        (tmp_path / "recipes" / name).write_text("made up\n")
    (tmp_path / "kernel-configs" / "my-driver.config").write_text("CONFIG_TUN=y\n")
    return tmp_path


def test_every_toml_block_of_the_page_is_an_example_with_a_name() -> None:
    assert PAGE.count("```toml\n") == len(EXAMPLES) >= 5


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"wrong"}))
def test_an_example_loads_and_fits_the_schema(name: str, project: Path) -> None:
    assert load(name, {}, Library.of(project)).name == name
    jsonschema.validate(tomllib.loads(EXAMPLES[name]), schema())


def test_the_example_of_an_error_says_what_the_page_shows(project: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load("wrong", {}, Library.of(project))
    shown = re.search(r"```text\n(.*?)\n```", PAGE, re.S)
    assert shown
    assert str(caught.value).replace(f"{project}/", "") == shown[1]


def test_the_page_names_every_field() -> None:
    everything = tomllib.loads(re.sub(r"(?m)^# (\w+ =)", r"\1", EXAMPLES["everything"]))
    assert set(everything) == {info.alias or key for key, info in Recipe.model_fields.items()}
    for part in ("kernel", "agent", "initramfs", "firmware", "launch"):
        model = Recipe.model_fields[part].annotation
        for key in getattr(model, "model_fields", {}):
            assert key in everything[part], f"{part}.{key}"
    kinds = {kind for source in everything["sources"].values() for kind in source}
    assert kinds >= SOURCE_KINDS.keys()
